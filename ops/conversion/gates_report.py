"""Attention sinks, massive activations and gate scores, measured by transformers' own model.

Gated Attention (arXiv 2505.06708, section 4 and figure 3): without gates the first token takes a large share of all
attention and the residual stream has a few huge values; models trained with gates have neither.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.errors import QwenchError
from ..base.events import Advanced, Event, Started
from ..checkpoint.reader import Source
from .stock import stock_model

if TYPE_CHECKING:
    from torch import Tensor

#: a gate score below this counts as closed
CLOSED = 0.1


class Account:
    """What the layers of a model did with their first token, and their gates, over all texts.

    Attributes:
        share, pairs: attention to the first token, summed over heads and later positions, and their number.
        largest: largest magnitude in the residual stream after each layer.
        gate, closed, scores: sum of gate scores, how many are below CLOSED, and their number; of gated layers alone.
        worst: (share, attention (n, n) mean over heads, layer) of the text and layer with the largest sink.
    """

    def __init__(self, layers: int) -> None:
        self.share, self.pairs = [0.0] * layers, [0] * layers
        self.largest = [0.0] * layers
        self.gate, self.closed, self.scores = [0.0] * layers, [0] * layers, [0] * layers
        self.worst: tuple[float, Tensor | None, int] = (-1.0, None, 0)

    def watch(self, stock: Any) -> None:
        """Hooks, since transformers' last hidden state comes after the final norm, and gates are in no output."""
        for i, layer in enumerate(stock.model.layers):
            layer.register_forward_hook(self._residual(i))
            if stock.config.model_type == "qwen3_next":
                layer.self_attn.q_proj.register_forward_hook(self._gates(i, stock.config.head_dim))

    def _residual(self, layer: int) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            self.largest[layer] = max(self.largest[layer], hidden.abs().max().item())

        return hook

    def _gates(self, layer: int, width: int) -> Any:
        def hook(module: Any, inputs: Any, output: Tensor) -> None:
            scores = output.unflatten(-1, (-1, 2 * width))[..., width:].sigmoid()
            self.gate[layer] += scores.sum().item()
            self.closed[layer] += int((scores < CLOSED).sum())
            self.scores[layer] += scores.numel()

        return hook

    def read(self, attentions: Sequence[Tensor]) -> None:
        """Take the attention (1, heads, n, n) of every layer over one text."""
        for i, attention in enumerate(attentions):
            first = attention[0, :, 1:, 0]
            self.share[i] += first.sum().item()
            self.pairs[i] += first.numel()
            if (mean := first.mean().item()) > self.worst[0]:
                self.worst = (mean, attention[0].mean(0), i)

    def rows(self) -> list[dict[str, Any]]:
        """One for each layer: layer, first_token, largest, gate and closed (None without gates)."""
        return [
            {
                "layer": i,
                "first_token": self.share[i] / self.pairs[i],
                "largest": self.largest[i],
                "gate": self.gate[i] / n if (n := self.scores[i]) else None,
                "closed": self.closed[i] / n if n else None,
            }
            for i in range(len(self.share))
        ]


def measure_gates(source: Source, texts: Sequence[Sequence[int]], near: Path) -> Iterator[Event]:
    """Run a language model over texts; yields progress, returns the `Account`.

    Args:
        texts: ids of each, two tokens at least.
        near: folder with room for a temporary copy, where the checkpoint is no stock one.

    Raises:
        QwenchError: no language model of transformers.
    """
    import torch

    with stock_model(source, near) as stock:
        account = Account(stock.config.num_hidden_layers)
        account.watch(stock)
        yield Started("read", sum(map(len, texts)), "tokens")
        for ids in texts:
            with torch.no_grad():
                found = stock(torch.tensor([list(ids)]), output_attentions=True)
            if found.attentions is None or any(a is None for a in found.attentions):
                raise QwenchError(f"the model gives no attention weights: `{source.path}`", "measure a softmax decoder")
            account.read(found.attentions)
            yield Advanced("read", len(ids))
    return account


def draw(account: Account, file: Path) -> None:
    """Left: both figures by layer; right: the attention of the layer with the largest sink."""
    from ..base.plots import COLORS, figure

    rows, (_, attention, most) = account.rows(), account.worst
    assert attention is not None
    with figure(file, 1, (11, 4.2), columns=2) as (left, right):
        layers = [r["layer"] for r in rows]
        left.bar(layers, [r["first_token"] for r in rows], color=COLORS[0])
        left.set(xlabel="layer", ylabel="share of attention", ylim=(0, 1), title="First-token attention, by layer")
        other = left.twinx()
        other.plot(layers, [r["largest"] for r in rows], color=COLORS[1], marker="o", ms=3)
        other.set_ylabel("largest activation", color=COLORS[1])
        other.set_yscale("log")
        right.grid(visible=False)
        image = right.imshow(attention.numpy(), cmap="viridis", vmin=0, interpolation="nearest")
        right.set(xlabel="attended token", ylabel="token", title=f"Attention of layer {most}, mean over heads")
        right.figure.colorbar(image, ax=right, shrink=0.85)
