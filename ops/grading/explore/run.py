"""`explore run`: completions of a question, a hit among them, completions of its beginnings; one episode of MARGE."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from ...base.errors import QwenchError
from ...base.events import Chose, Events, Finished, Warned
from ...jobs import output
from ...jobs.job import Job, JobOptions
from ...jobs.journal import Journal
from ...jobs.prompts import Prompts
from ...jobs.rows import Key, Row, Table
from ...jobs.samples import shots_of
from ...writing.session import ChatOptions
from ...writing.writer import Ask, TooLong, Turn, refuse
from .completions import Completion, counted, state_row
from .questions import OWN, Old, Question, Questions, asked, check_style, previous, question_of, seed_of_state
from .report import report
from .states import SPLITS, STEPS, Cut, Units, cuts
from .values import RULES, THRESHOLD, picked, wanted
from .verify import Verifier

#: how is drawn where nobody says otherwise: MARGE's, with which its numbers can be compared
SAMPLING = {"temperature": 0.8, "top_p": 0.95, "top_k": 0}
BASELINES = ("none", "root")


@dataclass(frozen=True, slots=True)
class ExploreOptions:
    """Everything `qwench explore run` can be told; names equal the flags.

    Attributes:
        root_n: completions of a question; n: of each later state.
        split: tokens, steps or lines; states: parts of --split tokens; step_skip: every so many steps or lines.
        hit: one of RULES; threshold: a value above it is an easy question; solved: one from it on is dropped.
        prompt_style: template, bare (without the sentence after the question), or one of STYLES.
        previous: output of the episode before.
        baseline: root: as many tokens again of the bare questions.
    """

    root_n: int = 16
    n: int = 8
    split: str = "tokens"
    states: int = 5
    step_skip: int = 1
    hit: str = "guided"
    threshold: float = THRESHOLD
    solved: float = 0.99
    prompt_style: str = "template"
    verifier: str = "number"
    percent_equal: bool = False
    grade_timeout: float = 5.0
    previous: str | None = None
    baseline: str = "none"
    shots: str | None = None
    chat: ChatOptions = field(default_factory=ChatOptions)
    job: JobOptions = field(default_factory=JobOptions)

    def check(self) -> None:
        """Nothing.

        Raises:
            QwenchError: an option that does not fit.
        """
        words = (("split", self.split, SPLITS), ("hit", self.hit, RULES), ("baseline", self.baseline, BASELINES))
        for name, given, known in words:
            if given not in known:
                raise QwenchError(f"unknown --{name}: `{given}`", f"use {', '.join(known)}", code=2)
        for name, number, least in (
            ("root-n", self.root_n, 2),
            ("n", self.n, 2),
            ("states", self.states, 2),
            ("step-skip", self.step_skip, 1),
        ):
            if number < least:
                raise QwenchError(f"--{name} must be at least {least}", code=2)
        for name, share in (("threshold", self.threshold), ("solved", self.solved)):
            if not 0 <= share <= 1:
                raise QwenchError(f"--{name} is a share from 0 to 1, not {share:g}", code=2)
        check_style(self.prompt_style, None)
        if self.prompt_style not in OWN and (self.shots or self.chat.system is not None):
            raise QwenchError(f"--prompt-style {self.prompt_style} has no place for --shots and --system", code=2)
        if dict(self.chat.sampling).get("temperature") == 0:
            raise QwenchError("at --temperature 0 all completions of a state are one", "give more than 0", code=2)
        if self.job.out == "-":
            raise QwenchError("--out takes a file", "give .jsonl or .parquet", code=2)

    @property
    def drawn(self) -> ChatOptions:
        """How is asked, with MARGE's sampling where none is asked for."""
        return replace(self.chat, sampling=tuple((SAMPLING | dict(self.chat.sampling)).items()))


@dataclass(slots=True)
class _Plan:
    """A question once its root completions are there.

    Attributes:
        hit: text, units, rightness and where it is from; None where there is none, for the reason `dropped`.
        cuts: the states that are gone on from, the root first; long: how many were left out for their length.
    """

    question: Question
    root: list[Completion]
    dropped: str | None = None
    hit: dict[str, Any] | None = None
    units: list[Any] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=lambda: [Cut(0)])
    asks: list[Ask] = field(default_factory=list)
    long: int = 0


