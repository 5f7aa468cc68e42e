"""A job: every row of a table through some work, kept as it is done, put out in the table's order."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ..base.errors import QwenchError
from ..base.events import Advanced, Events, Finished, Produced, Started, Warned
from ..text.fields import beside
from ..text.row_output import jsonable
from ..text.rows import Malformed
from . import output
from .journal import Entry, Journal, kept
from .rows import Row, Table
from .work import Batched, Desk, Work

#: failed rows that are told one by one
TOLD = 20
#: field of a row that has failed
FAILED = "failed"


@dataclass(frozen=True, slots=True)
class JobOptions:
    """How rows go in and out; names equal the flags.

    Attributes:
        rows: file of rows, - for standard input.
        out: .jsonl or .parquet, - for rows as they are done, in order and without a journal.
        id_field: column that names a row, see `Table`.
        limit: rows at most, 0 for all.
        at_once: calls in work at a time; a writer has its own number.
        retries: of a row whose failure says that it may pass.
        dry_run: count, and do nothing.
        keep_going: bad rows are left out instead of ending the run before it begins.
        force: begin anew over another job or file.
    """

    rows: str = "-"
    out: str = "-"
    id_field: str | None = None
    limit: int = 0
    at_once: int = 8
    retries: int = 2
    dry_run: bool = False
    keep_going: bool = False
    force: bool = False


@dataclass(slots=True)
class _Plan:
    """The rows as they were first gone through: (key, digest, whether it is to be worked on) of each that is good."""

    rows: list[tuple[str, str, bool]] = field(default_factory=list)
    bad: int = 0
    prompt_tokens: int | None = 0
    first: str | None = None

    @property
    def open(self) -> int:
        """Rows to be worked on."""
        return sum(todo for _, _, todo in self.rows)


class Job:
    """One run of a job.

    Raises:
        QwenchError: from `run`: see there.
    """

    def __init__(self, work: Work, options: JobOptions, stdin: BinaryIO | None = None) -> None:
        self.work, self.options, self.stdin = work, options, stdin
        self.counts: Counter[str] = Counter()
        self.failed = 0

    def run(self) -> Events:
        """Yields what `work.load` does, Advanced in rows, Warned for failed rows, Produced rows where they go to
        standard output, and Finished: rows, done (before this run), failed, out, and what the work counts.

        Raises:
            QwenchError: an input or output that cannot be; a bad row, unless keep_going; another job at the output.
        """
        o = self.options
        out = None if o.out == "-" else self.target()
        self.table = self.rows()
        try:
            if out is None or o.dry_run:
                yield from self._run(None, None)
                return
            with kept(out, o.force) as (journal, said):
                yield from said
                yield from self._run(out, journal)
        finally:
            self.work.close()

    def rows(self) -> Iterable[Row]:
        """Where the rows come from; gone through several times."""
        return Table(self.options.rows, self.stdin, self.options.id_field)

    def target(self) -> Path:
        """Where they go; the journal is beside it.

        Raises:
            QwenchError: nothing can be written there.
        """
        return output.check(self.options.out)

    def write(self, out: Path, rows: Callable[[], Iterator[dict[str, Any]]], journal: Journal) -> None:
        """What is finished, with the fields that its rows came with.

        Raises:
            QwenchError: it cannot be written.
        """
        output.write(out, rows)

    def _run(self, out: Path | None, journal: Journal | None) -> Events:
        o, begun = self.options, time.monotonic()
        yield from self.work.load(sum(not isinstance(row.value, Malformed) for row in self._read()))
        if journal is not None and out is not None:
            there = None if o.force else journal.settings()
            if there is not None:
                self.work.adopt(there)
            yield from journal.take({"job": self.work.name, **self.work.settings}, o.force)
        plan = yield from self._planned(journal)
        yield from self.work.remarks()
        if o.dry_run:
            yield Finished(
                {
                    "schema": 1,
                    "rows": len(plan.rows),
                    "bad": plan.bad,
                    "prompt_tokens": plan.prompt_tokens,
                    "first_prompt": plan.first,
                    **self.work.planned(),
                }
            )
            return
        yield Started(self.work.name, plan.open)
        if journal is None:
            yield from self._streamed(plan)
        else:
            yield from self._kept(plan, journal)
            self.write(out, lambda: self._rows(plan, journal), journal)
        for count, what in ((plan.bad, "are left out"), (self.failed, "failed")):
            if count > TOLD:
                yield Warned("failed", f"{count - TOLD} more rows {what}", None, True)
        yield Finished(
            {
                "schema": 1,
                "rows": len(plan.rows),
                "done": len(plan.rows) - plan.open,
                "failed": self.failed,
                "bad": plan.bad,
                "out": o.out,
                **self.counts,
                "seconds": round(time.monotonic() - begun, 3),
            }
        )

    def _limited(self) -> Iterator[Row]:
        for count, row in enumerate(self.table, 1):
            yield row
            if count == self.options.limit:
                return

    def _read(self) -> Iterator[Row]:
        """All rows, for the first time."""
        for row in self._limited():
            if isinstance(row.value, Malformed) and not self.options.keep_going:
                raise QwenchError(f"{row.place} {row.value}", "correct it, or leave it out with --keep-going")
            yield row

    def _planned(self, journal: Journal | None) -> Iterator[Any]:
        """Go through all rows before the work, so that a bad one is told now and not after hours; returns the plan."""
        plan = _Plan()
        yield Started("rows", None)
        for row in self._limited():
            done = journal is not None and journal.done(row.key, row.digest)
            try:
                if isinstance(row.value, Malformed):
                    raise QwenchError(str(row.value))
                if not done:
                    self._tried(plan, row)
            except QwenchError as error:
                told = f"{row.place}{'' if isinstance(row.value, Malformed) else ':'} {error.message}"
                if not self.options.keep_going:
                    raise QwenchError(told, error.hint, error.code) from error
                plan.bad += 1
                plan.rows.append((str(row.key), "", False))
                if plan.bad <= TOLD:
                    yield Warned("rows", f"left out: {told}", row.key, True)
            else:
                plan.rows.append((str(row.key), row.digest, not done))
            yield Advanced("rows", 1)
        return plan

    def _tried(self, plan: _Plan, row: Row) -> None:
        """Make a row's asks ready, to see whether they can be."""
        asked = self.work.begin(row.value, row.key)
        writer = self.work.writer
        for ask in () if callable(asked) or isinstance(asked, Batched) or writer is None else asked:
            prepared = writer.prepare(ask)
            if plan.first is None:
                plan.first = writer.shown(prepared)
            if plan.prompt_tokens is not None:
                tokens = prepared.prompt_tokens
                plan.prompt_tokens = None if tokens is None else plan.prompt_tokens + tokens

    def _walked(self, plan: _Plan) -> Iterator[tuple[int, Row]]:
        """Good rows with their numbers, once more."""
        rows = self._limited()
        for index, (key, digest, _) in enumerate(plan.rows):
            row = next(rows, None)
            if row is None or (digest and (row.key, row.digest) != (key, digest)):
                raise QwenchError(f"the input changed while it was read: `{self.options.rows}`", "run it again")
            if digest:
                yield index, row

    def _units(self, plan: _Plan) -> Iterator[tuple[int, Row, Entry]]:
        """Rows as they end, with what is to be kept of them; failures are told by `_told`."""
        todo = ((index, row) for index, row in self._walked(plan) if plan.rows[index][2])
        for unit in Desk(self.work, self.options.at_once, self.options.retries).run(todo):
            if unit.error is not None:
                yield unit.index, unit.row, Entry({}, unit.error.message, {})
            else:
                yield unit.index, unit.row, Entry(jsonable(unit.found), None, self.work.count(unit.results))

    def _kept(self, plan: _Plan, journal: Journal) -> Events:
        """Every row into the journal as it ends."""
        for _, row, entry in self._units(plan):
            journal.add(row.key, row.digest, entry)
            yield from self._told(row, entry)
        for key, digest, _ in plan.rows:
            if digest and (entry := journal.entry(key)):
                self.counts.update(entry.counts)

    def _rows(self, plan: _Plan, journal: Journal) -> Iterator[dict[str, Any]]:
        for _, row in self._walked(plan):
            if entry := journal.entry(row.key):
                yield joined(row, entry)

    def _streamed(self, plan: _Plan) -> Events:
        """Every row out as soon as those before it are."""
        order = iter([index for index, (_, digest, _) in enumerate(plan.rows) if digest])
        next_one, ended = next(order, None), {}
        for index, row, entry in self._units(plan):
            self.counts.update(entry.counts)
            yield from self._told(row, entry)
            ended[index] = joined(row, entry)
            while next_one in ended:
                yield Produced(ended.pop(next_one))
                next_one = next(order, None)

    def _told(self, row: Row, entry: Entry) -> Events:
        if entry.failed is not None:
            self.failed += 1
            if self.failed <= TOLD:
                yield Warned("failed", f"{row.place} failed: {entry.failed}", row.key, True)
        yield Advanced(self.work.name, 1)


def joined(row: Row, entry: Entry) -> dict[str, Any]:
    """A row with what was found, or with why nothing was."""
    assert isinstance(row.value, dict)
    return beside(row.value, entry.found if entry.failed is None else {FAILED: entry.failed})


def job(work: Work, options: JobOptions, stdin: BinaryIO | None = None) -> Events:
    """See `Job.run`."""
    yield from Job(work, options, stdin).run()
