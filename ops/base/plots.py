"""Pictures, in one style that reads on light and dark pages: a grey of its own for text, no background."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .atomic import replacing
from .errors import QwenchError
from .paths import check_output, local

#: readable on white and on black
INK = "#7a7f87"
COLORS = ("#2f7ed8", "#e0772d", "#3f9b4b", "#b45fbf", "#c9a227", "#d64d57", "#2aa1a8", "#8a6d5a")
FORMATS = (".png", ".svg", ".pdf")


def check_plot(path: Path, *, folder: bool = False) -> None:
    """Refuse before the work a picture, or a folder of pictures, that could not be drawn after it.

    Raises:
        QwenchError: matplotlib is not installed, another ending than FORMATS, or nothing can be written there.
    """
    local(path, "the picture")
    if not folder and path.suffix not in FORMATS:
        raise QwenchError(f"a picture cannot end in `{path.suffix}`: `{path}`", f"use {', '.join(FORMATS)}", code=2)
    check_output(path, "the pictures" if folder else "the picture", folder=folder)
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise QwenchError("drawing needs matplotlib", "pip install 'qwench[plot]'") from error


@contextmanager
def figure(path: Path, rows: int = 1, size: tuple[float, float] = (7.0, 3.2), columns: int = 1) -> Iterator[Any]:
    """Axes by row, (rows * columns,); the file is written, whole or not at all, when the block ends.

    Args:
        size: of a row, in inches.

    Raises:
        QwenchError: see `check_plot`.
    """
    check_plot(path)
    import matplotlib
    from matplotlib.figure import Figure

    style = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK)
    style |= {"axes.spines.top": False, "axes.spines.right": False, "font.size": 10, "svg.fonttype": "none"}
    with matplotlib.rc_context(style):
        drawn = Figure(figsize=(size[0], size[1] * rows), layout="constrained")
        axes = drawn.subplots(rows, columns, squeeze=False).ravel()
        for axis in axes:
            axis.grid(color=INK, alpha=0.25, linewidth=0.6)
            axis.set_axisbelow(True)
            axis.set_prop_cycle(color=COLORS)
        yield axes
        with replacing(path, what="the picture") as (part,):
            drawn.savefig(part, dpi=150, transparent=True)


def budget_curve(points: list[dict[str, Any]], title: str, path: Path) -> None:
    """Accuracy, thinking tokens and time against the thinking budget; see `figure`."""
    names = ["no limit" if p["budget"] < 0 else str(p["budget"]) for p in points]
    panels = (
        ("accuracy, %", [100 * p["accuracy"] for p in points]),
        ("thinking tokens", [p["thinking_tokens"] for p in points]),
        ("seconds a question", [p["seconds"] / p["questions"] for p in points]),
    )
    with figure(path, len(panels), (7.0, 2.1)) as axes:
        for i, (axis, (label, values)) in enumerate(zip(axes, panels, strict=True)):
            # Budgets are steps of a scale that doubles, with 0 and no limit at its ends: equal distances read best.
            axis.plot(range(len(values)), values, marker="o", color=COLORS[i])
            axis.set_ylabel(label)
            axis.set_ylim(0, 1.1 * max(values, default=0) or 1)
            axis.set_xticks(range(len(names)), names)
        axes[0].set_title(f"{title}, {points[0]['questions']} questions", color=INK)
        axes[-1].set_xlabel("thinking budget, tokens")


def merge_by_layer(rows: list[tuple[int | None, float, float]], title: str, path: Path) -> None:
    """Cosine and norm ratio of merged tensors to the first model's, (layer or None, cosine, ratio); see `figure`."""
    inner = [row for row in rows if row[0] is not None]
    with figure(path, 2, (7.0, 2.4)) as axes:
        for axis, column, label in ((axes[0], 1, "cosine"), (axes[1], 2, "norm ratio")):
            axis.scatter([r[0] for r in inner], [r[column] for r in inner], s=9, color=COLORS[column - 1])
            layers = sorted({r[0] for r in inner})
            means = [[r[column] for r in inner if r[0] == layer] for layer in layers]
            axis.plot(layers, [sum(m) / len(m) for m in means], color=COLORS[column - 1], alpha=0.6)
            axis.set_ylabel(f"{label} to the first")
        axes[0].set_title(title, color=INK)
        axes[1].set_xlabel("layer")


