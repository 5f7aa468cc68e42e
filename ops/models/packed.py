"""Packed batches: sequences of any length laid end to end, so that no arithmetic is spent on padding.

A packed batch is one int64 vector of token ids of all sequences, shape (T,), and their lengths, shape (n,),
sum(lengths) == T. Linear layers see (T, hidden) matrices; only attention needs to know where a sequence ends.
Sequences sorted by length sit in runs of equal length, and one attention call serves a whole run.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

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
    return torch.cat([torch.arange(n, device=device) for n in lengths])


def attend(q: Tensor, k: Tensor, v: Tensor, runs: list[Run], *, causal: bool, scale: float | None = None) -> Tensor:
    """Attention of every sequence of the pack over itself.

    Args:
        q: (T, heads, head_dim); k, v: (T, kv_heads, head_dim), heads a multiple of kv_heads (GQA).
        runs: where sequences begin and end, covering T.
        causal: lower-triangular mask.
        scale: softmax scale, head_dim ** -0.5 by default.

    Returns:
        (T, heads * head_dim), same dtype as q.
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    grouped = q.shape[1] != k.shape[1]
    outs = []
    for run in runs:
        parts = (t[run.start : run.stop].unflatten(0, (run.count, run.length)).transpose(1, 2) for t in (q, k, v))
        out = scaled_dot_product_attention(*parts, is_causal=causal, scale=scale, enable_gqa=grouped)
        outs.append(out.transpose(1, 2).reshape(run.count * run.length, -1))
    return outs[0] if len(outs) == 1 else torch.cat(outs)
