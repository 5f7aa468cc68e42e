"""Where a solution is cut: states are its beginnings, as token ids."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...models.tokenizer import TextTokenizer

SPLITS = ("tokens", "steps", "lines")
#: how an answer is made to begin for --split steps, so that its root is a state, too
STEPS = "Let's think step by step.\n\nStep 1:"
_HEADER = re.compile(r"Step \d+:")


class Units:
    """What solutions are made of: the tokenizer's ids, or characters where there is no tokenizer."""

    def __init__(self, tokenizer: TextTokenizer | None) -> None:
        self.tokenizer = tokenizer

    def encode(self, text: str) -> list[Any]:
        """Units of a text, nothing around them."""
        return list(text) if self.tokenizer is None else self.tokenizer.ids([text])[0] if text else []

    def decode(self, units: Sequence[Any]) -> str:
        """Their text, special tokens included."""
        if self.tokenizer is None:
            return "".join(units)
        return self.tokenizer.backend.decode(list(units), skip_special_tokens=False)


@dataclass(frozen=True, slots=True)
class Cut:
    """A state: the first `at` units of a solution.

    Attributes:
        moved: units that it lies away from where it was asked for, so as to part no character.
    """

    at: int
    moved: int = 0


def even(length: int, parts: int) -> list[int]:
    """Where each of at most `parts` parts begins, the first ones a unit longer: 13 in 5 -> 0, 3, 6, 9, 11."""
    parts = min(parts, length)
    size, longer = divmod(length, parts) if parts else (0, 0)
    return [n * size + min(n, longer) for n in range(parts)]


def clean(units: Units, ids: Sequence[Any], at: int) -> bool:
    """Whether both sides of a cut decode to what they are together."""
    text, first, rest = units.decode(ids), units.decode(ids[:at]), units.decode(ids[at:])
    # Tokenizers after SentencePiece drop the blank that a text begins with.
    return not first.endswith("\ufffd") and text in (first + rest, f"{first} {rest}")


def cuts(units: Units, ids: Sequence[Any], split: str, parts: int, skip: int) -> list[Cut]:
    """States of a solution, the bare question (0) first; each is another, and none is all of it.

    Args:
        split: tokens, in `parts` parts; steps, up to and with each header `Step N:`; lines, after each line.
        skip: of steps and lines every skip-th.
    """
    if split == "tokens":
        found = [_left(units, ids, at) for at in even(len(ids), parts)]
    else:
        text = units.decode(ids)
        pattern = _HEADER if split == "steps" else re.compile(r"\n")
        ends = [m.end() for m in pattern.finditer(text)][::skip]
        found = [_reaching(units, ids, end) for end in ends]
    whole = len(units.decode(ids).rstrip())
    chosen = {c.at: c for c in reversed(found) if 0 < c.at < len(ids) and len(units.decode(ids[: c.at])) < whole}
    return [Cut(0), *(chosen[at] for at in sorted(chosen))]


def _left(units: Units, ids: Sequence[Any], at: int) -> Cut:
    """The nearest clean cut at or before."""
    place = next((n for n in range(at, 0, -1) if clean(units, ids, n)), 0)
    return Cut(place, at - place)


def _reaching(units: Units, ids: Sequence[Any], end: int) -> Cut:
    """The first clean cut that has `end` characters: a token that holds more is taken whole."""
    first = bisect_left(range(len(ids)), end, key=lambda n: len(units.decode(ids[:n])))
    place = next((n for n in range(first, len(ids)) if clean(units, ids, n)), len(ids))
    return Cut(place, place - first)
