"""The door of `qwench polymath`: questions asked in 18 languages, answers scored, and the strings of the prompts."""

from __future__ import annotations

from typing import BinaryIO

from .base.events import Events, Finished, Produced
from .grading.languages import LANGUAGES
from .grading.polymath import run as asking
from .grading.polymath import score as scoring
from .grading.polymath.grade import GradeOptions
from .grading.polymath.questions import QuestionOptions
from .grading.polymath.run import RunOptions
from .grading.polymath.score import ScoreOptions
from .grading.polymath.strings import CONTROLS, HASHES, check_control, check_languages, digest, strings

__all__ = ["GradeOptions", "QuestionOptions", "RunOptions", "ScoreOptions", "prompts", "run", "score"]


def run(options: RunOptions, stdin: BinaryIO | None = None) -> Events:
    """Ask a model; see `grading.polymath.run`."""
    yield from asking.run(options, stdin)


def score(options: ScoreOptions) -> Events:
    """Score answers; see `grading.polymath.score`."""
    yield from scoring.score(options)


def prompts(langs: tuple[str, ...] = (), control: str | None = None) -> Events:
    """Yields Produced rows of language, kind (note or a control) and text, and Finished: hashes, and whether they hold.

    Raises:
        QwenchError: no such language or control.
    """
    check_languages(langs)
    if control is not None:
        check_control(control)
    tables = strings()
    kinds = ["notes", *CONTROLS[1:]] if control is None else ["notes"] if control == "none" else ["notes", control]
    for kind in kinds:
        for language in langs or LANGUAGES:
            yield Produced({"lang": language, "kind": kind.removesuffix("s"), "text": tables[kind][language]})
    hashes = {kind: digest(tables[kind]) for kind in HASHES}
    yield Finished({"schema": 1, "hashes": hashes, "right": hashes == HASHES})