class Explore(Prompts):
    """See Work: `states`, the rows of a question.

    Raises:
        QwenchError: see `ExploreOptions.check`.
    """

    name = "explore"

    def __init__(self, options: ExploreOptions, verifier: Verifier) -> None:
        options.check()
        super().__init__(options.drawn, options.root_n)
        self.options, self.verifier = options, verifier
        self.before += shots_of(options.shots) if options.shots else []
        self.old: dict[str, Old] = {}
        self.digest: str | None = None
        if options.previous is not None:
            self.old, self.digest = previous(options.previous)
        self.episode = 1 + max((old.episode for old in self.old.values()), default=0)
        self._plans: dict[str, _Plan] = {}

    def load(self, rows: int) -> Events:
        """See Work.

        Raises:
            QwenchError: also a writer that does not go on from a beginning, or a split that needs its tokenizer.
        """
        yield from super().load(rows)
        o, tokenizer = self.options, self.writer.tokenizer
        refuse(self.writer, ["prefix"])
        check_style(o.prompt_style, tokenizer)
        if tokenizer is None and o.split == "tokens":
            hint = "name it with --tokenizer, or use --split lines"
            raise QwenchError("--split tokens needs the model's tokenizer, which is not here", hint)
        self.units, self.exact = Units(tokenizer), tokenizer is not None and "ids" in self.writer.can
        self.forced = self.units.encode(STEPS) if o.split == "steps" else []
        yield Chose("prefixes", "token ids" if self.exact else "text", "what the writer takes")

    @property
    def settings(self) -> dict[str, Any]:
        """See Work."""
        o = self.options
        names = ("root_n", "n", "split", "states", "step_skip", "hit", "threshold", "solved", "prompt_style")
        names = (*names, "verifier", "percent_equal", "grade_timeout", "baseline")
        return super().settings | {n: getattr(o, n) for n in names} | {"previous": self.digest}

    def begin(self, row: dict[str, Any], key: Key) -> Sequence[Ask]:
        """See Work."""
        question = question_of(row, self.verifier, self.options.prompt_style)
        self._plans.pop(question.id, None)
        old = self.old.get(question.id)
        if old is not None and (old.question != question.text or old.prefix != self.units.decode(self.forced)):
            what = "its question" if old.question != question.text else "--split"
            raise QwenchError(f"`{question.id}` was another in --previous: {what} has changed", "give what it was")
        ask = self._ask(question, [], "0", self.options.root_n)
        return [replace(ask, logprobs=0)] if self.options.hit == "likeliest" else [ask]

    def _ask(self, question: Question, prefix: list[Any], state: str, samples: int) -> Ask:
        """Completions of a state."""
        base = self.chat.ask(None, question.messages, seed_of_state(self.chat.seed, question.id, self.episode, state))
        given = self.forced + prefix
        begun = tuple(given) if self.exact and given else self.units.decode(given)
        left = self.chat.options.max_tokens - (len(prefix) if self.units.tokenizer is not None else 0)
        prompt = asked(question, self.options.prompt_style, self.before)
        return replace(base, samples=samples, prefix=begun, max_tokens=left, **prompt)

    def finish(self, row: dict[str, Any], results: list[Turn]) -> dict[str, Any] | Sequence[Ask]:
        """See Work: root, then the states of the hit, then as many tokens of the root again."""
        o, plan = self.options, self._plans.get(row["id"])
        if plan is None:
            question = question_of(row, self.verifier, o.prompt_style)
            plan = self._plans[row["id"]] = self._planned(question, results)
            if plan.asks:
                return plan.asks
        first = o.root_n + o.n * len(plan.asks)
        groups = [self._read(plan, results[o.root_n + o.n * i :][: o.n], i + 1) for i in range(len(plan.asks))]
        extra = results[first:]
        if o.baseline == "root" and plan.asks and counted(extra) < counted(results[o.root_n : first]):
            return [self._ask(plan.question, [], f"baseline {len(extra) // o.n}", o.n)]
        rounds = [self._read(plan, extra[at : at + o.n], 0) for at in range(0, len(extra), o.n)]
        del self._plans[row["id"]]
        return {"states": self._rows(plan, groups, results, rounds, extra)}

    def _read(self, plan: _Plan, turns: list[Turn], state: int) -> list[Completion]:
        prefix = self.units.decode(plan.units[: plan.cuts[state].at])
        return [Completion.of(t, self.units, prefix, plan.question.gold, self.verifier) for t in turns]

    def _planned(self, question: Question, results: list[Turn]) -> _Plan:
        """Choose the hit and cut it."""
        o, plan = self.options, _Plan(question, [])
        plan.root = self._read(plan, results, 0)
        try:
            self._choose(plan)
        except LookupError as why:
            plan.dropped = str(why)
            return plan
        if len(plan.units) < 2:
            plan.dropped = "short hit"
            return plan
        for number, cut in enumerate(cuts(self.units, plan.units, o.split, o.states, o.step_skip)[1:], 1):
            if self.units.tokenizer is not None and cut.at >= self.chat.options.max_tokens:
                plan.long += 1
                continue
            ask = self._ask(question, plan.units[: cut.at], str(number), o.n)
            try:
                self.writer.prepare(ask)
            except TooLong:
                plan.long += 1
            else:
                plan.cuts.append(cut)
                plan.asks.append(ask)
        if not plan.asks:
            plan.dropped = "no states"
        return plan

    def _choose(self, plan: _Plan) -> None:
        """The hit: by the rule, else what the row brings, else the one of the episode before.

        Raises:
            LookupError: there is none, and why.
        """
        o, q = self.options, plan.question
        known = [c.right for c in plan.root if c.right is not None]
        why = "no answers" if not known else "no hit"
        if known and o.hit != "given":
            try:
                target = wanted(o.hit, sum(known) / len(known), o.threshold, o.solved)
                draw = random.Random(seed_of_state(self.chat.seed, q.id, self.episode, "hit"))
                usable = [c.right if c.whole else None for c in plan.root]
                found = picked(o.hit, usable, target, [c.logprob for c in plan.root], draw)
                if found is not None:
                    hit = plan.root[found]
                    plan.units = hit.units if hit.units is not None else self.units.encode(hit.text)
                    plan.hit = {"index": found, "right": hit.right, "from": "root"}
                    return
            except LookupError as error:
                why = str(error)
        old = self.old.get(q.id)
        if q.hit is not None:
            verdict = self.verifier.verdict(q.hit, q.gold, "stop")
            self._given(plan, "row", q.hit, None, verdict == "right")
        elif old is not None and old.text is not None:
            self._given(plan, "previous", old.text, old.ids, old.right)
        else:
            raise LookupError(why)

    def _given(self, plan: _Plan, source: str, text: str, ids: list[int] | None, right: bool | None) -> None:
        # Ids of another tokenizer say something else.
        same = ids is not None and self.units.tokenizer is not None and self.units.decode(ids) == text
        plan.units = list(ids) if same and ids else self.units.encode(text)
        plan.hit = {"index": None, "right": right, "from": source, "text": text, "ids": self._ids(plan.units)}

    def _ids(self, units: list[Any]) -> list[int] | None:
        return list(units) if self.units.tokenizer is not None else None

    def _rows(
        self,
        plan: _Plan,
        groups: list[list[Completion]],
        results: list[Turn],
        rounds: list[list[Completion]],
        extra: list[Turn],
    ) -> list[dict[str, Any]]:
        """Rows of a question, one a state."""
        o, q, found = self.options, plan.question, []
        asks = [self._ask(q, [], "0", o.root_n), *plan.asks]
        at = 0
        for state, (cut, group, ask) in enumerate(zip(plan.cuts, [plan.root, *groups], asks, strict=True)):
            turns = results[at : at + len(group)]
            at += len(group)
            units = plan.units[: cut.at]
            about = {"id": q.id, "question": q.text, "answer": q.gold, "episode": self.episode, "state": state}
            about |= {"of": len(plan.cuts), "depth": cut.at / len(plan.units) if plan.units else 0.0}
            about |= {"prefix": self.units.decode(self.forced + units), "prefix_ids": self._ids(self.forced + units)}
            about |= {"moved": cut.moved, "hit": plan.hit if not state else _short(plan.hit)}
            row = state_row(about, group, turns) | {"prompt": self._shown(ask)}
            if not state:
                row |= {"dropped": plan.dropped, "too_long": plan.long}
                row["baseline"] = [[sum(c.right is r for c in g) for r in (True, False)] for g in rounds]
                row["baseline_tokens"] = counted(extra)
            found.append(row)
        return found

    def _shown(self, ask: Ask) -> str | None:
        """The prompt as the model reads it, with the prefix; None where a server renders it."""
        chat = self._options.runtime.server and self._options.runtime.api == "chat"
        return None if chat else self.writer.shown(self.writer.prepare(ask))


