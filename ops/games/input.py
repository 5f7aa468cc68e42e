"""Rows and transcripts from files: each checked, each with the place it stands at."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from ..base.errors import QwenchError
from ..base.events import Events, Warned
from ..jobs.rows import Table
from ..text.rows import Malformed
from .base import Row
from .match import Match, Rules, settled
from .registry import chosen, game, levels
from .rows import reference

#: bad rows that are told one by one
TOLD = 20


@dataclass(frozen=True, slots=True)
class Which:
    """Which rows; names equal the flags.

    Attributes:
        rows: file of rows, - for standard input, None with a clone.
        reference: folder of a clone of the reference.
        tasks, classes, levels: names, none for all.
        limit: games at most, 0 for all.
        seed: of what rows of the reference leave to chance.
    """

    rows: str | None = None
    reference: Path | None = None
    tasks: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    levels: tuple[str, ...] = ()
    limit: int = 0
    seed: int = 0


def listed(which: Which, stdin: BinaryIO | None = None) -> Iterator[tuple[str, Any]]:
    """(place, row or what is wrong with it), as they stand in the input.

    Raises:
        QwenchError: no rows are named, or both kinds; they cannot be read.
    """
    if (which.rows is None) == (which.reference is None):
        raise QwenchError("give rows, or --reference and a clone", "`qwench mtr make` makes rows", code=2)
    if which.reference is not None:
        yield from reference(which.reference, chosen(which.tasks, which.classes), levels(which.levels))
        return
    for row in Table(which.rows or "-", stdin):
        yield row.place, row.value


def games(
    which: Which, rules: Rules, stdin: BinaryIO | None = None, keep_going: bool = False, found: list[Row] | None = None
) -> Events:
    """Settled rows that can be played, put into `found`; yields Warned for those left out and for what is to be known.

    Raises:
        QwenchError: a row is not as it should be, unless keep_going.
    """
    tasks, wanted = {t.name for t in chosen(which.tasks, which.classes)}, levels(which.levels)
    everything = not which.tasks and not which.classes
    kept: list[Row] = [] if found is None else found
    bad, texts, lost, drawn = 0, 0, 0, set[str]()
    for place, value in listed(which, stdin):
        try:
            if isinstance(value, Malformed):
                raise QwenchError(f"it {value}")
            row = settled(value, which.seed)
            if row["task"] not in tasks or (which.levels and row["level"] not in wanted):
                continue
            match = Match(row, rules)
        except QwenchError as error:
            if not keep_going:
                raise QwenchError(f"{place}: {error.message}", error.hint, error.code) from error
            bad += 1
            if bad <= TOLD:
                yield Warned("rows", f"left out: {place}: {error.message}", place, True)
            continue
        texts += isinstance(value.get("question_id"), str)
        lost += any(kind == "unsolvable" for kind, _ in match.game.faults())
        kind = game(row["task"])
        if kind.name not in drawn and any(name not in row for name in kind.DRAWN):
            drawn.add(kind.name)
            yield Warned("unseeded", f"rows of {kind.name} leave {', '.join(kind.DRAWN)} to chance: drawn from --seed")
        kept.append(row)
        if which.limit and len(kept) == which.limit:
            break
    if bad > TOLD:
        yield Warned("rows", f"{bad - TOLD} more rows are left out", None, True)
    if texts:
        yield Warned("ids", f"{texts} rows have texts for ids, which are taken as numbers")
    if lost:
        yield Warned("unsolvable", f"{lost} of {len(kept)} rows cannot be won by the rules in force")
    if not kept:
        raise QwenchError("there are no rows to play", None if everything else "other tasks or levels may be there")


def as_lines(rows: list[Row]) -> BytesIO:
    """Rows as a job takes them: each under a key of its own."""
    lines, seen = [], set[str]()
    for number, row in enumerate(rows, 1):
        key = f"{row['task']}/{row['level']}/{row['question_id']}"
        if key in seen:
            key = f"{key}/{number}"
        seen.add(key)
        lines.append(json.dumps({"id": key, "row": row}, ensure_ascii=False))
    return BytesIO("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogatepass"))


def records(names: tuple[str, ...], stdin: BinaryIO | None = None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(place, transcript) of files.

    Raises:
        QwenchError: a file that cannot be read, or a line that is no object.
    """
    for name in names:
        for row in Table(name, stdin):
            place = f"`{name}`, {row.place}"
            if isinstance(row.value, Malformed):
                raise QwenchError(f"{place} {row.value}")
            yield place, row.value


def by_key(which: Which, stdin: BinaryIO | None = None) -> dict[tuple[str, str, int], Row]:
    """Settled rows by task, level and id.

    Raises:
        QwenchError: see `listed`; a row without a task.
    """
    found: dict[tuple[str, str, int], Row] = {}
    for place, value in listed(which, stdin):
        try:
            if isinstance(value, Malformed):
                raise QwenchError(f"it {value}")
            # Rows of oracles hold the row itself one level down.
            row = value["row"] | {"task": value.get("task")} if isinstance(value.get("row"), dict) else value
            row = settled(row, which.seed)
        except QwenchError as error:
            raise QwenchError(f"{place}: {error.message}", error.hint, error.code) from error
        found[row["task"], str(row["level"]), row["question_id"]] = row
    return found
