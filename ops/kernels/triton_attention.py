"""Attention in Triton: whole sequences with their output gates, and single queries over caches and shared prefixes.

Arguments and results are those of eager.py; see triton_kernels.py.
"""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from torch import Tensor

#: the interpreter multiplies matrices of bfloat16 wrongly (it holds them as integers): there they are widened
WIDEN = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")

#: keys that a program of the decode kernel reads at a time
KEYS = 64


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
    # Compared this way round, NaN stays NaN.
    p = tl.where(scores <= -1e29, 0.0, tl.exp(scores - now[:, None]))
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
    q, keys, values, lengths, pk, pv, y, parts, kb, kh, kn, kv_heads, group, per_stream, streams, prefix, width, scale,
    chunk, ROWS: tl.constexpr, KEYS: tl.constexpr, BLOCK: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """One query a row: `chunk` of its own keys, and where they are the first ones, the prefix of its stream."""
    row, head, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    g, d = tl.arange(0, ROWS), tl.arange(0, BLOCK)
    inside = (g[:, None] < group) & (d[None, :] < width)
    base = (row * kv_heads * group + head * group + g[:, None]) * width + d[None, :]
    queries = tl.load(q + base, mask=inside, other=0.0)
    top, total = tl.full((ROWS,), -1e30, tl.float32), tl.zeros((ROWS,), tl.float32)
    out = tl.zeros((ROWS, BLOCK), tl.float32)
    seen = tl.full((ROWS,), 2147483647, tl.int32)
    if split == 0:
        theirs = (row // per_stream % streams * kv_heads + head) * prefix * width
        for first in range(0, prefix, KEYS):
            top, total, out = _more(
                queries, pk + theirs, pv + theirs, width, first, prefix, top, total, out, scale, width, seen, ROWS,
                KEYS, BLOCK,
            )  # fmt: skip
    own, count = row * kb + head * kh, tl.minimum(tl.load(lengths + row).to(tl.int32), (split + 1) * chunk)
    for first in range(split * chunk, count, KEYS):
        top, total, out = _more(
            queries, keys + own, values + own, kn, first, count, top, total, out, scale, width, seen, ROWS, KEYS, BLOCK
        )
    if SPLITS == 1:
        tl.store(y + base, (out / total[:, None]).to(y.dtype.element_ty), mask=inside)
    else:
        # (row, head, split, width + 2) float32: the sum, its largest score, and the sum of the weights
        place = ((row * kv_heads * group + head * group + g) * SPLITS + split) * (width + 2)
        tl.store(parts + place[:, None] + d[None, :], out, mask=inside)
        tl.store(parts + place + width, top, mask=g < group)
        tl.store(parts + place + width + 1, total, mask=g < group)


@triton.jit
def _merge_kernel(parts, y, width, SPLITS: tl.constexpr, MOST: tl.constexpr, BLOCK: tl.constexpr):
    """The chunks of one query head, joined by their log-sum-exp."""
    at, s, d = tl.program_id(0).to(tl.int64), tl.arange(0, MOST), tl.arange(0, BLOCK)
    place = parts + (at * SPLITS + s) * (width + 2)
    top = tl.load(place + width, mask=s < SPLITS, other=-1e30)
    total = tl.load(place + width + 1, mask=s < SPLITS, other=0.0)
    weight = tl.exp(top - tl.max(top, 0))
    both = (s[:, None] < SPLITS) & (d[None, :] < width)
    out = tl.sum(tl.load(place[:, None] + d[None, :], mask=both, other=0.0) * weight[:, None], 0)
    tl.store(y + at * width + d, (out / tl.sum(total * weight, 0)).to(y.dtype.element_ty), mask=d < width)


@cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; in the interpreter as many as would cut rows of tests into chunks."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 32


def power(n: int, least: int = 16) -> int:
    return max(least, triton.next_power_of_2(n))


def rows_of(x: Tensor) -> Tensor:
    """x with elements of a row side by side; the row stride may be anything."""
    return x if x.stride(-1) == 1 else x.contiguous()


def gated_attention(q: Tensor, k: Tensor, v: Tensor, gate: Tensor) -> Tensor:
    """See eager.gated_attention: the gates are applied before the result leaves the registers."""
    q, k, v, gate = rows_of(q), rows_of(k), rows_of(v), rows_of(gate)
    if k.stride() != v.stride():
        k, v = k.contiguous(), v.contiguous()
    batch, heads, length, width = q.shape
    y = torch.empty((batch * length, heads * width), dtype=q.dtype, device=q.device)
    rows, keys = (32, 32) if length >= 32 else (16, 16)
    _attention_kernel[(triton.cdiv(length, rows), batch * heads)](
        q, k, v, gate, y, *q.stride()[:3], *k.stride()[:3], gate.stride(0), length, width, width**-0.5,
        gate.shape[1] // heads, heads, heads // k.shape[1], rows, keys, power(width),
    )  # fmt: skip
    return y


def prefix_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: list[int] | Tensor,
    prefix_keys: Tensor | None = None,
    prefix_values: Tensor | None = None,
    scale: float | None = None,
    *,
    token_major: bool = False,
) -> Tensor:
    """See parscale.prefix_attention.

    Long rows are cut into chunks, so that a single sequence keeps all processors at work (flash decoding).

    Args:
        lengths: as int tensor on the device it may change between replays of a graph; rows then may be as long as the
            cache.
        token_major: row t * P + p is stream p of token t.
    """
    q, keys, values = q.contiguous(), rows_of(keys), rows_of(values)
    if keys.stride() != values.stride():
        keys, values = keys.contiguous(), values.contiguous()
    rows, heads, width = q.shape
    kv_heads = keys.shape[1]
    longest = keys.shape[2] if isinstance(lengths, torch.Tensor) else max(lengths)
    ends = lengths if isinstance(lengths, torch.Tensor) else torch.tensor(lengths, dtype=torch.int32, device=q.device)
    pk, pv = (q, q) if prefix_keys is None else (prefix_keys.contiguous(), prefix_values.contiguous())
    streams, prefix = (1, 0) if prefix_keys is None else (len(pk), pk.shape[2])
    y = torch.empty((rows, heads * width), dtype=q.dtype, device=q.device)
    wanted = triton.cdiv(2 * processors(q.device), rows * kv_heads)
    chunk = triton.cdiv(triton.cdiv(longest, wanted), KEYS) * KEYS
    splits = triton.cdiv(longest, chunk)
    parts = y if splits == 1 else torch.empty((rows, heads, splits, width + 2), dtype=torch.float32, device=q.device)
    _decode_kernel[(rows, kv_heads, splits)](
        q, keys, values, ends, pk, pv, y, parts, *keys.stride()[:3], kv_heads, heads // kv_heads,
        1 if token_major else rows // streams, streams, prefix, width, scale or width**-0.5, chunk,
        power(heads // kv_heads), KEYS, power(width), splits,
    )  # fmt: skip
    if splits > 1:
        _merge_kernel[(rows * heads,)](parts, y, width, splits, power(splits, 2), power(width))
    return y


def decode_attention(q: Tensor, keys: Tensor, values: Tensor, lengths: list[int]) -> Tensor:
    """See eager.decode_attention."""
    return prefix_attention(q, keys, values, lengths)
