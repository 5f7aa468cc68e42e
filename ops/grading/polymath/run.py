"""PolyMath's questions through a writer, into the tree that its scorer reads: a job like any other."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from ...base.atomic import opened
from ...base.errors import QwenchError
from ...base.events import Events, Finished, Warned
from ...base.paths import check_output
from ...jobs.job import Job, JobOptions, joined
from ...jobs.journal import Journal
from ...jobs.prompts import Prompts
from ...jobs.rows import Key
from ...jobs.samples import seed_of_row
from ...jobs.work import Call
from ...writing.engines import writer_of
from ...writing.session import ChatOptions
from ...writing.writer import Ask, TooLong, Turn
from .levels import MIDDLE, check_levels
from .questions import QuestionOptions, Questions
from .strings import check_control, check_languages, joiners_of, prompt


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Everything `qwench polymath run` can be told.

    Attributes:
        out: folder; the answers come to `{out}/{name}/{level}/{lang}.jsonl`.
        name: of the model's folder, None for the model's own.
        control: none, or which sentence asks for a language.
        joiner: what stands before the note and before the sentence; see `joiners_of`.
        samples: of every question.
        level_names: `middle` for the name that the reference's scorer has for medium.
    """

    out: str
    name: str | None = None
    questions: QuestionOptions = field(default_factory=lambda: QuestionOptions(""))
    control: str = "none"
    joiner: tuple[str, ...] = ()
    samples: int = 1
    level_names: str = "medium"
    chat: ChatOptions = field(default_factory=ChatOptions)
    job: JobOptions = field(default_factory=JobOptions)


class Asked(Prompts):
    """See Work: every question with its note, so many samples of each.

    Raises:
        QwenchError: an option that does not fit.
    """

    name = "polymath"

    def __init__(self, options: RunOptions) -> None:
        super().__init__(options.chat, options.samples)
        self.options, self.joiners = options, joiners_of(options.joiner)

    @property
    def settings(self) -> dict[str, Any]:
        """See Work."""
        o = self.options
        own = {"control": o.control, "joiner": list(self.joiners), "samples": o.samples}
        return super().settings | own | {"level_names": o.level_names}

    def prompt(self, row: dict[str, Any]) -> str:
        """What a question is asked with."""
        return prompt(row["question"], row["lang"], self.options.control, self.joiners)

    def begin(self, row: dict[str, Any], key: Key) -> Sequence[Ask] | Call:
        """See Work; a prompt that does not fit the context has its row all the same."""
        ask = self.ask({"prompt": self.prompt(row)}, key, seed_of_row(self.chat.seed, key))
        ask = replace(ask, samples=self.options.samples)
        assert self.writer is not None
        try:
            self.writer.prepare(ask)
        except TooLong:
            return lambda: Turn(key, finish="context")
        return [ask]

    def finish(self, row: dict[str, Any], results: list[Turn]) -> dict[str, Any]:
        """See Work."""
        sha = hashlib.sha256(self.prompt(row).encode()).hexdigest()[:16]
        return {"answers": [self._answer(turn) | {"prompt_sha": sha} for turn in results]}

    def _answer(self, turn: Turn) -> dict[str, Any]:
        thinking, answer = turn.thinking, turn.answer
        if turn.closed_by is None and not thinking and "</think>" in answer:
            # A model that writes its tags as plain text.
            thinking, _, answer = answer.rpartition("</think>")
            thinking, answer = thinking.replace("<think>", "", 1).strip(), answer.lstrip()
        return {
            "thinking_pred": thinking,
            "answer_pred": answer,
            "finish": turn.finish,
            "prompt_tokens": turn.prompt_tokens,
            "thinking_tokens": turn.thinking_tokens,
            "answer_tokens": turn.answer_tokens,
            "seconds": round(turn.seconds, 3),
            "seed": turn.seed,
            "control": self.options.control,
            "sample": turn.sample,
        }

    def count(self, results: list[Turn]) -> dict[str, int]:
        """See Work."""
        return super().count(results) | {
            "cut": sum(turn.finish == "length" for turn in results),
            "too_long": sum(turn.finish == "context" for turn in results),
        }

    def remarks(self) -> Iterator[Warned]:
        """See Work."""
        yield from super().remarks()
        o = self.options
        if o.control == "forcing_prefer" and (not o.questions.langs or "te" in o.questions.langs):
            yield Warned(
                "strings", "the Telugu sentence of forcing_prefer ends in Thai letters: a defect of the original"
            )


