"""Rows looked over: ids, labels, copies, fields, whether they can be won, and what their prompts teach."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any, BinaryIO

from ..base.errors import QwenchError
from ..base.events import Events, Finished, Produced, Started
from ..text.rows import Malformed
from .base import KINDS, LEVELS, Game, Row
from .input import Which, listed
from .match import READY, settled
from .registry import game
from .rows import EXAMPLES

#: fields that rows of every task have
COMMON_FIELDS = ("question_id", "prompt", "type", "scale", "difficulty", "title")


def lint(which: Which, stdin: BinaryIO | None = None) -> Events:
    """Yields Produced findings: check, task, level, place, text; then Finished: rows, findings, and counts by check.

    Raises:
        QwenchError: the rows cannot be read.
    """
    yield Started("lint", None)
    counts: Counter[tuple[str, str, str]] = Counter()
    ids: dict[tuple[str, str], Counter[Any]] = defaultdict(Counter)
    copies: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    rows = 0
    for place, value in listed(which, stdin):
        rows += 1
        for check, task, level, text in _row(value, place, ids, copies):
            counts[check, task, level] += 1
            yield Produced({"check": check, "task": task, "level": level, "place": place, "text": text})
    found = [{"check": c, "task": t, "level": level, "rows": n} for (c, t, level), n in counts.items()]
    found.sort(key=lambda f: (f["check"], f["task"], LEVELS.index(f["level"]) if f["level"] in LEVELS else 9))
    different = [
        {
            "task": task,
            "level": level,
            "rows": sum(named.values()),
            "ids": len(named),
            "different": len(copies[task, level]),
        }
        for (task, level), named in ids.items()
    ]
    total = sum(counts.values())
    yield Finished({"schema": 1, "rows": rows, "findings": total, "checks": found, "levels": different})


def _row(value: Any, place: str, ids: Any, copies: Any) -> Iterator[tuple[str, str, str, str]]:
    """(check, task, level, text) of what is wrong with a row."""
    task = level = ""
    try:
        if isinstance(value, Malformed):
            raise QwenchError(f"it {value}")
        row = settled(value)
        task, level = row["task"], str(row["level"])
        kind = game(task)
        own = "rules" in value
        made = kind(row, random.Random(0), frozenset() if own else kind.all_quirks())
    except QwenchError as error:
        yield "row", task, level, error.message
        return
    if isinstance(value.get("question_id"), str):
        yield "string id", task, level, f"`question_id` is the text {value['question_id']!r}"
    named = ids[task, level]
    named[row["question_id"]] += 1
    if named[row["question_id"]] > 1:
        yield "repeated id", task, level, f"`question_id` {row['question_id']} is there before"
    key = json.dumps(made.key(), sort_keys=True, default=str)
    if key in copies[task, level]:
        yield "repeated row", task, level, f"the same as {copies[task, level][key]}"
    else:
        copies[task, level][key] = place
    label = value.get("difficulty")
    if label is not None and label != level:
        yield "level label", task, level, f"it is labelled {label}"
    for name in COMMON_FIELDS:
        if name not in value:
            yield f"no {name}", task, level, f"there is no field `{name}`"
    yield from ((check, task, level, text) for check, text in made.faults())
    yield from ((check, task, level, text) for check, text in _prompt(made, row))
    if own and value.get("type") not in (None, KINDS[kind.kind][0]):
        yield "class label", task, level, f"its type is {value['type']!r}"


def _prompt(made: Game, row: Row) -> Iterator[tuple[str, str]]:
    """What is wrong with a prompt: no place for the limit, examples that are refused, or that give the answer away."""
    prompt = row.get("prompt")
    if not isinstance(prompt, str):
        return
    if READY not in prompt:
        yield "no ready", f"no paragraph of the prompt begins with `{READY.strip()}`"
    if "rules" not in row:
        return
    for said in EXAMPLES.findall(prompt):
        step = _fresh(made).step(said)
        if not step.valid and step.reason == "form":
            yield "refused example", f"the prompt's example `{said}` fits no form"
        elif gives_away(made, said):
            yield "answer in prompt", f"the prompt's example `{said}` is the answer"


def gives_away(made: Game, said: str) -> bool:
    """Whether an example is an answer, and the right one."""
    step = _fresh(made).step(said)
    return step.answered and step.solved


def _fresh(made: Game) -> Game:
    return type(made)(made.row, random.Random(0), made.quirks)
