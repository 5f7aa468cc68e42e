"""What pairs of rewards say: the Bradley-Terry loss, accuracy, and how far length alone goes.

D is the reward of the chosen answer less that of the rejected one; P(chosen is better) = sigmoid(D).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..base.stats import Interval, bootstrap_mean, phi, wilson

Numbers = NDArray[np.float64]


def softplus(x: ArrayLike) -> Numbers:
    """log(1 + e^x), without overflow."""
    return np.logaddexp(0.0, np.asarray(x, float))


def bt_losses(d: ArrayLike, margin: ArrayLike = 0.0) -> Numbers:
    """-log sigmoid(D - margin) of every pair."""
    return softplus(np.asarray(margin, float) - np.asarray(d, float))


def centring(chosen: ArrayLike, rejected: ArrayLike, weight: float) -> float:
    """weight * mean (r_chosen + r_rejected)^2, which holds rewards near 0 and leaves D alone."""
    return float(weight * np.mean((np.asarray(chosen, float) + np.asarray(rejected, float)) ** 2))


def wins(d: ArrayLike) -> Numbers:
    """1 where the chosen answer is ahead, 1/2 where both are level."""
    d = np.asarray(d, float)
    return (d > 0) + 0.5 * (d == 0)


def interval(found: Interval | None) -> list[float] | None:
    """As JSON has it."""
    return None if found is None else [round(found.low, 6), round(found.high, 6)]


def cell(d: ArrayLike) -> dict[str, Any]:
    """n, accuracy with ties as halves and Wilson's interval, strict_accuracy (ties are wrong), ties, bt_loss."""
    d = np.asarray(d, float)
    if not len(d):
        return dict.fromkeys(("accuracy", "accuracy_interval", "strict_accuracy", "bt_loss")) | {"n": 0, "ties": 0}
    won = wins(d)
    return {
        "n": len(d),
        "accuracy": float(won.mean()),
        "accuracy_interval": interval(wilson(float(won.sum()), len(d))),
        "strict_accuracy": float((d > 0).mean()),
        "ties": int((d == 0).sum()),
        "bt_loss": float(bt_losses(d).mean()),
    }


def averages(d: ArrayLike, prompts: Sequence[Hashable], rounds: int, seed: int) -> dict[str, Any]:
    """Intervals of accuracy and loss over all pairs, by a bootstrap that draws whole prompts."""
    return {
        "accuracy_interval": interval(bootstrap_mean(wins(d), rounds, seed, clusters=prompts)),
        "bt_loss_interval": interval(bootstrap_mean(bt_losses(d), rounds, seed, clusters=prompts)),
    }


def length_phi(d: ArrayLike, chosen: ArrayLike, rejected: ArrayLike) -> dict[str, Any]:
    """phi between "the model prefers the longer answer" and "the label does"; pairs of equal length are left out.

    A pair that the model ties prefers neither, and is left out, too.

    Args:
        d: (n,) margins.
        chosen, rejected: (n,) lengths.
    """
    d, longer = np.asarray(d, float), np.asarray(chosen, float) - np.asarray(rejected, float)
    kept = (longer != 0) & (d != 0)
    model, label = (d * longer > 0)[kept], (longer > 0)[kept]
    found = phi(model, label) if kept.any() else None
    return {
        "phi": found,
        "equal_length": int((longer == 0).sum()),
        "ties": int(((d == 0) & (longer != 0)).sum()),
        "model_longer": float(model.mean()) if kept.any() else None,
        "label_longer": float(label.mean()) if kept.any() else None,
    }


def phi_of(n11: float, n10: float, n01: float, n00: float) -> float | None:
    """phi of a table of counts, None where a margin is 0."""
    margins = (n11 + n10) * (n01 + n00) * (n11 + n01) * (n10 + n00)
    return (n11 * n00 - n10 * n01) / math.sqrt(margins) if margins else None


def by_length(d: ArrayLike, chosen: ArrayLike, rejected: ArrayLike) -> dict[str, Any]:
    """`cell` of the pairs whose chosen answer is longer, shorter and equally long."""
    d, longer = np.asarray(d, float), np.asarray(chosen, float) - np.asarray(rejected, float)
    return {"longer": cell(d[longer > 0]), "shorter": cell(d[longer < 0]), "equal": cell(d[longer == 0])}


def rulers(
    chosen: ArrayLike, rejected: ArrayLike, seed: int = 0, logprobs: tuple[ArrayLike, ArrayLike] | None = None
) -> dict[str, Any]:
    """What needs no reward model does on the same pairs: the longest answer, the shortest, a coin, the likeliest.

    Args:
        chosen, rejected: (n,) lengths.
        logprobs: mean log-probability of every chosen and rejected answer.
    """
    longer = np.asarray(chosen, float) - np.asarray(rejected, float)
    coin = np.random.default_rng(seed).choice([-1.0, 1.0], len(longer))
    found = {"longest": longer, "shortest": -longer, "random": coin}
    if logprobs is not None:
        found["logprob"] = np.asarray(logprobs[0], float) - np.asarray(logprobs[1], float)
    names = ("n", "accuracy", "accuracy_interval", "strict_accuracy", "ties")
    return {name: {k: v for k, v in cell(d).items() if k in names} for name, d in found.items()}
