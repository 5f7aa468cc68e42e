"""Server-sent events: what a server says piece by piece, as objects (WHATWG HTML, section 9.2)."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

#: bytes of one line
MOST = 16 << 20
_LINES = re.compile(rb"\r\n|\n|\r")


def data_of(chunks: Iterable[bytes]) -> Iterator[str]:
    """The data of each event; comments and other fields are passed over.

    Bytes that are no UTF-8 of their own become surrogate escapes: see `Whole`.

    Raises:
        ValueError: a line that does not end.
    """
    rest, data = b"", []
    for chunk in chunks:
        rest += chunk
        if len(rest) > MOST:
            raise ValueError(f"a line of more than {MOST} bytes")
        # A carriage return at the very end may be the first half of an end of line.
        held = rest[-1:] if rest.endswith(b"\r") else b""
        *lines, rest = _LINES.split(rest[: len(rest) - len(held)])
        rest += held
        for line in lines:
            if line:
                data += _data(line)
            elif data:
                yield "\n".join(data)
                data = []
    # Some servers leave the last blank line out.
    data += _data(rest.rstrip(b"\r"))
    if data:
        yield "\n".join(data)


def _data(line: bytes) -> list[str]:
    name, _, value = line.removeprefix(b"\xef\xbb\xbf").partition(b":")
    return [value.removeprefix(b" ").decode("utf-8", "surrogateescape")] if name == b"data" else []


def objects(chunks: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The JSON object of each event, up to `[DONE]`.

    Raises:
        ValueError: an event that is none.
    """
    for data in data_of(chunks):
        if data.strip() == "[DONE]":
            return
        try:
            found = json.loads(data)
        except RecursionError:
            raise ValueError("nested too deep") from None
        if not isinstance(found, dict):
            raise ValueError("an event is no JSON object")
        yield found


class Whole:
    """Pieces become whole characters, wherever a server has cut them: between bytes, or between halves of UTF-16."""

    def __init__(self) -> None:
        self._half = ""
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, text: str) -> str:
        """What is whole of it."""
        text, self._half = self._half + text, ""
        if text and "\ud800" <= text[-1] <= "\udbff":
            text, self._half = text[:-1], text[-1]
        paired = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
        return self._bytes.decode(b"".join(map(_bytes, paired)))

    def flush(self) -> str:
        """A character that was never finished, as the replacement character."""
        half, self._half = self._half, ""
        return self._bytes.decode(b"", final=True) + ("�" if half else "")


def _bytes(character: str) -> bytes:
    """UTF-8 of a character; of an escaped byte that byte, and of half a character the mark for none."""
    try:
        return character.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return "�".encode()
