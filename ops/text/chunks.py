"""Documents become passages: token windows of the model's own tokenizer, with exact spans."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from ..base.errors import QwenchError
from .boundaries import Boundaries, whole
from .types import Chunk, Document, Segment

if TYPE_CHECKING:
    from tokenizers import Tokenizer

#: characters tokenised in one piece; a longer run without a line end is cut, since one huge word costs a
#: tokenizer quadratic time
BLOCK = 32_768
LONG_LINE = 4_096
_LINE = re.compile(r"[^\n\r]*(?:\r\n|\n|\r)|[^\n\r]+")
_BLANK_LINES = re.compile(r"(?:[^\S\n\r]*(?:\r\n|\n|\r))*")


class Tokenize(Protocol):
    """A tokenizer, without special tokens."""

    def ids(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text."""
        ...

    def starts(self, texts: list[str]) -> list[list[int]]:
        """Character offset at which each token of each text begins."""
        ...


@dataclass(frozen=True, slots=True)
class ChunkOptions:
    """How to cut.

    Attributes:
        chunk_tokens: most content tokens in a chunk.
        chunk_overlap: tokens that a chunk repeats of the one before, at most.
        on_long: `chunk`; or no chunking: `truncate` (one chunk, cut to max_tokens) or `error`.
        max_tokens: content tokens the model can take.
    """

    chunk_tokens: int
    chunk_overlap: int = 0
    on_long: Literal["chunk", "truncate", "error"] = "chunk"
    max_tokens: int = 0


