"""Accuracy and calibration by task and condition: the work behind `qwench reliability measure`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ...base.errors import QwenchError
from ...base.events import Event, Events, Finished, Produced, Warned
from ...base.plots import check_plot
from ...base.stats import mcnemar, percentiles, wilson
from .extract import same
from .measures import Vote, bins, diagram, floor, gaps, measured, vote, weights
from .samples import FORMATS, Question, Reading, read

#: questions below which the size of the sample is most of an ECE
FEW = 30
#: share of samples that cannot be read from which on it is said
UNREAD = 0.1
#: lengths of the curve over k
CURVE = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 100, 128)


@dataclass(frozen=True, slots=True)
class MeasureOptions:
    """Everything `qwench reliability measure` can be told; names equal the flags.

    Attributes:
        samples: files of rows, each a condition of its own where there are several, `NAME=FILE`; - for standard input.
        bins: exact, equal:N or mass:N.
        force: compare conditions although their numbers of options differ.
        rows: yield what was voted of every question.
    """

    samples: tuple[str, ...]
    bins: str = "exact"
    bootstrap: int = 2000
    seed: int = 0
    plot: Path | None = None
    rows: bool = False
    dry_run: bool = False
    force: bool = False
    reading: Reading = field(default_factory=Reading)


@dataclass(slots=True)
class Cell:
    """Questions of a task and condition, and their votes, in the same order."""

    task: str
    condition: str
    questions: list[Question] = field(default_factory=list)
    votes: list[Vote] = field(default_factory=list)

    @property
    def name(self) -> str:
        """For messages."""
        return " ".join(filter(None, (self.task, self.condition))) or "the samples"


def measure(options: MeasureOptions, stdin: BinaryIO | None = None) -> Events:
    """Yields Warned, Produced rows where they are asked for, and Finished: cells, pairs of conditions.

    Raises:
        QwenchError: see `samples.read`; numbers of samples that differ; conditions that cannot be compared.
    """
    o = options
    _check(o)
    cells: dict[tuple[str, str], Cell] = {}
    incomplete = 0
    for item in read(o.samples, o.reading, stdin):
        if isinstance(item, Warned):
            incomplete += item.kind == "incomplete"
            yield item
        else:
            cell = cells.setdefault((item.task, item.condition), Cell(item.task, item.condition))
            cell.questions.append(item)
    found = list(cells.values())
    _same_k(found)
    if o.dry_run:
        told = [{"task": c.task, "condition": c.condition, "n": len(c.questions)} for c in found]
        k = len(found[0].questions[0].answers)
        yield Finished({"schema": 1, "k": k, "cells": told, "incomplete": incomplete})
        return
    for cell in found:
        cell.votes = votes_of(cell, o.reading.extraction.tolerance)
        yield from _remarks(cell)
        if o.rows:
            yield from (Produced(_row(q, v)) for q, v in zip(cell.questions, cell.votes, strict=True))
    measures = [_cell(cell, o) for cell in found]
    pairs = []
    for first, other in _couples(found):
        pairs.append((yield from _pair(first, other, o)))
    yield from _temperatures(found)
    if o.plot:
        from ..pictures import reliability

        reliability(measures, o.plot)
    result = {"schema": 1, "k": measures[0]["k"], "bins": o.bins, "incomplete": incomplete}
    yield Finished(result | {"parsed": any(m["unparsed"] < 1 for m in measures), "cells": measures, "pairs": pairs})


def _check(o: MeasureOptions) -> None:
    o.reading.extraction.check()
    bins(np.array([0.5]), o.bins)
    if o.reading.format not in FORMATS:
        raise QwenchError(f"unknown --from: `{o.reading.format}`", f"use {', '.join(FORMATS)}", code=2)
    if o.bootstrap < 0 or o.reading.first < 0:
        raise QwenchError("--bootstrap and --first take a number of at least 0", code=2)
    if o.plot:
        check_plot(o.plot)


def _same_k(cells: Sequence[Cell]) -> None:
    numbers = {len(q.answers) for cell in cells for q in cell.questions}
    if not numbers:
        raise QwenchError("there are no questions to measure", "give rows of label and samples")
    if len(numbers) > 1:
        least = min(numbers)
        raise QwenchError(
            f"questions have from {least} to {max(numbers)} samples, and confidences of different numbers are not the "
            "same thing",
            f"take --first {least} of each",
        )


def votes_of(cell: Cell, tolerance: float, first: int | None = None) -> list[Vote]:
    """What the first so many samples of every question came to."""
    alike = partial(same, tolerance=tolerance)
    return [vote(q.answers[:first], q.label.value, alike) for q in cell.questions]


def _row(question: Question, found: Vote) -> dict[str, Any]:
    return {
        "id": question.id,
        "task": question.task or None,
        "condition": question.condition or None,
        "label": question.label.value,
        "prediction": found.prediction,
        "confidence": found.confidence,
        "right": found.right,
        "tied": found.tied,
        "unparsed": found.unparsed,
    }


def _cell(cell: Cell, o: MeasureOptions) -> dict[str, Any]:
    """Measures of a cell, with its intervals, floor, diagram and curve over k."""
    found = measured(cell.votes, o.bins)
    n, k = found["n"], found["k"]
    confidence = np.array([v.confidence for v in cell.votes])
    right = np.array([v.right for v in cell.votes])
    table = gaps(confidence, right, bins(confidence, o.bins))
    drawn = [np.abs(w @ table).sum(axis=1) for w in weights(n, o.bootstrap, o.seed)]
    options = [q.options for q in cell.questions]
    floors = [floor(k, m) for m in options] if all(m > 1 for m in options) else None
    return {
        "task": cell.task or None,
        "condition": cell.condition or None,
        **found,
        "accuracy_interval": _ends(wilson(int(right.sum()), n)),
        "ece_interval": _ends(percentiles(np.concatenate(drawn))) if drawn else None,
        "options": options[0] if len(set(options)) == 1 and options[0] else None,
        "floor": float(np.mean(floors)) if floors else None,
        "truncated": (
            sum(q.cut for q in cell.questions) / (n * k) if any(q.tells_finish for q in cell.questions) else None
        ),
        "diagram": diagram(cell.votes, o.bins),
        "curve": [_point(cell, first, o) for first in [*(c for c in CURVE if c < k), k]],
    }


def _ends(interval: Any) -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]


def _point(cell: Cell, first: int, o: MeasureOptions) -> dict[str, Any]:
    told = measured(votes_of(cell, o.reading.extraction.tolerance, first), o.bins)
    return {name: told[name] for name in ("k", "accuracy", "confidence", "ece", "calibrated_ece")}


def _couples(cells: Sequence[Cell]) -> Iterator[tuple[Cell, Cell]]:
    """The first condition of every task with each of its others."""
    tasks: dict[str, list[Cell]] = {}
    for cell in cells:
        tasks.setdefault(cell.task, []).append(cell)
    for first, *others in tasks.values():
        yield from ((first, other) for other in others)


def _pair(a: Cell, b: Cell, o: MeasureOptions) -> Iterator[Event | Any]:
    """B over A: d_acc, d_rel = ECE of A - ECE of B, d_conf, with intervals; yields Warned, returns the row."""
    counts = [{q.options for q in cell.questions} for cell in (a, b)]
    if counts[0] != counts[1] and not o.force:
        raise QwenchError(
            f"`{a.name}` and `{b.name}` have other numbers of options, and other floors of the ECE",
            "measure them apart, or compare them all the same with --force",
        )
    ids = [[q.id for q in cell.questions] for cell in (a, b)]
    paired = set(ids[0]) == set(ids[1])
    if not paired:
        both = len(set(ids[0]) & set(ids[1]))
        text = f"`{a.name}` and `{b.name}` have {both} of {len(ids[0])} and {len(ids[1])} questions in common"
        yield Warned("unpaired", f"{text}: intervals are unpaired", a.task)
    first, second = measured(a.votes, o.bins), measured(b.votes, o.bins)
    position = {name: n for n, name in enumerate(ids[1])}
    order = [position[name] for name in ids[0]] if paired else list(range(len(b.votes)))
    drawn = _drawn(a.votes, [b.votes[n] for n in order], paired, o)
    row: dict[str, Any] = {
        "task": a.task or None,
        "a": a.condition or None,
        "b": b.condition or None,
        "paired": paired,
        "n": len(a.votes) if paired else [len(a.votes), len(b.votes)],
        "d_acc": second["accuracy"] - first["accuracy"],
        "d_rel": first["ece"] - second["ece"],
        "d_conf": second["confidence"] - first["confidence"],
        **{f"{name}_interval": _ends(percentiles(values)) if len(values) else None for name, values in drawn.items()},
        "p": None,
    }
    if paired:
        both_right = [(v.right, b.votes[n].right) for v, n in zip(a.votes, order, strict=True)]
        row["p"] = mcnemar(sum(x and not y for x, y in both_right), sum(y and not x for x, y in both_right))
    return row


def _drawn(a: Sequence[Vote], b: Sequence[Vote], paired: bool, o: MeasureOptions) -> Mapping[str, Any]:
    """Resamples of the three differences; the same questions of both where they are paired."""
    tables = []
    for votes in (a, b):
        confidence, right = np.array([v.confidence for v in votes]), np.array([v.right for v in votes])
        tables.append((right, confidence, gaps(confidence, right, bins(confidence, o.bins))))
    found: dict[str, list[Any]] = {"d_acc": [], "d_rel": [], "d_conf": []}
    ours, theirs = weights(len(a), o.bootstrap, o.seed), weights(len(b), o.bootstrap, o.seed + (not paired))
    for x, y in zip(ours, theirs, strict=True):
        found["d_acc"].append(y @ tables[1][0] - x @ tables[0][0])
        found["d_conf"].append(y @ tables[1][1] - x @ tables[0][1])
        found["d_rel"].append(np.abs(x @ tables[0][2]).sum(axis=1) - np.abs(y @ tables[1][2]).sum(axis=1))
    return {name: np.concatenate(values) if values else np.array([]) for name, values in found.items()}


def _remarks(cell: Cell) -> Iterator[Warned]:
    """What a reader of the numbers must know."""
    n, k = len(cell.votes), cell.votes[0].k
    name, task = cell.name, cell.task
    unread = sum(v.unparsed for v in cell.votes) / (n * k)
    if unread > UNREAD:
        examples = [text for q in cell.questions for text in q.examples][:3]
        shown = "; ".join(repr(text.strip()[-60:]) for text in examples)
        yield Warned("unparsed", f"`{name}`: {unread:.0%} of the samples cannot be read, such as {shown}", task)
    if k > 1 and all(v.confidence == 1 for v in cell.votes):
        yield Warned("greedy", f"`{name}`: all samples are alike, so that confidence is 1 by construction", task)
    if n < FEW:
        yield Warned("few", f"`{name}`: of {n} questions an ECE is mostly the bias of their small number", task)


def _temperatures(cells: Sequence[Cell]) -> Iterator[Warned]:
    found = {cell.condition: {q.temperature for q in cell.questions} for cell in cells}
    known = {name: some for name, some in found.items() if None not in some}
    if len({frozenset(some) for some in known.values()}) > 1:
        told = ", ".join(f"{name or '-'} {'/'.join(f'{t:g}' for t in sorted(some))}" for name, some in known.items())
        yield Warned(
            "temperature", f"conditions were drawn at other temperatures, and calibration depends on it: {told}"
        )
