"""Packed batches: sequences of any length laid end to end, so that no arithmetic is spent on padding.

A packed batch is one int64 vector of token ids of all sequences, shape (T,), and their lengths, shape (n,),
sum(lengths) == T. Linear layers see (T, hidden) matrices; only attention needs to know where a sequence ends.
Sequences sorted by length sit in runs of equal length, and one attention call serves a whole run.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING

from ...kernels.choose import EAGER, Kernels

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Run:
    """`count` consecutive sequences of `length` tokens each, starting at token `start` of the pack."""

    start: int
    count: int
    length: int

    @property
    def stop(self) -> int:
        return self.start + self.count * self.length


def runs_of(lengths: list[int]) -> list[Run]:
    """Runs of equal neighbouring lengths, in order."""
    runs, start = [], 0
    for length, group in groupby(lengths):
        count = sum(1 for _ in group)
        runs.append(Run(start, count, length))
        start = runs[-1].stop
    return runs


def positions_of(lengths: list[int], device: object = None) -> Tensor:
    """Position of every token within its own sequence, int64, shape (T,)."""
    import torch

    if len(set(lengths)) == 1:
        return torch.arange(lengths[0], device=device).repeat(len(lengths))
    # Put together on the CPU: on a GPU each sequence would be a launch.
    return torch.cat([torch.arange(n) for n in lengths]).to(device)


@dataclass(frozen=True, slots=True)
class Prefix:
    """Keys and values of tokens that every sequence of a batch begins with, computed once.

    Attributes:
        length: number of tokens, P.
        layers: per layer keys and values, each (P, kv_heads, head_dim), rotary positions applied.
    """

    length: int
    layers: list[tuple[Tensor, Tensor]]


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    runs: list[Run],
    *,
    causal: bool,
    scale: float | None = None,
    prefix: tuple[Tensor, Tensor] | None = None,
    gate: Tensor | None = None,
    kernels: Kernels = EAGER,
) -> Tensor:
    """Attention of every sequence of the pack over itself, and over a prefix that all of them share.

    Args:
        q: (T, heads, head_dim); k, v: (T, kv_heads, head_dim), heads a multiple of kv_heads (GQA).
        runs: where sequences begin and end, covering T.
        causal: lower-triangular mask within a sequence; a prefix is seen by all.
        scale: softmax scale, head_dim ** -0.5 by default.
        prefix: keys and values, each (P, kv_heads, head_dim).
        gate: (T, heads) or (T, heads * head_dim), of which the sigmoid scales the result.
        kernels: of the model.

    Returns:
        (T, heads * head_dim), same dtype as q.
    """
    runs = [run for run in runs if run.length]  # PyTorch's attention ends the process on no tokens beside a prefix
    if not runs:
        return q.flatten(1)
    if fast := kernels.sequence_attention:
        beside = prefix and tuple(t.transpose(0, 1).unsqueeze(0) for t in prefix)
        longest = max(run.length for run in runs)
        table = _table(tuple(runs), q.device)
        return fast(q, k, v, table, longest, prefix=beside, gate=gate, causal=causal, scale=scale)
    if _one_call(q):
        y = _unpadded(q, k, v, runs, causal=causal, last=False, scale=scale, prefix=prefix)
    else:
        parts = [_sequences(run, q, k, v) for run in runs]
        y = _attended(q, parts, causal=causal, scale=scale, prefix=prefix)
    return y if gate is None else kernels.gated(y, gate, q.shape[1])


def attend_last(
    q: Tensor, k: Tensor, v: Tensor, runs: list[Run], *, prefix: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Like `attend` for one query per sequence, its last: q (n, heads, head_dim) -> (n, heads * head_dim)."""
    if _one_call(q):
        return _unpadded(q, k, v, runs, causal=False, last=True, scale=None, prefix=prefix)
    parts, at = [], 0
    for run in runs:
        _, keys, values = _sequences(run, k, k, v)
        parts.append((q[at : at + run.count].unsqueeze(2), keys, values))
        at += run.count
    return _attended(q, parts, causal=False, scale=None, prefix=prefix)


@dataclass(frozen=True, slots=True)
class Group:
    """Sequences that go on from one beginning, which is computed once.

    Attributes:
        head: the beginning's tokens in the pack; empty where the sequences share none.
        tails: runs of what follows it, in the pack.
    """

    head: range
    tails: tuple[Run, ...]

    @property
    def rows(self) -> slice:
        """All tails in the pack."""
        return slice(self.tails[0].start, self.tails[-1].stop)


