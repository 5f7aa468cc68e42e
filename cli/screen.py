"""What a terminal is sent: colours of our own, and nobody else's control characters."""

import os
import sys
from typing import Any

#: codes of "select graphic rendition"
COLORS = {"red": "31", "green": "32", "cyan": "36", "bold": "1", "dim": "2"}
#: Unicode's noncharacters stand for our colours until a text is written, so that an escape sequence in it is foreign
_END = "\ufdd0"
_MARKS = {name: chr(0xFDD1 + i) for i, name in enumerate(COLORS)}
_SENT = {ord(_END): "\x1b[0m"} | {ord(mark): f"\x1b[{COLORS[name]}m" for name, mark in _MARKS.items()}
#: C0 but tab and newline, DEL, and C1, which terminals obey in UTF-8 too
_CONTROLS = [c for c in (*range(32), *range(127, 160)) if c not in (9, 10)]
_ESCAPED = {c: f"\\x{c:02x}" for c in _CONTROLS}
_IN_NAMES = _ESCAPED | {9: "\\t", 10: "\\n"}
#: what JSON itself does not escape
_IN_JSON = {c: f"\\u{c:04x}" for c in range(127, 160)}


def paint(text: str, color: str, stream: Any = None) -> str:
    """`text` marked as coloured where the stream is a terminal that wants it (NO_COLOR, FORCE_COLOR, TERM=dumb)."""
    stream = stream or sys.stderr
    wanted = (stream.isatty() and os.environ.get("TERM") != "dumb") or bool(os.environ.get("FORCE_COLOR"))
    return f"{_MARKS[color]}{text}{_END}" if wanted and not os.environ.get("NO_COLOR") else text


def visible(text: str) -> str:
    """A text as it is written: control characters as `\\x1b`, marks of `paint` as colours."""
    return text.translate(_ESCAPED).translate(_SENT)


def one_line(text: object) -> str:
    """A name inside a line: line breaks and tabs are escaped too."""
    return str(text).translate(_IN_NAMES)


def json_safe(document: str) -> str:
    """JSON of the same value, without the control characters that JSON lets through."""
    return document.translate(_IN_JSON)
