"""Where a text may be cut: sections, paragraphs, lines, sentences, words, and never inside a character."""

from __future__ import annotations

import re
import unicodedata

import numpy as np

NEWLINE = re.compile(r"\r\n|\n|\r")
_HEADING = re.compile(r"(?:^|(?<=[\n\r]))(?=#{1,6} \S)")
#: unindented text after a blank line: the next function, class or section of code
_TOP_LEVEL = re.compile(r"(?:(?:\n|\r\n?)[ \t]*){2,}(?=\S)(?<=[\n\r])")
_PARAGRAPH = re.compile(r"(?:\r\n|\n|\r)[ \t]*(?:\r\n|\n|\r)(?:[ \t]*(?:\r\n|\n|\r))*")
_SENTENCE = re.compile(r"[.!?…][\"')\]»”’]*\s+|[。！？；][」』）”’]*")
_WORD = re.compile(r"\s+(?=\S)|[，、：](?=\S)")


class Boundaries:
    """Cut positions of a text by rank; `levels` are sorted int arrays, best rank first."""

    def __init__(self, text: str) -> None:
        self.text = text

        def ends(pattern: re.Pattern[str]) -> np.ndarray:
            return np.fromiter((m.end() for m in pattern.finditer(text)), np.int64)

        self.line_starts = ends(NEWLINE)
        self.words = np.union1d(ends(_WORD), self.line_starts)
        self.levels = [ends(_HEADING), ends(_TOP_LEVEL), ends(_PARAGRAPH), self.line_starts, ends(_SENTENCE)]

    def best(self, low: int, low_word: int, high: int) -> int:
        """The best cut in (low, high]: the last one of the best rank; words may be cut from low_word on.

        Falls back to `high` itself, moved back off the inside of a character.
        """
        for level in self.levels:
            at = int(np.searchsorted(level, high, side="right"))
            if at and level[at - 1] > low:
                return whole(self.text, int(level[at - 1]), low)
        at = int(np.searchsorted(self.words, high, side="right"))
        if at and self.words[at - 1] > low_word:
            return whole(self.text, int(self.words[at - 1]), low_word)
        return whole(self.text, high, low_word)

    def first_word(self, low: int, high: int) -> int:
        """The first word or line start in [low, high], else high."""
        at = int(np.searchsorted(self.words, low, side="left"))
        return int(self.words[at]) if at < len(self.words) and self.words[at] <= high else high

    def line_of(self, position: int) -> int:
        """0-based line of the character at `position`."""
        return int(np.searchsorted(self.line_starts, position, side="right"))


def whole(text: str, at: int, low: int) -> int:
    """The nearest cut at or before `at` (but after `low`) that splits no character as a reader sees it."""
    cut = at
    while cut > low and inside_character(text, cut):
        cut -= 1
    return cut if cut > low else at


def inside_character(text: str, at: int) -> bool:
    """Whether a cut before text[at] would split CR LF, a base and its marks, or an emoji sequence."""
    if not 0 < at < len(text):
        return False
    before, after = text[at - 1], text[at]
    if before == "\r":
        return after == "\n"
    if after < "\u0300":
        return False
    if before == "\u200d" or after in "\u200d\ufe0e\ufe0f\u20e3" or "\U0001f3fb" <= after <= "\U0001f3ff":
        return True
    if unicodedata.category(after) in ("Mn", "Mc", "Me"):
        return True
    if _regional(before) and _regional(after):
        start = at
        while start > 0 and _regional(text[start - 1]):
            start -= 1
        return (at - start) % 2 == 1
    return False


def _regional(char: str) -> bool:
    return "\U0001f1e6" <= char <= "\U0001f1ff"
