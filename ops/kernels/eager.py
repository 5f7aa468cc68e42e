"""Every kernel in plain PyTorch, operation by operation: what a model without kernels runs, and the speed-ups' base."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .parscale import aggregate, prefix_attention

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["aggregate", "decode_attention", "prefix_attention"]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (T, h), weight (h,) or (heads, h) -> (T, h); float32 inside, the weight after the cast, as Qwen and Llama."""
    wide = x.float()
    return weight * (wide * (wide.pow(2).mean(-1, keepdim=True) + eps).rsqrt()).to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x, residual (T, h) -> (norm of the sum, the sum)."""
    total = x + residual
    return rms_norm(total, weight, eps), total


def norm_rotate(x: Tensor, weight: Tensor | None, eps: float, cos: Tensor, sin: Tensor) -> Tensor:
    """x (T, heads, d), weight (heads, d) or None, cos and sin (T, 1, d), sin negative in the first half."""
    import torch

    y = x if weight is None else rms_norm(x, weight, eps)
    a, b = y.chunk(2, -1)
    return y * cos + torch.cat((b, a), -1) * sin


def silu_mul(gate_up: Tensor) -> Tensor:
    """gate_up (T, 2 f) -> silu(gate) * up, (T, f)."""
    import torch

    gate, up = gate_up.chunk(2, -1)
    return torch.nn.functional.silu(gate) * up


def gated(y: Tensor, gate: Tensor, heads: int) -> Tensor:
    """y (T, heads * d), gate (T, heads) or (T, heads * d) -> (T, heads * d)."""
    return (y.unflatten(-1, (heads, -1)) * gate.unflatten(-1, (heads, -1)).sigmoid()).flatten(1)


def gated_attention(q: Tensor, k: Tensor, v: Tensor, gate: Tensor) -> Tensor:
    """Causal: q (B, heads, S, d), k and v (B, kv_heads, S, d), gate (B * S, heads [* d]) -> (B * S, heads * d)."""
    import torch

    heads, length, width = q.shape[1:]
    k, v = (t.repeat_interleave(heads // t.shape[1], 1) for t in (k, v))
    hidden = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
    scores = (q @ k.transpose(2, 3) * width**-0.5).masked_fill(hidden, float("-inf"))
    out = scores.float().softmax(-1).to(q.dtype) @ v
    return gated(out.transpose(1, 2).flatten(0, 1).flatten(1), gate, heads)


def decode_attention(q: Tensor, keys: Tensor, values: Tensor, lengths: list[int]) -> Tensor:
    """q (rows, heads, d), keys and values (rows, kv_heads, n, d) -> (rows, heads * d)."""
    return prefix_attention(q, keys, values, lengths)


def two_rows(h: Tensor, head: Tensor) -> Tensor:
    """h (n, hidden), head (2, hidden) -> log-odds (n,) of row 1 against row 0."""
    logits = h @ head.t()
    return logits[:, 1] - logits[:, 0]


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x (rows, in), weight (out, in) -> (rows, out)."""
    import torch

    return torch.nn.functional.linear(x, weight)
