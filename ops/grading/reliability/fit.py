"""Improvements of reliability over improvements of accuracy: the line, and what of it is mechanical."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ...base.errors import QwenchError
from ...base.events import Events, Finished, Warned
from ...base.plots import check_plot
from ...base.stats import Line, bootstrap, line, spearman, theil_sen
from ...jobs.rows import Table
from ...text.rows import Malformed

#: tasks below which no line is fitted
LEAST = 4
#: most that d_conf may differ from d_acc - d_rel for the identity to hold
EXACT = 1e-6


@dataclass(frozen=True, slots=True)
class FitOptions:
    """Everything `qwench reliability fit` can be told; names equal the flags.

    Attributes:
        table: the JSON of `reliability measure`, or rows of task, d_acc, d_rel; - for standard input.
        without_group: groups that are left out.
        difficulty: column that both improvements are fitted on, None for `difficulty` where it is there.
    """

    table: str
    without_group: tuple[str, ...] = ()
    difficulty: str | None = None
    bootstrap: int = 2000
    seed: int = 0
    plot: Path | None = None


@dataclass(frozen=True, slots=True)
class Point:
    """A task: both improvements, and the change of mean confidence, None where nothing tells."""

    task: str
    d_acc: float
    d_rel: float
    d_conf: float | None = None
    group: str | None = None
    difficulty: float | None = None


def fit(options: FitOptions, stdin: BinaryIO | None = None) -> Events:
    """Yields Warned, and Finished: the lines, their intervals over tasks, the mechanical line beside them.

    Raises:
        QwenchError: no such table, a row without its numbers, fewer than LEAST tasks, no spread in d_acc.
    """
    o = options
    if o.plot:
        check_plot(o.plot)
    if o.bootstrap < 0:
        raise QwenchError("--bootstrap takes a number of at least 0", code=2)
    everything = list(points(o, stdin))
    groups = {p.group for p in everything}
    if unknown := [g for g in o.without_group if g not in groups]:
        told = ", ".join(sorted(g for g in groups if g)) or "none"
        raise QwenchError(f"no task is of the group `{unknown[0]}`", f"there are {told}", code=2)
    kept = [p for p in everything if p.group not in o.without_group]
    if len(kept) < LEAST:
        raise QwenchError(f"a line through {len(kept)} tasks says nothing", f"give {LEAST} at least")
    x, y = np.array([p.d_acc for p in kept]), np.array([p.d_rel for p in kept])
    if np.ptp(x) == 0:
        raise QwenchError("all tasks have the same d_acc, and a line needs a spread", "give other tasks")
    if len({p.task for p in kept}) < len(kept):
        yield Warned("tasks", "a task is there more than once: its rows are not independent")
    result = _lines(kept, x, y, o)
    if o.plot:
        from ..pictures import improvements

        improvements([(p.task, p.d_acc, p.d_rel) for p in kept], result["ols"], str(o.table), o.plot)
    yield Finished(result)


def _lines(kept: Sequence[Point], x: Any, y: Any, o: FitOptions) -> dict[str, Any]:
    found, (median, sen) = line(x, y), theil_sen(x, y)
    slope = bootstrap(lambda rows: line(x[rows], y[rows]).slope, len(x), o.bootstrap, o.seed)
    intercept = bootstrap(lambda rows: line(x[rows], y[rows]).intercept, len(x), o.bootstrap, o.seed)
    assumed = any(p.d_conf is None for p in kept)
    z = x - y if assumed else np.array([p.d_conf for p in kept], float)
    return {
        "schema": 1,
        "n": len(kept),
        "without_group": list(o.without_group),
        "ols": {
            "slope": found.slope,
            "intercept": found.intercept,
            "slope_interval": _ends(slope),
            "intercept_interval": _ends(intercept),
        },
        "theil_sen": {"slope": median.slope, "intercept": median.intercept, "slope_interval": _ends(sen)},
        "pearson": _number(found.r),
        "spearman": _number(spearman(x, y)),
        "leave_one_out": _leave_one_out(kept, x, y, found),
        "mechanical": slope is not None and (slope.low <= 1 <= slope.high or abs(found.slope - 1) < EXACT),
        "from_one": found.slope - 1,
        "confidence": {
            "slope": line(x, z).slope,
            "intercept": line(x, z).intercept,
            "assumed": assumed,
            "identity": None if assumed else float(np.abs(z - (x - y)).max()),
            "expected_slope": 1 - found.slope,
        },
        "difficulty": _difficulty(kept, x, y),
        "points": [
            {"task": p.task, "group": p.group, "d_acc": p.d_acc, "d_rel": p.d_rel, "d_conf": float(c)}
            for p, c in zip(kept, z, strict=True)
        ],
    }


def _ends(interval: Any) -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _leave_one_out(kept: Sequence[Point], x: Any, y: Any, found: Line) -> dict[str, Any]:
    """The range of slopes without one task, and the task that moves it most."""
    slopes = [line(np.delete(x, n), np.delete(y, n)).slope for n in range(len(kept))]
    known = [(abs(s - found.slope), n) for n, s in enumerate(slopes) if not math.isnan(s)]
    if not known:
        return {"low": None, "high": None, "task": None, "slope": None}
    _, most = max(known)
    told = [s for s in slopes if not math.isnan(s)]
    return {"low": min(told), "high": max(told), "task": kept[most].task, "slope": slopes[most]}


def _difficulty(kept: Sequence[Point], x: Any, y: Any) -> dict[str, Any] | None:
    if any(p.difficulty is None for p in kept):
        return None
    d = np.array([p.difficulty for p in kept], float)
    lines = {"d_acc": line(d, x), "d_rel": line(d, y)}
    return {
        name: {"slope": _number(found.slope), "intercept": _number(found.intercept), "pearson": _number(found.r)}
        for name, found in lines.items()
    }


def points(o: FitOptions, stdin: BinaryIO | None = None) -> Iterator[Point]:
    """Points of a table.

    Raises:
        QwenchError: it cannot be read; a row without its numbers.
    """
    for row in Table(o.table, stdin):
        if isinstance(row.value, Malformed):
            raise QwenchError(f"{row.place} {row.value}", "give rows of task, d_acc and d_rel")
        if "cells" in row.value and isinstance(row.value.get("pairs"), list):
            yield from (_point(pair, f"{row.place}, pair {n}", o) for n, pair in enumerate(row.value["pairs"], 1))
        else:
            yield _point(row.value, row.place, o)


def _point(value: dict[str, Any], place: str, o: FitOptions) -> Point:
    def read(name: str, needed: bool = True) -> float | None:
        given = value.get(name)
        if isinstance(given, str):  # of a table of text
            with suppress(ValueError):
                given = float(given) if given.strip() else None
        if given is None and not needed:
            return None
        if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(given):
            raise QwenchError(f"{place} has no number `{name}`", "give rows of task, d_acc and d_rel")
        return float(given)

    group = value.get("group")
    return Point(
        str(value.get("task") or place),
        read("d_acc") or 0.0,
        read("d_rel") or 0.0,
        read("d_conf", needed=False),
        str(group) if group is not None else None,
        read(o.difficulty or "difficulty", needed=o.difficulty is not None),
    )
