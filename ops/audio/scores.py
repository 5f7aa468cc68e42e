"""`wav score`: dialogues become scores, by a model, a server or a witness, with controls beside them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, BinaryIO

from ..base.errors import QwenchError
from ..base.events import Chose, Events, Finished, Produced, Warned
from ..jobs import output
from ..jobs.job import TOLD, Job
from ..jobs.journal import Entry, Journal
from ..jobs.rows import Key, Row
from ..jobs.samples import seed_of_row
from ..jobs.work import Batched, Call, Work
from ..text.rows import Malformed
from ..writing.writer import seed_of
from .acoustic import Fit, features
from .dialogues import Dialogues
from .judge import Asking, Draw, Judge, Prompt
from .manifest import HINT, flat, outside
from .report import Report
from .reward import gold_of
from .score_options import ScoreOptions
from .sounds import PARTS, Sound, controlled, sound_of
from .witnesses import AcousticJudge, RandomJudge


class Scores(Work):
    """See Work: `score`, or null and the `reason`; text, thinking, format, samples, controls, remarks, who judged.

    Args:
        base: the folder that the rows' paths are relative to.

    Raises:
        QwenchError: an option that does not fit.
    """

    name = "score"

    def __init__(self, options: ScoreOptions, base: Path) -> None:
        options.check()
        self.options, self.base = options, base
        self.asking = Asking(
            Prompt.of(options.prompt, options.prompt_file), options.scale, options.max_tokens, options.temperature
        )
        self.judge: Judge | None = None
        self.golds = self.unvoiced = self.known = 0
        self.far: list[str] = []
        self.fitted: set[tuple[Path, ...]] = set()

    def load(self, rows: int) -> Events:
        """See Work; for a dry run no weights are read."""
        o = self.options
        if o.runtime.server:
            from .served import ServedJudge

            there = ServedJudge(o.model, o.runtime, o.audio_part, self.asking)
            yield from there.begin()
            self.judge = there
        elif o.model == "random":
            self.judge = RandomJudge(o.scale)
        elif o.model == "acoustic":
            self.judge = AcousticJudge(*(yield from self._fit()))
        else:
            yield from self._listener()
        self.window = 0 if o.runtime.server else o.batch

    def _listener(self) -> Events:
        from .listening import Model, ScalarJudge, TextJudge

        o = self.options
        model = Model(o.model, o.runtime, o.head)
        if model.head == "scalar" and (o.samples > 1 or o.temperature or o.prompt_file or o.prompt != "published"):
            raise QwenchError(
                "a scalar head neither reads a prompt nor draws", "leave --prompt, --samples and --temperature out", 2
            )
        yield Chose("head", model.head, model.why)
        if not o.job.dry_run:
            judge = TextJudge(model, self.asking) if model.head == "text" else ScalarJudge(model)
            yield Chose("device", judge.listener.device, "where it runs")
            yield Chose("dtype", judge.listener.dtype, "what it computes in")
            self.judge = judge

    def _fit(self) -> Iterator[Any]:
        """Events; returns the labelled dialogues of --fit and a hash of them."""
        o, fit, digest = self.options, Fit(), hashlib.blake2b(digest_size=12)
        assert o.fit is not None
        rows = Dialogues(o.fit)
        for row in rows:
            try:
                if isinstance(row.value, Malformed):
                    raise QwenchError(str(row.value))
                given = flat(row.value)
                if (gold := gold_of(given.get("gold"))) is None:
                    raise QwenchError("no `gold`", "every dialogue of --fit needs a label")
                fit.seen.append(features(sound_of(given, rows.base, Judge.rate, o.gap)))
                fit.golds.append(gold)
                self.fitted.add(waves_of(given, rows.base))
                digest.update(row.digest.encode())
            except QwenchError as error:
                raise QwenchError(f"--fit, {row.place}: {error.message}", error.hint) from error
        yield Chose("fit", len(fit.golds), "labelled dialogues that the acoustic judge is made from")
        return fit, digest.hexdigest()

    @property
    def settings(self) -> dict[str, Any]:
        """See Work."""
        o, judge = self.options, self.judge
        assert judge is not None
        told: dict[str, Any] = {"model": judge.name, "judge": "server" if judge.alone else judge.kind, **judge.settings}
        told |= {"controls": list(o.controls), "gap": o.gap}
        if judge.kind in ("text", "random"):
            told |= {"scale": list(o.scale), "samples": o.samples, "seed": o.seed}
        if judge.kind == "text":
            asked = {"prompt": self.asking.prompt.hash, "temperature": o.temperature, "max_tokens": o.max_tokens}
            told |= asked
        return told

    def begin(self, row: dict[str, Any], key: Key) -> Batched | Call:
        """See Work; sounds are read later, when it is the row's turn."""
        given = flat(row)
        parts = bool(given.get("question") and given.get("answer"))
        if not parts and not given.get("audio"):
            raise QwenchError("no sound", f"{HINT}, or audio")
        if self.options.controls and not parts and given.get("gap_at") is None:
            raise QwenchError("--controls need to know where the answer begins", PARTS)
        self.golds += given.get("gold") is not None
        self.far += outside(given, self.base)
        self.known += waves_of(given, self.base) in self.fitted
        self.unvoiced += "text" in self.options.controls and not given.get("answer_neutral")
        if self.judge is not None and self.judge.alone:
            return lambda: self.together([(given, key)])[0]
        return Batched(1, (given, key))

    def together(self, contents: list[Any]) -> list[Any]:
        """See Work: for each row its sound and what was drawn of it and of its controls."""
        judge = self.judge
        assert judge is not None
        found: list[Any] = []
        asked: list[tuple[int, str, Any, list[int]]] = []
        for number, (given, key) in enumerate(contents):
            try:
                sound = sound_of(given, self.base, judge.rate, self.options.gap)
                variants = list(self._variants(sound, given, key))
                found.append((sound, {name: [] for name, _, _ in variants}))
                asked += [(number, name, heard, seeds) for name, heard, seeds in variants]
            except QwenchError as error:
                found.append(error)
        left = [one for one in asked if one[2] is not None]
        size = 1 if judge.alone else self.options.batch
        for some in (left[at : at + size] for at in range(0, len(left), size)):
            drawn = judge.draws([heard for _, _, heard, _ in some], [seeds for _, _, _, seeds in some])
            for (number, name, _, _), draws in zip(some, drawn, strict=True):
                found[number][1][name] = draws
        return self._raised(found) if judge.alone else found

    def _raised(self, found: list[Any]) -> list[Any]:
        """A call raises what a batch hands back."""
        for one in found:
            if isinstance(one, QwenchError):
                raise one
        return found

    def _variants(self, sound: Sound, given: dict[str, Any], key: Key) -> Iterator[tuple[str, Any, list[int]]]:
        """(name, what the judge takes or None, seeds) of the dialogue itself, called "", and of its controls."""
        o, first = self.options, seed_of_row(self.options.seed, key)
        assert self.judge is not None
        yield "", self.judge.ready(sound), [seed_of(first, n) for n in range(o.samples)]
        for name in o.controls:
            other = controlled(sound, name, given, self.base)
            yield name, None if other is None else self.judge.ready(other), [first]

    def finish(self, row: dict[str, Any], results: list[Any]) -> dict[str, Any]:
        """See Work."""
        (sound, drawn), o, judge = results[-1], self.options, self.judge
        assert judge is not None
        first: Draw = drawn[""][0]
        found: dict[str, Any] = {"score": first.score, "reason": first.reason}
        if judge.kind == "text":
            found |= {"text": first.text, "thinking": first.thinking, "format": first.form, "seed": first.seed}
        if o.samples > 1:
            found |= _spread(drawn[""])
        if o.controls:
            found["controls"] = {name: _control(drawn[name]) for name in o.controls}
        if "seconds" not in row:
            found["seconds"] = round(sound.seconds, 4)
        found |= {"remarks": sound.remarks, "model": judge.name, "revision": judge.revision}
        if judge.kind == "text":
            found |= {"prompt": self.asking.prompt.name, "prompt_hash": self.asking.prompt.hash}
        return found | {"head": judge.kind, "witness": judge.witness}

    def count(self, results: list[Any]) -> dict[str, int]:
        """See Work."""
        sound, drawn = results[-1]
        return {
            "scored": int(drawn[""][0].score is not None),
            "warned": int(bool(sound.remarks)),
            "milliseconds": round(1000 * sound.seconds),
        }

    def planned(self) -> dict[str, Any]:
        """See Work: rows with a label, and controls of each."""
        return {"gold": self.golds, "controls": list(self.options.controls), "samples": self.options.samples}

    def close(self) -> None:
        """See Work."""
        if self.judge is not None:
            self.judge.close()

    def remarks(self) -> Iterator[Warned]:
        """See Work."""
        if self.far:
            told = f"{len(self.far):,} waves lie outside the manifest's folder and are only read: `{self.far[0]}`"
            yield Warned("outside", told)
        if self.known:
            yield Warned("fit", f"{self.known:,} dialogues are also in --fit: they say little of others")
        if self.unvoiced:
            yield Warned(
                "text", f"{self.unvoiced:,} rows have no `answer_neutral` and no control `text`: the same words by one "
                "neutral voice"
            )  # fmt: skip