def recycle_curves(runs: dict[str, list[dict[str, Any]]], losses: dict[str, float], title: str, path: Path) -> None:
    """Training loss of every run over its tokens, smoothed, and held-out losses below; see `figure`.

    Args:
        runs: name -> rows with event `step` (tokens, loss).
        losses: name -> held-out loss; the base's is a line across.
    """
    with figure(path, 2, (7.0, 2.8)) as (curves, bars):
        for name, rows in runs.items():
            points = [(r["tokens"], r["loss"]) for r in rows if r["event"] == "step"]
            smooth, ys = None, []
            for _, loss in points:
                smooth = loss if smooth is None else 0.9 * smooth + 0.1 * loss
                ys.append(smooth)
            curves.plot([x / 1e3 for x, _ in points], ys, label=name)
        curves.set_xlabel("tokens, thousands")
        curves.set_ylabel("training loss, nats")
        if runs:
            curves.legend(frameon=False, labelcolor=INK)
        curves.set_title(title, color=INK)
        names = [n for n in losses if n != "base"]
        for i, name in enumerate(names):
            bars.scatter([losses[name]], [i], color=COLORS[0], zorder=3)
            bars.annotate(f"{losses[name]:.4f}", (losses[name], i), (0, 7), textcoords="offset points", ha="center")
        bars.axvline(losses["base"], color=COLORS[1], label=f"base {losses['base']:.4f}")
        low, high = min(losses.values()), max(losses.values())
        bars.set_xlim(low - 0.1 * (high - low + 1e-3), high + 0.1 * (high - low + 1e-3))
        bars.set_yticks(range(len(names)), names)
        bars.set_ylim(len(names) - 0.5, -0.9)
        bars.set_xlabel("held-out loss, nats a token")
        bars.legend(frameon=False, loc="lower right", labelcolor=INK)


def scaling_curves(
    points: list[tuple[float, int, float]],
    marks: list[tuple[float, int, float]],
    loss: Callable[[float, int], float],
    title: str,
    path: Path,
) -> None:
    """Points (parameters, streams, loss), a law's curve for each number of streams, rings for predictions; `figure`."""
    everything = points + marks
    streams = sorted({p for _, p, _ in everything})
    low, high = min(n for n, _, _ in everything), max(n for n, _, _ in everything)
    sizes = [low * 0.85 * (high / low / 0.72) ** (i / 100) for i in range(101)]
    with figure(path, 1, (7.0, 4.2)) as (axis,):
        for i, p in enumerate(streams):
            color = COLORS[i % len(COLORS)]
            axis.plot(sizes, [loss(n, p) for n in sizes], color=color, linewidth=1.4, label=f"P = {p}")
            own = [(n, value) for n, streams_of, value in points if streams_of == p]
            axis.scatter([n for n, _ in own], [v for _, v in own], s=20, color=color)
            own = [(n, value) for n, streams_of, value in marks if streams_of == p]
            axis.scatter([n for n, _ in own], [v for _, v in own], s=60, facecolors="none", edgecolors=color)
        axis.set_xscale("log")
        ticks = [t for e in range(3, 14) for t in (10**e, 2 * 10**e, 5 * 10**e) if sizes[0] <= t <= sizes[-1]]
        if ticks:
            axis.set_xticks(ticks, [_count(t) for t in ticks])
            axis.set_xticks([], minor=True)
        axis.set_xlabel("N, parameters without embeddings" + (" (rings: predicted)" if marks else ""))
        axis.set_ylabel("loss, nats a token")
        axis.set_title(title, color=INK)
        axis.legend(frameon=False, labelcolor=INK)


def _count(number: float) -> str:
    """2e9 as 2B."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:g}{unit}"
    return f"{number:g}"


def sweep_curve(
    points: list[dict[str, Any]],
    inputs: list[dict[str, Any]],
    name: str,
    metric: str,
    title: str,
    path: Path,
) -> None:
    """A metric against a parameter's values, with a line for each model alone; see `figure`."""
    values = [p[name] for p in points]
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    places = values if numbers else list(range(len(values)))
    with figure(path, 1, (7.0, 3.6)) as (axis,):
        axis.plot(places, [p[metric] for p in points], marker="o", color=COLORS[0], label=title)
        for i, row in enumerate(inputs, 1):
            label = f"{Path(row['model']).name or row['model']} alone"
            axis.axhline(row[metric], linestyle="--", linewidth=1.2, color=COLORS[i % len(COLORS)], label=label)
        if not numbers:
            axis.set_xticks(places, [str(v) for v in values])
        axis.set_xlabel(name)
        axis.set_ylabel(metric.replace("_", " "))
        axis.legend(frameon=False, labelcolor=INK)


