"""The answer in a sample's text, and when two answers are one: numbers, letters of options, words."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ...base.errors import QwenchError
from ..boxes import boxes
from ..numbers import plain_digits

RULES = ("cue", "boxed", "number", "choice", "last-line", "regex:RE", "whole")
COMPARE = ("number", "exact", "casefold")
CUE = "The answer is"
#: thousands with commas or without, a fraction, an exponent; no part of a word
_NUMBER = re.compile(r"(?<![\w.,])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?(?![\d\w]|,\d|\.\d)")
_CURRENCY = re.compile(r"[$€£¥₹]|\\\$")
_OPTION = re.compile(r"\(([A-Z])\)")
#: a letter in brackets, or alone at the beginning
_CHOICE = re.compile(r"\(([A-Za-z])\)|^\W*([A-Z])(?![A-Za-z'])")


@dataclass(frozen=True, slots=True)
class Extraction:
    """How answers are found and compared; names equal the flags.

    Attributes:
        extract: one of RULES; None for the cue, then a box, then what the label is: a letter or a number.
        cue_line: any, or last: the cue counts in the last line alone.
        compare: number, exact or casefold; None by the label.
    """

    extract: str | None = None
    cue: str = CUE
    cue_line: str = "any"
    compare: str | None = None
    tolerance: float = 1e-4

    def check(self) -> None:
        """Nothing.

        Raises:
            QwenchError: an unknown rule, or a regular expression that is none.
        """
        rule = self.extract
        if rule is not None and rule.startswith("regex:"):
            try:
                re.compile(rule.removeprefix("regex:"))
            except re.error as error:
                raise QwenchError(f"no regular expression ({error}): `{rule}`", "correct it", code=2) from error
        elif rule is not None and rule not in RULES:
            raise QwenchError(f"unknown --extract: `{rule}`", f"use {', '.join(RULES)}", code=2)
        for name, given, known in (("cue-line", self.cue_line, ("any", "last")), ("compare", self.compare, COMPARE)):
            if given is not None and given not in known:
                raise QwenchError(f"unknown --{name}: `{given}`", f"use {', '.join(known)}", code=2)
        if not self.cue.strip():
            raise QwenchError("--cue takes a text", code=2)
        if self.tolerance < 0:
            raise QwenchError("--tolerance must not be negative", code=2)


@dataclass(frozen=True, slots=True)
class Label:
    """The right answer of a question, and what kind of thing it is: number, choice or text.

    Attributes:
        value: a number, a letter, or casefolded words; options: letter -> words, where there are any.
    """

    value: Any
    kind: str
    options: dict[str, str]


def number_of(text: str) -> float | None:
    """A whole text as a number: commas, currency and a final dot go."""
    bare = _CURRENCY.sub("", plain_digits(text)).strip().rstrip(".").replace("\u2212", "-").strip()
    return float(bare.replace(",", "")) if _NUMBER.fullmatch(bare) else None


def words(text: str) -> str:
    """Casefolded words, without what stands around them."""
    return " ".join(text.casefold().split()).strip(" .,;:!?\"'`*()[]")


def options_of(given: Any, question: str) -> dict[str, str]:
    """Letter -> option, from a row's list or object of them, else from `(A) ... (B) ...` in the question."""
    if isinstance(given, dict):
        return {str(k).strip("()").upper(): str(v) for k, v in given.items()}
    if isinstance(given, list) and given:
        told = [_OPTION.match(str(v).strip()) for v in given]
        return {
            m[1] if m else chr(65 + n): str(v).strip()[m.end() if m else 0 :].strip()
            for n, (m, v) in enumerate(zip(told, given, strict=True))
        }
    found = list(_OPTION.finditer(question))
    if len(found) < 2 or [m[1] for m in found] != [chr(65 + n) for n in range(len(found))]:
        return {}
    ends = [m.start() for m in found[1:]] + [len(question)]
    return {m[1]: question[m.end() : end].strip() for m, end in zip(found, ends, strict=True)}


