"""Every kernel in float64, step by step as its paper or model defines it: what all others are checked against.

Arguments and results are those of eager.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .parscale import aggregate_reference as aggregate
from .parscale import prefix_attention_reference as prefix_attention

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["aggregate", "decode_attention", "prefix_attention"]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight (arXiv 1910.07467)."""
    x = x.double()
    return x / ((x * x).mean(-1, keepdim=True) + eps).sqrt() * weight.double()


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(norm of the sum, the sum)."""
    total = x.double() + residual.double()
    return rms_norm(total, weight, eps), total


def norm_rotate(x: Tensor, weight: Tensor | None, eps: float, cos: Tensor, sin: Tensor) -> Tensor:
    """Norm per head, then each pair (i, i + d/2) turned by its angle; sin is negative in the first half."""
    import torch

    y = x.double() if weight is None else rms_norm(x, weight, eps)
    a, b = y.chunk(2, -1)
    return y * cos.double() + torch.cat((b, a), -1) * sin.double()


def silu_mul(gate_up: Tensor) -> Tensor:
    """gate * sigmoid(gate) * up."""
    gate, up = gate_up.double().chunk(2, -1)
    return gate * gate.sigmoid() * up


def gated(y: Tensor, gate: Tensor, heads: int) -> Tensor:
    """Heads scaled by the sigmoid of their gates (arXiv 2505.06708, G1)."""
    return (y.double().unflatten(-1, (heads, -1)) * gate.double().unflatten(-1, (heads, -1)).sigmoid()).flatten(1)


def gated_attention(q: Tensor, k: Tensor, v: Tensor, gate: Tensor) -> Tensor:
    """Causal softmax attention, one head at a time, then the gates."""
    import torch

    batch, heads, length, width = q.shape
    group = heads // k.shape[1]
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
    out = torch.empty((batch, length, heads, width), dtype=torch.float64)
    for head in range(heads):
        keys, values = k[:, head // group].double(), v[:, head // group].double()
        scores = (q[:, head].double() @ keys.transpose(1, 2) * width**-0.5).masked_fill(hidden.to(q.device), -torch.inf)
        out[:, :, head] = (scores.softmax(-1) @ values).cpu()
    return gated(out.to(q.device).flatten(0, 1).flatten(1), gate, heads)


def decode_attention(q: Tensor, keys: Tensor, values: Tensor, lengths: list[int]) -> Tensor:
    """prefix_attention without a prefix."""
    return prefix_attention(q, keys, values, lengths)


def two_rows(h: Tensor, head: Tensor) -> Tensor:
    """The log-odds of two tokens: logit of row 1 less logit of row 0."""
    logits = h.double() @ head.double().t()
    return logits[:, 1] - logits[:, 0]


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight.T."""
    return x.double() @ weight.double().t()