def roofline(rows: list[dict[str, Any]], roof: dict[str, Any], path: Path) -> None:
    """FLOP a second against FLOP a byte of the fastest right provider of each kernel, under the measured roof."""
    best: dict[tuple[str, str], dict[str, Any]] = {}
    for row in (r for r in rows if r["status"] == "ok" and r["bytes"]):
        key = (row["kernel"], f"{row['dtype']} {row['batch']} {row['seq']} {row['streams']}")
        if key not in best or row["median"] < best[key]["median"]:
            best[key] = row
    with figure(path, 1, (7.5, 4.8)) as (axis,):
        points = [(r["flops"] / r["bytes"], r["flops"] / r["median"] / 1e9, r) for r in best.values()]
        ends = [min([0.1, *(x for x, _, _ in points)]) / 2, max([100.0, *(x for x, _, _ in points)]) * 2]
        for color, (kind, peak) in zip(("#7a7f87", "#a0a6ae", "#555b63"), roof["peak"].items(), strict=False):
            ridge = peak / roof["bandwidth"]
            xs = [ends[0], ridge, max(ends[1], ridge * 2)]
            ys = [min(x * roof["bandwidth"], peak) / 1e9 for x in xs]
            axis.plot(xs, ys, color=color, label=f"measured roof, {kind}: {peak / 1e9:,.0f} GFLOP/s")
        for i, kernel in enumerate(dict.fromkeys(r["kernel"] for _, _, r in points)):
            own = [(x, y) for x, y, r in points if r["kernel"] == kernel]
            marker = "os^D"[i // len(COLORS) % 4]
            axis.scatter(*zip(*own, strict=True), s=28, marker=marker, color=COLORS[i % len(COLORS)], label=kernel)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel("FLOP per byte that must move")
        axis.set_ylabel("GFLOP/s")
        axis.set_title(f"fastest right provider; memory {roof['bandwidth'] / 1e9:,.0f} GB/s", color=INK)
        axis.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))


def latency_by_streams(rows: list[dict[str, Any]], path: Path) -> None:
    """Time against ParScale's P as a multiple of the time at the least P, each kernel's providers; and what P costs."""
    swept = [r for r in rows if r["status"] == "ok"]
    kernels = [k for k in dict.fromkeys(r["kernel"] for r in swept) if len(_streams(swept, k)) > 1]
    with figure(path, max(len(kernels), 1), (7.0, 2.6)) as axes:
        if not kernels:
            axes[0].set_title("no kernel was measured at two numbers of streams", color=INK)
        for axis, kernel in zip(axes, kernels, strict=False):
            own = [r for r in swept if r["kernel"] == kernel]
            first = own[0]
            own = [r for r in own if all(r[n] == first[n] for n in ("dtype", "batch", "seq"))]
            counts = _streams(own, kernel)
            for i, provider in enumerate(dict.fromkeys(r["provider"] for r in own)):
                line = sorted((r["streams"], r["median"]) for r in own if r["provider"] == provider)
                axis.plot(*zip(*((p, 1e3 * t) for p, t in line), strict=True), marker="o", ms=4,
                          color=COLORS[i % len(COLORS)], label=provider)  # fmt: skip
            floor = sorted({(r["streams"], r["floor_measured"]) for r in own if r["floor_measured"]})
            if floor:
                axis.plot(
                    *zip(*((p, 1e3 * t) for p, t in floor), strict=True), color=INK, ls="--", label="measured roof"
                )
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.set_xticks(counts, [str(c) for c in counts])
            axis.set_ylabel("milliseconds")
            axis.set_title(f"{kernel}, {first['shape']}, {first['dtype']}", color=INK, fontsize=10)
            axis.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
        axes[-1].set_xlabel("ParScale streams P")


def _streams(rows: list[dict[str, Any]], kernel: str) -> list[int]:
    return sorted({r["streams"] for r in rows if r["kernel"] == kernel})
