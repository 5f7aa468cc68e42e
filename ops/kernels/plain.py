"""What a model runs where its kernels have nothing: element-wise steps, block by block of tokens on the CPU.

A step over a whole batch streams megabytes through memory several times; a block of 64 tokens stays in the
cache between the passes. On a GPU the block is the batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 64


def _step(x: Tensor) -> int:
    return BLOCK if x.device.type == "cpu" else max(len(x), 1)


def _normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last dimension, in float32 inside, as Qwen and Llama define it."""
    import torch

    wide = x.float()
    norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    scaled = wide * torch.rsqrt(norm * norm / x.shape[-1] + eps)
    return scaled.mul_(weight) if x.dtype == torch.float32 else scaled.to(x.dtype).mul_(weight)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm (Zhang and Sennrich, arXiv 1910.07467): x (T, h), weight (h,) -> (T, h)."""
    import torch

    step = _step(x)
    if len(x) <= step:
        return _normed(x, weight, eps)
    out = torch.empty_like(x)
    for at in range(0, len(x), step):
        out[at : at + step] = _normed(x[at : at + step], weight, eps)
    return out


def norm_rotate(x: Tensor, weight: Tensor | None, eps: float, cos: Tensor, sin: Tensor) -> Tensor:
    """QK-norm where there is a weight, then rotary positions of the half-split kind.

    Args:
        x: (T, heads, d), queries and keys together.
        weight: (heads, d), None for families without QK-norm.
        cos, sin: (T, 1, d); sin is negative in the first half.

    Returns:
        (T, heads, d), contiguous.
    """
    import torch

    step, half = _step(x), x.shape[-1] // 2
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    for at in range(0, len(x), step):
        y, o = x[at : at + step], out[at : at + step]
        c, s = cos[at : at + step], sin[at : at + step]
        if weight is not None:
            y = _normed(y, weight, eps)
        torch.mul(y, c, out=o)
        o[..., :half].addcmul_(y[..., half:], s[..., :half])
        o[..., half:].addcmul_(y[..., :half], s[..., half:])
    return out


def silu_mul(gate_up: Tensor) -> Tensor:
    """SwiGLU's product: gate_up (T, 2 f) -> silu(gate) * up, (T, f)."""
    import torch
    from torch.nn import functional as F

    step, width = _step(gate_up), gate_up.shape[-1] // 2
    out = torch.empty((len(gate_up), width), dtype=gate_up.dtype, device=gate_up.device)
    for at in range(0, len(gate_up), step):
        gate, up = gate_up[at : at + step].chunk(2, dim=-1)
        torch.mul(F.silu(gate), up, out=out[at : at + step])
    return out


def gated(y: Tensor, gate: Tensor, heads: int) -> Tensor:
    """y (T, heads * d) times sigmoid(gate), gate (T, heads) or (T, heads * d); y is written into where it can be."""
    return y.unflatten(-1, (heads, -1)).mul_(gate.unflatten(-1, (heads, -1)).sigmoid()).flatten(1)
