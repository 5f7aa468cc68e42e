"""Measures of several seeds become a table, and the points that `qwench reliability fit` takes.

table.py POINTS.jsonl MEASURED.json...
"""

import json
import statistics
import sys
from pathlib import Path

#: quantile of Student's t at 97.5 %, by degrees of freedom
T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}


def over_seeds(values: list[float]) -> str:
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:+.3f}"
    half = T[len(values) - 1] * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}]"


points, files = Path(sys.argv[1]), sys.argv[2:]
seeds = [json.loads(Path(name).read_text()) for name in files]
print(f"{'task':18}{'direct acc/conf/ECE':>22}{'steps acc/conf/ECE':>22}{'guesser':>9}{'calibr.':>9}", end="")
print(f"{'d_acc':>27}{'d_rel':>27}")
rows = []
for pair in seeds[0]["pairs"]:
    task = pair["task"]
    pairs = [next(p for p in seed["pairs"] if p["task"] == task) for seed in seeds]
    cells = [
        [c for seed in seeds for c in seed["cells"] if (c["task"], c["condition"]) == (task, n)]
        for n in ("direct", "steps")
    ]
    told = [
        "/".join(f"{statistics.fmean(c[m] for c in some):.3f}" for m in ("accuracy", "confidence", "ece"))
        for some in cells
    ]
    means = {name: statistics.fmean(p[name] for p in pairs) for name in ("d_acc", "d_rel", "d_conf")}
    floor, calibrated = (statistics.fmean(c[m] for c in cells[0]) for m in ("floor", "calibrated_ece"))
    print(f"{task:18}{told[0]:>22}{told[1]:>22}{floor:>9.3f}{calibrated:>9.3f}", end="")
    print(f"{over_seeds([p['d_acc'] for p in pairs]):>27}{over_seeds([p['d_rel'] for p in pairs]):>27}")
    difficulty = statistics.fmean(c["accuracy"] for c in cells[0])
    rows.append({"task": task, **means, "difficulty": difficulty, "group": "few" if "few" in task else "many"})
points.write_text("".join(json.dumps(row) + "\n" for row in rows))
