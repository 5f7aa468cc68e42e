"""The C kernels: products of a few rows with a large matrix, bound by reading the matrix, and what lies between them.

torch's product reads a bfloat16 matrix with rounded activations, and a float32 one far below the speed of the memory
once there are two rows or more. These read every weight once for all rows and compute in float32.

All raise TypeError for a tensor that is not float32 on the CPU, and ValueError for shapes that do not go together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .border import floats, library, sizes, strided, threads
from .linear import linear

if TYPE_CHECKING:
    from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See plain.rms_norm: x (T, h) float32, weight (h,)."""
    import torch

    rows, width = sizes("x", x, 2)
    x, weight = floats("x", x, (rows, width)), floats("weight", weight, (width,))
    y = torch.empty_like(x)
    library().qwench_rms_norm(x.data_ptr(), weight.data_ptr(), y.data_ptr(), rows, width, eps, threads())
    return y


def norm_rotate(x: Tensor, weight: Tensor | None, eps: float, cos: Tensor, sin: Tensor) -> Tensor:
    """See plain.norm_rotate: x (T, heads, d) float32 with any row stride, d even."""
    import torch

    rows, heads, width = sizes("x", x, 3)
    if width % 2:
        raise ValueError(f"a head of {width} values has no two halves")
    strided("x", x, (rows, heads, width))
    if x.stride(2) != 1 or x.stride(1) != width:
        x = x.contiguous()
    weight = None if weight is None else floats("weight", weight, (heads, width))
    cos, sin = (floats(name, t, (rows, 1, width)) for name, t in (("cos", cos), ("sin", sin)))
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
        threads(),
    )
    return y


def silu_mul(gate_up: Tensor) -> Tensor:
    """See plain.silu_mul: gate_up (T, 2 f) float32."""
    import torch

    rows, width = sizes("gate_up", gate_up, 2)
    if width % 2:
        raise ValueError(f"`gate_up` has two halves, and rows of {width}")
    gate_up = floats("gate_up", gate_up, (rows, width))
    y = torch.empty((rows, width // 2))
    library().qwench_silu_mul(gate_up.data_ptr(), y.data_ptr(), rows, width // 2, threads())
    return y


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(norm of the sum, the sum): x and residual (T, h) float32."""
    import torch

    rows, width = sizes("x", x, 2)
    x, residual = (floats(name, t, (rows, width)) for name, t in (("x", x), ("residual", residual)))
    weight = floats("weight", weight, (width,))
    y, total = torch.empty_like(x), torch.empty_like(x)
    library().qwench_add_rms_norm(
        x.data_ptr(),
        residual.data_ptr(),
        weight.data_ptr(),
        y.data_ptr(),
        total.data_ptr(),
        rows,
        width,
        eps,
        threads(),
    )
    return y, total


def gated(y: Tensor, gate: Tensor, heads: int) -> Tensor:
    """See plain.gated: y (T, heads * d) float32, gate (T, heads) or (T, heads * d) -> (T, heads * d)."""
    import torch

    rows, width = sizes("y", y, 2)
    if heads < 1 or width % heads:
        raise ValueError(f"rows of {width} are no {heads} heads")
    y = floats("y", y, (rows, width))
    columns = sizes("gate", gate, 2)[1]
    if columns not in (heads, width):
        raise ValueError(f"{heads} heads of {width // heads} have {heads} or {width} gates, not {columns}")
    strided("gate", gate, (rows, columns))
    if gate.stride(1) != 1:
        gate = gate.contiguous()
    out = torch.empty_like(y)
    library().qwench_gate(
        y.data_ptr(),
        gate.data_ptr(),
        gate.stride(0),
        out.data_ptr(),
        rows,
        heads,
        width // heads,
        columns // heads,
        threads(),
    )
    return out


def aggregate(h: Tensor, w0: Tensor, b0: Tensor, w2: Tensor, b2: Tensor, smooth: float) -> Tensor:
    """See parscale.aggregate: w0 in any of the three dtypes, the rest float32."""
    sizes("h", h, 3)
    return join(linear(h.flatten(1), w0, b0), h, w2, b2, smooth)


def join(hidden: Tensor, h: Tensor, w2: Tensor, b2: Tensor, smooth: float) -> Tensor:
    """See parscale.join, in one call and in float32."""
    import torch

    tokens, streams, width = sizes("h", h, 3)
    strided("h", h, (tokens, streams, width))
    if h.stride(2) != 1:
        h = h.contiguous()
    hidden, w2 = floats("hidden", hidden, (tokens, width)), floats("w2", w2, (streams, width))
    b2 = floats("b2", b2, (streams,))
    y, shares = torch.empty_like(hidden), torch.empty(streams)
    library().qwench_join(
        hidden.data_ptr(),
        h.data_ptr(),
        h.stride(1),
        h.stride(0),
        w2.data_ptr(),
        b2.data_ptr(),
        smooth,
        y.data_ptr(),
        shares.data_ptr(),
        tokens,
        streams,
        width,
    )
    return y