def waves_of(row: dict[str, Any], base: Path) -> tuple[Path, ...]:
    """Where a row's sounds lie."""
    return tuple((base / row[name]).resolve() for name in ("question", "answer", "audio") if row.get(name))


def _spread(draws: Sequence[Draw]) -> dict[str, Any]:
    known = [d.score for d in draws if d.score is not None]
    told = [{"score": d.score, "reason": d.reason, "text": d.text, "seed": d.seed} for d in draws]
    return {"samples": told, "mean": fmean(known) if known else None, "spread": pstdev(known) if known else None}


def _control(draws: Sequence[Draw]) -> dict[str, Any]:
    if not draws:
        return {"score": None, "reason": "no answer_neutral", "text": None}
    return {"score": draws[0].score, "reason": draws[0].reason, "text": draws[0].text}


class _Scoring(Job):
    """The job: rows of dialogues, remarks told as rows end, and a report of what is written."""

    work: Scores

    def __init__(self, work: Scores, rows: Dialogues) -> None:
        super().__init__(work, work.options.job)
        self.dialogues, self.report, self.remarked = rows, Report(work.options.controls), 0

    def rows(self) -> Dialogues:
        """See Job."""
        return self.dialogues

    def write(self, out: Path, rows: Callable[[], Iterator[dict[str, Any]]], journal: Journal) -> None:
        """See Job."""
        output.write(out, rows)
        for row in rows():
            self.report.add(row)

    def _told(self, row: Row, entry: Entry) -> Events:
        for text in entry.found.get("remarks") or ():
            self.remarked += 1
            if self.remarked <= TOLD:
                yield Warned("sound", f"{row.place}: {text}", row.key)
        yield from super()._told(row, entry)


def score(options: ScoreOptions, stdin: BinaryIO | None = None) -> Events:
    """Yields what `Job.run` does; Finished has the report of `Report.result`, too.

    Raises:
        QwenchError: an option that does not fit, a judge that cannot be had, see `Job.run`.
    """
    options.check()
    rows = Dialogues(options.job.rows, stdin, options.job.id_field)
    work = Scores(options, rows.base)
    job = _Scoring(work, rows)
    for event in job.run():
        if isinstance(event, Produced):
            job.report.add(event.row)
        if not isinstance(event, Finished):
            yield event
            continue
        if job.remarked > TOLD:
            yield Warned("sound", f"{job.remarked - TOLD:,} more remarks on sounds")
        if options.job.dry_run:
            yield event
            continue
        assert work.judge is not None
        found = {"scored": 0, "warned": 0, "milliseconds": 0, **event.result}
        found["sound_seconds"] = found.pop("milliseconds") / 1000
        told = {"model": work.judge.name, "head": work.judge.kind, "witness": work.judge.witness}
        yield Finished({**found, **told, **job.report.result()})
