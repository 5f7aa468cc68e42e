"""What a reranker ranks: lines, files, passages of a folder, rows, or hits of a search."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, BinaryIO

from ..base.errors import QwenchError
from ..base.events import Chose, Warned
from ..base.parse import json_value
from ..base.paths import local
from .chunks import ChunkOptions, Tokenize, chunk_document
from .documents import find_files, read_documents
from .inputs import Found, ReadOptions
from .types import Document

INPUTS = ("auto", "lines", "paths", "json")
#: fields that may name a row when `--id-field` does not
ID_FIELDS = ("_id", "id", "docid", "doc_id")
#: lines of standard input looked at to tell names of files from text
PEEK_LINES = 10
PEEK_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Candidate:
    """One thing to rank.

    Attributes:
        text: what the model reads.
        kind: line, file, passage or row.
        label: how it is named on a line of its own.
        record: its JSON object, to which score and rank are added.
        doc_id: its id in a TREC run.
    """

    text: str
    kind: str
    label: str
    record: dict[str, Any]
    doc_id: str


@dataclass(frozen=True, slots=True)
class CandidateOptions:
    """Where candidates come from; names equal the flags.

    Attributes:
        paths: files, folders, or `-`.
        input: what standard input holds: lines, paths, json, or auto by its first lines.
        nul: standard input names files, NUL-separated.
        whole: one candidate per file, or passages; None takes named files whole and folders in passages.
        read: how files are found and decoded.
    """

    paths: Sequence[str] = ("-",)
    input: str = "auto"
    nul: bool = False
    whole: bool | None = None
    read: ReadOptions = field(default_factory=ReadOptions)


Cutting = Callable[[], tuple[Tokenize, ChunkOptions]]


def read_candidates(
    options: CandidateOptions, stdin: BinaryIO | None, cutting: Cutting
) -> Iterator[Candidate | Warned | Chose]:
    """Candidates in the order of the input.

    Args:
        options: where they come from.
        stdin: what `-` reads.
        cutting: tokenizer and size of passages; called when there is a file to cut.

    Raises:
        QwenchError: unknown kind of input (code 2).
    """
    if options.input not in INPUTS:
        raise QwenchError(f"unknown --input: `{options.input}`", f"use {', '.join(INPUTS)}", code=2)
    names, lines = list(options.paths), False
    if options.nul:
        names = names if names != ["-"] else []
    rows = ReadOptions(**_fields(options.read) | {"text_field": options.read.text_field or "text"})
    if "-" in names and not options.nul and stdin is not None:
        stdin, first = _looked_at(stdin)
        kind = _stdin_kind(options, first)
        yield kind
        if kind.value == "paths" and options.input == "auto":
            yield Warned("input", f"standard input is read as file names: {kind.reason}", "-")
        lines = kind.value == "lines"
        if kind.value == "paths":
            names.remove("-")
            names += [os.fsdecode(line.rstrip(b"\r\n")) for line in stdin if line.strip()]
    found = list(find_files([n for n in names if not (n == "-" and lines)], rows))
    if options.nul:
        found += find_files([], rows, nul_list=stdin)
    if lines:
        yield from _lines(stdin)
    named = {f.path for f in found if isinstance(f, Found) and f.named}
    # A table that is named must have the column; one that lies in a folder may be text like the rest.
    for whole, some in groupby(found, lambda f: isinstance(f, Found) and (f.named or f.stream)):
        for item in read_documents(some, rows if whole else options.read, stdin=stdin):
            if isinstance(item, Warned):
                yield item
            else:
                yield from _of_document(item, _is_whole(options, item, named), cutting)


def _fields(options: ReadOptions) -> dict[str, Any]:
    return {name: getattr(options, name) for name in options.__dataclass_fields__}


def _is_whole(options: CandidateOptions, document: Document, named: set[str]) -> bool:
    return document.path in named if options.whole is None else options.whole


class _Joined(io.RawIOBase):
    """Bytes that were looked at, then the stream they came from."""

    def __init__(self, head: bytes, rest: BinaryIO) -> None:
        self._head, self._rest = head, rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        block = self._head[: len(buffer)] or self._rest.read(len(buffer))
        self._head = self._head[len(block) :]
        buffer[: len(block)] = block
        return len(block)


def _looked_at(stdin: BinaryIO) -> tuple[BinaryIO, list[bytes]]:
    """(a stream with all of it, its first whole lines that are not blank)."""
    head, ended = b"", False
    while b"\n" not in head.lstrip() and len(head) < PEEK_BYTES and not ended:
        block = stdin.read1(PEEK_BYTES) if hasattr(stdin, "read1") else stdin.read(PEEK_BYTES)
        head, ended = head + block, not block
    lines = head.splitlines(keepends=True)
    if lines and not ended and not lines[-1].endswith(b"\n") and len(lines) > 1:
        lines.pop()
    first = [line.rstrip(b"\r\n") for line in lines if line.strip()]
    return io.BufferedReader(_Joined(head, stdin), PEEK_BYTES), first[:PEEK_LINES]


def _stdin_kind(options: CandidateOptions, first: list[bytes]) -> Chose:
    """lines, paths or json, from the first lines where the user does not say."""
    if options.input != "auto":
        return Chose("input", options.input, "as asked")
    if options.read.text_field is not None:
        return Chose("input", "json", "--text-field names a column")
    if first and first[0].lstrip().startswith(b"{"):
        return Chose("input", "json", "the first line begins a JSON object")
    if first and all(os.path.isfile(os.fsdecode(line)) for line in first):
        return Chose("input", "paths", "its first lines name files; --input lines ranks the names themselves")
    return Chose("input", "lines", "plain text")


def _lines(stdin: BinaryIO) -> Iterator[Candidate | Warned]:
    told = False
    for number, line in enumerate(stdin, 1):
        raw = line.rstrip(b"\r\n")
        if not raw.strip():
            continue
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            text = raw.decode("utf-8", "replace")
            if not told:
                told = True
                yield Warned("encoding", f"line {number} is not UTF-8; what cannot be read is shown as \ufffd", "-")
        yield Candidate(text, "line", text, {"text": text, "line": number}, str(number))


def _of_document(document: Document, whole: bool, cutting: Cutting) -> Iterator[Candidate | Warned]:
    if document.row is not None:
        yield _row(document)
    elif whole:
        text = "".join(s.text for s in document.segments())
        yield Candidate(text, "file", document.path, {"path": document.path}, document.path)
    else:
        for chunk in chunk_document(document, *cutting()):
            spans = {n: getattr(chunk, n) for n in ("start_line", "end_line", "start_byte", "end_byte", "text")}
            label = f"{document.path}:{chunk.start_line}"
            yield Candidate(chunk.text, "passage", label, {"path": document.path, **spans}, label)


def _row(document: Document) -> Candidate:
    text = "".join(s.text for s in document.segments())
    record = {**document.extra, document.field: text}
    name = document.row_id or next((str(record[n]) for n in ID_FIELDS if record.get(n) is not None), None)
    label = name or f"{document.path}:{document.row}"
    if name is None and isinstance(record.get("path"), str):
        label = record["path"] + (f":{record['start_line']}" if record.get("start_line") else "")
    return Candidate(text, "row", label, record, name or label)


def read_queries(path: str) -> list[tuple[str, str]]:
    """Queries of a file as (id, text): JSON lines with `_id` or `id` and `text` or `query`; or `id<TAB>text` lines.

    A line without a tab is a query named by its line number.

    Raises:
        QwenchError: unreadable, a bad line (named by its number), a repeated id, or no query at all.
    """
    found: dict[str, str] = {}
    for number, line in _text_lines(path):
        if line.lstrip().startswith("{"):
            name, text = _json_query(path, number, line)
        else:
            name, tab, text = line.partition("\t")
            name, text = (name, text) if tab else ("", line)
        name = name or str(number)
        if not text.strip():
            raise QwenchError(f"line {number} has no query: `{path}`")
        if name in found:
            raise QwenchError(f"line {number} repeats the query id `{name}`: `{path}`")
        found[name] = text
    if not found:
        raise QwenchError(f"no queries in the file: `{path}`")
    return list(found.items())


def _json_query(path: str, number: int, line: str) -> tuple[str, str]:
    try:
        row = json_value(line)
    except ValueError as error:
        raise QwenchError(f"line {number} is not JSON ({error}): `{path}`") from None
    if not isinstance(row, dict):
        raise QwenchError(f"line {number} is no JSON object: `{path}`", 'give {"id": ..., "text": ...} on every line')
    text = next((row[n] for n in ("text", "query") if isinstance(row.get(n), str)), "")
    return str(next((row[n] for n in (*ID_FIELDS, "qid", "query_id") if row.get(n) is not None), "")), text


def read_run(path: str) -> dict[str, list[str]]:
    """A TREC run (`query Q0 document rank score tag`): query id -> document ids, in the order of the file.

    Raises:
        QwenchError: unreadable, or a line without six columns (named by its number).
    """
    run: dict[str, dict[str, None]] = {}
    for number, line in _text_lines(path):
        columns = line.split()
        if len(columns) != 6:
            raise QwenchError(
                f"line {number} has {len(columns)} columns and a TREC run has 6: `{path}`",
                "query Q0 document rank score tag",
            )
        run.setdefault(columns[0], {})[columns[2]] = None
    return {query: list(documents) for query, documents in run.items()}


def _text_lines(path: str) -> Iterator[tuple[int, str]]:
    local(path, "an input")
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise QwenchError(f"not UTF-8 ({error.reason} at byte {error.start}): `{path}`") from None
