"""Attention in Triton: single queries over caches and shared prefixes; and what triton_sequences.py shares with it.

Arguments and results are those of eager.py and parscale.py; see triton_kernels.py.
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

LOG2_E = 1.4426950408889634
#: keys that a program of the decode kernel reads at a time
KEYS = 64


@triton.jit
def more(q, keys, values, ldk, ldv, first, count, top, total, out, scale, width, seen, d, EDGE: tl.constexpr,
          KEYS: tl.constexpr):  # fmt: skip
    """KEYS of `count` keys into the running softmax, base 2, of some queries; EDGE: not all are before `seen`, of which
    each query has one, but at least one key of all calls so far is."""
    at = first + tl.arange(0, KEYS)
    inside = (at[:, None] < count) & (d[None, :] < width)
    k = tl.load(keys + at[:, None] * ldk + d[None, :], mask=inside, other=0.0)
    v = tl.load(values + at[:, None] * ldv + d[None, :], mask=inside, other=0.0)
    if WIDEN:
        q, k, v = q.to(tl.float32), k.to(tl.float32), v.to(tl.float32)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    if EDGE:
        scores = tl.where(at[None, :] < seen[:, None], scores, float("-inf"))
    now = tl.maximum(top, tl.max(scores, 1) * scale)
    p = tl.exp2(scores * scale - now[:, None])
    old = tl.exp2(top - now)
    out = tl.dot(p.to(v.dtype), v, out * old[:, None], input_precision="ieee")
    return now, total * old + tl.sum(p, 1), out


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
    top, total = tl.full((ROWS,), float("-inf"), tl.float32), tl.zeros((ROWS,), tl.float32)
    out = tl.zeros((ROWS, BLOCK), tl.float32)
    if split == 0:
        theirs = (row // per_stream % streams * kv_heads + head) * prefix * width
        every = tl.full((ROWS,), prefix, tl.int32)
        for first in range(0, prefix, KEYS):
            top, total, out = more(
                queries, pk + theirs, pv + theirs, width, width, first, prefix, top, total, out, scale, width, every,
                d, True, KEYS,
            )  # fmt: skip
    own, count = row * kb + head * kh, tl.minimum(tl.load(lengths + row).to(tl.int32), (split + 1) * chunk)
    seen = tl.zeros((ROWS,), tl.int32) + count
    for first in range(split * chunk, count, KEYS):
        top, total, out = more(
            queries, keys + own, values + own, kn, kn, first, count, top, total, out, scale, width, seen, d, True, KEYS
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
    top = tl.load(place + width, mask=s < SPLITS, other=float("-inf"))
    total = tl.load(place + width + 1, mask=s < SPLITS, other=0.0)
    weight = tl.exp2(top - tl.max(top, 0))
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
        1 if token_major else rows // streams, streams, prefix, width, (scale or width**-0.5) * LOG2_E, chunk,
        power(heads // kv_heads), KEYS, power(width), splits,
    )  # fmt: skip
    if splits > 1:
        _merge_kernel[(rows * heads,)](parts, y, width, splits, power(splits, 2), power(width))
    return y


def decode_attention(q: Tensor, keys: Tensor, values: Tensor, lengths: list[int]) -> Tensor:
    """See eager.decode_attention."""
    return prefix_attention(q, keys, values, lengths)
