"""The door of `qwench mtr`: forty games listed, made, played, scored and looked over."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from .base.errors import QwenchError
from .base.events import Events, Finished, Produced
from .games import lint as lint_
from .games import play, report
from .games.base import KINDS
from .games.input import Which, as_lines, games, records
from .games.match import Rules
from .games.play import RunOptions
from .games.registry import chosen, game, levels
from .games.report import ScoreOptions
from .games.rows import made
from .jobs.job import Job, JobOptions
from .writing.session import ChatOptions

__all__ = ["ChatOptions", "JobOptions", "MakeOptions", "Rules", "RunOptions", "ScoreOptions", "Which"]


@dataclass(frozen=True, slots=True)
class MakeOptions:
    """Everything `qwench mtr make` can be told.

    Attributes:
        per: rows of every task and level; winnable: those alone that the solver wins within `rules.max_round`.
        dry_run: count them.
    """

    tasks: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    levels: tuple[str, ...] = ()
    per: int = 30
    seed: int = 0
    winnable: bool = False
    dry_run: bool = False
    rules: Rules = field(default_factory=Rules)


def tasks(kinds: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Name, class, levels, forms, luck, quirks and opponents of every task.

    Raises:
        QwenchError: an unknown class.
    """
    found = []
    for task in chosen((), kinds):
        kind = game(task.name)
        found.append(
            {
                "name": task.name,
                "class": task.kind,
                "kind": KINDS[task.kind][1],
                "levels": kind.LEVELS,
                "forms": [form.shown for form in kind.FORMS],
                "luck": kind.luck,
                "quirks": list(kind.QUIRKS),
                "opponents": list(kind.OPPONENTS),
                "rules": ["fixed", "reference"],
            }
        )
    return found


def make(options: MakeOptions) -> Events:
    """Rows, sorted by task, level and number; yields Produced rows, then Finished with how many.

    Raises:
        QwenchError: an unknown task, class or level.
    """
    o = options
    named, wanted = chosen(o.tasks, o.classes), levels(o.levels)
    if o.dry_run:
        yield Finished({"schema": 1, "rows": len(named) * len(wanted) * o.per, "tasks": [t.name for t in named]})
        return
    count = 0
    for event in made(named, wanted, o.per, o.seed, o.winnable, o.rules):
        count += isinstance(event, Produced)
        yield event
    yield Finished({"schema": 1, "rows": count, "seed": o.seed})


def run(options: RunOptions, stdin: BinaryIO | None = None) -> Events:
    """Play games; yields what `Job.run` does, then Finished with the job's numbers and a summary.

    Raises:
        QwenchError: see `Job.run` and `games`.
    """
    work = play.work_of(options)
    rows: list[dict[str, Any]] = []
    yield from games(options.which, options.rules, stdin, options.job.keep_going, rows)
    job = replace(options.job, rows="-", at_once=1)
    played: list[dict[str, Any]] = []
    for event in Job(work, job, as_lines(rows)).run():
        if isinstance(event, Produced):
            played.append(event.row)
        if not isinstance(event, Finished):
            yield event
            continue
        if job.dry_run:
            yield event
            return
        if job.out != "-":
            played = [dict(record) for _, record in records((job.out,))]
        good = [r for r in played if "failed" not in r]
        everything = [report.counted(r) for r in played]
        if options.split is not None:
            report.split(options.split, good)
        if isinstance(work, play.Written) and not event.result["failed"]:
            work.done()
        yield Finished(event.result | {"player": options.player, "summary": report.summary(everything)})


def score(options: ScoreOptions, stdin: BinaryIO | None = None) -> Events:
    """Play transcripts again; see `report.scored`."""
    yield from report.scored(options, stdin)


def lint(which: Which, stdin: BinaryIO | None = None) -> Events:
    """Look rows over; yields Produced findings, then Finished: rows, findings by check, task and level."""
    yield from lint_.lint(which, stdin)


def write_rows(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    """Rows as JSON lines, whole or not at all.

    Raises:
        QwenchError: they cannot be written.
    """
    import json

    from .base.atomic import opened

    if path.suffix not in (".jsonl", ".ndjson"):
        raise QwenchError(f"rows cannot be written as `{path.suffix or path.name}`", "use .jsonl", code=2)
    with opened(path, "the rows") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
