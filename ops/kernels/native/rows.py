"""The C kernels: products of a few rows with a large matrix, bound by reading the matrix, and what lies between them.

torch's product reads a bfloat16 matrix with rounded activations, and a float32 one far below the speed of the memory
once there are two rows or more. These read every weight once for all rows and compute in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .library import library
from .linear import linear

if TYPE_CHECKING:
    from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See elementwise.rms_norm: x (T, h) float32."""
    import torch

    x = x.contiguous()
    y = torch.empty_like(x)
    width = x.shape[-1]
    rows = x.numel() // width
    library().qwench_rms_norm(x.data_ptr(), weight.data_ptr(), y.data_ptr(), rows, width, eps, torch.get_num_threads())
    return y


def norm_rotate(x: Tensor, weight: Tensor | None, eps: float, cos: Tensor, sin: Tensor) -> Tensor:
    """See elementwise.norm_rotate: x (T, heads, d) float32 with any row stride."""
    import torch

    rows, heads, width = x.shape
    if x.stride(2) != 1 or x.stride(1) != width:
        x = x.contiguous()
    cos, sin = cos.contiguous(), sin.contiguous()
    y = torch.empty((rows, heads, width))
    library().qwench_norm_rotate(
        x.data_ptr(),
        x.stride(0),
        None if weight is None else weight.data_ptr(),
        cos.data_ptr(),
        sin.data_ptr(),
        y.data_ptr(),
        rows,
        heads,
        width,
        eps,
        torch.get_num_threads(),
    )
    return y


def silu_mul(gate_up: Tensor) -> Tensor:
    """See elementwise.silu_mul: gate_up (T, 2 f) float32."""
    import torch

    gate_up = gate_up.contiguous()
    rows, width = gate_up.shape
    y = torch.empty((rows, width // 2))
    library().qwench_silu_mul(gate_up.data_ptr(), y.data_ptr(), rows, width // 2, torch.get_num_threads())
    return y


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(norm of the sum, the sum): x and residual (T, h) float32."""
    import torch

    x, residual = x.contiguous(), residual.contiguous()
    y, total = torch.empty_like(x), torch.empty_like(x)
    library().qwench_add_rms_norm(
        x.data_ptr(),
        residual.data_ptr(),
        weight.data_ptr(),
        y.data_ptr(),
        total.data_ptr(),
        *x.shape,
        eps,
        torch.get_num_threads(),
    )
    return y, total


def gated(y: Tensor, gate: Tensor, heads: int) -> Tensor:
    """See gated.gated: y (T, heads * d) float32, gate (T, heads) or (T, heads * d) -> (T, heads * d)."""
    import torch

    y = y.contiguous()
    if gate.stride(-1) != 1:
        gate = gate.contiguous()
    rows, width = y.shape
    out = torch.empty_like(y)
    library().qwench_gate(
        y.data_ptr(),
        gate.data_ptr(),
        gate.stride(0),
        out.data_ptr(),
        rows,
        heads,
        width // heads,
        gate.shape[1] // heads,
        torch.get_num_threads(),
    )
    return out


def aggregate(h: Tensor, w0: Tensor, b0: Tensor, w2: Tensor, b2: Tensor, smooth: float) -> Tensor:
    """See parscale.aggregate: w0 in any of the three dtypes, the rest float32."""
    return join(linear(h.flatten(1), w0, b0), h, w2, b2, smooth)


def join(hidden: Tensor, h: Tensor, w2: Tensor, b2: Tensor, smooth: float) -> Tensor:
    """See parscale.join, in one call and in float32."""
    import torch

    hidden, w2 = hidden.contiguous(), w2.contiguous()
    if h.stride(2) != 1:
        h = h.contiguous()
    tokens, streams, width = h.shape
    y = torch.empty_like(hidden)
    library().qwench_join(
        hidden.data_ptr(),
        h.data_ptr(),
        h.stride(1),
        h.stride(0),
        w2.data_ptr(),
        b2.data_ptr(),
        smooth,
        y.data_ptr(),
        tokens,
        streams,
        width,
    )
    return y
