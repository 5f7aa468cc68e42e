"""Intervals, tests and lines for small samples. Numpy alone; every random draw is seeded."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: resamples of a bootstrap, where nobody says otherwise
ROUNDS = 1000


class Interval(NamedTuple):
    """Both ends, included."""

    low: float
    high: float

    def __contains__(self, value: object) -> bool:
        return isinstance(value, (int, float)) and self.low <= value <= self.high


class Line(NamedTuple):
    """y = slope x + intercept; `r` is the correlation, NaN where one side has no spread."""

    slope: float
    intercept: float
    r: float


def wilson(right: float, n: int, level: float = 0.95) -> Interval | None:
    """Wilson's interval of a share, None of no rows. `right` may be a half where ties count half."""
    if not n:
        return None
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share, weight = right / n, 1 + z * z / n
    middle = (share + z * z / (2 * n)) / weight
    half = z / weight * math.sqrt(max(share * (1 - share), 0) / n + z * z / (4 * n * n))
    # At none and at all the far end is exact; rounding must not move it.
    return Interval(0.0 if right == 0 else middle - half, 1.0 if right == n else middle + half)


def resamples(
    n: int,
    rounds: int = ROUNDS,
    seed: int = 0,
    clusters: Sequence[Hashable] | None = None,
    strata: Sequence[Hashable] | None = None,
) -> Iterator[NDArray[np.int64]]:
    """Row numbers of `rounds` resamples with replacement.

    Args:
        clusters: (n,) rows with one name are drawn together, as many clusters as there are; a resample's length varies.
        strata: (n,) rows are drawn inside each name, so that every resample has as many of it. Not with `clusters`.
    """
    random = np.random.default_rng(seed)
    if clusters is not None:
        groups = _groups(clusters)
        for _ in range(rounds):
            yield np.concatenate([groups[i] for i in random.integers(len(groups), size=len(groups))])
    elif strata is not None:
        groups = _groups(strata)
        for _ in range(rounds):
            yield np.concatenate([rows[random.integers(len(rows), size=len(rows))] for rows in groups])
    else:
        for _ in range(rounds):
            yield random.integers(n, size=n)


def _groups(names: Sequence[Hashable]) -> list[NDArray[np.int64]]:
    found: dict[Hashable, list[int]] = {}
    for row, name in enumerate(names):
        found.setdefault(name, []).append(row)
    return [np.array(rows) for rows in found.values()]


def bootstrap(
    statistic: Callable[[NDArray[np.int64]], float],
    n: int,
    rounds: int = ROUNDS,
    seed: int = 0,
    *,
    level: float = 0.95,
    clusters: Sequence[Hashable] | None = None,
    strata: Sequence[Hashable] | None = None,
) -> Interval | None:
    """Percentile interval of a statistic of row numbers; see `resamples`. None of no rows or no rounds.

    Args:
        statistic: row numbers -> a number. NaN, where a resample has none (a line without spread), is left out; where
            more than half are NaN there is no interval.
    """
    if not n or not rounds:
        return None
    return percentiles([statistic(rows) for rows in resamples(n, rounds, seed, clusters, strata)], level)


def bootstrap_mean(
    values: ArrayLike,
    rounds: int = ROUNDS,
    seed: int = 0,
    *,
    level: float = 0.95,
    clusters: Sequence[Hashable] | None = None,
) -> Interval | None:
    """`bootstrap` of the mean of values (n,); differences of pairs make it a paired one."""
    values = np.asarray(values, float)
    return bootstrap(lambda rows: float(values[rows].mean()), len(values), rounds, seed, level=level, clusters=clusters)