def label_of(given: Any, options: dict[str, str], compare: str | None) -> Label:
    """A row's right answer.

    Raises:
        QwenchError: it is not among the options, or no number where numbers are compared.
    """
    text = str(given).strip()
    if compare in ("exact", "casefold"):
        return Label(text if compare == "exact" else words(text), "text", {})
    if options and compare is None:
        letter = _letter(text, options)
        if letter is None:
            raise QwenchError(f"the label `{text}` is not among the options {', '.join(options)}")
        return Label(letter, "choice", options)
    number = number_of(text)
    if number is not None:
        return Label(number, "number", {})
    if compare == "number":
        raise QwenchError(f"the label `{text}` is no number")
    if re.fullmatch(r"\(?[A-Z]\)?", text):
        return Label(text.strip("()"), "choice", {})
    return Label(words(text), "text", {})


def _letter(text: str, options: dict[str, str]) -> str | None:
    """The option that a text names by its letter, or by its words."""
    if text.strip("() .") in options:
        return text.strip("() .")
    said = [letter for letter, option in options.items() if words(option) == words(text)]
    if len(said) == 1:
        return said[0]
    found = _CHOICE.search(text.strip())
    letter = (found[1] or found[2]).upper() if found else None
    return letter if letter in options or not options else None


def answer_of(text: str, label: Label, how: Extraction) -> Any:
    """What a sample answers, as the label's kind; None where it cannot be read."""
    rule = how.extract
    if rule is None:
        said = _after_cue(text, how)
        if said is not None:
            return _read(said, label, how, first=True)
        found = boxes(text)
        if found:
            return _read(found[-1], label, how, first=True)
        return None if label.kind == "text" else _read(text, label, how, first=False)
    if rule == "cue":
        said = _after_cue(text, how)
        return None if said is None else _read(said, label, how, first=True)
    if rule == "boxed":
        found = boxes(text)
        return _read(found[-1], label, how, first=True) if found else None
    if rule == "last-line":
        lines = text.strip().splitlines()
        return _read(lines[-1], label, how, first=False) if lines else None
    if rule.startswith("regex:"):
        matches = list(re.finditer(rule.removeprefix("regex:"), text))
        return _read(matches[-1][matches[-1].re.groups and 1] or "", label, how, first=True) if matches else None
    if rule == "whole":
        return _whole(text, label, how)
    return _read(text, label, how, first=False)


def _after_cue(text: str, how: Extraction) -> str | None:
    """The rest of the line after the last cue."""
    if how.cue_line == "last":
        text = (text.strip().splitlines() or [""])[-1]
    at = text.casefold().rfind(how.cue.casefold()) if len(text.casefold()) == len(text) else text.rfind(how.cue)
    if at < 0:
        return None
    return (text[at + len(how.cue) :].lstrip(" :*").splitlines() or [""])[0]


def _whole(text: str, label: Label, how: Extraction) -> Any:
    if label.kind == "number":
        return number_of(text)
    if label.kind == "choice":
        return _letter(text, label.options)
    return (text.strip() if how.compare == "exact" else words(text)) or None


def _read(text: str, label: Label, how: Extraction, *, first: bool) -> Any:
    """An answer of the label's kind out of a piece of text: the first there, or the last."""
    if label.kind == "number":
        found = _NUMBER.findall(_CURRENCY.sub("", plain_digits(text)).replace("\u2212", "-"))
        return float(found[0 if first else -1].replace(",", "")) if found else None
    if label.kind == "choice":
        if first:
            return _letter(text, label.options)
        letters = [m for m in _OPTION.findall(text) if m in label.options or not label.options]
        return letters[-1] if letters else _letter(text, label.options)
    if how.compare == "exact":
        return text.strip().removesuffix(".") or None
    return words(text) or None


def same(a: Any, b: Any, tolerance: float) -> bool:
    """Two answers are one."""
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) <= tolerance * max(1.0, abs(b))
    return bool(a == b)
