"""Files become documents: opened, hashed, decoded, split into rows or converted, one at a time.

    for item in read_documents(find_files(["docs"], options), options):
        ...  # a Document, or a Warned for what was passed over, lost or decided

A document of up to 1 MiB is read once and kept while its Document lives; a larger one is read for its hash and its
encoding, and again by `segments()`, so that no more than a few MiB of it are ever in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import BinaryIO

from ..base.errors import QwenchError
from ..base.events import Warned
from .decode import Settled, Undecodable, looks_binary, settle
from .find import find_files
from .inputs import Found, ReadOptions, lost, quoted
from .rows import GZIP_ERRORS, RowReader
from .segments import SEGMENT, cut_segments
from .sources import Source, load
from .types import Document, Segment

GZIP = b"\x1f\x8b"

__all__ = ["Found", "ReadOptions", "find_files", "read_documents"]


def read_documents(
    found: Iterable[Found | Warned],
    options: ReadOptions,
    stdin: BinaryIO | None = None,
    *,
    unchanged: Callable[[str, str], bool] | None = None,
    segment_chars: int = SEGMENT,
) -> Iterator[Document | Warned]:
    """Documents of the found files, in order, lazily.

    Args:
        found: from `find_files`; its warnings pass through.
        options: see ReadOptions.
        stdin: what `-` reads, None for the process's own standard input.
        unchanged: called with (path, content hash) before a .pdf, .docx, .html or .ipynb is converted, which is slow;
            where it says True the conversion waits until `segments()` is called.
        segment_chars: characters in a segment.

    Yields:
        `Document`, or `Warned` of kind `empty`, `binary` (failed when named), `unreadable`, `vanished` (failed),
        `encoding` (failed unless it tells of a choice), `rows`, `converter`.
    """
    rows = RowReader(options, segment_chars)
    for item in found:
        if isinstance(item, Warned):
            yield item
            continue
        try:
            yield from _read(item, options, stdin, rows, unchanged, segment_chars)
        except OSError as error:
            yield lost(item, error)


def _read(
    item: Found,
    options: ReadOptions,
    stdin: BinaryIO | None,
    rows: RowReader,
    unchanged: Callable[[str, str], bool] | None,
    segment_chars: int,
) -> Iterator[Document | Warned]:
    """What one file gives; OSError of opening and reading it passes."""
    declared = options.encoding
    as_text = item.kind == "text"
    source = load(item, stdin, lambda head: as_text and looks_binary(head, declared))
    if source.size == 0:
        yield Warned("empty", f"{quoted(item.path)} is empty", item.path)
        return
    if item.kind == "converted":
        from .converters import converted_document

        yield from converted_document(item, source, options, unchanged, segment_chars)
        return
    if rows.wants(item) and (yield from rows.read(item, source)):
        return
    if as_text and item.path.lower().endswith(".gz") and source.head.startswith(GZIP):
        try:
            yield from _text(item, source.unpacked(), declared, segment_chars)
        except GZIP_ERRORS as error:
            yield Warned("unreadable", f"{quoted(item.path)} is a damaged gzip file: {error}", item.path, True)
        return
    yield from _text(item, source, declared, segment_chars)


def _text(item: Found, source: Source, declared: str | None, segment_chars: int) -> Iterator[Document | Warned]:
    if looks_binary(source.head, declared):
        yield Warned("binary", f"{quoted(item.path)} is not text and is passed over", item.path, item.named)
        return
    try:
        settled = settle(source.blocks, source.head, declared)
    except Undecodable as error:
        yield Warned("encoding", f"{quoted(item.path)} {error}", item.path, True)
        return
    if settled.size <= settled.bom:
        yield Warned("empty", f"{quoted(item.path)} is empty", item.path)
        return
    if settled.note:
        yield Warned("encoding", f"{quoted(item.path)} {settled.note}", item.path)
    if source.packed:
        settled = replace(settled, exact=False)  # spans count in what is unpacked
    yield Document(
        path=item.path,
        content_hash=settled.content_hash,
        size=source.size if source.packed else settled.size,
        encoding=settled.codec if settled.exact else "utf-8",
        segments=partial(_segments, item, source, settled, segment_chars),
        spans="file" if settled.exact else "converted",
    )


def _segments(item: Found, source: Source, settled: Settled, segment_chars: int) -> Iterator[Segment]:
    """Segments of a settled file; reads a large one again and makes sure that it is the same."""
    digest = hashlib.blake2b(digest_size=16)

    def watched() -> Iterator[bytes]:
        for block in source.blocks():
            digest.update(block)
            yield block

    blocks = source.blocks() if source.data is not None else watched()
    try:
        yield from cut_segments(
            blocks, settled.codec, settled.bom, settled.exact, segment_chars=segment_chars, errors=settled.errors
        )
    except UnicodeDecodeError:
        raise _changed(item) from None
    except OSError as error:
        raise QwenchError(lost(item, error).message) from error
    if source.data is None and digest.hexdigest() != settled.content_hash:
        raise _changed(item)


def _changed(item: Found) -> QwenchError:
    return QwenchError(f"{quoted(item.path)} changed while it was read", hint="run the command again")
