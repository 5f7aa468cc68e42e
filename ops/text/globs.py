"""Patterns as git reads them in a `.gitignore`, one line each.

Own code because the question differs: git asks whether a pattern matches an entry itself, and lets folders pass their
fate on. A library that matches everything below a folder along with it reads `!packages/` as bringing back every
`node_modules/` in there. The tests hold this against git.
Source: https://git-scm.com/docs/gitignore and the behaviour of git's wildmatch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

_CLASSES = {
    "alnum": "a-zA-Z0-9",
    "alpha": "a-zA-Z",
    "blank": r" \t",
    "cntrl": r"\x00-\x1f\x7f",
    "digit": "0-9",
    "graph": r"\x21-\x7e",
    "lower": "a-z",
    "print": r"\x20-\x7e",
    "punct": r"\x21-\x2f\x3a-\x40\x5b-\x60\x7b-\x7e",
    "space": r"\s",
    "upper": "A-Z",
    "xdigit": "0-9a-fA-F",
}


class Glob(NamedTuple):
    """One pattern: matches the path of an entry as a whole, without a closing slash."""

    regex: re.Pattern[str]
    negated: bool
    folders_only: bool

    def matches(self, path: str, is_dir: bool) -> bool:
        return (is_dir or not self.folders_only) and self.regex.fullmatch(path) is not None


class Globs:
    """Patterns of which the last one that matches decides; lines that mean nothing are passed over."""

    def __init__(self, globs: Iterable[Glob]) -> None:
        self.globs = tuple(globs)
        # Most paths match no pattern: one question instead of one a pattern.
        self._any = re.compile("|".join(f"(?:{glob.regex.pattern})" for glob in self.globs), re.DOTALL)

    @classmethod
    def parse(cls, lines: Iterable[str]) -> Globs:
        return cls(glob for line in lines if (glob := parse_glob(line)) is not None)

    def verdict(self, path: str, is_dir: bool) -> bool | None:
        """True if the entry is meant, False if it is excepted by a `!` pattern, None if no pattern is about it.

        Args:
            path: relative to where the patterns are, without a closing slash. Its parents are not looked at.
            is_dir: the entry is a folder.
        """
        if self._any.fullmatch(path) is None:
            return None
        for glob in reversed(self.globs):
            if glob.matches(path, is_dir):
                return not glob.negated
        return None

    def covers(self, path: str) -> bool:
        """Whether the file, or a folder it is in, is meant by the last pattern about one of them."""
        entries = [(path, False)]
        while (cut := path.rfind("/")) > 0:
            path = path[:cut]
            entries.append((path, True))
        for glob in reversed(self.globs):
            if any(glob.matches(*entry) for entry in entries):
                return not glob.negated
        return False


def parse_glob(line: str) -> Glob | None:
    """The pattern of a line, None for a comment, a blank line and what cannot match."""
    text = _without_trailing_spaces(line)
    if not text or text.startswith("#"):
        return None
    negated = text.startswith("!")
    text = text[negated:]
    folders_only = text.endswith("/")
    if folders_only:
        text = text[:-1]
    anchored = "/" in text
    body = _regex(text.removeprefix("/"), anchored)
    if not text or body is None:
        return None
    prefix = "" if anchored else "(?:.*/)?"
    return Glob(re.compile(prefix + body, re.DOTALL), negated, folders_only)


def _without_trailing_spaces(line: str) -> str:
    text = line.rstrip(" ")
    slashes = len(text) - len(text.rstrip("\\"))
    return text + " " if slashes % 2 and len(text) < len(line) else text


def _regex(text: str, anchored: bool) -> str | None:
    """Regular expression of a pattern without its slashes at the ends, None if it matches nothing."""
    out, at, size = [], 0, len(text)
    while at < size:
        char = text[at]
        if char == "*":
            end = at
            while end < size and text[end] == "*":
                end += 1
            piece, at = _stars(text, at, end, anchored)
            out.append(piece)
        elif char == "?":
            out.append("[^/]")
            at += 1
        elif char == "[":
            bracket, at = _bracket(text, at)
            if bracket is None:
                return None
            out.append(bracket)
        elif char == "\\":
            if at + 1 == size:
                return None
            out.append(re.escape(text[at + 1]))
            at += 2
        else:
            out.append(re.escape(char))
            at += 1
    return "".join(out)


def _stars(text: str, start: int, end: int, anchored: bool) -> tuple[str, int]:
    """What a run of stars matches, and where to go on: two or more between slashes stand for folders."""
    # Git compares what comes before the first wildcard by itself, so that stars right after it count as the start.
    first = start == 0 or (anchored and not set(text[:start]) & set("*?[\\"))
    whole = end - start > 1 and (first or text[start - 1] == "/")
    if whole and end == len(text):
        return ".+", end
    if whole and text[end : end + 1] == "/":
        return "(?:.*/)?", end + 1
    return "[^/]*", end


def _bracket(text: str, start: int) -> tuple[str | None, int]:
    """Regular expression of `[...]` at `start` and where it ends; None if it is not closed."""
    at = start + 1
    negated = text[at : at + 1] in ("!", "^") and at < len(text)
    at += negated
    items: list[str] = []
    first = True
    while at < len(text) and (first or text[at] != "]"):
        first = False
        if text.startswith("[:", at) and (close := text.find(":]", at)) > 0:
            name = text[at + 2 : close]
            if name not in _CLASSES:
                return None, len(text)
            items.append(_CLASSES[name])
            at = close + 2
            continue
        low, at = _member(text, at)
        if low is not None and text[at : at + 1] == "-" and text[at + 1 : at + 2] not in ("", "]"):
            high, at = _member(text, at + 1)
            if high is None:
                return None, len(text)
            # Turned round, a range is its first character alone.
            items.append(f"{_escaped(low)}-{_escaped(high)}" if low <= high else _escaped(low))
            continue
        if low is None:
            return None, len(text)
        items.append(_escaped(low))
    if at >= len(text):
        return None, len(text)
    members = "".join(items)
    if negated:
        return f"[^/{members}]", at + 1
    return (f"(?!/)[{members}]" if members else "(?!)"), at + 1


def _member(text: str, at: int) -> tuple[str | None, int]:
    """The character at `at` in a bracket, a backslash taken for quoting, and where the next one is."""
    if text[at] == "\\":
        return (text[at + 1], at + 2) if at + 1 < len(text) else (None, at + 1)
    return text[at], at + 1


def _escaped(char: str) -> str:
    return "\\" + char if char in "\\]^-[&~|" else char
