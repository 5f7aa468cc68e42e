"""What counts of right and wrong completions say: values, advantages, hits, informative groups."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

RULES = ("guided", "right", "wrong", "random", "likeliest", "given")
#: the paper's; its repository begins with 0.55 and goes on with 0.51
THRESHOLD = 0.5


def advantages(scores: Sequence[float]) -> list[float] | None:
    """(score - mean) / population deviation of each; None where all are equal, so that none says anything."""
    if not scores or len(set(scores)) == 1:
        return None
    mean = sum(scores) / len(scores)
    deviation = math.sqrt(sum((s - mean) ** 2 for s in scores) / len(scores))
    return [(s - mean) / deviation for s in scores]


def informative(value: float, n: int) -> float:
    """Chance that n completions of a state of this value are not all alike."""
    return 1 - value**n - (1 - value) ** n


def informative_of(right: int, wrong: int, n: int) -> float | None:
    """The same from counts, without bias: the share of all choices of n among them that are not all alike."""
    if right + wrong < n or n < 1:
        return None
    return 1 - (math.comb(right, n) + math.comb(wrong, n)) / math.comb(right + wrong, n)


def variance(right: int, wrong: int) -> float | None:
    """n / (n - 1) V (1 - V), None of fewer than two."""
    n = right + wrong
    return right * wrong / (n * (n - 1)) if n > 1 else None


def wanted(rule: str, value: float, threshold: float, solved: float) -> bool | None:
    """Whether the hit is to be a right completion (True), a wrong one (False), or either (None).

    A value of just the threshold is a hard question, whose hit is right; from `solved` on there is none.

    Raises:
        LookupError: `too easy` or `too hard`, as its text: no completion is of the kind that is wanted.
    """
    if value >= min(solved, 1.0):
        raise LookupError("too easy")
    if rule in ("random", "likeliest"):
        return None
    right = value <= threshold if rule == "guided" else rule == "right"
    if right and value == 0:
        raise LookupError("too hard")
    return right


def picked(
    rule: str,
    right: Sequence[bool | None],
    target: bool | None,
    logprobs: Sequence[float | None],
    draw: random.Random,
) -> int | None:
    """Number of the completion that is the hit, None where none can be.

    Args:
        right: of each completion; None for one that counts for nothing.
        target: see `wanted`.
    """
    pool = [n for n, r in enumerate(right) if r is not None and target in (None, r)]
    if not pool:
        return None
    if rule == "likeliest":
        return max(pool, key=lambda n: (logprobs[n] if logprobs[n] is not None else -math.inf, -n))
    return draw.choice(pool)
