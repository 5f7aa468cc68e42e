"""What a judge is worth: exact accuracy beside the majority's, error, kappa, and the order inside a question."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from typing import Any

from ..base.stats import wilson
from .verdicts import SCALE

Score = float | None


def quadratic_kappa(scores: Sequence[float], golds: Sequence[float]) -> float | None:
    """Cohen's kappa with squared distances of the scores themselves; None where chance alone would agree wholly."""
    pairs = len(scores) * len(golds)
    if not pairs:
        return None
    expected = sum(a * b * (p - g) ** 2 for p, a in Counter(scores).items() for g, b in Counter(golds).items()) / pairs
    if expected == 0:
        return None
    observed = sum((p - g) ** 2 for p, g in zip(scores, golds, strict=True)) / len(scores)
    return 1 - observed / expected


def agreement(scores: Sequence[Score], golds: Sequence[int]) -> dict[str, Any]:
    """Numbers of a judge with a scale; a row without a score counts as wrong in `accuracy`, and not in the errors.

    Returns:
        n, parsed, coverage; accuracy over all rows with Wilson's interval, and accuracy_parsed; majority: of always
        giving the commonest label; error: mean |p - g|; kappa; confusion: label -> score or "none" -> rows.
    """
    both = [(p, g) for p, g in zip(scores, golds, strict=True) if p is not None]
    n, parsed, right = len(golds), len(both), sum(p == g for p, g in both)
    confusion = {str(g): Counter[str]() for g in SCALE if g in golds}
    for p, g in zip(scores, golds, strict=True):
        confusion[str(g)]["none" if p is None else f"{p:g}"] += 1
    return {
        "n": n,
        "parsed": parsed,
        "coverage": parsed / n if n else None,
        "accuracy": right / n if n else None,
        "accuracy_interval": wilson(right, n),
        "accuracy_parsed": right / parsed if parsed else None,
        "majority": max(Counter(golds).values()) / n if n else None,
        "error": sum(abs(p - g) for p, g in both) / parsed if parsed else None,
        "kappa": quadratic_kappa([p for p, _ in both], [g for _, g in both]),
        "confusion": {g: dict(found) for g, found in confusion.items()},
    }


def ranking(scores: Sequence[Score], golds: Sequence[int], questions: Sequence[Hashable]) -> dict[str, Any]:
    """Share of pairs of answers to one question, with different labels, that are ordered rightly.

    A tie counts a half; so does a pair of which one has no score, as it says nothing of the order.

    Returns:
        pairs, right, share (None of no pairs), interval, and unscored: pairs that lack a score.
    """
    groups = defaultdict(list)
    for score, gold, question in zip(scores, golds, questions, strict=True):
        groups[question].append((score, gold))
    pairs, right, unscored = 0, 0.0, 0
    for rows in groups.values():
        for i, (p, g) in enumerate(rows):
            for q, h in rows[:i]:
                if g == h:
                    continue
                pairs += 1
                unscored += p is None or q is None
                tied = p is None or q is None or p == q
                right += 0.5 if tied else (p > q) == (g > h)
    share = right / pairs if pairs else None
    return {"pairs": pairs, "right": right, "share": share, "interval": wilson(right, pairs), "unscored": unscored}


def stability(samples: Sequence[Sequence[Score]]) -> dict[str, Any]:
    """Of several draws a row: spread (mean population std), and the share of rows whose majority is not the first draw.

    Draws without a score are a value of their own in the majority and are left out of the spread; where values are
    equally common, the one drawn first is the majority.
    """
    spreads, changed = [], 0
    for row in samples:
        changed += Counter(row).most_common(1)[0][0] != row[0]
        drawn = [s for s in row if s is not None]
        if drawn:
            mean = sum(drawn) / len(drawn)
            spreads.append((sum((s - mean) ** 2 for s in drawn) / len(drawn)) ** 0.5)
    n = len(samples)
    return {"spread": sum(spreads) / len(spreads) if spreads else None, "changed": changed / n if n else None}
