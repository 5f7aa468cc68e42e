"""Rationales from a teacher: a question is tried until the answer is right; rows to train with and without them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ...base.atomic import opened
from ...base.errors import QwenchError
from ...base.events import Events, Finished
from ...base.paths import check_output
from ...jobs import output
from ...jobs.job import FAILED, Job, JobOptions
from ...jobs.journal import Journal
from ...jobs.prompts import Prompts
from ...jobs.rows import Key
from ...jobs.samples import seed_of_row
from ...writing.session import ChatOptions
from ...writing.writer import Ask, Turn, seed_of
from .extract import Extraction, Label, answer_of, label_of, options_of, same, words
from .instructions import body, evaluation, instruction_of, synthesis, training
from .samples import LABELS

ROWS = ("solutions", "with", "without", "both")
STYLES = ("reference", "template")


@dataclass(frozen=True, slots=True)
class RationaleOptions:
    """Everything `qwench reliability rationales` can be told; names equal the flags.

    Attributes:
        tries: answers of a question at most, until one is right.
        instruction: a key of INSTRUCTIONS or a text; None takes a row's `task`.
        style: reference or template: how is asked, and how training rows are written.
        keep_failed: unsolved questions come out too, with their tries.
        rows: solutions, or training rows of prompt and completion.
        unsolved: rows without a rationale for all questions.
        prompts: file for the questions as they are evaluated, for `qwench sample`.
    """

    tries: int = 10
    instruction: str | None = None
    style: str = "reference"
    keep_failed: bool = False
    rows: str = "solutions"
    unsolved: bool = False
    prompts: str | None = None
    extraction: Extraction = field(default_factory=Extraction)
    chat: ChatOptions = field(default_factory=ChatOptions)
    job: JobOptions = field(default_factory=JobOptions)

    def check(self) -> None:
        """Nothing.

        Raises:
            QwenchError: an option that does not fit.
        """
        self.extraction.check()
        if self.tries < 1:
            raise QwenchError("--tries must be at least 1", code=2)
        for name, given, known in (("rows", self.rows, ROWS), ("style", self.style, STYLES)):
            if given not in known:
                raise QwenchError(f"unknown --{name}: `{given}`", f"use {', '.join(known)}", code=2)
        if self.unsolved and self.rows not in ("without", "both"):
            raise QwenchError("--unsolved adds rows without a rationale, and --rows asks for none", code=2)
        if self.keep_failed and self.rows != "solutions":
            raise QwenchError("--keep-failed keeps tries, which training rows have no place for", code=2)
        if self.job.out == "-":
            raise QwenchError("--out takes a file", "give .jsonl or .parquet", code=2)
        if self.prompts is not None:
            check_output(self.prompts, "the prompts")


@dataclass(frozen=True, slots=True)
class Task:
    """A row: its question, what is asked before it, and its right answer."""

    question: str
    instruction: str
    maths: bool
    given: str
    label: Label

    def body(self, stage: str, rationale: bool) -> str:
        """See `instructions.body`."""
        return body(self.question, self.instruction, self.maths, stage, rationale)


def task_of(row: Mapping[str, Any], o: RationaleOptions) -> Task:
    """What a row asks.

    Raises:
        QwenchError: no question, no label, or one that is not among the options; no instruction.
    """
    question = row.get("question")
    if not isinstance(question, str) or not question.strip():
        raise QwenchError("there is no text in the field `question`", "every row needs question and label")
    given = next((row[n] for n in LABELS if row.get(n) is not None), None)
    if given is None or isinstance(given, dict | list | bool):
        raise QwenchError("there is no label", f"every row needs one of {', '.join(LABELS)}")
    instruction, maths = instruction_of(o.instruction, row.get("task"))
    label = label_of(given, options_of(row.get("options"), question), o.extraction.compare)
    return Task(question, instruction, label.kind == "number" if maths is None else maths, str(given), label)


class Rationales(Prompts):
    """See Work: one try after another, each with a seed of its own, until the answer is the label."""

    name = "rationales"

    def __init__(self, options: RationaleOptions) -> None:
        super().__init__(options.chat)
        self.options = options

    @property
    def settings(self) -> dict[str, Any]:
        """See Work."""
        o, e = self.options, self.options.extraction
        how = {
            "extract": e.extract,
            "cue": e.cue,
            "cue_line": e.cue_line,
            "compare": e.compare,
            "tolerance": e.tolerance,
        }
        return super().settings | {"tries": o.tries, "instruction": o.instruction, "style": o.style, **how}

    def begin(self, row: dict[str, Any], key: Key) -> Sequence[Ask]:
        """See Work."""
        return [self._try(row, seed_of_row(self.chat.seed, key))]

    def _try(self, row: dict[str, Any], seed: int) -> Ask:
        text = task_of(row, self.options).body("synthesis", True)
        return self.chat.ask(None, [*self.before, *synthesis(text, self.options.style)], seed)

    def finish(self, row: dict[str, Any], results: list[Turn]) -> dict[str, Any] | Sequence[Ask]:
        """See Work."""
        task, last = task_of(row, self.options), results[-1]
        answer = answer_of(last.answer, task.label, self.options.extraction)
        if answer is not None and same(answer, task.label.value, self.options.extraction.tolerance):
            solved = {"model_solution": last.answer.strip(), "tries": len(results), "seed": last.seed}
            return solved | {"guessed": states(last.answer, task.label, self.options.extraction)}
        if len(results) < self.options.tries:
            return [self._try(row, seed_of(results[0].seed or 0, len(results)))]
        return {"model_solution": None, "tries": len(results), "failed_tries": [t.answer for t in results]}


def states(text: str, label: Label, how: Extraction) -> bool:
    """Whether a rationale has the answer in its first sentence: it guesses, then explains."""
    first = re.split(r"(?<=[.!?])\s|\n", text.strip(), maxsplit=1)[0]
    if label.kind == "text":
        return bool(label.value) and f" {words(str(label.value))} " in f" {words(first)} "
    if label.kind == "choice":
        option = words(label.options.get(label.value, ""))
        return f"({label.value})" in first or (bool(option) and option in words(first))
    numbers = re.findall(r"[-+]?\d[\d,]*(?:\.\d+)?", first)
    return any(same(float(n.replace(",", "")), label.value, how.tolerance) for n in numbers)


class _Job(Job):
    """The job; what is written depends on `--rows`, and is counted for the report."""

    def __init__(self, work: Rationales, stdin: BinaryIO | None) -> None:
        super().__init__(work, work.options.job, stdin)
        self.asked, self.report = work.options, {}

    def write(self, out: Path, rows: Callable[[], Iterator[dict[str, Any]]], journal: Journal) -> None:
        """See Job."""
        self.report = _report(row for row in rows() if FAILED not in row)
        output.write(out, lambda: _written(rows(), self.asked))
        if self.asked.prompts is not None:
            with opened(self.asked.prompts, "the prompts") as file:
                for row in rows():
                    for line in _evaluated(row, self.asked):
                        file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")


def _written(rows: Iterator[dict[str, Any]], o: RationaleOptions) -> Iterator[dict[str, Any]]:
    """Rows as `--rows` asks for them, in the order of the questions."""
    for row in rows:
        if FAILED in row:
            continue
        solution = row["model_solution"]
        if o.rows == "solutions":
            if solution is not None or o.keep_failed:
                yield row
            continue
        task = task_of(row, o)
        if solution is not None and o.rows in ("with", "both"):
            yield _trained(row, task, "with", solution, o)
        if o.rows in ("without", "both") and (solution is not None or o.unsolved):
            yield _trained(row, task, "without", f"The answer is {task.given}", o)


def _trained(row: Mapping[str, Any], task: Task, condition: str, target: str, o: RationaleOptions) -> dict[str, Any]:
    prompt = training(task.body("training", condition == "with"), o.style)
    completion: Any = target if o.style == "reference" else [{"role": "assistant", "content": target}]
    return {"id": row.get("id"), "condition": condition, "prompt": prompt, "completion": completion}


def _evaluated(row: dict[str, Any], o: RationaleOptions) -> Iterator[dict[str, Any]]:
    """A question as it is evaluated, with a rationale and without."""
    task = task_of(row, o)
    kept = {n: row[n] for n in ("task", "options") if n in row}
    for condition in ("with", "without"):
        messages = evaluation(task.body("evaluation", condition == "with"), o.style)
        own = {"question": task.question, "label": task.given, "condition": condition}
        yield {"id": row.get("id"), **own, **kept, "messages": messages}


def _report(rows: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """Tries, solved questions by label, and how many rationales begin with the answer."""
    asked, solved = Counter[str](), Counter[str]()
    tries = guessed = 0
    for row in rows:
        label = str(next(row[n] for n in LABELS if row.get(n) is not None))
        asked[label] += 1
        tries += row["tries"]
        solved[label] += row["model_solution"] is not None
        guessed += bool(row.get("guessed"))
    done = solved.total()
    return {
        "questions": asked.total(),
        "solved": done,
        "tries": tries,
        "guessed": guessed / done if done else None,
        "labels": [{"label": n, "questions": asked[n], "solved": solved[n] / asked[n]} for n in sorted(asked)],
    }


def rationales(options: RationaleOptions, stdin: BinaryIO | None = None) -> Events:
    """See `Job.run`; Finished also has what `_report` tells.

    Raises:
        QwenchError: an option that does not fit; see `Job.run`.
    """
    options.check()
    job = _Job(Rationales(options), stdin)
    for event in job.run():
        yield Finished(event.result | job.report) if isinstance(event, Finished) else event
