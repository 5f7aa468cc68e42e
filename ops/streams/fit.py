"""Fitting the parallel scaling law to points, and saying how far the points determine it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise, product
from math import exp, isfinite, log
from typing import Any

from ..base.errors import QwenchError
from .law import Law, Point

#: of the Huber loss on logarithms of losses
DELTA = 1e-3
#: the authors' starts: E, A, alpha, k; an exponent of 0 is no function of N, so it starts just above
STARTS = tuple(
    product(
        [exp(e) for e in (-1, -0.5, 0)],
        [1e9 * exp(a) for a in (-4, -2, 0, 2, 4)],
        (0.01, 0.5, 1.0, 1.5, 2.0),
        (0.2, 0.4, 0.6, 0.8),
    )
)
#: one more than there are constants
FEWEST = 5
NAMES = ("E", "A", "k", "alpha")


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted law and how well it fits.

    Attributes:
        objective: sum of Huber losses of the logarithms, DELTA as given.
        r2: coefficient of determination of the losses; None where all losses are equal.
        max_error, mean_error: absolute, in nats.
        starts_near: how many of the starts came within a hundredth of the best objective in 50 steps.
    """

    law: Law
    objective: float
    r2: float | None
    max_error: float
    mean_error: float
    starts_near: int


def check(points: list[Point]) -> None:
    """Refuse points that cannot determine four constants.

    Raises:
        QwenchError: too few, not positive, not finite, or all of one size or one number of streams.
    """
    for i, p in enumerate(points, 1):
        if not all(isfinite(v) and v > 0 for v in (p.parameters, p.loss)) or p.streams < 1:
            raise QwenchError(
                f"point {i} is not positive and finite: n {p.parameters:g}, p {p.streams}, loss {p.loss:g}",
                "leave it out, or correct it",
            )
    if len(points) < FEWEST:
        raise QwenchError(f"{len(points)} points cannot determine four constants", f"give {FEWEST} or more")
    if len({p.streams for p in points}) < 2:
        raise QwenchError(
            f"all points have {points[0].streams} streams, which says nothing of k", "add points with other streams"
        )
    losses = [p.loss for p in points]
    if max(losses) - min(losses) < 1e-6 * max(losses):
        raise QwenchError("all points have the same loss, which says nothing of what lowers it", "measure real runs")
    sizes = sorted(log(p.parameters) for p in points)
    # What streams add makes no other size: it is 7 % of a small model at most.
    if sum(b - a > 0.1 for a, b in pairwise(sizes)) < 2:
        raise QwenchError(
            "the points are of fewer than three sizes, which cannot tell E, A and alpha apart", "add other sizes"
        )


def objective(law: Law, points: list[Point]) -> float:
    """Sum of Huber losses of log(predicted) - log(measured)."""
    total = 0.0
    for p in points:
        r = abs(log(law.loss(p.parameters, p.streams)) - log(p.loss))
        total += r * r / 2 if r <= DELTA else DELTA * (r - DELTA / 2)
    return total


def fit(points: list[Point], start: Law | None = None) -> Fit:
    """The law of least Huber loss, by L-BFGS-B from every start, or from `start` alone.

    Raises:
        QwenchError: see `check`.
    """
    check(points)
    starts = STARTS if start is None else ((start.E, start.A, start.alpha, start.k),)
    problem = _Problem(points)
    # Most starts lead to the same place: all go near it, and the best five go on to the end.
    found = sorted((problem.solve(problem.place(*s), 50) for s in starts), key=lambda pair: pair[0])
    least, x = min((problem.solve(x, 1000) for _, x in found[:5]), key=lambda pair: pair[0])
    law = problem.law(x)
    errors = [abs(law.loss(p.parameters, p.streams) - p.loss) for p in points]
    mean = sum(p.loss for p in points) / len(points)
    spread = sum((p.loss - mean) ** 2 for p in points)
    return Fit(
        law=law,
        objective=objective(law, points),
        r2=1 - sum(e * e for e in errors) / spread if spread else None,
        max_error=max(errors),
        mean_error=sum(errors) / len(errors),
        starts_near=sum(value <= least * 1.01 + 1e-6 for value, _ in found),
    )


