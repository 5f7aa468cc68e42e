"""Pictures of grades, in the house's style; see `base/plots`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..base.plots import INK, figure

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
