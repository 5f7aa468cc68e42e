"""pass@1 and pass@8 of all arms over the episodes, as gains over each seed's own base, as a table and as a picture.

    curve.py FOLDER

Reads FOLDER/SEED/measured.jsonl and the runs beside it; writes FOLDER/curve.png and FOLDER/curve.svg.
"""

import json
import statistics
import sys
from pathlib import Path

from qwench.ops.base.plots import COLORS, INK, figure

#: quantile of Student's t at 97.5 %, by degrees of freedom
T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}
METRICS = ("pass@1", "pass@8")


def over_seeds(values: list[float]) -> tuple[float, float]:
    """(mean, half of the 95 % interval)"""
    half = T[len(values) - 1] * statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return statistics.fmean(values), half


def told(values: list[float], form: str = ".3f") -> str:
    mean, half = over_seeds(values)
    return f"{mean:{form}} [{mean - half:{form}}, {mean + half:{form}}]"


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


folder = Path(sys.argv[1])
seeds = sorted(path.parent for path in folder.glob("*/measured.jsonl"))
found = [{Path(row["model"]).name: row for row in lines(seed / "measured.jsonl")} for seed in seeds]
arms = [(loss, arm) for loss in ("dpo", "pairs") for arm in ("states", "root")]


def episodes(loss: str, arm: str) -> list[int]:
    """Those that all seeds have."""
    name = f"{loss}-%d-{arm}-model"
    return [n for n in range(1, 100) if all(name % n in rows for rows in found)]


def values(loss: str, arm: str, episode: int, metric: str) -> list[float]:
    name = f"{loss}-{episode}-{arm}-model" if episode else "base"
    return [rows[name][metric] for rows in found]


def gains(loss: str, arm: str, episode: int, metric: str) -> list[float]:
    """Of every seed over its own base."""
    both = zip(values(loss, arm, episode, metric), values(loss, arm, 0, metric), strict=True)
    return [after - before for after, before in both]


def cell(loss: str, arm: str, episode: int, metric: str) -> str:
    mean = f"{over_seeds(values(loss, arm, episode, metric))[0]:.3f}"
    return f"{mean} {told(gains(loss, arm, episode, metric), '+.3f')}" if episode else mean


print(f"{len(seeds)} seeds; gains over each seed's base with 95 % intervals over seeds")
print(f"{'':14}{'':>8}{'tokens':>9}{'pairs':>7}  " + "".join(f"{metric:32}" for metric in METRICS).rstrip())
print(f"{'base':14}{0:>8}{'':>9}{'':>7}  " + "".join(f"{cell('dpo', 'root', 0, m):32}" for m in METRICS).rstrip())
for loss, arm in arms:
    for episode in episodes(loss, arm):
        at = [seed / f"{loss}-{episode}-{arm}" for seed in seeds]
        tokens = [sum(row["generated_tokens"] for row in lines(p.with_name(f"{p.name}.jsonl"))) for p in at]
        pairs = [len(lines(p.with_name(f"{p.name}-rows.jsonl"))) for p in at]
        cells = "".join(f"{cell(loss, arm, episode, m):32}" for m in METRICS)
        counts = f"{statistics.fmean(tokens):>9,.0f}{statistics.fmean(pairs):>7,.0f}"
        print(f"{loss:6}{arm:8}{episode:>8}{counts}  {cells}".rstrip())
for loss in ("dpo", "pairs"):
    last = min(len(episodes(loss, arm)) for arm in ("states", "root"))
    for metric in METRICS:
        gap = [a - b for a, b in zip(*(values(loss, arm, last, metric) for arm in ("states", "root")), strict=True)]
        print(f"{loss}, episode {last}: {metric} from states less from root samples {told(gap, '+.3f')}")

for ending in (".png", ".svg"):
    with figure(folder / f"curve{ending}", 1, (8.0, 3.4), 2) as axes:
        for axis, metric in zip(axes, METRICS, strict=True):
            for n, (loss, arm) in enumerate(arms):
                points = [over_seeds(gains(loss, arm, e, metric)) for e in (0, *episodes(loss, arm))]
                # Beside each other, so that intervals can be told apart.
                xs = [e + 0.06 * (n - 1.5) for e in range(len(points))]
                axis.errorbar(
                    xs, [mean for mean, _ in points], [half for _, half in points], color=COLORS[n // 2],
                    linestyle="-" if arm == "states" else "--", marker="o" if arm == "states" else "s", markersize=4,
                    linewidth=1.4, capsize=2, label=f"{loss}, {'states' if arm == 'states' else 'root samples'}",
                )  # fmt: skip
            axis.set_xticks(range(1 + max(len(episodes(*arm)) for arm in arms)))
            axis.set_xlabel("episode")
            axis.set_ylabel(f"gain in {metric}")
        axes[0].legend(frameon=False, labelcolor=INK, fontsize=8, loc="upper left")
print(f"drawn: {folder / 'curve.png'}")
