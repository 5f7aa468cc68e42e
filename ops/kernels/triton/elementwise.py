"""The kernels in Triton, for CUDA; in Triton's interpreter (TRITON_INTERPRET=1) they run on the CPU, for tests.

Arguments and results are those of eager.py. Sums are in float32, results in the dtype of the inputs. Forward only:
training runs on eager PyTorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from .attention import decode_attention, power, prefix_attention, rows_of
from .sequences import gated_attention, sequence_attention

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["decode_attention", "gated_attention", "prefix_attention", "sequence_attention"]


@triton.jit
def _rms_kernel(x, residual, weight, y, total, ldx, ldr, width, eps, ADD: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < width
    values = tl.load(x + row * ldx + at, mask=inside, other=0.0)
    if ADD:
        other = tl.load(residual + row * ldr + at, mask=inside, other=0.0)
        values = (values.to(tl.float32) + other.to(tl.float32)).to(y.dtype.element_ty)
        tl.store(total + row * width + at, values, mask=inside)
    wide = values.to(tl.float32)
    scaled = wide * (1.0 / tl.sqrt(tl.sum(wide * wide) / width + eps))
    # The weight after the cast, as the models do it.
    out = scaled.to(values.dtype).to(tl.float32) * tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * width + at, out.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _rotate_kernel(
    x, weight, cos, sin, y, ldx, ldh, ldc, heads, width, eps, NORM: tl.constexpr, HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    at = tl.arange(0, BLOCK)
    other = (at + width // 2) % width
    there = at < width
    inside = (head[:, None] < heads) & there[None, :]
    base = x + row * ldx + head[:, None] * ldh
    one = tl.load(base + at[None, :], mask=inside, other=0.0)
    two = tl.load(base + other[None, :], mask=inside, other=0.0)
    kind = y.dtype.element_ty
    if NORM:
        wide = one.to(tl.float32)
        scale = (1.0 / tl.sqrt(tl.sum(wide * wide, 1) / width + eps))[:, None]
        mine = weight + head[:, None] * width
        one_weight = tl.load(mine + at[None, :], mask=inside, other=0.0).to(tl.float32)
        two_weight = tl.load(mine + other[None, :], mask=inside, other=0.0).to(tl.float32)
        one = ((wide * scale).to(kind).to(tl.float32) * one_weight).to(kind)
        two = ((two.to(tl.float32) * scale).to(kind).to(tl.float32) * two_weight).to(kind)
    c = tl.load(cos + row * ldc + at, mask=there, other=0.0).to(tl.float32)
    s = tl.load(sin + row * ldc + at, mask=there, other=0.0).to(tl.float32)
    out = one.to(tl.float32) * c[None, :] + two.to(tl.float32) * s[None, :]
    tl.store(y + (row * heads + head[:, None]) * width + at[None, :], out.to(kind), mask=inside)


@triton.jit
def _keep_kernel(
    qkv, weight, cos, sin, at, q, keys, values, ldx, ldq, kb, kh, kn, heads, kv_heads, width, eps,
    NORM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """As _rotate_kernel for queries and keys, and keys and values go to place at[row] of their row of the caches."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    d = tl.arange(0, BLOCK)
    inside = d < width
    place = tl.load(at + row).to(tl.int64)
    base = qkv + row * ldx + head * width
    value = tl.load(base + d, mask=inside, other=0.0)
    if head >= heads + kv_heads:
        mine = values + row * kb + (head - heads - kv_heads) * kh + place * kn
        tl.store(mine + d, value, mask=inside)
    else:
        other = (d + width // 2) % width
        two = tl.load(base + other, mask=inside, other=0.0)
        if NORM:
            wide = value.to(tl.float32)
            scale = 1.0 / tl.sqrt(tl.sum(wide * wide) / width + eps)
            kind = q.dtype.element_ty
            one_weight = tl.load(weight + head * width + d, mask=inside, other=0.0).to(tl.float32)
            two_weight = tl.load(weight + head * width + other, mask=inside, other=0.0).to(tl.float32)
            value = ((wide * scale).to(kind).to(tl.float32) * one_weight).to(kind)
            two = ((two.to(tl.float32) * scale).to(kind).to(tl.float32) * two_weight).to(kind)
        c = tl.load(cos + place * width + d, mask=inside, other=0.0).to(tl.float32)
        s = tl.load(sin + place * width + d, mask=inside, other=0.0).to(tl.float32)
        out = (value.to(tl.float32) * c + two.to(tl.float32) * s).to(q.dtype.element_ty)
        if head < heads:
            tl.store(q + row * ldq + head * width + d, out, mask=inside)
        else:
            tl.store(keys + row * kb + (head - heads) * kh + place * kn + d, out, mask=inside)


@triton.jit
def _silu_kernel(gate_up, y, ldg, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    gate = tl.load(gate_up + row * ldg + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * ldg + width + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * width + at, (gate * tl.sigmoid(gate) * up).to(y.dtype.element_ty), mask=inside)


@triton.jit
def _gate_kernel(x, gate, y, ldx, ldg, count, width, each, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    # One gate an element (each = width) or a head (each = 1).
    place = at // width * each + at % width % each
    g = tl.load(gate + row * ldg + place, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(x + row * ldx + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * count + at, (value * tl.sigmoid(g)).to(y.dtype.element_ty), mask=inside)


@triton.jit
def _join_kernel(
    hidden, h, w2, b2, y, hp, ht, width, streams, smooth, STREAMS: tl.constexpr, CHUNK: tl.constexpr
):  # fmt: skip
    """z = w2 silu(hidden) + b2, softmax over streams, smoothing, weighted sum of h: one program a token."""
    token = tl.program_id(0).to(tl.int64)
    p, at = tl.arange(0, STREAMS), tl.arange(0, CHUNK)
    z = tl.zeros((STREAMS,), tl.float32)
    for first in range(0, width, CHUNK):
        inside = first + at < width
        x = tl.load(hidden + token * width + first + at, mask=inside, other=0.0).to(tl.float32)
        x = x * tl.sigmoid(x)
        both = (p[:, None] < streams) & inside[None, :]
        w = tl.load(w2 + p[:, None] * width + first + at[None, :], mask=both, other=0.0).to(tl.float32)
        z += tl.sum(w * x[None, :], 1)
    z += tl.load(b2 + p, mask=p < streams, other=0.0).to(tl.float32)
    z = tl.where(p < streams, z, -1e30)
    e = tl.where(p < streams, tl.exp(z - tl.max(z, 0)), 0.0)
    share = tl.where(p < streams, e / tl.sum(e, 0) * (1 - smooth) + smooth / streams, 0.0)
    for first in range(0, width, CHUNK):
        both = (p[:, None] < streams) & (first + at[None, :] < width)
        rows = tl.load(h + p[:, None] * hp + token * ht + first + at[None, :], mask=both, other=0.0)
        total = tl.sum(rows.to(tl.float32) * share[:, None], 0)
        tl.store(y + token * width + first + at, total.to(y.dtype.element_ty), mask=first + at < width)


@triton.jit
def _two_kernel(h, head, y, ldh, width, BLOCK: tl.constexpr):
    row, at = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, width, BLOCK):
        inside = first + at < width
        x = tl.load(h + row * ldh + first + at, mask=inside, other=0.0).to(tl.float32)
        no = tl.load(head + first + at, mask=inside, other=0.0).to(tl.float32)
        yes = tl.load(head + width + first + at, mask=inside, other=0.0).to(tl.float32)
        total += x * (yes - no)
    tl.store(y + row, tl.sum(total, 0).to(y.dtype.element_ty))


def _norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    shape, width = x.shape, x.shape[-1]
    x = rows_of(x.reshape(-1, width))
    other = x if residual is None else rows_of(residual.reshape(-1, width))
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = y if residual is None else torch.empty_like(y)
    _rms_kernel[(len(x),)](
        x, other, weight, y, total, x.stride(0), other.stride(0), width, eps, residual is not None, power(width)
    )
    return y.view(shape), total.view(shape)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See eager.rms_norm; weight (h,)."""
    return _norm(x, None, weight, eps)[0]


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See eager.add_rms_norm."""
    return _norm(x, residual, weight, eps)


def norm_rotate(x: Tensor, weight: Tensor | None, eps: float, cos: Tensor, sin: Tensor) -> Tensor:
    """See eager.norm_rotate."""
    x = rows_of(x)
    rows, heads, width = x.shape
    cos, sin = cos.contiguous(), sin.contiguous()
    y = torch.empty((rows, heads, width), dtype=x.dtype, device=x.device)
    # A head alone is too little for a program.
    each = min(8, power(heads, 1))
    _rotate_kernel[(rows, triton.cdiv(heads, each))](
        x, x if weight is None else weight, cos, sin, y, x.stride(0), x.stride(1), cos.stride(0), heads, width, eps,
        weight is not None, each, power(width),
    )  # fmt: skip
    return y


def rotate_and_keep(
    qkv: Tensor,
    weight: Tensor | None,
    eps: float,
    cos: Tensor,
    sin: Tensor,
    at: Tensor,
    keys: Tensor,
    values: Tensor,
    heads: int,
) -> Tensor:
    """One token a row: norm_rotate of queries and keys, and keys and values into their caches.

    Args:
        qkv: (rows, (heads + 2 kv_heads) * d), elements of a row side by side.
        weight: (heads + kv_heads, d) or None.
        cos, sin: tables of all positions, (capacity, d) contiguous; sin is negative in the first half.
        at: (rows,) int64, the place of each row's token.
        keys, values: (>= rows, kv_heads, capacity, d), the same strides; written into.

    Returns:
        Queries, (rows, heads, d).
    """
    rows, kv_heads, width = len(qkv), keys.shape[1], keys.shape[3]
    q = torch.empty((rows, heads, width), dtype=qkv.dtype, device=qkv.device)
    _keep_kernel[(rows, heads + 2 * kv_heads)](
        qkv, qkv if weight is None else weight, cos, sin, at, q, keys, values, qkv.stride(0), heads * width,
        *keys.stride()[:3], heads, kv_heads, width, eps, weight is not None, power(width),
    )  # fmt: skip
    return q


def silu_mul(gate_up: Tensor) -> Tensor:
    """See eager.silu_mul."""
    gate_up = rows_of(gate_up)
    rows, width = len(gate_up), gate_up.shape[1] // 2
    y = torch.empty((rows, width), dtype=gate_up.dtype, device=gate_up.device)
    block = min(1024, power(width))
    _silu_kernel[(rows, triton.cdiv(width, block))](gate_up, y, gate_up.stride(0), width, block)
    return y


def gated(y: Tensor, gate: Tensor, heads: int) -> Tensor:
    """See eager.gated."""
    y, gate = rows_of(y), rows_of(gate)
    rows, count = y.shape
    out = torch.empty((rows, count), dtype=y.dtype, device=y.device)
    block = min(1024, power(count))
    _gate_kernel[(rows, triton.cdiv(count, block))](
        y, gate, out, y.stride(0), gate.stride(0), count, count // heads, gate.shape[1] // heads, block
    )
    return out


def aggregate(h: Tensor, w0: Tensor, b0: Tensor, w2: Tensor, b2: Tensor, smooth: float) -> Tensor:
    """See parscale.aggregate: a product, then all the rest in one kernel."""
    return join(torch.nn.functional.linear(h.flatten(1), w0, b0), h, w2, b2, smooth)


def join(hidden: Tensor, h: Tensor, w2: Tensor, b2: Tensor, smooth: float) -> Tensor:
    """See parscale.join, in one kernel."""
    hidden, h = hidden.contiguous(), rows_of(h)
    tokens, streams, width = h.shape
    y = torch.empty((tokens, width), dtype=h.dtype, device=h.device)
    _join_kernel[(tokens,)](
        hidden, h, w2.contiguous(), b2, y, h.stride(1), h.stride(0), width, streams, smooth, power(streams, 2),
        min(1024, power(width)),
    )  # fmt: skip
    return y


def two_rows(h: Tensor, head: Tensor) -> Tensor:
    """See eager.two_rows."""
    h, head = rows_of(h), head.contiguous()
    y = torch.empty(len(h), dtype=h.dtype, device=h.device)
    _two_kernel[(len(h),)](h, head, y, h.stride(0), h.shape[1], min(1024, power(h.shape[1])))
    return y