class _Problem:
    """The objective in log E, c, log alpha and log k, where c is the logarithm of the second term at the middle size.

    The logarithms keep constants positive; c instead of log A parts A from alpha, which halves the work of a start.
    """

    LIMITS = ((-20.0, 10.0), (-10.0, 10.0), (-4.0, 3.0), (-20.0, 10.0))

    def __init__(self, points: list[Point]) -> None:
        import numpy as np

        size = np.log([p.parameters for p in points])
        self.middle = float(size.mean())
        self.size = size - self.middle
        self.streams = np.log([float(p.streams) for p in points])
        self.target = np.log([p.loss for p in points])

    def law(self, x: Any) -> Law:
        alpha = exp(x[2])
        return Law(exp(x[0]), exp(x[1] / alpha + self.middle), exp(x[3]), alpha)

    def place(self, e: float, a: float, alpha: float, k: float) -> list[float]:
        """The x of E, A, alpha and k, within LIMITS."""
        x = (log(e), alpha * (log(a) - self.middle), log(alpha), log(k))
        return [min(max(v, low), high) for v, (low, high) in zip(x, self.LIMITS, strict=True)]

    def value(self, x: Any) -> tuple[float, Any]:
        """Objective over DELTA squared, and its gradient, (4,)."""
        import numpy as np

        alpha, k = exp(x[2]), exp(x[3])
        gain = k * self.streams + 1
        away = self.size + np.log(gain)
        term = np.exp(np.clip(x[1] - alpha * away, -200, 200))
        loss = exp(x[0]) + term
        r = (np.log(loss) - self.target) / DELTA
        size = abs(r)
        total = np.where(size <= 1, r * r / 2, size - 0.5).sum()
        outer = np.clip(r, -1, 1) / loss / DELTA
        pull = outer * term
        slope = (exp(x[0]) * outer.sum(), pull.sum(), -alpha * (pull * away).sum())
        return float(total), np.array((*slope, -alpha * k * (pull * self.streams / gain).sum()))

    def solve(self, x: Any, steps: int) -> tuple[float, Any]:
        """(objective, x) after at most so many steps from a start."""
        from scipy.optimize import minimize

        options = {"maxiter": steps, "ftol": 1e-15, "gtol": 1e-9, "maxcor": 10}
        done = minimize(self.value, x, jac=True, method="L-BFGS-B", bounds=self.LIMITS, options=options)
        return float(done.fun), done.x


def leave_one_out(points: list[Point], best: Law) -> dict[str, Any]:
    """The law without each point in turn: ranges and jackknife errors of the constants, errors on what was left out.

    Runs start from `best`. A point without which the rest determines nothing is counted and passed over.
    """
    laws, held_out, passed = [], [], 0
    for i, p in enumerate(points):
        try:
            law = fit(points[:i] + points[i + 1 :], best).law
        except QwenchError:
            passed += 1
            continue
        laws.append(law)
        held_out.append(abs(law.loss(p.parameters, p.streams) - p.loss))
    if len(laws) < 2:
        return {"refits": len(laws), "not_determined": passed, "constants": None, "held_out_error": None}
    constants = {}
    for name in NAMES:
        values = [getattr(law, name) for law in laws]
        mean, n = sum(values) / len(values), len(values)
        error = ((n - 1) / n * sum((v - mean) ** 2 for v in values)) ** 0.5
        constants[name] = {"low": min(values), "high": max(values), "standard_error": error}
    errors = {"mean": sum(held_out) / len(held_out), "max": max(held_out)}
    return {"refits": len(laws), "not_determined": passed, "constants": constants, "held_out_error": errors}
