"""Hidden states of a packed batch become one vector per sequence, by the model's own modules in their order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.errors import QwenchError
from ..checkpoint.sidecars import read_json
from ..models.modules import SENTENCE, TOKENS, Step
from ..models.nets.packed import runs_of
from ..models.nets.weights import Weights

if TYPE_CHECKING:
    from torch import Tensor

_ACTIVATIONS = "torch.nn.modules.activation."
_IDENTITY = "torch.nn.modules.linear.Identity"


def pool(hidden: Tensor, lengths: list[int], how: str) -> Tensor:
    """Pool a packed batch.

    Args:
        hidden: (T, h).
        lengths: tokens per sequence, special tokens included.
        how: mean, cls, lasttoken, max, mean_sqrt_len_tokens or weightedmean (weight = 1-based position).

    Returns:
        (n, h) float32; zeros for a sequence without tokens.
    """
    import torch

    outs = []
    for run in runs_of(lengths):
        block = hidden[run.start : run.stop].unflatten(0, (run.count, run.length)) if run.length else hidden[:0]
        if not run.length:
            out = hidden.new_zeros(run.count, hidden.shape[-1])
        elif how == "cls":
            out = block[:, 0]
        elif how == "lasttoken":
            out = block[:, -1]
        elif how == "max":
            out = block.amax(1)
        elif how == "weightedmean":
            weights = torch.arange(1, run.length + 1, device=hidden.device, dtype=torch.float32)
            out = (block.float() * weights[:, None]).sum(1) / weights.sum()
        else:
            out = block.float().sum(1) / (run.length if how == "mean" else run.length**0.5)
        outs.append(out.float())
    return torch.cat(outs)


class Chain:
    """The steps after an encoder, each applied in float32 to the feature that it names.

    Args:
        steps: in the order of modules.json.
        width: of the encoder's rows.

    Attributes:
        out_features: width of the vectors.
        last_only: nothing is read but the last token of each sequence.

    Raises:
        QwenchError: a layer that does not fit what comes before it, or an unknown activation.
    """

    def __init__(self, steps: Sequence[Step], width: int, device: str = "cpu") -> None:
        self.steps: list[tuple[Step, Any]] = []
        widths = {TOKENS: width, SENTENCE: width}
        for step in steps:
            width = widths[step.reads]
            if step.kind == "Dense":
                layer: Any = Dense(step.folder, device)
                if layer.in_features != width:
                    raise QwenchError(
                        f"the dense layer takes {layer.in_features} numbers and gets {width}: `{step.folder}`",
                        "download or copy the model again",
                    )
                width = layer.out_features
            elif step.kind == "LayerNorm":
                layer = LayerNorm(step.folder, width, device)
            elif step.kind == "Normalize":
                layer = _normalized
            else:
                layer, width = step.modes, width * len(step.modes)
            widths[step.writes] = width
            self.steps.append((step, layer))
        self.out_features: int = widths[SENTENCE]
        first = steps[0]
        self.last_only = first.modes == ("lasttoken",) and all(s.reads == SENTENCE for s in steps[1:])

    def __call__(self, hidden: Tensor, lengths: list[int]) -> Tensor:
        """(T, h) of sequences of these lengths -> (n, out_features) float32."""
        import torch

        features = {TOKENS: hidden}
        for step, layer in self.steps:
            x = features[step.reads]
            if step.kind == "Pooling":
                found = torch.cat([pool(x, lengths, how) for how in layer], 1)
            else:
                found = layer(x.float())
            features[step.writes] = found
        return features[SENTENCE]

    def after_last(self, x: Tensor) -> Tensor:
        """Like the call, for hidden states of last tokens alone, (n, h)."""
        x = x.float()
        for _, layer in self.steps[1:]:
            x = layer(x)
        return x


class Dense:
    """A linear layer of the sentence-transformers layout: act(W x + b), plus x (or R x) with `use_residual`."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        import torch

        config = _config(folder, "in_features", "out_features")
        self.activation = _activation(config.get("activation_function", _ACTIVATIONS + "Tanh"), folder)
        weights = Weights(folder)
        n_out, n_in = config["out_features"], config["in_features"]
        self.weight = weights.take("linear.weight", torch.float32, (n_out, n_in), device)
        self.bias = weights.take("linear.bias", torch.float32, (n_out,), device) if config.get("bias", True) else None
        self.residual: bool = config.get("use_residual", False)
        self.shortcut: Tensor | None = None
        if self.residual and n_in != n_out:
            self.shortcut = weights.take("residual.weight", torch.float32, (n_out, n_in), device)
        self.in_features: int = n_in
        self.out_features: int = n_out
        weights.close()

    def __call__(self, x: Tensor) -> Tensor:
        from torch.nn.functional import linear

        out = self.activation(linear(x, self.weight, self.bias))
        if not self.residual:
            return out
        return out + (x if self.shortcut is None else linear(x, self.shortcut))


class LayerNorm:
    """The LayerNorm module of sentence-transformers."""

    def __init__(self, folder: Path, width: int, device: str = "cpu") -> None:
        import torch

        weights = Weights(folder)
        size = _config(folder, "dimension")["dimension"]
        if size != width:
            raise QwenchError(f"the layer norm takes {size} numbers and gets {width}: `{folder}`", "copy it again")
        self.weight = weights.take("norm.weight", torch.float32, (size,), device)
        self.bias = weights.take("norm.bias", torch.float32, (size,), device)
        weights.close()

    def __call__(self, x: Tensor) -> Tensor:
        from torch.nn.functional import layer_norm

        return layer_norm(x, self.weight.shape, self.weight, self.bias)


def _normalized(x: Tensor) -> Tensor:
    from torch.nn.functional import normalize

    return normalize(x, dim=-1)


def _config(folder: Path, *needed: str) -> dict[str, Any]:
    config = read_json(folder / "config.json")
    if lacking := [name for name in needed if not isinstance(config.get(name), int)]:
        raise QwenchError(f"config.json lacks a number: `{lacking[0]}`: `{folder}`", "download or copy the model again")
    return config


def _activation(dotted: Any, folder: Path) -> Any:
    """A torch activation without parameters, by its dotted name."""
    import torch

    name = str(dotted)
    kind = torch.nn.Identity if name == _IDENTITY else None
    if name.startswith(_ACTIVATIONS):
        kind = getattr(torch.nn.modules.activation, name.removeprefix(_ACTIVATIONS), None)
    made = None
    if isinstance(kind, type) and issubclass(kind, torch.nn.Module):
        try:
            made = kind()
        except TypeError:  # it takes arguments that the config has no place for
            made = None
    if made is None or list(made.parameters()):
        raise QwenchError(
            f"the dense layer has an activation this program does not know: `{name}` in `{folder}`",
            "activations of torch.nn without parameters are known; a model's own code is never run",
        )
    return made
