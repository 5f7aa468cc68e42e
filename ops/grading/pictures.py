"""Pictures of grades, in the house's style; see `base/plots`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..base.plots import COLORS, INK, figure

#: of a heat map, from nothing to all: every shade reads on white and on black
SHADES = ("#31446b", "#2f7ed8", "#2aa1a8", "#3f9b4b", "#c9a227")


def heat_map(
    values: Sequence[Sequence[float | None]], rows: Sequence[str], columns: Sequence[str], title: str, path: Path
) -> None:
    """Per cents as coloured cells with their numbers, a dash where there is none; see `figure`."""
    from matplotlib.colors import LinearSegmentedColormap

    shades = LinearSegmentedColormap.from_list("accuracy", SHADES)
    with figure(path, 1, (4.6, 0.9 + 0.27 * len(rows))) as (axis,):
        axis.grid(False)
        axis.imshow(
            [[float("nan") if v is None else v for v in row] for row in values],
            cmap=shades,
            vmin=0,
            vmax=100,
            aspect="auto",
        )
        for y, row in enumerate(values):
            for x, value in enumerate(row):
                shown, color = ("–", INK) if value is None else (f"{value:.1f}", "white")
                axis.text(x, y, shown, ha="center", va="center", color=color, fontsize=9)
        axis.set_xticks(range(len(columns)), columns)
        axis.set_yticks(range(len(rows)), rows)
        axis.tick_params(length=0)
        for side in axis.spines.values():
            side.set_visible(False)
        axis.set_title(title, color=INK, fontsize=10)


def reliability(cells: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A row for each task: accuracy over confidence with how many questions, and accuracy and ECE over k; `figure`."""
    tasks: dict[Any, list[Mapping[str, Any]]] = {}
    for cell in cells:
        tasks.setdefault(cell["task"], []).append(cell)
    with figure(path, len(tasks), (7.4, 3.3), 2) as axes:
        for n, (task, conditions) in enumerate(tasks.items()):
            diagram, curve = axes[2 * n], axes[2 * n + 1]
            diagram.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=":")
            for color, cell in zip(COLORS, conditions, strict=False):
                _diagram(diagram, cell, color)
                _over_k(curve, cell, color)
            diagram.set_xlim(-0.03, 1.06)
            diagram.set_ylim(-0.06, 1.14)
            diagram.set_xlabel("confidence")
            diagram.set_ylabel("accuracy")
            curve.set_ylim(0, 1.05)
            curve.set_xlabel("samples of a question")
            curve.set_ylabel("accuracy —, ECE - -, calibrated ···")
            diagram.set_title(task or "", color=INK, fontsize=10)
            if any(cell["condition"] for cell in conditions):
                diagram.legend(frameon=False, labelcolor=INK, loc="upper left", fontsize=9)


def _diagram(axis: Any, cell: Mapping[str, Any], color: str) -> None:
    """Bins as dots whose area is their number of questions, which stands beside them."""
    bins, most = cell["diagram"], max(b["n"] for b in cell["diagram"])
    xs, ys = [b["confidence"] for b in bins], [b["accuracy"] for b in bins]
    axis.plot(xs, ys, color=color, linewidth=1, alpha=0.5)
    axis.scatter(xs, ys, s=[12 + 110 * b["n"] / most for b in bins], color=color, label=cell["condition"], zorder=3)
    for b in bins:
        at = (b["confidence"], b["accuracy"])
        axis.annotate(str(b["n"]), at, (0, 8), textcoords="offset points", ha="center", color=color, fontsize=8)


def _over_k(axis: Any, cell: Mapping[str, Any], color: str) -> None:
    ks = [point["k"] for point in cell["curve"]]
    axis.plot(ks, [point["accuracy"] for point in cell["curve"]], color=color, marker="o", markersize=3)
    axis.plot(ks, [point["ece"] for point in cell["curve"]], color=color, linestyle="--")
    axis.plot(ks, [point["calibrated_ece"] for point in cell["curve"]], color=color, linestyle=":", linewidth=0.9)


def improvements(points: Sequence[tuple[str, float, float]], ols: Mapping[str, float], title: str, path: Path) -> None:
    """Tasks as (name, d_acc, d_rel), the line through them, and the line of unchanged confidence; see `figure`."""
    xs = [x for _, x, _ in points]
    ends = [min(xs), max(xs)]
    with figure(path, 1, (6.4, 4.4)) as (axis,):
        axis.axhline(0, color=INK, linewidth=0.6)
        axis.axvline(0, color=INK, linewidth=0.6)
        label = "unchanged confidence: slope 1"
        axis.plot(ends, ends, color=COLORS[1], linestyle="--", linewidth=1.2, label=label)
        fitted = [ols["slope"] * x + ols["intercept"] for x in ends]
        axis.plot(ends, fitted, color=COLORS[0], linewidth=1.4, label=f"fit: slope {ols['slope']:.2f}")
        axis.scatter(xs, [y for _, _, y in points], s=22, color=COLORS[0], zorder=3)
        for name, x, y in points:
            axis.annotate(name, (x, y), (4, 4), textcoords="offset points", color=INK, fontsize=7)
        axis.set_xlabel("improvement of accuracy")
        axis.set_ylabel("improvement of reliability (ECE)")
        axis.set_title(title, color=INK, fontsize=10)
        axis.legend(frameon=False, labelcolor=INK, loc="upper left")
