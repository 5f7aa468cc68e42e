"""Votes of k samples, and how far their confidence can be believed; with what an ECE must be read beside."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...base.errors import QwenchError
from ...base.stats import auroc

#: rounds of a bootstrap that are drawn at a time, so that a resample of many questions fits the memory
AT_ONCE = 200


@dataclass(frozen=True, slots=True)
class Vote:
    """What k samples of a question came to.

    Attributes:
        prediction: the commonest answer, None where samples that cannot be read are the commonest.
        confidence: its share of the samples; tied: another answer has as many.
        unparsed: samples that cannot be read; correct: samples that are right.
    """

    prediction: Any
    confidence: float
    right: bool
    tied: bool
    unparsed: int
    correct: int
    k: int


def vote(answers: Sequence[Any], label: Any, same: Callable[[Any, Any], bool]) -> Vote:
    """The majority. Unreadable answers (None) are one class that can win, and then is wrong; on ties a read one goes
    before it, then the first seen.
    """
    classes: list[tuple[Any, int]] = []
    for answer in answers:
        at = next((n for n, (other, _) in enumerate(classes) if _alike(other, answer, same)), None)
        if at is None:
            classes.append((answer, 1))
        else:
            classes[at] = classes[at][0], classes[at][1] + 1
    most = max(count for _, count in classes)
    tops = [answer for answer, count in classes if count == most]
    prediction = next((answer for answer in tops if answer is not None), None)
    return Vote(
        prediction,
        most / len(answers),
        prediction is not None and same(prediction, label),
        len(tops) > 1,
        sum(a is None for a in answers),
        sum(a is not None and same(a, label) for a in answers),
        len(answers),
    )


def _alike(a: Any, b: Any, same: Callable[[Any, Any], bool]) -> bool:
    return (a is None and b is None) or (a is not None and b is not None and same(a, b))


def bins(confidence: NDArray[np.float64], how: str = "exact") -> NDArray[np.int64]:
    """Which bin each question is in: one for each exact confidence, `equal:N` widths or `mass:N` questions.

    Raises:
        QwenchError: none of these.
    """
    if how == "exact":
        return np.unique(confidence, return_inverse=True)[1]
    kind, _, number = how.partition(":")
    if kind not in ("equal", "mass") or not number.isdigit() or int(number) < 1:
        raise QwenchError(f"unknown --bins: `{how}`", "use exact, equal:N or mass:N", code=2)
    if kind == "equal":
        # k/10 lies on the edges of ten bins: rounding must not decide.
        return np.clip(np.ceil(confidence * int(number) - 1e-9).astype(int) - 1, 0, int(number) - 1)
    # Equal confidences stay together.
    order = np.searchsorted(np.sort(confidence), confidence)
    return np.minimum(order * int(number) // len(confidence), int(number) - 1)


def gaps(confidence: NDArray[np.float64], right: NDArray[np.bool_], which: NDArray[np.int64]) -> NDArray[np.float64]:
    """(n, bins): right - confidence of a question in the column of its bin. |weights @ gaps| summed is an ECE."""
    table = np.zeros((len(confidence), int(which.max()) + 1))
    table[np.arange(len(confidence)), which] = right - confidence
    return table


def ece(confidence: NDArray[np.float64], right: NDArray[np.bool_], how: str = "exact") -> float:
    """Expected calibration error: sum over bins of n_b/N |accuracy - mean confidence|."""
    return float(np.abs(gaps(confidence, right, bins(confidence, how)).sum(axis=0)).sum() / len(confidence))


def weights(n: int, rounds: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Shares of questions in resamples, (some, n), AT_ONCE at a time."""
    random = np.random.default_rng(seed)
    for start in range(0, rounds, AT_ONCE):
        yield random.multinomial(n, np.full(n, 1 / n), size=min(AT_ONCE, rounds - start)) / n


@lru_cache(4096)
def majority_of_guesses(k: int, options: int) -> float:
    """Mean confidence of a uniform guesser: the expected share of the commonest of k draws, exactly."""
    total, cumulative = 0, []
    for most in range(k + 1):
        # Ways in which no option comes more than `most` times: k! times a power's coefficient.
        ways = [1] + [0] * k
        for _ in range(options):
            ways = [sum(ways[i - j] * math.comb(i, j) for j in range(min(most, i) + 1)) for i in range(k + 1)]
        cumulative.append(ways[k])
    for most in range(1, k + 1):
        total += most * (cumulative[most] - cumulative[most - 1])
    return total / (k * options**k)


def floor(k: int, options: int) -> float:
    """ECE of a uniform guesser: its majority is never below 1/options, where its accuracy is."""
    return majority_of_guesses(k, options) - 1 / options


@lru_cache(1 << 16)
def deviation(n: int, share: float) -> float:
    """E|Bin(n, share)/n - share|, by de Moivre's formula."""
    if not 0 < share < 1:
        return 0.0
    nu = math.floor(n * share + 1e-9) + 1
    if nu > n:
        return 0.0
    logs = math.lgamma(n + 1) - math.lgamma(nu + 1) - math.lgamma(n - nu + 1)
    logs += nu * math.log(share) + (n - nu + 1) * math.log1p(-share)
    return 2 * nu * math.exp(logs) / n


def calibrated(confidence: NDArray[np.float64]) -> float:
    """The ECE that a calibrated model of these confidences would have on so few questions."""
    values, counts = np.unique(confidence, return_counts=True)
    return float(sum(n * deviation(int(n), float(c)) for c, n in zip(values, counts, strict=True)) / len(confidence))


def measured(votes: Sequence[Vote], how: str = "exact") -> dict[str, Any]:
    """All measures of a cell but their intervals and what depends on its options."""
    confidence = np.array([v.confidence for v in votes])
    right = np.array([v.right for v in votes])
    accuracy, mean, error = float(right.mean()), float(confidence.mean()), ece(confidence, right, how)
    over = gaps(confidence, right, bins(confidence, how)).sum(axis=0)[bins(confidence, how)] < -1e-12
    k = votes[0].k
    return {
        "n": len(votes),
        "k": k,
        "accuracy": accuracy,
        "confidence": mean,
        "ece": error,
        "calibrated_ece": calibrated(confidence),
        "brier": float(((confidence - right) ** 2).mean()),
        "gap": mean - accuracy,
        "identity": abs(mean - accuracy) / error if error else None,
        "overconfident": float(over.mean()),
        "auroc": auroc(confidence, right),
        "pass_at_k": float(np.mean([v.correct > 0 for v in votes])),
        "unparsed": sum(v.unparsed for v in votes) / sum(v.k for v in votes),
        "tied": float(np.mean([v.tied for v in votes])),
    }


def diagram(votes: Sequence[Vote], how: str = "exact") -> list[dict[str, Any]]:
    """Bins of a reliability diagram: confidence, accuracy, n."""
    confidence = np.array([v.confidence for v in votes])
    right = np.array([v.right for v in votes])
    which = bins(confidence, how)
    return [
        {
            "confidence": float(confidence[which == b].mean()),
            "accuracy": float(right[which == b].mean()),
            "n": int((which == b).sum()),
        }
        for b in np.unique(which)
    ]
