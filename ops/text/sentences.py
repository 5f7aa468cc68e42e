"""Sentences of a passage, as spans."""

from __future__ import annotations

import re

#: end mark with closing quotes before white space; CJK end mark, which needs no space; blank line; start of a list item
_END = re.compile(r"(?:[.!?…]+[\"')\]»”’]*(?=\s)|[。！？]+[」』）”’]*|\n\s*\n|\n(?=\s*(?:[-*#>|]|\d+[.)])\s?))")


def sentence_spans(text: str, most: int = 64) -> list[tuple[int, int]]:
    """Character spans of the sentences of `text`, without surrounding white space, at most `most` of them."""
    spans, start = [], 0
    for stop in [*(m.end() for m in _END.finditer(text)), len(text)]:
        piece = text[start:stop]
        if piece.strip():
            lead = len(piece) - len(piece.lstrip())
            spans.append((start + lead, start + len(piece.rstrip())))
        start = stop
    return spans[:most]
