"""What a run came to: drops, verdicts, values by depth, and how much its groups say beside more root samples."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ...base.stats import bootstrap, bootstrap_mean
from .questions import together
from .values import informative_of, variance

#: share of truncated completions from which it is said
TRUNCATED = 0.2


def _counts(row: dict[str, Any]) -> tuple[int, int]:
    """(right, wrong) of a state."""
    right = sum(s["right"] is True for s in row["samples"])
    return right, sum(s["right"] is False for s in row["samples"])


class _Depths:
    """States by the rightness of their hit and their number."""

    def __init__(self) -> None:
        self.cells: dict[tuple[bool, int], list[tuple[float, float, float | None, float | None]]] = defaultdict(list)
        self.climbs: dict[bool, list[float]] = {True: [], False: []}

    def add(self, states: list[dict[str, Any]], n: int) -> None:
        hit = states[0]["hit"]
        if hit is None or len(states) < 2:
            return
        for row in states:
            if row["value"] is not None:
                right, wrong = _counts(row)
                cell = row["value"], row["depth"], informative_of(right, wrong, n), variance(right, wrong)
                self.cells[bool(hit["right"]), row["state"]].append(cell)
        if states[-1]["value"] is not None and states[0]["value"] is not None:
            self.climbs[bool(hit["right"])].append(states[-1]["value"] - states[0]["value"])

    def table(self) -> list[dict[str, Any]]:
        return [
            {
                "hit": "right" if right else "wrong",
                "state": state,
                "states": len(cells),
                "depth": _mean([c[1] for c in cells]),
                "value": _mean([c[0] for c in cells]),
                "informative": _mean([c[2] for c in cells if c[2] is not None]),
                "variance": _mean([c[3] for c in cells if c[3] is not None]),
            }
            for (right, state), cells in sorted(self.cells.items(), key=lambda item: (not item[0][0], item[0][1]))
        ]

    def change(self) -> dict[str, Any]:
        """Value of the last state less that of the root, by kind of hit."""
        return {
            word: {"hits": len(rows), "mean": _mean(rows), "interval": bootstrap_mean(rows) if rows else None}
            for word, rows in (("right", self.climbs[True]), ("wrong", self.climbs[False]))
        }


def report(rows: Callable[[], Iterator[dict[str, Any]]], n: int) -> dict[str, Any]:
    """Numbers of a run, JSON-able.

    Args:
        rows: states, those of a question side by side.
        n: completions of a later state, the size of group for which shares are told.
    """
    dropped, verdicts, depths = Counter[str](), Counter[str](), _Depths()
    shares: list[tuple[list[float], list[float], list[float]]] = []
    tokens = Counter[str]()
    told = Counter[str]()
    for states in together(rows()):
        root, later = states[0], states[1:]
        dropped[root["dropped"] or ""] += 1
        verdicts.update(s["verdict"] for row in states for s in row["samples"])
        tokens["root"] += root["generated_tokens"]
        tokens["states"] += sum(row["generated_tokens"] for row in later)
        tokens["baseline"] += root["baseline_tokens"]
        gold = re.compile(rf"(?<![\w.]){re.escape(root['answer'])}(?![\w]|\.\d)")
        told["gold_in_question"] += bool(gold.search(root["question"]))
        told["gold_in_prefix"] += sum(bool(gold.search(row["prefix"])) for row in later)
        told["too_long"] += root["too_long"]
        told["states"] += len(states)
        depths.add(states, n)
        shares.append(
            (
                _known([informative_of(*_counts(root), n)]) if later else [],
                _known([informative_of(*_counts(row), n) for row in later]),
                _known([informative_of(*pair, n) for pair in root["baseline"]]),
            )
        )
    change = depths.change()
    found = {
        "questions": sum(dropped.values()),
        "dropped": {why: count for why, count in sorted(dropped.items()) if why},
        "verdicts": dict(sorted(verdicts.items())),
        **told,
        "tokens": dict(tokens),
        "depths": depths.table(),
        "change": change,
        "informative": {w: _share(shares, i) for i, w in enumerate(("root", "later", "baseline"))},
        "difference": _difference(shares) if tokens["baseline"] else None,
    }
    return found | {"remarks": list(_remarks(found, change))}


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _known(values: list[float | None]) -> list[float]:
    return [v for v in values if v is not None]


def _share(shares: list[tuple[list[float], ...]], which: int) -> dict[str, Any]:
    """Mean share of informative groups, with a bootstrap over questions."""
    groups = [s[which] for s in shares if s[which]]

    def mean(rows: np.ndarray) -> float:
        return float(np.mean([v for r in rows for v in groups[r]]))

    return {
        "groups": sum(map(len, groups)),
        "questions": len(groups),
        "share": _mean([v for g in groups for v in g]),
        "interval": bootstrap(mean, len(groups)),
    }


def _difference(shares: list[tuple[list[float], ...]]) -> dict[str, Any]:
    """Share of informative groups of later states less that of as many tokens of root samples; over questions."""
    both = [(s[1], s[2]) for s in shares if s[1] and s[2]]

    def gap(rows: Any) -> float:
        ours, theirs = ([v for r in rows for v in both[r][side]] for side in (0, 1))
        return float(np.mean(ours) - np.mean(theirs))

    everything = range(len(both))
    return {
        "questions": len(both),
        "mean": gap(everything) if both else None,
        "interval": bootstrap(gap, len(both)),
    }


def _remarks(found: dict[str, Any], change: dict[str, Any]) -> Iterator[str]:
    verdicts = found["verdicts"]
    total = sum(verdicts.values())
    cut = verdicts.get("truncated", 0)
    if total and cut > TRUNCATED * total:
        yield f"{100 * cut / total:.0f} % of the completions are truncated, and count as wrong: raise --max-tokens"
    for word, sign, verb in (("right", 1, "rise"), ("wrong", -1, "fall")):
        one = change[word]
        if one["hits"] and one["mean"] * sign <= 0:
            few = f"; only {one['hits']} of them" if one["hits"] < 10 else ""
            yield f"values along {word} hits do not {verb}: {one['mean']:+.3f} from the root to the last state{few}"
    if found["gold_in_question"]:
        yield f"{found['gold_in_question']} questions hold their answer: a value is no ability there"
    if found["gold_in_prefix"]:
        yield f"{found['gold_in_prefix']} states hold the answer in their prefix: a value is no ability there"
    if found["too_long"]:
        yield f"{found['too_long']} states leave no room for an answer, and are left out"