def _short(hit: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if hit is None else {name: hit[name] for name in ("index", "right", "from")}


class _Job(Job):
    """The job; its output is the states of all questions."""

    def __init__(self, work: Explore, stdin: BinaryIO | None) -> None:
        super().__init__(work, work.options.job, stdin)
        self.report: dict[str, Any] = {}
        self.explore = work

    def rows(self) -> Questions:
        """See Job."""
        o = self.options
        self.questions = Questions(Table(o.rows, self.stdin, o.id_field))
        return self.questions

    def write(self, out: Path, rows: Callable[[], Iterator[dict[str, Any]]], journal: Journal) -> None:
        """See Job."""
        self.report = report(rows, self.explore.options.n)
        output.write(out, rows)

    def _rows(self, plan: Any, journal: Journal) -> Iterator[dict[str, Any]]:
        for row in self._entries(plan):
            if (entry := journal.entry(row.key)) and entry.failed is None:
                yield from entry.found["states"]

    def _entries(self, plan: Any) -> Iterator[Row]:
        return (row for _, row in self._walked(plan))


def run(options: ExploreOptions, stdin: BinaryIO | None = None) -> Events:
    """See `Job.run`; Finished also has what `report` tells.

    Raises:
        QwenchError: an option that does not fit; see `Job.run`.
    """
    options.check()
    with ExitStack() as held:
        verifier = held.enter_context(Verifier(options.verifier, options.percent_equal, options.grade_timeout))
        job = _Job(Explore(options, verifier), stdin)
        for event in job.run():
            if not isinstance(event, Finished):
                yield event
                continue
            if job.questions.unnamed:
                told = f"{job.questions.unnamed} questions have no id: seeds follow their line numbers and contents"
                yield Warned("ids", told)
            yield from (Warned("explore", text) for text in job.report.pop("remarks", ()))
            yield Finished(event.result | job.report)
