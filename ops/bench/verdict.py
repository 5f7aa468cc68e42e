"""Two sets of samples: is the second slower, and by how much, on a machine that is never still?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from .measure import quantile

#: one-sided chance of the rank test below which a difference counts
CHANCE = 0.01
#: quantiles of the fast end
FAST_END = (0.1, 0.25)

Key = tuple[Any, ...]
Rows = dict[Key, dict[str, Any]]


def rank_chance(old: list[float], new: list[float]) -> float:
    """Chance of ranks like these if `new` were not slower (Mann and Whitney, normal tails, ties averaged)."""
    n, m = len(old), len(new)
    ordered = sorted([(v, 0) for v in old] + [(v, 1) for v in new])
    ranks, ties, at = 0.0, 0.0, 0
    while at < len(ordered):
        end = at
        while end < len(ordered) and ordered[end][0] == ordered[at][0]:
            end += 1
        ranks += sum(who for _, who in ordered[at:end]) * (at + 1 + end) / 2
        ties += (end - at) ** 3 - (end - at)
        at = end
    u, total = ranks - m * (m + 1) / 2, n + m
    spread = n * m / 12 * (total + 1 - ties / max(total * (total - 1), 1))
    if spread <= 0:
        return 1.0
    return 0.5 * math.erfc((u - n * m / 2) / math.sqrt(2 * spread))


@dataclass(frozen=True, slots=True)
class Verdict:
    """`ratio` is new over old, of the quantile that changed less; `drift` what of it the machine explains."""

    slower: bool
    faster: bool
    ratio: float
    drift: float
    chance: float


def judge(old: list[float], new: list[float], threshold: float, drift: float = 1.0) -> Verdict:
    """Compare samples of the same thing.

    Slower means: by more than the threshold beyond the machine's drift at the fast end (what else runs on a machine
    makes the slow end slower, never the fast one faster), and by the ranks of the faster halves with little chance.

    Args:
        threshold: 0.05 for 5 %.
        drift: how much slower the machine itself was, from a computation that has not changed; below 1 counts as 1.
    """
    drift = max(drift, 1.0)
    ratios = [quantile(new, at) / quantile(old, at) for at in FAST_END]
    least, most = min(ratios), max(ratios)
    mine, theirs = _half(old), _half(new)
    chance = rank_chance(mine, [v / drift for v in theirs])
    slower = least / drift > 1 + threshold and chance < CHANCE
    faster = most < 1 - threshold and rank_chance(theirs, mine) < CHANCE
    return Verdict(slower, faster, most if faster else least, drift, chance)


def _half(values: list[float]) -> list[float]:
    return sorted(values)[: max(5, len(values) // 2)]


def drift_of(pairs: list[tuple[list[float], list[float]]]) -> float:
    """How much slower unchanged computations have become, at their fast end; the upper middle of them, 1 at least."""
    ratios = sorted(quantile(new, 0.1) / quantile(old, 0.1) for old, new in pairs)
    return max(1.0, ratios[len(ratios) // 2]) if ratios else 1.0


def key_of(row: dict[str, Any]) -> Key:
    """What makes two rows of two files the same measurement."""
    return tuple(row[n] for n in ("kernel", "provider", "shape", "dtype", "device", "batch", "seq", "streams"))