class _Backend:
    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def ids(self, texts: list[str]) -> list[list[int]]:
        return [e.ids for e in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def starts(self, texts: list[str]) -> list[list[int]]:
        encodings = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        return [[start for start, _ in e.offsets] for e in encodings]


def tokenizers_adapter(tokenizer: Tokenizer) -> Tokenize:
    """A `tokenizers.Tokenizer` (truncation and padding switched off) as the chunker needs it."""
    return _Backend(tokenizer)


class _Spans:
    """Byte and line spans of character positions in a segment, each in constant or linear time overall."""

    def __init__(self, segment: Segment, encoding: str, bounds: Boundaries) -> None:
        self._segment, self._encoding, self._bounds = segment, encoding, bounds
        self._flat = segment.text.isascii() and not encoding.startswith(("utf-16", "utf-32"))
        self._char, self._byte = 0, 0

    def byte(self, at: int) -> int:
        if self._flat:
            return self._segment.start_byte + at
        text = self._segment.text
        # Positions come nearly in order, so only the stretch since the last one is encoded.
        if at >= self._char:
            self._byte += len(text[self._char : at].encode(self._encoding))
        else:
            self._byte -= len(text[at : self._char].encode(self._encoding))
        self._char = at
        return self._segment.start_byte + self._byte

    def chunk(self, start: int, stop: int, ids: list[int], index: int, options: ChunkOptions) -> Chunk:
        first = self._segment.start_line
        return Chunk(
            text=self._segment.text[start:stop],
            start_byte=self.byte(start),
            end_byte=self.byte(stop),
            start_line=first + self._bounds.line_of(start),
            end_line=first + self._bounds.line_of(stop - 1),
            tokens=len(ids),
            # A single character can have more tokens than the model takes.
            truncated=len(ids) > options.max_tokens > 0,
            index=index,
            ids=ids,
        )


def chunk_document(document: Document, tokenize: Tokenize, options: ChunkOptions) -> Iterator[Chunk]:
    """Cut a document into chunks, in order, in memory bounded by its segments.

    Cuts fall before headings, after blank lines, at line ends, sentence ends or words, in this order of
    preference within the second half of the window; never inside a character. Blank lines around a chunk are
    left out; every other character is in some chunk. A document of white space has no chunks.

    Raises:
        QwenchError: on_long is `error` and the document does not fit; or reading fails.
    """
    if options.on_long != "chunk":
        yield from _one_chunk(document, tokenize, options)
        return
    index = 0
    for segment in document.segments():
        bounds = Boundaries(segment.text)
        spans = _Spans(segment, document.encoding, bounds)
        for start, stop, ids in _cut(segment.text, bounds, tokenize, options):
            yield spans.chunk(start, stop, ids, index, options)
            index += 1


def _blocks(text: str) -> list[str]:
    """`text` in pieces of whole lines, about BLOCK characters each; long lines are cut at white space."""
    blocks: list[str] = []
    held: list[str] = []
    size = 0
    for match in _LINE.finditer(text):
        for piece in _line_pieces(match[0]):
            if size + len(piece) > BLOCK:
                blocks.append("".join(held))
                held, size = [], 0
            held.append(piece)
            size += len(piece)
    if held:
        blocks.append("".join(held))
    return [b for b in blocks if b]


def _line_pieces(line: str) -> Iterator[str]:
    at = 0
    while len(line) - at > LONG_LINE:
        stop = line.rfind(" ", at + LONG_LINE // 2, at + LONG_LINE)
        stop = whole(line, at + LONG_LINE, at) if stop < 0 else stop
        yield line[at:stop]
        at = stop
    yield line[at:]


def _token_starts(text: str, tokenize: Tokenize) -> np.ndarray:
    """Character positions at which the tokens of `text` begin, ascending."""
    blocks = _blocks(text)
    parts, offset = [np.empty(0, np.int64)], 0
    for block, starts in zip(blocks, tokenize.starts(blocks), strict=True):
        parts.append(np.asarray(starts, np.int64) + offset)
        offset += len(block)
    return np.maximum.accumulate(np.concatenate(parts))


def _trim(text: str, start: int, stop: int) -> tuple[int, int]:
    """The span without blank lines before and white space after; indentation of the first line stays."""
    match = _BLANK_LINES.match(text, start, stop)
    start = match.end() if match else start
    at_line_start = start == 0 or text[start - 1] in "\n\r"
    piece = text[start:stop]
    if not at_line_start:
        start += len(piece) - len(piece.lstrip())
    return start, start + len(text[start:stop].rstrip())


def _cut(
    text: str, bounds: Boundaries, tokenize: Tokenize, options: ChunkOptions
) -> Iterator[tuple[int, int, list[int]]]:
    """Spans of the chunks of one segment, with their token ids."""
    starts = _token_starts(text, tokenize)
    spans = [s for s in _windows(text, bounds, starts, options) if s[0] < s[1]]
    ids = tokenize.ids([text[a:b] for a, b in spans])
    last = 0
    for (start, stop), own in zip(spans, ids, strict=True):
        for span in _halve(text, bounds, tokenize, options, (start, stop, own)):
            # With overlap a window can hold no more than the last half of the one before.
            if span[1] > last:
                yield span
                last = span[1]


def _windows(text: str, bounds: Boundaries, starts: np.ndarray, options: ChunkOptions) -> Iterator[tuple[int, int]]:
    """Greedy windows by the token positions of the whole segment."""
    size, at, end, cut = options.chunk_tokens, 0, len(text), 0
    while at < end:
        first = int(np.searchsorted(starts, at, side="left"))
        if first + size >= len(starts):
            yield _trim(text, at, end)
            return
        high = max(int(starts[first + size]), cut + 1)
        # With overlap a window begins before the last cut; the next cut lies behind it.
        low = max(int(starts[first + size // 2]), at, cut)
        cut = max(bounds.best(low, max(int(starts[first + size // 8]), at, cut), high), cut + 1)
        yield _trim(text, at, cut)
        back = _step_back(bounds, starts, cut, options.chunk_overlap) if options.chunk_overlap else cut
        at = back if back > at else cut


def _step_back(bounds: Boundaries, starts: np.ndarray, cut: int, overlap: int) -> int:
    """Where the next chunk begins so that it repeats at most `overlap` tokens before `cut`."""
    token = int(np.searchsorted(starts, cut, side="left"))
    return bounds.first_word(int(starts[max(token - overlap, 0)]), cut)


def _halve(
    text: str, bounds: Boundaries, tokenize: Tokenize, options: ChunkOptions, span: tuple[int, int, list[int]]
) -> Iterator[tuple[int, int, list[int]]]:
    """A span that has more tokens alone than it had in its context, in halves that fit."""
    start, stop, ids = span
    if len(ids) <= options.chunk_tokens:
        yield span
        return
    quarter = (stop - start) // 4
    cut = bounds.best(start + quarter, start + quarter, stop - quarter) if quarter else 0
    if not start < cut < stop:
        cut = whole(text, (start + stop) // 2, start)
    if not start < cut < stop:
        yield span
        return
    for a, b in (_trim(text, start, cut), _trim(text, cut, stop)):
        if a < b:
            yield from _halve(text, bounds, tokenize, options, (a, b, tokenize.ids([text[a:b]])[0]))


def _one_chunk(document: Document, tokenize: Tokenize, options: ChunkOptions) -> Iterator[Chunk]:
    """The document as one chunk: cut to what the model takes, or refused."""
    made: Chunk | None = None
    total, limit = 0, options.max_tokens
    for segment in document.segments():
        start, stop = _trim(segment.text, 0, len(segment.text))
        if start >= stop:
            continue
        if made is not None:
            total += _count(segment.text[start:stop], tokenize)
            continue
        text = segment.text[start:stop]
        (ids,) = tokenize.ids([text]) if stop - start <= BLOCK else _joined_ids(text, tokenize)
        total = len(ids)
        if total > limit:
            seen = int(_token_starts(text, tokenize)[limit]) if limit else 0
            stop = start + max(len(text[:seen].rstrip()), 1)
        spans = _Spans(segment, document.encoding, Boundaries(segment.text))
        made = spans.chunk(start, stop, ids[:limit], 0, options)
    if made is None:
        return
    if options.on_long == "error" and total > limit:
        raise QwenchError(
            f"the text has {total} tokens and the model takes {limit}: `{document.key}`",
            "use --on-long chunk, or --on-long truncate",
        )
    yield Chunk(**{f: getattr(made, f) for f in made.__slots__} | {"tokens": total, "truncated": total > limit})


def _joined_ids(text: str, tokenize: Tokenize) -> Sequence[list[int]]:
    return ([i for ids in tokenize.ids(_blocks(text)) for i in ids],)


def _count(text: str, tokenize: Tokenize) -> int:
    return sum(map(len, tokenize.ids(_blocks(text))))
