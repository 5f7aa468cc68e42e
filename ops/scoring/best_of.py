"""The best of n samples out of N: exact over all draws, ties shared."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from itertools import combinations, groupby

import numpy as np

from ..base.stats import pass_at

#: draws that are all looked at; more are sampled
ALL = 10_000


def best_of(rewards: Sequence[float], right: Sequence[float], n: int) -> float:
    """Expected correctness of the answer with the best reward among n drawn without replacement.

    Equal rewards share the place: a group at ranks [i, j) wins with probability (C(N-i, n) - C(N-j, n)) / C(N, n).
    """
    total = len(rewards)
    order = sorted(range(total), key=lambda k: -rewards[k])
    found, at = 0.0, 0
    for _, group in groupby(order, key=lambda k: rewards[k]):
        members = list(group)
        weight = math.comb(total - at, n) - math.comb(total - at - len(members), n)
        found += weight * sum(right[k] for k in members) / len(members)
        at += len(members)
    return found / math.comb(total, n)


def oracle(right: Sequence[float], n: int) -> float:
    """Chance that one of n is right: what a perfect judge would reach."""
    return pass_at(len(right), sum(1 for r in right if r), n)


def majority(answers: Sequence[Hashable], gold: Hashable, n: int, weights: Sequence[float] | None = None,
             seed: int = 0) -> float:  # fmt: skip
    """Expected correctness of the answer with most votes among n; answers that are level share the place.

    Args:
        answers: normalised; None is no answer, and has no vote.
        gold: the right one.
        weights: of every vote, 0 and more; None for 1.
    """
    if weights is not None and min(weights, default=0) < 0:
        raise ValueError("a vote cannot weigh less than nothing")
    shares = []
    for draw in _draws(len(answers), n, seed):
        votes: dict[Hashable, float] = defaultdict(float)
        for k in draw:
            if answers[k] is not None:
                votes[answers[k]] += 1.0 if weights is None else weights[k]
        most = max(votes.values(), default=0)
        first = [a for a, v in votes.items() if math.isclose(v, most, rel_tol=1e-12)]
        shares.append(first.count(gold) / len(first) if first else 0.0)
    return sum(shares) / len(shares)


def exact(total: int, n: int) -> bool:
    """Whether `majority` looks at all draws."""
    return math.comb(total, n) <= ALL


def _draws(total: int, n: int, seed: int) -> Iterator[Sequence[int]]:
    """All subsets of n while these are few, else ALL seeded ones."""
    if exact(total, n):
        yield from combinations(range(total), n)
        return
    random = np.random.default_rng(seed)
    for _ in range(ALL):
        yield random.choice(total, n, replace=False).tolist()