def attend_groups(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: list[Run],
    groups: list[Group],
    *,
    gate: Tensor | None = None,
    ends: list[int] | None = None,
    kernels: Kernels = EAGER,
) -> Tensor:
    """Causal attention of a pack of beginnings, then tails: a tail sees its beginning and itself.

    Args:
        q, k, v: as in `attend`; heads: runs of the beginnings, at the start of the pack.
        groups: in the order of the pack; those with a beginning first.
        ends: rows of the last token of every tail: only these are computed, with q (n, heads, head_dim) and gate of
            those rows.

    Returns:
        (T, heads * head_dim), or (n, ...) with `ends`.
    """
    import torch

    start = groups[0].tails[0].start
    if _one_call(q):
        y = _grouped(q if ends else q[start:], k, v, groups, last=ends is not None)
        if ends is None and heads:
            y = torch.cat((_unpadded(q[:start], k[:start], v[:start], heads, causal=True, last=False, scale=None,
                                     prefix=None), y))  # fmt: skip
        return y if gate is None else kernels.gated(y, gate, q.shape[1])
    parts, at = [], 0
    if ends is None and heads:
        parts.append(attend(q[:start], k[:start], v[:start], heads, causal=True, kernels=kernels,
                            gate=None if gate is None else gate[:start]))  # fmt: skip
    for group in groups:
        first = group.rows.start
        runs = [Run(run.start - first, run.count, run.length) for run in group.tails]
        own = k[group.rows], v[group.rows]
        prefix = tuple(t[group.head.start : group.head.stop] for t in (k, v)) if group.head else None
        if ends is None:
            inner = None if gate is None else gate[group.rows]
            parts.append(attend(q[group.rows], *own, runs, causal=True, prefix=prefix, gate=inner, kernels=kernels))
        else:
            count = sum(run.count for run in runs)
            y = attend_last(q[at : at + count], *own, runs, prefix=prefix)
            parts.append(y if gate is None else kernels.gated(y, gate[at : at + count], q.shape[1]))
            at += count
    return torch.cat(parts)


def _grouped(q: Tensor, k: Tensor, v: Tensor, groups: list[Group], *, last: bool) -> Tensor:
    """`attend_groups` of the tails in two calls for any number of groups: on their own, and on beginnings."""
    import torch

    flash = torch.ops.aten._flash_attention_forward
    start = groups[0].tails[0].start
    runs = [Run(run.start - start, run.count, run.length) for group in groups for run in group.tails]
    keys, longest = _bounds(tuple(runs), q.device), max(run.length for run in runs)
    queries, most = keys, longest
    if last:
        queries, most = torch.arange(len(q) + 1, dtype=torch.int32, device=q.device), 1
    own, lse, *_ = flash(q, k[start:], v[start:], queries, keys, most, longest, 0.0, not last, False)
    shared = [group for group in groups if group.head]
    if shared:
        each = [sum(r.count * (1 if last else r.length) for r in g.tails) for g in shared]
        lengths = [len(g.head) for g in shared]
        ours, theirs = (_bounds(tuple(runs_of(n)), q.device) for n in (each, lengths))
        size, end = sum(each), sum(lengths)
        beside, beside_lse, *_ = flash(
            q[:size], k[:end], v[:end], ours, theirs, max(each), max(lengths), 0.0, False, False
        )
        mixed = joined(own[:size], lse.t()[:size], beside, beside_lse.t())
        own = torch.cat((mixed, own[size:]))
    return own.flatten(1)


def _sequences(run: Run, *tensors: Tensor) -> list[Tensor]:
    """The run's rows of each (T, heads, d) tensor as (count, heads, length, d)."""
    return [t[run.start : run.stop].unflatten(0, (run.count, run.length)).transpose(1, 2) for t in tensors]


@lru_cache(8)
def _table(runs: tuple[Run, ...], device: object) -> Tensor:
    """Of `triton_sequences.sequence_attention`, keys being rows like those of q."""
    import torch

    rows = [(run.start + i * run.length, run.length) for run in runs for i in range(run.count)]
    return torch.tensor([(at, length, at, 0) for at, length in rows], dtype=torch.int32).to(device)


def _one_call(q: Tensor) -> bool:
    """Whether PyTorch's flash attention (Ampere and later) takes sequences of any length in one call, unpadded."""
    import torch

    if q.device.type != "cuda" or q.dtype not in (torch.float16, torch.bfloat16):
        return False
    return q.shape[-1] % 8 == 0 and q.shape[-1] <= 256 and torch.cuda.get_device_capability(q.device)[0] >= 8


