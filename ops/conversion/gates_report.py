"""Attention sinks and massive activations, measured: the work behind `qwench convert --explain-gates`.

Gated Attention (arXiv 2505.06708, section 4 and figure 3): without gates the first token takes a large share of all
attention and the residual stream has a few huge values; models trained with gates have neither.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.errors import QwenchError
from ..base.events import Events, Finished, Started
from ..models.hub import open_source
from ..models.tokenizer import TextTokenizer
from .stock import stock_model

if TYPE_CHECKING:
    from torch import Tensor


def explain_gates(
    model: str, text: str, plot: str | None = None, revision: str | None = None, offline: bool = False
) -> Events:
    """Measure what a language model does with its first token.

    Finished has a row per layer: `first_token`, the mean over heads and positions after the first of the attention the
    first token gets; `largest`, the largest magnitude in the residual stream after the layer; `gate`, the mean gate
    score of gated attention, None without gates.

    Args:
        model: folder, weight file, hub id or packaged name.
        text: what to read; two tokens at least.
        plot: PNG or SVG file to draw.

    Raises:
        QwenchError: no language model, no tokenizer, a text of one token, matplotlib is missing.
    """
    import torch

    if plot:
        _pyplot()
    source = open_source(model, revision, offline)
    yield Started("read")
    ids = torch.tensor([_ids(source, text)])
    with stock_model(source, Path.cwd()) as stock:
        gates: list[float | None] = [None] * stock.config.num_hidden_layers
        largest = [0.0] * len(gates)
        # Hooks, since transformers' last hidden state comes after the final norm.
        for i, layer in enumerate(stock.model.layers):
            layer.register_forward_hook(_largest_of(largest, i))
            if stock.config.model_type == "qwen3_next":
                layer.self_attn.q_proj.register_forward_hook(_gate_of(gates, i, stock.config.head_dim))
        with torch.no_grad():
            found = stock(ids, output_attentions=True)
    rows = [
        {
            "layer": i,
            "first_token": attention[0, :, 1:, 0].mean().item(),
            "largest": largest[i],
            "gate": gates[i],
        }
        for i, attention in enumerate(found.attentions)
    ]
    if plot:
        _draw(rows, found.attentions, plot)
    yield Finished({"schema": 1, "model": model, "tokens": ids.shape[1], "plot": plot, "layers": rows})


def _ids(source: Any, text: str) -> list[int]:
    from tokenizers import Tokenizer

    if hasattr(source.reader, "sides"):
        data = source.reader.sides().get("tokenizer.json")
        ids = Tokenizer.from_str(data.decode()).encode(text, add_special_tokens=False).ids if data else []
    else:
        ids = TextTokenizer.load(source.folder).ids([text])[0]
    if len(ids) < 2:
        raise QwenchError("the text is one token, and attention to the first needs others", "give a sentence")
    return ids


def _gate_of(gates: list[float | None], layer: int, width: int) -> Any:
    def hook(module: Any, inputs: Any, output: Tensor) -> None:
        gates[layer] = output.unflatten(-1, (-1, 2 * width))[..., width:].sigmoid().mean().item()

    return hook


def _largest_of(largest: list[float], layer: int) -> Any:
    def hook(module: Any, inputs: Any, output: Any) -> None:
        largest[layer] = (output[0] if isinstance(output, tuple) else output).abs().max().item()

    return hook


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise QwenchError("drawing needs matplotlib", 'pip install "qwench[plot]"') from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _draw(rows: list[dict[str, Any]], attentions: Any, file: str) -> None:
    """Left: both figures by layer; right: the attention of the layer with the largest sink."""
    pyplot = _pyplot()
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    layers = [r["layer"] for r in rows]
    left.bar(layers, [r["first_token"] for r in rows], color="#4477aa", label="attention to the first token")
    left.set(xlabel="layer", ylabel="share of attention", ylim=(0, 1), title="First-token attention, by layer")
    other = left.twinx()
    other.plot(layers, [r["largest"] for r in rows], color="#cc6677", marker="o", ms=3)
    other.set_ylabel("largest activation", color="#cc6677")
    other.set_yscale("log")
    most = max(rows, key=lambda r: r["first_token"])["layer"]
    image = right.imshow(attentions[most][0].mean(0).numpy(), cmap="viridis", vmin=0, interpolation="nearest")
    right.set(xlabel="attended token", ylabel="token", title=f"Attention of layer {most}, mean over heads")
    figure.colorbar(image, ax=right, shrink=0.85)
    figure.savefig(file, dpi=150)
    pyplot.close(figure)
