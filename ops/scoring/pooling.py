"""Hidden states of a packed batch become one vector per sequence."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..base.errors import QwenchError
from ..checkpoint.sidecars import read_json
from ..models.nets.packed import runs_of
from ..models.nets.weights import Weights

if TYPE_CHECKING:
    from torch import Tensor

ACTIVATIONS = {"Tanh": "tanh", "ReLU": "relu", "GELU": "gelu", "Sigmoid": "sigmoid", "Identity": None}


def pool(hidden: Tensor, lengths: list[int], how: str) -> Tensor:
    """Pool a packed batch.

    Args:
        hidden: (T, h).
        lengths: tokens per sequence, special tokens included.
        how: mean, cls, lasttoken, max, mean_sqrt_len_tokens or weightedmean (weight = 1-based position).

    Returns:
        (n, h) float32.
    """
    import torch

    outs = []
    for run in runs_of(lengths):
        block = hidden[run.start : run.stop].unflatten(0, (run.count, run.length))
        if how == "cls":
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


class Dense:
    """A linear layer of the sentence-transformers layout, applied to pooled vectors in float32."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        import torch

        config = read_json(folder / "config.json")
        name = str(config.get("activation_function", "Tanh")).rsplit(".", 1)[-1]
        if name not in ACTIVATIONS:
            raise QwenchError(f"the dense layer has an unknown activation: `{name}` in `{folder}`")
        self.activation = ACTIVATIONS[name]
        weights = Weights(folder)
        n_out, n_in = config["out_features"], config["in_features"]
        self.weight = weights.take("linear.weight", torch.float32, (n_out, n_in), device)
        self.bias = weights.take("linear.bias", torch.float32, (n_out,), device) if config.get("bias", True) else None
        self.out_features: int = n_out
        weights.close()

    def __call__(self, x: Tensor) -> Tensor:
        import torch

        x = torch.nn.functional.linear(x, self.weight, self.bias)
        if self.activation is None:
            return x
        return torch.nn.functional.gelu(x) if self.activation == "gelu" else getattr(torch, self.activation)(x)
