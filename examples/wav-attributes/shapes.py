"""The shape of the reward on a toy: a categorical policy over the scores, trained by group advantages.

It sees the acoustic judge's numbers and the given transcripts; it is not WavReward, and says nothing of audio models.
usage: shapes.py TRAIN-MANIFEST TEST-MANIFEST PICTURE
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from qwench.ops.audio.acoustic import Fit, Fitted, features
from qwench.ops.audio.dialogues import Dialogues
from qwench.ops.audio.reward import accuracy_reward, advantages
from qwench.ops.audio.sounds import sound_of
from qwench.ops.audio.verdicts import SCALE
from qwench.ops.base.plots import COLORS, INK, figure

STEPS, EVERY, ROWS, GROUP, RATE, SEEDS = 600, 20, 16, 8, 0.02, 5
SHAPES = {"gauss": "Gaussian, sigma 1", "exact": "0/1"}
TITLE = "shape of the reward on a toy; transcripts are given;\nnot WavReward, no evidence about audio LMs"


def seen(manifest: str) -> Fit:
    """Features and labels of a built manifest."""
    rows, found = Dialogues(manifest), Fit()
    for row in rows:
        assert isinstance(row.value, dict)
        found.seen.append(features(sound_of(row.value, rows.base, 16_000)))
        found.golds.append(row.value["gold"])
    return found


def likely(x: Any, weights: Any) -> Any:
    """(n, scores)"""
    z = x @ weights
    p = np.exp(z - z.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def trained(x: Any, golds: list[int], held: tuple[Any, list[int]], shape: str, seed: int) -> list[tuple[float, float]]:
    """(exact accuracy, |p - g|) of the likeliest score on held-out dialogues, every EVERY steps."""
    random = np.random.default_rng(seed)
    weights, curve = 0.01 * random.normal(size=(x.shape[1], len(SCALE))), []
    for step in range(STEPS + 1):
        if step % EVERY == 0:
            best = np.array(SCALE)[likely(held[0], weights).argmax(1)]
            apart = np.abs(best - np.array(held[1]))
            curve.append((float((apart == 0).mean()), float(apart.mean())))
        picked = random.integers(len(x), size=ROWS)
        p = likely(x[picked], weights)
        change = np.zeros_like(weights)
        for row, chances in zip(picked, p, strict=True):
            drawn = random.choice(len(SCALE), size=GROUP, p=chances)
            rewards = [accuracy_reward(SCALE[d], golds[row], shape=shape) for d in drawn]
            for d, advantage in zip(drawn, advantages(rewards), strict=True):
                # The gradient of log p(d): what was drawn less what was to be expected.
                change += advantage * np.outer(x[row], np.eye(len(SCALE))[d] - chances)
        weights += RATE * change / (ROWS * GROUP) * len(SCALE)
    return curve


def main() -> None:
    """Curves of both shapes over all seeds, and the last numbers."""
    train, test = seen(sys.argv[1]), seen(sys.argv[2])
    how: Fitted = train.fitted()
    x, held = how.columns(train.seen), (how.columns(test.seen), test.golds)
    found = {s: np.array([trained(x, train.golds, held, s, n) for n in range(SEEDS)]) for s in SHAPES}
    print(TITLE.replace("\n", " "))
    print(f"{'':18}{'exact':>16}{'|p - g|':>16}{'exact, step 100':>18}")
    for shape, name in SHAPES.items():
        last, early = found[shape][:, -1], found[shape][:, 100 // EVERY, 0]
        cells = [f"{fmean(v):.3f} +- {stdev(v):.3f}" for v in (last[:, 0], last[:, 1], early)]
        print(f"{name:18}{cells[0]:>16}{cells[1]:>16}{cells[2]:>18}")
    steps = np.arange(0, STEPS + 1, EVERY)
    with figure(Path(sys.argv[3]), 2, (7.0, 2.5)) as axes:
        for part, (axis, label) in enumerate(zip(axes, ("exact accuracy", "|p - g|"), strict=True)):
            for color, (shape, name) in zip(COLORS, SHAPES.items(), strict=False):
                values = found[shape][:, :, part]
                axis.plot(steps, values.mean(0), color=color, label=name)
                axis.fill_between(steps, values.min(0), values.max(0), color=color, alpha=0.2, linewidth=0)
            axis.set_ylabel(label)
        axes[0].set_title(TITLE, color=INK)
        axes[0].legend(frameon=False, labelcolor=INK)
        axes[1].set_xlabel(f"steps of {ROWS} dialogues, {GROUP} draws each; mean and range of {SEEDS} seeds")


if __name__ == "__main__":
    main()
