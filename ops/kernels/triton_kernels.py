"""The kernels in Triton, for CUDA; in Triton's interpreter (TRITON_INTERPRET=1) they run on the CPU, for tests.

Arguments and results are those of eager.py. Sums are in float32, results in the dtype of the inputs. Forward only:
training runs on eager PyTorch.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from torch import Tensor


#: the interpreter multiplies matrices of bfloat16 wrongly (it holds them as integers): there they are widened
WIDEN = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


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
def _rotate_kernel(x, weight, cos, sin, y, ldx, ldh, ldc, heads, width, eps, NORM: tl.constexpr, BLOCK: tl.constexpr):
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = tl.arange(0, BLOCK)
    inside = at < width
    other = (at + width // 2) % width
    base = x + row * ldx + head * ldh
    one = tl.load(base + at, mask=inside, other=0.0)
    two = tl.load(base + other, mask=inside, other=0.0)
    if NORM:
        wide = one.to(tl.float32)
        scale = 1.0 / tl.sqrt(tl.sum(wide * wide) / width + eps)
        mine = weight + head * width
        kind = y.dtype.element_ty
        one_weight = tl.load(mine + at, mask=inside, other=0.0).to(tl.float32)
        two_weight = tl.load(mine + other, mask=inside, other=0.0).to(tl.float32)
        one = ((wide * scale).to(kind).to(tl.float32) * one_weight).to(kind)
        two = ((two.to(tl.float32) * scale).to(kind).to(tl.float32) * two_weight).to(kind)
    c = tl.load(cos + row * ldc + at, mask=inside, other=0.0).to(tl.float32)
    s = tl.load(sin + row * ldc + at, mask=inside, other=0.0).to(tl.float32)
    out = one.to(tl.float32) * c + two.to(tl.float32) * s
    tl.store(y + (row * heads + head) * width + at, out.to(y.dtype.element_ty), mask=inside)


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
def _more(q, keys, values, ldn, first, count, top, total, out, scale, width, seen, ROWS: tl.constexpr,
          KEYS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """KEYS more keys into the running softmax of ROWS queries; query i sees those before seen[i]."""
    at, d = first + tl.arange(0, KEYS), tl.arange(0, BLOCK)
    inside = (at[:, None] < count) & (d[None, :] < width)
    k = tl.load(keys + at[:, None] * ldn + d[None, :], mask=inside, other=0.0)
    v = tl.load(values + at[:, None] * ldn + d[None, :], mask=inside, other=0.0)
    if WIDEN:
        q, k, v = q.to(tl.float32), k.to(tl.float32), v.to(tl.float32)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    scores = tl.where((at[None, :] < count) & (at[None, :] < seen[:, None]), scores, -1e30)
    now = tl.maximum(top, tl.max(scores, 1))
    p = tl.where(scores > -1e29, tl.exp(scores - now[:, None]), 0.0)
    old = tl.exp(top - now)
    out = out * old[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
    return now, total * old + tl.sum(p, 1), out


@triton.jit
def _attention_kernel(
    q, k, v, gate, y, qb, qh, qs, kb, kh, ks, ldg, length, width, scale, each, heads, group,
    ROWS: tl.constexpr, KEYS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    batch, head = tl.program_id(1).to(tl.int64) // heads, tl.program_id(1) % heads
    rows, d = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    inside = (rows[:, None] < length) & (d[None, :] < width)
    queries = tl.load(q + batch * qb + head * qh + rows[:, None] * qs + d[None, :], mask=inside, other=0.0)
    keys, values = k + batch * kb + head // group * kh, v + batch * kb + head // group * kh
    top, total = tl.full((ROWS,), -1e30, tl.float32), tl.zeros((ROWS,), tl.float32)
    out = tl.zeros((ROWS, BLOCK), tl.float32)
    for first in range(0, tl.minimum((tl.program_id(0) + 1) * ROWS, length), KEYS):
        top, total, out = _more(
            queries, keys, values, ks, first, length, top, total, out, scale, width, rows + 1, ROWS, KEYS, BLOCK
        )
    place = head * each + d % each
    at = gate + (batch * length + rows[:, None]) * ldg + place[None, :]
    g = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    out = out / tl.maximum(total, 1e-30)[:, None] * tl.sigmoid(g)
    where = y + ((batch * length + rows[:, None]) * heads + head) * width + d[None, :]
    tl.store(where, out.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _decode_kernel(
    q, keys, values, lengths, pk, pv, y, kb, kh, kn, kv_heads, group, per_stream, prefix, width, scale,
    ROWS: tl.constexpr, KEYS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    g, d = tl.arange(0, ROWS), tl.arange(0, BLOCK)
    inside = (g[:, None] < group) & (d[None, :] < width)
    base = (row * kv_heads * group + head * group + g[:, None]) * width + d[None, :]
    queries = tl.load(q + base, mask=inside, other=0.0)
    top, total = tl.full((ROWS,), -1e30, tl.float32), tl.zeros((ROWS,), tl.float32)
    out = tl.zeros((ROWS, BLOCK), tl.float32)
    seen = tl.full((ROWS,), 2147483647, tl.int32)
    theirs = (row // per_stream * kv_heads + head) * prefix * width
    for first in range(0, prefix, KEYS):
        top, total, out = _more(
            queries, pk + theirs, pv + theirs, width, first, prefix, top, total, out, scale, width, seen, ROWS, KEYS,
            BLOCK,
        )  # fmt: skip
    own, count = row * kb + head * kh, tl.load(lengths + row)
    for first in range(0, count, KEYS):
        top, total, out = _more(
            queries, keys + own, values + own, kn, first, count, top, total, out, scale, width, seen, ROWS, KEYS, BLOCK
        )
    tl.store(y + base, (out / total[:, None]).to(y.dtype.element_ty), mask=inside)


@triton.jit
def _join_kernel(hidden, h, w2, b2, y, tokens, width, streams, smooth, STREAMS: tl.constexpr, CHUNK: tl.constexpr):
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
        rows = tl.load(h + (p[:, None] * tokens + token) * width + first + at[None, :], mask=both, other=0.0)
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


def _power(n: int, least: int = 16) -> int:
    return max(least, triton.next_power_of_2(n))


def _rows(x: Tensor) -> Tensor:
    """x with elements of a row side by side; the row stride may be anything."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    shape, width = x.shape, x.shape[-1]
    x = _rows(x.reshape(-1, width))
    other = x if residual is None else _rows(residual.reshape(-1, width))
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = y if residual is None else torch.empty_like(y)
    _rms_kernel[(len(x),)](
        x, other, weight, y, total, x.stride(0), other.stride(0), width, eps, residual is not None, _power(width)
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
    x = _rows(x)
    rows, heads, width = x.shape
    cos, sin = cos.contiguous(), sin.contiguous()
    y = torch.empty((rows, heads, width), dtype=x.dtype, device=x.device)
    _rotate_kernel[(rows, heads)](
        x, x if weight is None else weight, cos, sin, y, x.stride(0), x.stride(1), cos.stride(0), heads, width, eps,
        weight is not None, _power(width),
    )  # fmt: skip
    return y


def silu_mul(gate_up: Tensor) -> Tensor:
    """See eager.silu_mul."""
    gate_up = _rows(gate_up)
    rows, width = len(gate_up), gate_up.shape[1] // 2
    y = torch.empty((rows, width), dtype=gate_up.dtype, device=gate_up.device)
    block = min(1024, _power(width))
    _silu_kernel[(rows, triton.cdiv(width, block))](gate_up, y, gate_up.stride(0), width, block)
    return y


def gated(y: Tensor, gate: Tensor, heads: int) -> Tensor:
    """See eager.gated."""
    y, gate = _rows(y), _rows(gate)
    rows, count = y.shape
    out = torch.empty((rows, count), dtype=y.dtype, device=y.device)
    block = min(1024, _power(count))
    _gate_kernel[(rows, triton.cdiv(count, block))](
        y, gate, out, y.stride(0), gate.stride(0), count, count // heads, gate.shape[1] // heads, block
    )
    return out


def gated_attention(q: Tensor, k: Tensor, v: Tensor, gate: Tensor) -> Tensor:
    """See eager.gated_attention: the gates are applied before the result leaves the registers."""
    q, k, v, gate = _rows(q), _rows(k), _rows(v), _rows(gate)
    if k.stride() != v.stride():
        k, v = k.contiguous(), v.contiguous()
    batch, heads, length, width = q.shape
    y = torch.empty((batch * length, heads * width), dtype=q.dtype, device=q.device)
    rows, keys = (32, 32) if length >= 32 else (16, 16)
    _attention_kernel[(triton.cdiv(length, rows), batch * heads)](
        q, k, v, gate, y, *q.stride()[:3], *k.stride()[:3], gate.stride(0), length, width, width**-0.5,
        gate.shape[1] // heads, heads, heads // k.shape[1], rows, keys, _power(width),
    )  # fmt: skip
    return y


def prefix_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: list[int],
    prefix_keys: Tensor | None = None,
    prefix_values: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """See parscale.prefix_attention."""
    q, keys, values = q.contiguous(), _rows(keys), _rows(values)
    if keys.stride() != values.stride():
        keys, values = keys.contiguous(), values.contiguous()
    rows, heads, width = q.shape
    kv_heads = keys.shape[1]
    pk, pv = (q, q) if prefix_keys is None else (prefix_keys.contiguous(), prefix_values.contiguous())
    y = torch.empty((rows, heads * width), dtype=q.dtype, device=q.device)
    ends = torch.tensor(lengths, dtype=torch.int32, device=q.device)
    streams, prefix = (1, 0) if prefix_keys is None else (len(pk), pk.shape[2])
    _decode_kernel[(rows, kv_heads)](
        q, keys, values, ends, pk, pv, y, *keys.stride()[:3], kv_heads, heads // kv_heads, rows // streams, prefix,
        width, scale or width**-0.5, _power(heads // kv_heads), 32, _power(width),
    )  # fmt: skip
    return y


def decode_attention(q: Tensor, keys: Tensor, values: Tensor, lengths: list[int]) -> Tensor:
    """See eager.decode_attention."""
    return prefix_attention(q, keys, values, lengths)


def aggregate(h: Tensor, w0: Tensor, b0: Tensor, w2: Tensor, b2: Tensor, smooth: float) -> Tensor:
    """See parscale.aggregate: P accumulating products, then all the rest in one kernel."""
    h = h.contiguous()
    streams, tokens, width = h.shape
    hidden = torch.addmm(b0, h[0], w0[0].t())
    for stream in range(1, streams):
        hidden.addmm_(h[stream], w0[stream].t())
    y = torch.empty((tokens, width), dtype=h.dtype, device=h.device)
    _join_kernel[(tokens,)](
        hidden, h, w2.contiguous(), b2, y, tokens, width, streams, smooth, _power(streams, 2),
        min(1024, _power(width)),
    )  # fmt: skip
    return y


def two_rows(h: Tensor, head: Tensor) -> Tensor:
    """See eager.two_rows."""
    h, head = _rows(h), head.contiguous()
    y = torch.empty(len(h), dtype=h.dtype, device=h.device)
    _two_kernel[(len(h),)](h, head, y, h.stride(0), h.shape[1], min(1024, _power(h.shape[1])))
    return y
