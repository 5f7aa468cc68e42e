"""Verdicts on answers: their boxes against the right answers, and the languages of what they say."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ...base.errors import QwenchError
from ...base.events import Advanced, Events, Started
from ..boxes import boxes, picked
from ..equality import quick
from ..languages import consistent, prose
from ..numbers import plain_digits
from ..worker import Reply, Workers
from .tree import Answer

GRADERS = ("compat", "math-verify", "both")
DETECTORS = ("compat", "lingua", "both", "none")
#: what an option needs -> (module, name on PyPI)
NEEDS = {
    "compat": ("math_verify", "math-verify"),
    "math-verify": ("math_verify", "math-verify"),
    "langdetect": ("langdetect", "langdetect"),
    "lingua": ("lingua", "lingua-language-detector"),
}


@dataclass(frozen=True, slots=True)
class GradeOptions:
    """How answers are judged; names equal the flags.

    Attributes:
        box: first or last; None for each grader's own: compat the first, math-verify the last.
        grade_timeout: seconds of a comparison.
        zh: simplified, or any: traditional Chinese counts as Chinese.
    """

    grader: str = "compat"
    detector: str = "compat"
    box: str | None = None
    ratio_rule: bool = True
    grade_timeout: float = 5.0
    zh: str = "simplified"

    @property
    def graders(self) -> tuple[str, ...]:
        """Names of CALLS."""
        return ("compat", "math-verify") if self.grader == "both" else (self.grader,)

    @property
    def detectors(self) -> tuple[str, ...]:
        """compat, lingua, both or none of them."""
        return {"both": ("compat", "lingua"), "none": ()}.get(self.detector, (self.detector,))

    def check(self) -> None:
        """Nothing.

        Raises:
            QwenchError: an unknown name, or a library that is not installed.
        """
        known = (("grader", GRADERS), ("detector", DETECTORS), ("box", ("first", "last", None)))
        for name, names in (*known, ("zh", ("simplified", "any"))):
            if (given := getattr(self, name)) not in names:
                told = ", ".join(n for n in names if n)
                raise QwenchError(f"unknown --{name}: `{given}`", f"use {told}", code=2)
        if self.grade_timeout <= 0:
            raise QwenchError("--grade-timeout must be above 0", code=2)
        for name in (*self.graders, *({"compat": "langdetect"}.get(d, d) for d in self.detectors)):
            module, package = NEEDS[name]
            if importlib.util.find_spec(module) is None:
                raise QwenchError(f"judging answers needs {package}", "pip install 'qwench[grading]'")


@dataclass(slots=True)
class Grade:
    """An answer and what was found of it.

    Attributes:
        verdicts: grader -> right, wrong, unparsed (no box), truncated (none, and cut at a limit), timeout or failed.
        differ: the answer has several different boxes.
        languages: (detector, thinking or answer) -> consistent with the question's language.
        short: of thinking and answer, those too short to tell.
    """

    of: Answer
    verdicts: dict[str, str] = field(default_factory=dict)
    differ: bool = False
    boxed: bool = False
    languages: dict[tuple[str, str], bool] = field(default_factory=dict)
    short: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Tally:
    """What is said of a whole run of grading.

    Attributes:
        counts: timeouts, died, digits (right only once digits of other scripts are 0-9).
        unread: right answers that are no formula, which were compared as text.
    """

    counts: Counter[str] = field(default_factory=Counter)
    unread: set[str] = field(default_factory=set)
    mix: dict[tuple[str, str], Counter[str]] = field(default_factory=dict)


def graded(answers: list[Answer], options: GradeOptions) -> Iterator[Any]:
    """Grades of answers, in their order, and the tally; yields Started and Advanced meanwhile.

    Raises:
        QwenchError: see `GradeOptions.check`.
    """
    options.check()
    grades, tally = [Grade(answer) for answer in answers], Tally()
    calls = [*options.graders, *(["langdetect"] if "compat" in options.detectors else [])]
    with Workers(calls, limit=options.grade_timeout) as workers:
        yield from _right(grades, options, tally, workers)
        if "compat" in options.detectors:
            yield from _consistent(grades, options, tally, workers)
    if "lingua" in options.detectors:
        yield from _lingua(grades, tally)
    return grades, tally


def _right(grades: list[Grade], options: GradeOptions, tally: Tally, workers: Workers) -> Events:
    """Verdicts of all graders; a pair that several answers share is compared once."""
    wanted: dict[tuple[str, str, str], list[Grade]] = {}
    for grade in grades:
        answer = grade.of
        found = boxes(answer.answer)
        grade.differ, grade.boxed = len(set(found)) > 1, bool(found)
        for grader in options.graders:
            box = picked(found, options.box or ("first" if grader == "compat" else "last"))
            if answer.trouble is not None:
                grade.verdicts[grader] = "failed"
            elif box is None:
                grade.verdicts[grader] = "truncated" if answer.finish == "length" else "unparsed"
            else:
                wanted.setdefault((grader, box, answer.gold), []).append(grade)
    yield Started("grade", len(wanted))
    verdicts: dict[tuple[str, str, str], str] = {}
    for pair, verdict in _compared(wanted, options, tally, workers):
        verdicts[pair] = verdict
        for grade in wanted[pair]:
            grade.verdicts[pair[0]] = verdict
        yield Advanced("grade", 1)
    yield from _digits(wanted, verdicts, options, tally, workers)


def _compared(
    pairs: Iterable[tuple[str, str, str]], options: GradeOptions, tally: Tally, workers: Workers
) -> Iterator[tuple[tuple[str, str, str], str]]:
    """Verdict of each (grader, box, right answer), digits of all scripts being 0-9."""
    hard = []
    for grader, box, gold in pairs:
        texts = plain_digits(box), plain_digits(gold)
        simple = quick(*texts, options.ratio_rule) if grader == "compat" else None
        if simple is None:
            own = (options.ratio_rule,) if grader == "compat" else ()
            hard.append(((grader, box, gold), (grader, *texts, *own)))
        else:
            yield (grader, box, gold), "right" if simple else "wrong"
    for reply in workers.run(hard):
        yield reply.key, _verdict(reply, tally)


def _verdict(reply: Reply, tally: Tally) -> str:
    if reply.trouble in ("late", "died"):
        tally.counts["timeouts" if reply.trouble == "late" else "died"] += 1
        return "timeout"
    if reply.found is None:
        tally.counts["failed"] += 1
        return "wrong"
    if not reply.found["read"]:
        tally.unread.add(reply.key[2])
    return "right" if reply.found["equal"] else "wrong"


def _digits(
    wanted: dict[tuple[str, str, str], list[Grade]],
    verdicts: dict[tuple[str, str, str], str],
    options: GradeOptions,
    tally: Tally,
    workers: Workers,
) -> Events:
    """Count the answers that are right for their digits being read alone."""
    changed = [p for p, verdict in verdicts.items() if verdict == "right" and plain_digits(p[1]) != p[1]]
    calls = [(p, (*p, *((options.ratio_rule,) if p[0] == "compat" else ()))) for p in changed]
    for reply in workers.run(calls):
        if reply.found is None or not reply.found["equal"]:
            tally.counts["digits"] += len(wanted[reply.key])
    return iter(())


def _texts(grades: list[Grade]) -> Iterator[tuple[Grade, str, str | None]]:
    """(grade, which text, it without formulas) of all thoughts and answers; None for one too short to tell."""
    for grade in grades:
        if grade.of.thoughts:
            yield grade, "thinking", prose(grade.of.thinking)
        yield grade, "answer", prose(grade.of.answer)


def _consistent(grades: list[Grade], options: GradeOptions, tally: Tally, workers: Workers) -> Events:
    wanted: dict[str, list[tuple[Grade, str]]] = {}
    for grade, which, text in _texts(grades):
        if text is None:
            grade.short.add(which)
            grade.languages["compat", which] = True
        else:
            wanted.setdefault(text, []).append((grade, which))
    yield Started("languages", len(wanted))
    for reply in workers.run((text, ("langdetect", text)) for text in wanted):
        if reply.trouble in ("late", "died"):
            tally.counts["timeouts" if reply.trouble == "late" else "died"] += 1
        found = reply.found["languages"] if reply.found else []
        for grade, which in wanted[reply.key]:
            grade.languages["compat", which] = consistent(found, grade.of.lang, options.zh == "any")
        yield Advanced("languages", 1)


def _lingua(grades: list[Grade], tally: Tally) -> Events:
    from ..detectors import lingua, mix

    yield Started("languages", len(grades))
    for grade, which, text in _texts(grades):
        if text is None:
            grade.short.add(which)
            grade.languages["lingua", which] = True
        else:
            grade.languages["lingua", which] = lingua(text) == grade.of.lang
            tally.mix.setdefault((grade.of.lang, which), Counter()).update(mix(text))
        if which == "answer":
            yield Advanced("languages", 1)
