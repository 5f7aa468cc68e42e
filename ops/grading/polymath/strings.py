"""The notes and sentences that PolyMath puts after its questions, byte for byte, and how they are joined."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

from ...base.errors import QwenchError
from ..languages import LANGUAGES

CONTROLS = ("none", "forcing_raw", "forcing_en", "forcing_prefer")
#: what stands before the note, and before the sentence of control
JOINERS = ("\n", " ")
#: of the lines `language TAB string`, by language, joined by line feeds, as they were taken from the repository
HASHES = {
    "notes": "58dc5b6b2a54cb31",
    "forcing_raw": "f7b5a55558710515",
    "forcing_en": "2d744ab9c3b53ce6",
    "forcing_prefer": "17035eb5844682c1",
}


@cache
def strings() -> Mapping[str, Mapping[str, str]]:
    """notes, and each control but `none` -> language -> string."""
    found = json.loads(files("qwench.ops.grading").joinpath("data/polymath_strings.json").read_text("utf-8"))
    return {"notes": found["notes"], **found["control"]}


def digest(table: Mapping[str, str]) -> str:
    """Hash of strings by language, as in HASHES."""
    lines = "\n".join(f"{language}\t{table[language]}" for language in sorted(table))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def check_control(control: str) -> None:
    """Nothing.

    Raises:
        QwenchError: no such control.
    """
    if control not in CONTROLS:
        raise QwenchError(f"unknown --control: `{control}`", f"use {', '.join(CONTROLS)}", code=2)


def check_languages(names: tuple[str, ...]) -> None:
    """Nothing.

    Raises:
        QwenchError: one is not PolyMath's.
    """
    if unknown := [n for n in names if n not in LANGUAGES]:
        raise QwenchError(f"PolyMath has no language `{unknown[0]}`", f"use {', '.join(LANGUAGES)}", code=2)


def prompt(question: str, language: str, control: str = "none", joiners: tuple[str, str] = JOINERS) -> str:
    """A question with the note of its language, and with the sentence that asks for a language."""
    text = question + joiners[0] + strings()["notes"][language]
    return text if control == "none" else text + joiners[1] + strings()[control][language]


def joiners_of(given: tuple[str, ...]) -> tuple[str, str]:
    r"""What `--joiner` asks for: once for both, twice for note and sentence; `\n` and `\t` stand for what they mean.

    Raises:
        QwenchError: given more than twice.
    """
    if len(given) > 2:
        raise QwenchError("--joiner is given twice at most: before the note, and before the sentence", code=2)
    texts = [t.replace("\\n", "\n").replace("\\t", "\t") for t in given]
    return (texts[0], texts[-1]) if texts else JOINERS
