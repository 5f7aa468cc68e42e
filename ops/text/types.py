"""What travels between files and batches: documents, their segments, and chunks with exact spans."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a document's text, small enough for memory (about 1 MiB), cut where text breaks.

    Attributes:
        text: decoded text, with the line ends of the source.
        start_byte: offset of `text` in the source, in bytes of the source's own encoding (BOM counted).
        start_line: 1-based line number of the first character.
    """

    text: str
    start_byte: int
    start_line: int


@dataclass(frozen=True, slots=True)
class Document:
    """One input: a file, standard input, or one row of a table. Text is read only by `segments()`.

    Attributes:
        path: what the user is shown and what the index stores: relative to the working directory when below it,
            else absolute; `-` for standard input.
        content_hash: hex BLAKE2b-128 of the source bytes (of the text and carried columns, for a row).
        size: source bytes.
        encoding: Python codec that maps spans to bytes (`utf-8`, `utf-16-le`, ...), never one that eats a BOM.
        spans: what byte and line spans count in: `file` (the file's own bytes), `row` (UTF-8 of the row's text)
            or `converted` (UTF-8 of the text a converter made from a .pdf, .docx, .html, .ipynb).
        row: 1-based row number (line number for .jsonl) for rows of a table, else None.
        row_id: value of the id field for rows, else None.
        extra: carried columns of a row, JSON-able.
        field: name of the column that holds the text, for rows.
        segments: opens the source and yields its segments in order; may raise QwenchError if it changed or vanished.
    """

    path: str
    content_hash: str
    size: int
    encoding: str
    segments: Callable[[], Iterator[Segment]]
    spans: str = "file"
    row: int | None = None
    row_id: str | None = None
    extra: dict[str, Any] = dataclass_field(default_factory=dict)
    field: str | None = None

    @property
    def key(self) -> str:
        """Identity in an index: the path, and the row where there is one."""
        return self.path if self.row is None else f"{self.path}#{self.row_id if self.row_id is not None else self.row}"


@dataclass(frozen=True, slots=True)
class Chunk:
    """A passage of a document, in the order of the document.

    Attributes:
        text: exactly the source between start_byte and end_byte, decoded.
        start_byte, end_byte: half-open byte span in the unit that `Document.spans` names.
        start_line, end_line: 1-based, both inclusive.
        tokens: number of content tokens (before truncation, without special tokens).
        truncated: the model will see less than the whole text.
        index: 0-based position within the document.
        ids: content token ids of the text (without special tokens, before truncation), or None when not kept.
    """

    text: str
    start_byte: int
    end_byte: int
    start_line: int
    end_line: int
    tokens: int
    truncated: bool
    index: int
    ids: list[int] | None = None
