"""Decoded text becomes segments of about 1 MiB, cut where text breaks, with byte and line offsets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .boundaries import inside_character
from .decode import decoded
from .types import Segment

SEGMENT = 1 << 20
_LOOK = 64  # characters kept beyond a cut, so that what follows it is known
_BREAKS = (("\n\n", "\n\r\n", "\r\r"), ("\n", "\r"), (" ", "\t", "\u3000"))


def cut_segments(
    blocks: Iterable[bytes], codec: str, bom: int, exact: bool, *, segment_chars: int = SEGMENT, errors: str = "strict"
) -> Iterator[Segment]:
    """Segments of a file.

    Args:
        blocks: the file's bytes.
        codec: see `Settled`.
        bom: bytes to skip.
        exact: count `start_byte` in the file's own bytes, else in the UTF-8 of the text.
        segment_chars: characters in a segment; at least three quarters of it except in the last one.
        errors: see `Settled`.

    Raises:
        UnicodeDecodeError: the bytes are no longer what was settled.
    """
    text, offset, line = "", bom if exact else 0, 1
    unit = codec if exact else "utf-8"
    for piece, _ in decoded(blocks, codec, bom, errors):
        text += piece
        start = 0
        while len(text) - start >= segment_chars + _LOOK:
            end = cut_point(text, start + segment_chars * 3 // 4, start + segment_chars)
            part = text[start:end]
            yield Segment(part, offset, line)
            offset += len(part.encode(unit))
            line += part.count("\n") + part.count("\r") - part.count("\r\n")
            start = end
        text = text[start:]
    if text:
        yield Segment(text, offset, line)


def text_segments(text: str, *, segment_chars: int = SEGMENT) -> Iterator[Segment]:
    """Segments of a text in memory; `start_byte` counts in UTF-8."""
    if len(text) <= segment_chars:
        return iter([Segment(text, 0, 1)] if text else [])
    return cut_segments([text.encode()], "utf-8", 0, True, segment_chars=segment_chars)


def cut_point(text: str, low: int, high: int) -> int:
    """The best place to cut in (low, high]: after a blank line, else a line, else white space, else a character.

    Never between a carriage return and its line feed, and not inside what is seen as one character as far as that
    is cheap to tell. `text` must go on beyond `high`.
    """
    low = min(low, high - 1)
    for marks in _BREAKS:
        limit = high
        while (cut := max(_after(text, mark, low, limit) for mark in marks)) > low:
            if not inside_character(text, cut):
                return cut
            limit = cut - 1
    for cut in range(high, max(low, high - _LOOK), -1):
        if not inside_character(text, cut):
            return cut
    # A pile of marks longer than the look: any place will do, but a line end stays whole.
    return high + 1 if text[high - 1] == "\r" and text[high] == "\n" else high


def _after(text: str, mark: str, low: int, high: int) -> int:
    found = text.rfind(mark, low, high)
    return -1 if found < 0 else found + len(mark)