def percentiles(drawn: ArrayLike, level: float = 0.95) -> Interval | None:
    """The middle `level` of drawn values, None where more than half are NaN."""
    drawn = np.asarray(drawn, float)
    kept = drawn[~np.isnan(drawn)]
    if 2 * len(kept) < len(drawn) or not len(kept):
        return None
    low, high = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided p that A and B are equally often right, from the pairs where one alone is; 1 without any."""
    n = only_a + only_b
    tail = sum(math.comb(n, i) for i in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2**n)


def holm(ps: Sequence[float]) -> list[float]:
    """P values corrected for how many there are (Holm's step-down), in the order given."""
    corrected, worst = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        worst = max(worst, min(1.0, (len(ps) - rank) * ps[i]))
        corrected[i] = worst
    return corrected


def ranks(values: ArrayLike) -> NDArray[np.float64]:
    """Ranks from 1 of (n,), equal values share their mean."""
    _, which, counts = np.unique(np.asarray(values, float), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[which]


def pearson(x: ArrayLike, y: ArrayLike) -> float:
    """Correlation, NaN where one side has no spread."""
    return line(x, y).r


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Correlation of the ranks."""
    return pearson(ranks(x), ranks(y))


def line(x: ArrayLike, y: ArrayLike) -> Line:
    """The least-squares line, of NaN where x has no spread."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    if not len(x) or np.ptp(x) == 0:
        return Line(math.nan, math.nan, math.nan)
    dx, dy = x - x.mean(), y - y.mean()
    slope = float(dx @ dy / (dx @ dx))
    r = math.nan if np.ptp(y) == 0 else float(np.clip(dx @ dy / math.sqrt((dx @ dx) * (dy @ dy)), -1, 1))
    return Line(slope, float(y.mean() - slope * x.mean()), r)


def theil_sen(x: ArrayLike, y: ArrayLike, level: float = 0.95) -> tuple[Line, Interval | None]:
    """The line of the median slope over all pairs with different x, and Sen's interval of the slope.

    The intercept is median(y) - slope median(x); `r` is Spearman's.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    first, second = np.triu_indices(len(x), 1)
    apart = x[first] != x[second]
    slopes = np.sort((y[second] - y[first])[apart] / (x[second] - x[first])[apart])
    if not len(slopes):
        return Line(math.nan, math.nan, math.nan), None
    slope = float(np.median(slopes))
    found = Line(slope, float(np.median(y) - slope * np.median(x)), spearman(x, y))
    # Kendall's variance with ties on either side (Sen 1968, eq. 2.6).
    n = len(x)
    sizes = [np.unique(v, return_counts=True)[1] for v in (x, y)]
    variance = (n * (n - 1) * (2 * n + 5) - sum(int(k * (k - 1) * (2 * k + 5)) for size in sizes for k in size)) / 18
    reach = NormalDist().inv_cdf(0.5 + level / 2) * math.sqrt(max(variance, 0))
    low, high = round((len(slopes) - reach) / 2) - 1, round((len(slopes) + reach) / 2)
    return found, Interval(float(slopes[max(low, 0)]), float(slopes[min(high, len(slopes) - 1)]))


def auroc(scores: ArrayLike, labels: ArrayLike) -> float | None:
    """Chance that a right row scores above a wrong one, ties a half; None where all rows have one label."""
    labels = np.asarray(labels, bool)
    right, wrong = int(labels.sum()), int((~labels).sum())
    if not right or not wrong:
        return None
    return float((ranks(scores)[labels].sum() - right * (right + 1) / 2) / (right * wrong))


def phi(a: ArrayLike, b: ArrayLike) -> float | None:
    """Correlation of two yes-or-no columns, None where one has a single value."""
    r = pearson(np.asarray(a, bool), np.asarray(b, bool))
    return None if math.isnan(r) else r


def pass_at(n: int, right: int, k: int) -> float:
    """Unbiased chance that one of k draws out of n samples, `right` of them right, is right (k <= n)."""
    if not 0 < k <= n:
        raise ValueError(f"pass@{k} of {n} samples")
    return 1 - math.comb(n - right, k) / math.comb(n, k)
