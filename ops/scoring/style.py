"""How much of a preference is style: length and markdown of two answers, and logistic fits through the origin.

Rows are always chosen less rejected, so a fit has no intercept and columns are not centred: that would take away the
bias which is to be measured. Columns are divided by their root mean square alone.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..base.stats import percentiles, resamples
from .preference import bt_losses, cell, interval, wins

Matrix = NDArray[np.float64]
#: what is counted of an answer besides its tokens
MARKDOWN = {
    "list_items": re.compile(r"^[ \t]*(?:[-*+]|\d+[.)])[ \t]+\S", re.M),
    "headers": re.compile(r"^#{1,6}[ \t]+\S", re.M),
    "bold": re.compile(r"\*\*(?=\S)(?:[^*\n]|\*(?!\*))+\*\*|__(?=\S)[^_\n]+__"),
}
NAMES = ("tokens", *MARKDOWN)
#: |z| of the tokens of a pair whose answers count as equally long
MATCHED = 0.1


def features(text: str, tokens: int) -> tuple[int, ...]:
    """Tokens, list items, headers and bold spans of an answer."""
    return (tokens, *(len(pattern.findall(text)) for pattern in MARKDOWN.values()))


def contrast(a: ArrayLike, b: ArrayLike) -> Matrix:
    """(a - b) / (a + b) of every feature, 0 where neither has any."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    total = a + b
    return np.divide(a - b, total, out=np.zeros_like(total), where=total != 0)


def fit(x: Matrix, ridge: float | None = None) -> NDArray[np.float64]:
    """Weights (k,) that minimise mean softplus(-x w) + ridge |w|^2 / 2, by Newton's steps with halving.

    Args:
        x: (n, k) rows of chosen less rejected.
        ridge: None for 1/n, against columns that part the rows without error.
    """
    n, k = x.shape
    ridge = 1 / n if ridge is None else ridge

    def value(w: NDArray[np.float64]) -> float:
        return float(bt_losses(x @ w).mean() + ridge * (w @ w) / 2)

    w = np.zeros(k)
    for _ in range(100):
        p = 1 / (1 + np.exp(np.clip(x @ w, -700, 700)))  # P(rejected)
        slope = -(x * p[:, None]).mean(0) + ridge * w
        curve = (x * (p * (1 - p))[:, None]).T @ x / n + (ridge + 1e-12) * np.eye(k)
        step, size, now = np.linalg.solve(curve, slope), 1.0, value(w)
        while size > 1e-8 and value(w - size * step) > now:
            size /= 2
        w = w - size * step
        if np.abs(slope).max() < 1e-12:
            break
    return w


def scaled(x: Matrix) -> tuple[Matrix, NDArray[np.float64]]:
    """Columns divided by their root mean square, and those; a column of zeros stays."""
    rms = np.sqrt((x**2).mean(0))
    rms = np.where(rms > 0, rms, 1.0)
    return x / rms, rms


def folds(prompts: Sequence[Hashable], count: int, seed: int) -> NDArray[np.int64]:
    """A fold for every row, (n,); rows of one prompt are in one fold."""
    names = list(dict.fromkeys(prompts))
    order = np.random.default_rng(seed).permutation(len(names))
    of = {name: int(place) % max(min(count, len(names)), 1) for name, place in zip(names, order, strict=True)}
    return np.array([of[p] for p in prompts], dtype=np.int64)


def held_out(x: Matrix, fold: NDArray[np.int64]) -> dict[str, Any] | None:
    """Loss and accuracy of rows that the fit has not seen; None where there is one fold alone."""
    if len(set(fold.tolist())) < 2:
        return None
    margins = np.empty(len(x))
    for f in set(fold.tolist()):
        inside, rms = scaled(x[fold != f])
        margins[fold == f] = x[fold == f] / rms @ fit(inside)
    return {"bt_loss": float(bt_losses(margins).mean()), "accuracy": float(wins(margins).mean())}


def style_fits(
    d: ArrayLike, z: ArrayLike, prompts: Sequence[Hashable], count: int = 5, rounds: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """The three fits `style`, `reward` and `both`: held-out loss and accuracy, weights with intervals.

    Args:
        d: (n,) margins; z: (n, 4) contrasts of NAMES.
        count: folds, by prompt. rounds: of the bootstrap over prompts, 0 for no intervals.
    """
    d, z = np.asarray(d, float), np.asarray(z, float)
    fold = folds(prompts, count, seed)
    columns = {"style": z, "reward": d[:, None], "both": np.column_stack((d, z))}
    fits = {name: held_out(x, fold) for name, x in columns.items()}
    whole, _ = scaled(columns["both"])
    weights = fit(whole)
    drawn = np.array([fit(whole[rows]) for rows in resamples(len(d), rounds, seed, prompts)]).reshape(-1, 5)
    ends = [interval(percentiles(drawn[:, i])) if rounds else None for i in range(5)]
    gain = fits["style"] and fits["both"] and fits["style"]["bt_loss"] - fits["both"]["bt_loss"]
    return {
        **fits,
        "folds": len(set(fold.tolist())),
        "alpha": {"value": float(weights[0]), "interval": ends[0]},
        "beta": {n: {"value": float(w), "interval": e} for n, w, e in zip(NAMES, weights[1:], ends[1:], strict=True)},
        "reward_adds_nats": gain,
        "matched": cell(d[np.abs(z[:, 0]) <= MATCHED]),
    }
