"""What a job is given to do with every row, and how rows are worked on several at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import Any

from ..base.errors import QwenchError
from ..base.events import Events, Warned
from ..writing.writer import WAIT, Ask, Prepared, Turn, Wait, Writer
from .rows import Key, Row

Call = Callable[[], Any]


class Again(QwenchError):
    """A failure that may have passed when the row is tried once more."""


@dataclass(frozen=True, slots=True)
class Batched:
    """What a row brings to work that is done for many rows at once.

    Attributes:
        size: in the unit of `Work.window`. content: whatever `Work.together` needs.
    """

    size: int
    content: Any


class Work:
    """What is done with every row.

    Attributes:
        name: of the stage, a verb: sample, score.
        writer: who answers asks, there once `load` has run; None where rows are calls alone.
        window: rows of this size in all are worked on together, where they begin as `Batched`.
    """

    name: str
    writer: Writer | None = None
    window: int = 0

    @property
    def settings(self) -> Mapping[str, Any]:
        """All that changes a result, JSON-able; asked for after `load`."""
        raise NotImplementedError

    def load(self, rows: int) -> Events:
        """Make ready for so many rows; yields Chose and Warned."""
        return iter(())

    def adopt(self, settings: Mapping[str, Any]) -> None:
        """Take what was drawn at random, such as a seed, from the settings of the job that is gone on with."""

    def begin(self, row: dict[str, Any], key: Key) -> Sequence[Ask] | Call | Batched:
        """What is to be asked of a row, or a call that works on it, several at a time in threads of their own, or what
        it brings to `together`.

        It depends on the row and its key alone: it is asked for before the work, and again when it is the row's turn.

        Raises:
            QwenchError: the row is not as it should be.
        """
        raise NotImplementedError

    def together(self, contents: list[Any]) -> list[Any]:
        """What comes of several rows, a result for the `finish` of each, or the QwenchError that it has failed with."""
        raise NotImplementedError

    def planned(self) -> dict[str, Any]:
        """What a dry run tells besides the number of rows, once all have begun for the first time."""
        return {}

    def remarks(self) -> Iterator[Warned]:
        """What is to be said once all rows have begun for the first time."""
        return iter(())

    def finish(self, row: dict[str, Any], results: list[Any]) -> dict[str, Any] | Sequence[Ask]:
        """What is found, put beside the row's own fields; or more asks, whose turns come after those there are.

        Args:
            results: turns, in the order of the asks and of their samples; or what the call gave, alone.

        Raises:
            QwenchError: the row has failed; with `Again` it is tried once more.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Let go of what `load` has taken, such as connections that threads wait at; the job is over or broken off."""

    def count(self, results: list[Any]) -> dict[str, int]:
        """Numbers that the job sums up."""
        return {}


@dataclass(slots=True, eq=False)
class Unit:
    """A row in work.

    Attributes:
        index: its number among the rows of the job.
        results: what has come of the asks that are answered; turns: of those that are not yet, by ask and sample.
        found, error: how it ended.
    """

    index: int
    row: Row
    tries: int = 0
    results: list[Any] = field(default_factory=list)
    turns: dict[tuple[int, int], Turn] = field(default_factory=dict)
    wanted: int = 0
    found: dict[str, Any] | None = None
    error: QwenchError | None = None


class Desk:
    """Rows in work, at most as many as the writer takes, or as threads there are.

    Args:
        at_once: threads for calls.
        retries: how often a row that says so is tried again.
    """

    def __init__(self, work: Work, at_once: int, retries: int) -> None:
        self._work, self._at_once, self._retries = work, max(at_once, 1), retries
        self._over: deque[Unit] = deque()
        self._asks: deque[Ask] = deque()
        self._open: dict[int, Unit] = {}

    def run(self, rows: Iterable[tuple[int, Row]]) -> Iterator[Unit]:
        """Units as they end, in any order."""
        units = (Unit(index, row) for index, row in rows)
        if self._work.window:
            yield from self._batched(units)
            return
        if self._work.writer is None:
            yield from self._called(units)
            return
        for item in self._work.writer.run(self._source(units, self._work.writer)):
            if isinstance(item, Turn):
                self._turn(item)
            yield from self._ended()
        yield from self._ended()

    def _ended(self) -> Iterator[Unit]:
        while self._over:
            yield self._over.popleft()

    def _source(self, units: Iterator[Unit], writer: Writer) -> Iterator[Prepared | Wait]:
        """Asks of one row after another; those that a row goes on with come first."""
        while True:
            while self._asks:
                ask = self._asks.popleft()
                unit = self._open.get(ask.key[0])
                if unit is None or unit.tries != ask.key[1]:
                    continue  # it has failed meanwhile
                try:
                    prepared = writer.prepare(ask)
                except QwenchError as error:
                    self._failed(unit, error)
                else:
                    yield prepared
            unit = next(units, None)
            if unit is not None:
                self._begin(unit)
            elif self._open:
                yield WAIT
            elif not self._asks:
                return

    def _begin(self, unit: Unit) -> None:
        try:
            asked = self._work.begin(unit.row.value, unit.row.key)
            if callable(asked):
                unit.results.append(asked())
                asked = ()
        except QwenchError as error:
            self._failed(unit, error)
        else:
            self._ask(unit, asked)

    def _ask(self, unit: Unit, asks: Sequence[Ask]) -> None:
        unit.turns, unit.wanted = {}, sum(ask.samples for ask in asks)
        self._open[unit.index] = unit
        self._asks.extend(replace(ask, key=(unit.index, unit.tries, n)) for n, ask in enumerate(asks))
        if not asks:
            self._finish(unit)

    def _turn(self, turn: Turn) -> None:
        index, tries, number = turn.key
        unit = self._open.get(index)
        if unit is None or unit.tries != tries:
            return  # it has failed with another of its asks
        if turn.finish == "failed":
            self._failed(unit, turn.error or Again("there was no answer"))
            return
        unit.turns[number, turn.sample] = turn
        if len(unit.turns) == unit.wanted:
            unit.results += [unit.turns[at] for at in sorted(unit.turns)]
            self._finish(unit)

    def _finish(self, unit: Unit) -> None:
        try:
            found = self._work.finish(unit.row.value, unit.results)
        except QwenchError as error:
            self._failed(unit, error)
            return
        if isinstance(found, Mapping):
            unit.found = dict(found)
            self._open.pop(unit.index, None)
            self._over.append(unit)
        else:
            self._ask(unit, found)

    def _failed(self, unit: Unit, error: QwenchError) -> None:
        self._open.pop(unit.index, None)
        unit.tries += 1
        unit.results = []
        if isinstance(error, Again) and unit.tries <= self._retries:
            self._begin(unit)
        else:
            unit.error = error
            self._over.append(unit)

    def _batched(self, units: Iterator[Unit]) -> Iterator[Unit]:
        """Rows together, a window at a time."""
        size, held = 0, list[tuple[Unit, Any]]()
        for unit in units:
            try:
                asked = self._work.begin(unit.row.value, unit.row.key)
            except QwenchError as error:
                self._failed(unit, error)
                yield from self._ended()
                continue
            assert isinstance(asked, Batched)
            held.append((unit, asked.content))
            size += asked.size
            if size >= self._work.window:
                yield from self._windowed(held)
                size, held = 0, []
        if held:
            yield from self._windowed(held)

    def _windowed(self, held: list[tuple[Unit, Any]]) -> Iterator[Unit]:
        for (unit, _), result in zip(held, self._work.together([c for _, c in held]), strict=True):
            if isinstance(result, QwenchError):
                self._failed(unit, result)
            else:
                unit.results.append(result)
                self._finish(unit)
            yield from self._ended()

    def _called(self, units: Iterator[Unit]) -> Iterator[Unit]:
        """Calls in threads; one that ends in anything but a QwenchError ends the job."""
        if self._at_once == 1:
            for unit in units:
                self._begin(unit)
                yield from self._ended()
            return
        pool = ThreadPoolExecutor(self._at_once, "qwench-job")
        running: set[Future[Unit]] = set()
        try:
            while True:
                while len(running) < self._at_once and (unit := next(units, None)) is not None:
                    running.add(pool.submit(self._one, unit))
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _one(self, unit: Unit) -> Unit:
        """A unit from its beginning to its end, in this thread."""
        alone = Desk(self._work, 1, self._retries)
        alone._begin(unit)
        return unit
