r"""Answers in boxes: every `boxed{...}` of a text, by its matching brace."""

from __future__ import annotations

import re

_MARKS = re.compile(r"boxed\{|[{}]")


def boxes(text: str) -> list[str]:
    r"""What stands in each `boxed{...}`, in the order in which they open; a box may hold others.

    PolyMath's rule: blanks (U+0020) go first, a backslash before `boxed` is not needed, `{` and `}` alone are counted
    (so that `\}` closes, too), and a box that never closes is none. One pass, whatever the text holds.
    """
    text = text.replace(" ", "")
    opened: list[tuple[int, bool]] = []  # where a brace's content begins, and whether it is a box
    found: list[tuple[int, str]] = []
    for mark in _MARKS.finditer(text):
        if mark[0] != "}":
            opened.append((mark.end(), mark[0] != "{"))
        elif opened:
            start, box = opened.pop()
            if box:
                found.append((start, text[start : mark.start()]))
    return [content for _, content in sorted(found)]


def picked(found: list[str], which: str) -> str | None:
    """The first or the last of boxes, None where there is none."""
    return (found[0] if which == "first" else found[-1]) if found else None
