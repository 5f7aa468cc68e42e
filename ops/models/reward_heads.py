"""Reward heads: what makes a number of a hidden state, and which checkpoints have one.

Qwen's reward models put `W2 relu(W0 h + b0) + b2` on the final norm's output, their process reward models the same
with two outputs (modeling_qwen2_rm.py); sequence classifiers one row without a bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..base.errors import QwenchError
from .nets.weights import Weights

if TYPE_CHECKING:
    from torch import Tensor, dtype

#: names of an MLP head's tensors, and of a linear one's
MLP = ("score.0.weight", "score.0.bias", "score.2.weight", "score.2.bias")
LINEAR = "score.weight"


@dataclass(frozen=True, slots=True)
class RewardHead:
    """Layers over hidden states, in float32 whatever the model computes in.

    Attributes:
        layers: (weight (out, in), bias (out,) or None); between two of them is a relu.
    """

    layers: tuple[tuple[Tensor, Tensor | None], ...]

    def __call__(self, hidden: Tensor) -> Tensor:
        """hidden (n, H) -> (n, K) in the dtype of the layers."""
        from torch.nn import functional as F

        x = hidden.to(self.layers[0][0].dtype)
        for i, (weight, bias) in enumerate(self.layers):
            x = F.linear(F.relu(x) if i else x, weight, bias)
        return x

    def to(self, device: str) -> RewardHead:
        """The same on a device."""
        return RewardHead(tuple((w.to(device), None if b is None else b.to(device)) for w, b in self.layers))

    def folded(self, mean: Tensor, deviation: Tensor) -> RewardHead:
        """The head of raw features that equals this one of (h - mean) / deviation, (H,) each.

        A row without a bias keeps every difference of two rewards, and not their zero.
        """
        (weight, bias), *rest = self.layers
        scaled = weight / deviation
        return RewardHead(((scaled, None if bias is None else bias - scaled @ mean), *rest))

    @property
    def tensors(self) -> dict[str, Tensor]:
        """By the names of a checkpoint."""
        if len(self.layers) == 1:
            return {LINEAR: self.layers[0][0]}
        return dict(zip(MLP, (t for layer in self.layers for t in layer), strict=True))


def mlp_head(tensors: dict[str, Tensor]) -> RewardHead:
    """The head of MLP's tensors."""
    first, bias, last, shift = (tensors[name].float() for name in MLP)
    return RewardHead(((first, bias), (last, shift)))


def take_mlp(outputs: int) -> Any:
    """A head function of `load_encoder` for an MLP with `outputs` values."""

    def take(weights: Weights, config: dict[str, Any], numbers: dtype, device: str) -> RewardHead:
        import torch

        h = config["hidden_size"]
        inner = weights.height(MLP[0]) or h
        shapes = ((inner, h), (inner,), (outputs, inner), (outputs,))
        found = {n: weights.take(n, torch.float32, s, device) for n, s in zip(MLP, shapes, strict=True)}
        _nothing_else(weights)
        return mlp_head(found)

    return take


def take_linear(weights: Weights, config: dict[str, Any], numbers: dtype, device: str) -> RewardHead:
    """The head function of `load_encoder` for one row without a bias."""
    import torch

    row = weights.take(LINEAR, torch.float32, (1, config["hidden_size"]), device)
    _nothing_else(weights)
    return RewardHead(((row, None),))


def _nothing_else(weights: Weights) -> None:
    """The decoder leaves `score.` tensors aside: none of them may be left that the head has no place for."""
    if left := weights.named("score."):
        raise QwenchError(
            f"the checkpoint has a tensor that its reward head has no place for: `{left[0]}` in `{weights.folder}`",
            "config.json and weights are from different models, or --head names another head",
        )
