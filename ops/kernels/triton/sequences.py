"""Attention of whole sequences in Triton, any lengths in one launch, over their caches and prefixes, with their gates.

The algorithm is FlashAttention-2's (arXiv 2307.08691); gates are those of Gated Attention (arXiv 2505.06708).
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from .attention import LOG2_E, more, power, rows_of

if TYPE_CHECKING:
    from torch import Tensor

#: (queries, keys, warps, stages) of a program for sequences, fastest first on an H100
TILES = ((64, 64, 4, 3), (64, 64, 4, 2), (32, 32, 4, 2))


@triton.jit
def _sequences_kernel(
    q, keys, values, pk, pv, gate, y, table, qb, qh, qn, kb, kh, kn, vb, vh, vn, pb, ph, pn, gb, gn, yb, yn, prefix,
    streams, width, scale, each, heads, group, blocks, CAUSAL: tl.constexpr, GATED: tl.constexpr, ROWS: tl.constexpr,
    KEYS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """ROWS queries of a head of a sequence, the last ones first, since they have the most keys."""
    # One dimension: the others of a grid end at 65,535, and a pack may have more sequences and heads.
    block, at = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    sequence, head = at // heads, at % heads
    of = table + sequence * 4
    own, count = tl.load(of).to(tl.int64), tl.load(of + 1)
    begin = (tl.cdiv(count, ROWS) - 1 - block) * ROWS
    if begin < 0:
        return
    cached, past = tl.load(of + 2).to(tl.int64), tl.load(of + 3)
    rows, d = begin + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    inside = (rows[:, None] < count) & (d[None, :] < width)
    queries = tl.load(q + own * qb + head * qh + rows[:, None] * qn + d[None, :], mask=inside, other=0.0)
    top, total = tl.full((ROWS,), float("-inf"), tl.float32), tl.zeros((ROWS,), tl.float32)
    out = tl.zeros((ROWS, BLOCK), tl.float32)
    theirs, every = sequence % streams * pb + head // group * ph, tl.full((ROWS,), prefix, tl.int32)
    for first in range(0, prefix, KEYS):
        top, total, out = more(
            queries, pk + theirs, pv + theirs, pn, pn, first, prefix, top, total, out, scale, width, every, d, True,
            KEYS,
        )  # fmt: skip
    keys += cached * kb + head // group * kh
    values += cached * vb + head // group * vh
    held = past + count
    seen = tl.minimum(past + rows + 1, held) if CAUSAL else tl.zeros((ROWS,), tl.int32) + held
    # What all of these queries see needs no mask.
    whole = (past + begin + 1 if CAUSAL else held) // KEYS * KEYS
    end = tl.minimum(past + begin + ROWS, held) if CAUSAL else held
    for first in range(0, whole, KEYS):
        top, total, out = more(
            queries, keys, values, kn, vn, first, held, top, total, out, scale, width, seen, d, False, KEYS
        )
    for first in range(whole, end, KEYS):
        top, total, out = more(
            queries, keys, values, kn, vn, first, held, top, total, out, scale, width, seen, d, True, KEYS
        )
    out = out / total[:, None]
    if GATED:
        place = head * each + d % each
        g = tl.load(gate + own * gb + rows[:, None] * gn + place[None, :], mask=inside, other=0.0)
        out *= tl.sigmoid(g.to(tl.float32))
    tl.store(y + own * yb + rows[:, None] * yn + head * width + d[None, :], out.to(y.dtype.element_ty), mask=inside)


@cache
def shared_memory(device: torch.device) -> int:
    """Bytes that a program can have on a multiprocessor; in the interpreter so few that tests see several programs."""
    cuda = device.type == "cuda"
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin if cuda else 32 << 10


def gated_attention(q: Tensor, k: Tensor, v: Tensor, gate: Tensor) -> Tensor:
    """See eager.gated_attention: the gates are applied before the result leaves the registers."""
    q, k, v, gate = rows_of(q), rows_of(k), rows_of(v), rows_of(gate)
    batch, heads, length, width = q.shape
    y = torch.empty((batch * length, heads * width), dtype=q.dtype, device=q.device)
    return _sequences(
        q, k, v, gate, y, _equal(batch, length, q.device), length, q.stride()[:3], k.stride()[:3], v.stride()[:3],
        (length * gate.stride(0), gate.stride(0)), (length * y.stride(0), y.stride(0)),
    )  # fmt: skip


@lru_cache(8)
def _equal(batch: int, length: int, device: torch.device) -> Tensor:
    return torch.tensor([[b, length, b, 0] for b in range(batch)], dtype=torch.int32, device=device)


def sequence_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    table: Tensor,
    longest: int,
    *,
    streams: int = 1,
    prefix: tuple[Tensor, Tensor] | None = None,
    gate: Tensor | None = None,
    causal: bool = True,
    scale: float | None = None,
) -> Tensor:
    """Attention of sequences of any length, each over its past, itself and a prefix, in one launch.

    Args:
        q: (R, heads, d), 16-bit, or in the interpreter any dtype; queries of a sequence are `streams` rows apart.
        keys: (S, kv_heads, capacity, d), caches; or (R, kv_heads, d), in which those of a sequence are rows.
        values: like keys.
        table: (n, 4) int32: a sequence's first row of q, its queries, its cache or first row of keys, and the keys
            there before those of the queries.
        longest: most queries of a sequence.
        streams: sequence i has prefix i modulo streams.
        prefix: keys and values that the queries see before their own, each (streams, kv_heads, p, d).
        gate: (R, heads) or (R, heads * d), of which the sigmoid scales the result.
        causal: a query does not see the keys of later ones.
        scale: of the scores, d ** -0.5 by default.

    Returns:
        (R, heads * d) in q's dtype.
    """
    q, keys, values = rows_of(q), rows_of(keys), rows_of(values)
    rows, heads, width = q.shape
    y = torch.empty((rows, heads * width), dtype=q.dtype, device=q.device)
    k_strides, v_strides = (
        t.stride()[:3] if t.dim() == 4 else (t.stride(0), t.stride(1), t.stride(0)) for t in (keys, values)
    )
    gate = gate if gate is None else rows_of(gate)
    ldg = 0 if gate is None else gate.stride(0)
    return _sequences(
        q, keys, values, gate, y, table, longest, (q.stride(0), q.stride(1), streams * q.stride(0)), k_strides,
        v_strides, (ldg, streams * ldg), (y.stride(0), streams * y.stride(0)), streams, prefix, causal, scale,
    )  # fmt: skip


def _sequences(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate: Tensor | None,
    y: Tensor,
    table: Tensor,
    longest: int,
    q_strides: tuple[int, ...],
    k_strides: tuple[int, ...],
    v_strides: tuple[int, ...],
    gate_strides: tuple[int, int],
    y_strides: tuple[int, int],
    streams: int = 1,
    prefix: tuple[Tensor, Tensor] | None = None,
    causal: bool = True,
    scale: float | None = None,
) -> Tensor:
    """Strides: of a sequence, head and query of q; of a cache, head and key, and value; of a sequence and query."""
    width, heads, kv_heads = q.shape[-1], y.shape[1] // q.shape[-1], k.shape[1]
    pk, pv = (q, q) if prefix is None else map(rows_of, prefix)
    if pk.stride() != pv.stride():
        pk, pv = pk.contiguous(), pv.contiguous()
    p_strides = (0, 0, 0) if prefix is None else pk.stride()[:3]
    rows, keys, warps, stages = _tile(q, longest)
    blocks = triton.cdiv(longest, rows)
    _sequences_kernel[(blocks * len(table) * heads,)](
        q, k, v, pk, pv, y if gate is None else gate, y, table, *q_strides, *k_strides, *v_strides, *p_strides,
        *gate_strides, *y_strides, 0 if prefix is None else pk.shape[2], streams, width,
        (scale or width**-0.5) * LOG2_E, 1 if gate is None else gate.shape[1] // heads, heads, heads // kv_heads,
        blocks, causal, gate is not None, rows, keys, power(width), num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return y


def _tile(q: Tensor, longest: int) -> tuple[int, int, int, int]:
    """(queries, keys, warps, stages) of a program for sequences: the largest that fits."""
    width, size = power(q.shape[-1]), q.element_size()
    for rows, keys, warps, stages in TILES:
        fits = (rows + 2 * stages * keys) * width * size <= shared_memory(q.device)
        if fits and rows <= max(longest, 16) and (size == 2 or rows < 64):
            return rows, keys, warps, min(stages, max(2, triton.cdiv(longest, keys)))
    return 16, 16, 4, 2