class _Tree(Job):
    """A job whose output is a folder of files, one a language and level."""

    def __init__(self, work: Asked, folder: Path, questions: Questions) -> None:
        super().__init__(work, replace(work.options.job, rows=work.options.questions.data, out=str(folder)))
        self.folder, self.questions, self.asked = folder, questions, work.options

    def rows(self) -> Questions:
        """See Job."""
        return self.questions

    def target(self) -> Path:
        """See Job."""
        return self.folder

    def write(self, out: Path, rows: Callable[[], Iterator[dict[str, Any]]], journal: Journal) -> None:
        """All that is finished of the languages and levels of this run, whatever its limit.

        A failed row has no line: no answer is no wrong answer, and the same command asks again.
        """
        o = self.asked.questions
        files: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in self.questions if o.data == "-" else Questions(replace(o, limit=0)):
            entry = journal.entry(row.key) if journal.done(row.key, row.digest) else None
            if entry and isinstance(row.value, dict):
                files.setdefault((row.value["lang"], row.value["level"]), []).append(joined(row, entry))
        for (language, level), found in files.items():
            name = self.asked.level_names if level == "medium" else level
            (out / name).mkdir(parents=True, exist_ok=True)
            with opened(out / name / f"{language}.jsonl", "the answers") as file:
                for line in _lines(found):
                    file.write(json.dumps(line, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")


def _lines(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for row in rows:
        for answer in row["answers"]:
            first = {"idx": row["idx"], "question": row["question"], "answer": row["answer"]}
            preds = {name: answer[name] for name in ("thinking_pred", "answer_pred")}
            more = {name: row[name] for name in ("source",) if name in row}
            yield {**first, **preds, "id": row["id"], **more, **{k: v for k, v in answer.items() if k not in preds}}


def run(options: RunOptions, stdin: BinaryIO | None = None) -> Events:
    """Ask all questions; see `Job.run`.

    Raises:
        QwenchError: an option or data that does not fit, another run's answers at the output, see `Job.run`.
    """
    check_control(options.control)
    check_languages(options.questions.langs)
    levels = check_levels(options.questions.levels)
    if options.samples < 1:
        raise QwenchError("--samples must be at least 1", code=2)
    if options.level_names not in ("medium", MIDDLE):
        raise QwenchError(f"unknown --level-names: `{options.level_names}`", f"use medium or {MIDDLE}", code=2)
    options = replace(options, questions=replace(options.questions, levels=levels))
    work = Asked(options)
    questions = Questions(options.questions, stdin)
    folder = check_output(options.out, folder=True) / (options.name or (yield from _name(options)))
    if not options.job.dry_run:
        folder.parent.mkdir(exist_ok=True)
    for event in _Tree(work, folder, questions).run():
        if isinstance(event, Finished):
            counts = [{"lang": lang, "level": level, "questions": n} for (lang, level), n in questions.counts.items()]
            event = Finished(event.result | {"control": options.control, "questions": counts})
        yield event


def _name(options: RunOptions) -> Iterator[Any]:
    """What the model's folder is called; a server that serves one model is asked."""
    model = options.chat.model
    if not model:
        writer = writer_of("", options.chat.runtime)
        yield from writer.load()
        model = writer.name
    name = Path(model.rstrip("/")).name
    return re.sub(r"[^\w.\-]", "_", name.removesuffix(".gguf")).lstrip(".") or "model"
