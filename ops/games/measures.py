"""What games came to: shares with intervals, refused messages by reason, rounds, and one run beside another."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import mean, median
from typing import Any

from ..base.stats import bootstrap, bootstrap_mean, wilson
from .base import KINDS, LEVELS
from .registry import TASKS

REASONS = ("form", "range", "rule")
BY = ("task", "class", "level", "none")
Record = Mapping[str, Any]
_KIND = {task.name: task.kind for task in TASKS}
_ORDER = {task.name: n for n, task in enumerate(TASKS)}


def share(records: Sequence[Record]) -> dict[str, Any]:
    """games, solved, accuracy with Wilson's interval, invalid_games, invalid_messages, reasons, rounds, tokens."""
    games, won = len(records), [r for r in records if r["solved"]]
    interval = wilson(len(won), games)
    turns = [t for r in records for t in r["turns"]]
    refused = [t for t in turns if not t.get("valid", True)]
    reasons = Counter(t.get("reason") or "form" for t in refused)
    tokens = [sum(t.get("answer_tokens", 0) + t.get("thinking_tokens", 0) for t in r["turns"]) for r in records]
    rounds = [r["rounds"] for r in won]
    return {
        "games": games,
        "solved": len(won),
        "accuracy": len(won) / games if games else None,
        "interval": list(interval) if interval else None,
        "invalid_games": sum(any(not t.get("valid", True) for t in r["turns"]) for r in records) / games
        if games
        else None,
        "invalid_messages": len(refused) / len(turns) if turns else 0.0,
        "reasons": {reason: reasons[reason] for reason in REASONS},
        "ended": dict(Counter(str(r.get("ended")) for r in records)),
        "rounds": mean(rounds) if rounds else None,
        "median_rounds": median(rounds) if rounds else None,
        "tokens": mean(tokens) if tokens and any(tokens) else None,
    }


def _refused(record: Record) -> bool:
    return any(not turn.get("valid", True) for turn in record["turns"])


def grouped(records: Iterable[Record], by: str) -> dict[str, list[Record]]:
    """Records by task, class, level, or all together; in the order of the tasks."""
    names = {
        "task": lambda r: r["task"],
        "class": lambda r: KINDS[_KIND[r["task"]]][1],
        "level": lambda r: r["level"],
        "none": lambda r: "all",
    }
    found: dict[str, list[Record]] = defaultdict(list)
    for record in sorted(records, key=lambda r: (_ORDER[r["task"]], _level(r))):
        found[names[by](record)].append(record)
    return dict(found)


def _level(record: Record) -> int:
    return LEVELS.index(record["level"]) if record["level"] in LEVELS else len(LEVELS)


def summary(records: Sequence[Record], by: str = "task") -> dict[str, Any]:
    """Shares of every group, by level within each; the unweighted mean over tasks, with a bootstrap of rows."""
    rows = []
    for name, group in grouped(records, by).items():
        levels = {level: share(some) for level, some in grouped(group, "level").items()}
        rows.append({"name": name, "levels": levels, **share(group)})
    tasks = grouped(records, "task")
    accuracies = [share(group)["accuracy"] for group in tasks.values()]
    return {
        "rows": rows,
        "all": share(records),
        "mean": mean(accuracies) if accuracies else None,
        "interval": _mean(tasks),
    }


def _mean(tasks: Mapping[str, Sequence[Record]]) -> list[float] | None:
    """Interval of the unweighted mean over tasks; rows are drawn within each task."""
    values = [float(r["solved"]) for group in tasks.values() for r in group]
    names = [name for name, group in tasks.items() for _ in group]
    weights = [1 / (len(tasks) * len(tasks[name])) for name in names]

    def mean_of(drawn: Any) -> float:
        return sum(values[i] * weights[i] for i in drawn)

    found = bootstrap(mean_of, len(values), strata=names)
    return list(found) if found else None


def normalised(accuracy: float, low: float, high: float) -> float | None:
    """Where a share lies between a random player's and the solver's; None where these are alike."""
    return (accuracy - low) / (high - low) if high > low else None


def efficiency(ours: Sequence[Record], theirs: Sequence[Record]) -> dict[str, Any]:
    """Rounds on games that both have solved: mean difference with its interval, and how many took fewer, as many, more.

    Games are the same where task, level and id are.
    """
    other = {game_key(r): r for r in theirs if r["solved"]}
    pairs = [(r["rounds"], other[game_key(r)]["rounds"]) for r in ours if r["solved"] and game_key(r) in other]
    differences = [a - b for a, b in pairs]
    found = bootstrap_mean(differences)
    count = len(pairs)
    return {
        "common": count,
        "difference": mean(differences) if differences else None,
        "interval": list(found) if found else None,
        "fewer": sum(d < 0 for d in differences) / count if count else None,
        "same": sum(d == 0 for d in differences) / count if count else None,
        "more": sum(d > 0 for d in differences) / count if count else None,
    }


def game_key(record: Record) -> tuple[str, str, int]:
    """Which game a record is of."""
    return record["task"], record["level"], record["question_id"]
