"""Pictures of reward models: accuracy by cell, loss against size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..base.plots import COLORS, INK, figure


def accuracy_picture(found: dict[str, Any], path: Path) -> None:
    """Accuracy of every cell with its interval, and of the rulers; see `figure`."""
    cells = list(found["by"].items()) or [("all pairs", found)]
    height = 0.32 * (len(cells) + 1) + 1.3
    with figure(path, 1, (7.0, height)) as (axis,):
        rows = [*cells, *([("all pairs", found)] if found["by"] else [])]
        for i, (_, row) in enumerate(rows):
            x, ends = row["accuracy"], row["accuracy_interval"] or [row["accuracy"]] * 2
            color = COLORS[0] if i < len(cells) else COLORS[2]
            axis.plot(ends, [i, i], color=color, linewidth=2, alpha=0.6)
            axis.scatter([x], [i], color=color, zorder=3)
        for color, (name, row) in zip((COLORS[1], *COLORS[3:]), list(found["rulers"].items()), strict=False):
            if name != "random":
                axis.axvline(row["accuracy"], linestyle="--", linewidth=1.2, color=color, label=f"ruler: {name}")
        axis.axvline(0.5, color=INK, linewidth=0.8)
        axis.set_yticks(range(len(rows)), [f"{name} ({row['n']})" for name, row in rows])
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.set_xlim(0, 1.02)
        axis.set_xlabel("accuracy, 95 % intervals")
        axis.legend(frameon=False, fontsize=8, labelcolor=INK, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def scaling_picture(found: dict[str, Any], path: Path) -> None:
    """Loss of every model against its size, with the curve, or a line where it is too noisy to fit; see `figure`."""
    scaling = found["scaling"]
    points, sizes = scaling["points"], sorted({p["size"] for p in scaling["points"]})
    with figure(path, 1, (7.0, 3.8)) as (axis,):
        axis.scatter([p["size"] for p in points], [p["bt_loss"] for p in points], s=22, alpha=0.7, color=COLORS[0])
        means = [[p["bt_loss"] for p in points if p["size"] == s] for s in sizes]
        axis.plot(sizes, [sum(m) / len(m) for m in means], color=COLORS[0], linewidth=1, alpha=0.5, label="mean")
        if scaling["noisy"]:
            label = f"a constant, {scaling['constant']:.3f}; too noisy to fit a curve"
            axis.axhline(scaling["constant"], color=COLORS[1], linestyle="--", label=label)
        else:
            grid = [sizes[0] * (sizes[-1] / sizes[0]) ** (i / 100) for i in range(101)]
            a, b, c = (scaling[n] for n in "abc")
            label = f"{a:.3g} N^-{b:.2f} + {c:.3g}"
            axis.plot(grid, [a * n**-b + c for n in grid], color=COLORS[1], label=label)
        axis.set_xscale("log")
        axis.set_xticks(sizes, [f"{s:g}" for s in sizes])
        axis.set_xticks([], minor=True)
        axis.set_xlabel(f"N, {str(scaling['field']).replace('_', ' ')}")
        axis.set_ylabel("Bradley-Terry loss, nats")
        axis.legend(frameon=False, labelcolor=INK)
