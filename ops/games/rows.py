"""Rows: made by our own generators, or read from a clone of the reference."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

from ..base.errors import QwenchError
from ..base.events import Advanced, Events, Produced, Started, Warned
from .base import KINDS, Game, Row, world
from .match import Match, Rules, scripted, settled
from .registry import Task, game

#: draws in a row that bring no new row before a level counts as used up
PATIENCE = 200
#: words in the names of files of the reference that hold no rows of it
LEFT_OVER = frozenset({"test", "old", "real", "add"})
#: messages that a prompt shows between backticks
EXAMPLES = re.compile(r"`([^`\n]+)`")


def seed_of(seed: int, number: int) -> int:
    """Seed of one of a run's rows, 31 bits."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:4], "big") >> 1


def made(tasks: list[Task], levels: list[str], per: int, seed: int, winnable: bool, rules: Rules) -> Events:
    """Rows of tasks and levels, all different within each; yields Produced rows, and Warned where there are no more.

    Args:
        winnable: keep those that the solver wins within the limit.
    """
    yield Started("make", len(tasks) * len(levels) * per)
    for task in tasks:
        for level in levels:
            thrown = 0
            count = 0
            for row in _different(task, level, seed):
                if count == per:
                    break
                if winnable and not scripted("solver", Match(settled(row), rules)).solved:
                    thrown += 1
                    continue
                count += 1
                yield Produced({"id": f"{task.name}/{level}/{count}", "question_id": count, **row})
                yield Advanced("make", 1)
            if thrown:
                yield Warned("thrown", f"{task.name}, {level}: {thrown} rows that the solver does not win are left out")
            if count < per:
                yield Warned("rows", f"{task.name}, {level}: there are {count} different rows, and not {per}")


def _different(task: Task, level: str, seed: int) -> Iterator[Row]:
    kind, seen, vain, number = game(task.name), set(), 0, 0
    while vain < PATIENCE:
        row = kind.make(level, seed_of(seed, number))
        number += 1
        key = json.dumps(kind(row, world(row)).key(), sort_keys=True)
        # An example of the prompt may be the answer by chance.
        if key in seen or any(_wins(kind(row, world(row)), said) for said in EXAMPLES.findall(row["prompt"])):
            vain += 1
            continue
        seen.add(key)
        vain = 0
        yield row


def _wins(made: Game, said: str) -> bool:
    step = made.step(said)
    return step.answered and step.solved


def reference(folder: Path, tasks: list[Task], levels: list[str]) -> Iterator[tuple[str, Row]]:
    """(where, row) of a clone of the reference: of every task and level one file below `problem/CLASS`.

    Raises:
        QwenchError: it is none, or a file in it cannot be read.
    """
    if not (folder / "problem" / KINDS["ip"][0]).is_dir():
        raise QwenchError(f"there is no problem/{KINDS['ip'][0]} in `{folder}`", "give a clone of the reference")
    for task in tasks:
        for level in levels:
            path = _file(folder / "problem" / KINDS[task.kind][0], task.name, level)
            for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise QwenchError(f"line {number} of `{path}` is no JSON") from error
                yield f"{task.name}/{level} line {number}", {**row, "task": task.name, "level": level}


def _file(folder: Path, task: str, level: str) -> Path:
    """The one file of a task and level, by the words in its path; files of leftovers have further ones."""
    found = []
    for path in sorted(folder.rglob("*.jsonl")):
        words = set(re.split(r"[/\\_.-]", str(path.relative_to(folder)).lower()))
        if {task.lower(), level} <= words and not words & LEFT_OVER:
            found.append(path)
    if len(found) != 1:
        raise QwenchError(f"there are {len(found)} files of {task}, {level}, in `{folder}`, and not one")
    return found[0]
