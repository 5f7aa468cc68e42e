"""loss = a N^-b + c with c >= 0: the power law of preference models (arXiv 2505.10527, section 3)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..base.errors import QwenchError
from ..base.stats import Interval, percentiles, resamples

#: sizes that a curve of three numbers needs at least
LEAST = 4


@dataclass(frozen=True, slots=True)
class Curve:
    """A fit and what a constant would do.

    Attributes:
        error, constant_error: root mean square of what is left by the curve, and by the mean.
        b_interval: of the exponent by a bootstrap over the points, None where most resamples have no fit.
    """

    a: float
    b: float
    c: float
    error: float
    constant: float
    constant_error: float
    b_interval: Interval | None

    @property
    def noisy(self) -> bool:
        """The exponent's interval holds 0, or the curve leaves more than half of what a constant does."""
        return self.b_interval is None or self.b_interval.low <= 0 or self.error > 0.5 * self.constant_error

    def at(self, n: float) -> float:
        """The loss at N."""
        return self.a * n**-self.b + self.c


def fit_curve(sizes: ArrayLike, losses: ArrayLike, rounds: int = 1000, seed: int = 0) -> Curve:
    """The curve of least squares through points (n,).

    Raises:
        QwenchError: fewer than LEAST different sizes, or one that is not above 0.
    """
    x, y = np.asarray(sizes, float), np.asarray(losses, float)
    if len(x) and x.min() <= 0:
        raise QwenchError(f"a size to scale with must be above 0, not {x.min():g}", "name another field")
    if (count := len(np.unique(x))) < LEAST:
        raise QwenchError(f"{count} different sizes are too few for a curve of three numbers", f"give {LEAST} or more")
    a, b, c = _fit(x, y)
    drawn = []
    for rows in resamples(len(x), rounds, seed):
        enough = len(np.unique(x[rows])) >= LEAST - 1
        drawn.append(_fit(x[rows], y[rows])[1] if enough else np.nan)
    left = y - (a * x**-b + c)
    mean = float(y.mean())
    errors = [float(np.sqrt((r**2).mean())) for r in (left, y - mean)]
    return Curve(a, b, c, errors[0], mean, errors[1], percentiles(drawn) if rounds else None)


def _fit(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float, float]:
    """For every b the best a and c >= 0 are linear; b is found on a grid, then on finer and finer ones."""
    low, high, best = -2.0, 4.0, (np.inf, 0.0, 0.0, 0.0)
    unit = float(np.exp(np.log(x).mean()))
    for _ in range(14):
        grid = np.linspace(low, high, 61)
        found = _linear((x / unit) ** -grid[:, None], y)
        at = int(found[0].argmin())
        if found[0][at] < best[0]:
            best = (float(found[0][at]), float(grid[at]), float(found[1][at]), float(found[2][at]))
        reach = (high - low) / 20
        low, high = best[1] - reach, best[1] + reach
    return best[2] * unit ** best[1], best[1], best[3]


def _linear(p: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """(what is left, a, c) of y = a p + c with c >= 0, for every row of p (k, n)."""
    spread = p - p.mean(1, keepdims=True)
    square = (spread**2).sum(1)
    a = np.divide(spread @ (y - y.mean()), square, out=np.zeros(len(p)), where=square > 1e-12)
    c = y.mean() - a * p.mean(1)
    a = np.where(c < 0, (p @ y) / (p**2).sum(1), a)
    c = np.maximum(c, 0.0)
    return ((y - a[:, None] * p - c[:, None]) ** 2).sum(1), a, c
