"""What a message says: one of a game's forms, found by the fixed rules or as the reference finds it.

A form is written as it looks: `INT`, `NUM` (a sign is allowed), `INTS` (one or more), `WORD` (letters) and `<regex>`
are taken, `_` is optional white space, `.` between parts is white space, and the rest stands for itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

#: digits that a number may have; more are out of every range
DIGITS = 12
#: digits that Python turns into a number without being asked to
MOST = 4300
_TOKENS = re.compile(r"(INTS|INT|NUM|WORD|_|\.|<[^>]+>)")
_THOUGHT = "</think>"
#: after a form's end no number and no letter goes on, so that half a number or half a list is never taken
_END = r"(?![^\W_]|\.[0-9]|[ \t]*[-+,|]?[ \t]*[0-9])"
_REFERENCE = {"INT": r"(\d+)", "NUM": r"(-?\d+)", "INTS": r"([\d\s]+)", "WORD": "([A-Za-z]+)", "_": r"\s*", ".": r"\s+"}
_FIXED = {
    "INT": "([0-9]+)",
    "NUM": r"([-+]?[0-9]+)",
    "INTS": r"([0-9]+(?:[ \t]+[0-9]+)*)",
    "WORD": "([A-Za-z]+)",
    "_": r"[ \t*_`\"']*",
    ".": r"[ \t]+",
}


#: how a form's parts are shown
SHOWN = {"INT": "N", "NUM": "±N", "INTS": "N N ...", "WORD": "LETTERS", "_": " ", ".": " "}


class TooLong(ValueError):
    """A number of more digits than any rule has a use for."""


@dataclass(frozen=True, slots=True)
class Form:
    """How a message may look.

    Attributes:
        kind: what it does: query, answer, move.
        looks: by the fixed rules; reference: where the reference's differs, None for the same.
        last: the reference takes the last place that fits, not the first.
    """

    kind: str
    looks: str
    reference: str | None = None
    last: bool = False

    @property
    def shown(self) -> str:
        """As a person reads it: `My Query: N N`."""
        text = "".join(SHOWN.get(part) or _alternatives(part) for part in _TOKENS.split(self.looks))
        return " ".join(text.split())


def _alternatives(part: str) -> str:
    """A part that stands for itself, or what a regex of a form takes."""
    if not part.startswith("<"):
        return part
    if letters := re.fullmatch(r"<\[([A-Z]+)\]>", part):
        return "|".join(letters[1])
    if re.fullmatch(r"<[A-Z|]+>", part):
        return part[1:-1]
    if "[0-9]" in part:
        return "N-N N-N ..." if "-[0-9]" in part else "N,N,..."
    return " | " if "|" in part else "," if "," in part else ""


def kept(text: str) -> str:
    """A message without its thought."""
    return text.rpartition(_THOUGHT)[2].strip()


def read(text: str, forms: Sequence[Form], reference: bool) -> tuple[str, list[Any]] | None:
    """(kind, what was taken) of the form that counts, None where there is none.

    By the fixed rules it is the last in the message, in any case of letters; by the reference's the first form of the
    list that is anywhere.

    Raises:
        TooLong: a number is.
    """
    best: tuple[int, Form, re.Match[str]] | None = None
    for form in forms:
        places = _pattern(form, reference)[0].finditer(text)
        if reference and not form.last:
            match = next(places, None)
        else:
            match = None
            for match in places:  # noqa: B007 the last
                pass
        if match is None:
            continue
        if reference:
            return form.kind, _taken(form, match, True)
        # The one that reaches furthest: a form may be the end of another.
        if best is None or match.end() > best[0]:
            best = match.end(), form, match
    return None if best is None else (best[1].kind, _taken(best[1], best[2], False))


@cache
def _pattern(form: Form, reference: bool) -> tuple[re.Pattern[str], tuple[str, ...]]:
    """(what finds it, kinds of what is taken)."""
    table = _REFERENCE if reference else _FIXED
    looks = form.reference if reference and form.reference is not None else form.looks
    parts = []
    for part in _TOKENS.split(looks):
        if part.startswith("<") and part.endswith(">"):
            parts.append(f"({part[1:-1]})")
        elif part in table:
            parts.append(table[part])
        else:
            parts.append(re.escape(part) if reference else re.escape(part).replace(r"\ ", "[ \t]+"))
    # A digit is one of ASCII, and a letter of any case, by the fixed rules.
    flags = 0 if reference else re.IGNORECASE | re.ASCII
    kinds = tuple(t for t in _TOKENS.findall(looks) if t not in "_.")
    return re.compile("".join(parts) + ("" if reference else _END), flags), kinds


def _taken(form: Form, match: re.Match[str], reference: bool) -> list[Any]:
    found: list[Any] = []
    for kind, text in zip(_pattern(form, reference)[1], match.groups(), strict=True):
        if kind in ("INT", "NUM"):
            found.append(number(text, reference))
        elif kind == "INTS":
            found.append([number(part, reference) for part in text.split()])
        else:
            found.append(text)
    return found


def number(text: str, reference: bool = False) -> int:
    """A number.

    Raises:
        TooLong: it has more than DIGITS digits, or by the reference's rules more than Python reads.
    """
    if len(text.lstrip("+-")) > (MOST if reference else DIGITS):
        raise TooLong(text[:20])
    return int(text)