@lru_cache(8)
def _bounds(runs: tuple[Run, ...], device: object) -> Tensor:
    """Where sequences begin, and the last one ends, int32."""
    import torch

    counts, lengths = (torch.tensor([getattr(run, name) for run in runs]) for name in ("count", "length"))
    ends = lengths.repeat_interleave(counts).cumsum(0)
    return torch.cat((torch.zeros(1, dtype=torch.int64), ends)).to(device, torch.int32)


def _unpadded(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    runs: list[Run],
    *,
    causal: bool,
    last: bool,
    scale: float | None,
    prefix: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """One call for all sequences: launching one for each length would take longer than the arithmetic.

    Args:
        last: q has one row a sequence.
    """
    import torch

    flash = torch.ops.aten._flash_attention_forward
    keys, longest = _bounds(tuple(runs), q.device), max(run.length for run in runs)
    queries, most = keys, longest
    if last:
        queries, most = torch.arange(len(q) + 1, dtype=torch.int32, device=q.device), 1
    own, lse, *_ = flash(q, k, v, queries, keys, most, longest, 0.0, causal, False, scale=scale)
    if prefix is None:
        return own.flatten(1)
    # All queries of the pack are one long sequence to the prefix.
    one, theirs = (_bounds((Run(0, 1, n),), q.device) for n in (len(q), len(prefix[0])))
    beside, beside_lse, *_ = flash(q, *prefix, one, theirs, len(q), len(prefix[0]), 0.0, False, False, scale=scale)
    return joined(own, lse.t(), beside, beside_lse.t()).flatten(1)


def _attended(
    q: Tensor,
    parts: list[tuple[Tensor, ...]],
    *,
    causal: bool,
    scale: float | None,
    prefix: tuple[Tensor, Tensor] | None,
) -> Tensor:
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    grouped = parts[0][0].shape[1] != parts[0][1].shape[1]
    if prefix is None:
        outs = [scaled_dot_product_attention(*p, is_causal=causal, scale=scale, enable_gqa=grouped) for p in parts]
    elif q.device.type != "cpu":
        outs = [_beside_prefix(*p, prefix, causal, scale, grouped) for p in parts]
    else:
        return _merged(q, parts, prefix, causal, scale)
    outs = [o.transpose(1, 2).reshape(-1, o.shape[1] * o.shape[3]) for o in outs]
    return outs[0] if len(outs) == 1 else torch.cat(outs)


def _merged(
    q: Tensor, parts: list[tuple[Tensor, ...]], prefix: tuple[Tensor, Tensor], causal: bool, scale: float | None
) -> Tensor:
    """Own and prefix attention apart, joined by their log-sum-exp: the prefix is read in place, never copied."""
    import torch

    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    # All queries of the pack are one long sequence to the prefix.
    pk, pv = (t.transpose(0, 1).unsqueeze(0) for t in prefix)
    theirs, their_lse = flash(q.transpose(0, 1).unsqueeze(0), pk, pv, is_causal=False, scale=scale)
    outs, lses = [], []
    for part in parts:
        out, lse = flash(*part, is_causal=causal, scale=scale)
        outs.append(out.transpose(1, 2).flatten(0, 1))
        lses.append(lse.transpose(1, 2).flatten(0, 1))
    own, own_lse = (x[0] if len(x) == 1 else torch.cat(x) for x in (outs, lses))
    return joined(own, own_lse, theirs[0].transpose(0, 1), their_lse[0].t()).flatten(1)


def joined(a: Tensor, a_lse: Tensor, b: Tensor, b_lse: Tensor) -> Tensor:
    """Attentions over two sets of keys as the one over both: outputs (..., d) and their log-sum-exps (...).

    softmax over both = (e^a o_a + e^b o_b) / (e^a + e^b), a and b the log-sum-exp of each
    (Milakov and Gimelshein, arXiv 1805.02867; hydragen, arXiv 2402.05099, section 3).
    """
    import torch

    return torch.lerp(a, b, torch.sigmoid(b_lse - a_lse).to(a.dtype).unsqueeze(-1))


def _beside_prefix(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix: tuple[Tensor, Tensor],
    causal: bool,
    scale: float | None,
    grouped: bool,
) -> Tensor:
    """One call over prefix and own keys side by side, where no attention gives its log-sum-exp."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    count, _, length, _ = q.shape
    k, v = (
        torch.cat((p.transpose(0, 1).unsqueeze(0).expand(count, -1, -1, -1), t), 2)
        for p, t in zip(prefix, (k, v), strict=True)
    )
    mask = None
    if causal:
        mask = torch.ones(length, k.shape[2], dtype=torch.bool, device=q.device).tril(k.shape[2] - length)
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=grouped)
