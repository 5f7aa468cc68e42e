"""Rows of .jsonl, .csv, .tsv and .parquet become documents, streamed, with their other columns carried along."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from ..base.events import Warned
from ..base.parse import single
from .decode import Undecodable, looks_binary, parts_at_line_feeds, settle, stated
from .inputs import Found, ReadOptions, quoted
from .quotes import literal_quotes
from .row_output import DEFAULT_FIELD, RowOutput, no_field
from .sources import BLOCK, Source
from .types import Document

Stream = Iterator[Document | Warned]
FIELD_LIMIT = 1 << 28  # characters of a CSV field; a quote that is never closed ends here, not with the memory
GZIP_ERRORS = (gzip.BadGzipFile, EOFError, zlib.error)


class RowReader:
    """Reads the rows of one file after another, and says each automatic choice once."""

    def __init__(self, options: ReadOptions, segment_chars: int) -> None:
        self.options = options
        self.segment_chars = segment_chars
        self.said: set[tuple[str, bool]] = set()

    def wants(self, item: Found) -> bool:
        """Whether the file may be a table: by suffix, or a stream without one for which a text field is named."""
        return item.kind == "rows" or (item.stream and self.options.text_field is not None)

    def read(self, item: Found, source: Source) -> Iterator[Document | Warned]:
        """The rows. Returns False, with nothing read, if the file is to be taken as plain text."""
        name = item.path.lower().removesuffix(".gz")
        if item.kind != "rows":
            name = ".jsonl" if source.head.lstrip(codecs.BOM_UTF8 + b" \t\r\n").startswith(b"{") else ".csv"
        suffix = name[name.rfind(".") :]
        try:
            if suffix == ".parquet":
                from .parquet import read_parquet

                return (yield from read_parquet(self, item, source))
            if not _is_gzip(item) and looks_binary(source.head, self.options.encoding):
                return False
            if suffix in (".jsonl", ".ndjson"):
                return (yield from self.jsonl(item, source, suffix))
            return (yield from self.csv(item, source, suffix))
        except GZIP_ERRORS as error:
            yield Warned("unreadable", f"{quoted(item.path)} is a damaged gzip file: {error}", item.path, True)
            return True

    def output(self, item: Found, field: str) -> RowOutput:
        return RowOutput(item.path, field, self.options.id_field, self.segment_chars)

    def choice(self, item: Found, suffix: str, found: bool) -> Stream:
        """Say once per suffix what was decided without `--text-field`."""
        if self.options.text_field is not None or (suffix, found) in self.said:
            return
        self.said.add((suffix, found))
        who = f"{quoted(item.path)} and other `{suffix}` files"
        if found:
            message = f"{who} are read row by row from their field `{DEFAULT_FIELD}`, `--text-field` names another"
        else:
            message = f"{who} without a field `{DEFAULT_FIELD}` are read as plain text, `--text-field` names another"
        yield Warned("rows", message, item.path)

    def jsonl(self, item: Found, source: Source, suffix: str) -> Iterator[Document | Warned]:
        field = self.options.text_field or DEFAULT_FIELD
        if self.options.text_field is None:
            first = next((record for _, record in self.records(item, source)), None)
            known = isinstance(first, dict) and isinstance(first.get(field), str)
            if known or not _is_gzip(item):
                yield from self.choice(item, suffix, known)
                if not known:
                    return False
        output = self.output(item, field)
        for line, record in self.records(item, source):
            if isinstance(record, Malformed):
                yield from output.trouble(line, str(record))
            elif not isinstance(record, dict):
                yield from output.trouble(line, "is no JSON object")
            else:
                yield from output.row(line, line, record)
        yield from output.end()
        return True

    def records(self, item: Found, source: Source) -> Iterator[tuple[int, Any]]:
        """See `json_lines`."""
        with opened(item, source) as stream:
            yield from json_lines(stream, self.options.encoding)

    def csv(self, item: Found, source: Source, suffix: str) -> Iterator[Document | Warned]:
        field = self.options.text_field or DEFAULT_FIELD
        try:
            text, remark = table_text(item, source, self.options.encoding)
        except Undecodable as error:
            yield Warned("encoding", f"{quoted(item.path)} {error}", item.path, True)
            return True

        delimiters = delimiters_of(suffix)
        headers = {mark: header(text(), mark) for mark in delimiters}
        fitting = [mark for mark in delimiters if field in headers[mark]]
        if not fitting and self.options.text_field is None and not _is_gzip(item):
            yield from self.choice(item, suffix, False)
            return False
        if remark:
            yield Warned("encoding", f"{quoted(item.path)} {remark}", item.path)
        if not fitting:
            yield no_field(item, field, headers[delimiters[0]])
            return True
        yield from self.choice(item, suffix, True)
        if fitting[0] != delimiters[0]:
            mark = fitting[0].replace("\t", "\\t")
            yield Warned("rows", f"{quoted(item.path)} has columns parted by `{mark}`", item.path)
        csv.field_size_limit(FIELD_LIMIT)
        literal = literal_quotes(text, fitting[0])
        if literal:
            message = f"{quoted(item.path)} has quotes that do not enclose its cells, and they are read as characters"
            yield Warned("rows", message, item.path)
        with text() as lines:
            yield from csv_rows(self.output(item, field), lines, fitting[0], literal)
        return True


class Malformed(str):
    """What is wrong with a line, to follow its name."""


def json_lines(stream: BinaryIO, declared: str | None = None) -> Iterator[tuple[int, Any]]:
    """(line number, value or Malformed) of each line of JSON that is not blank, as it is read.

    Lines end at line feeds alone: U+2028, U+2029 and U+0085 are characters of a JSON string. A BOM may come first.

    Args:
        stream: seekable, at its start.
        declared: encoding of lines that are not UTF-8, where there is no BOM.
    """
    for number, line in enumerate(_lines(stream, declared), 1):
        if isinstance(line, Malformed):
            yield number, line
        elif line.strip():
            yield number, _parsed(line)


def delimiters_of(suffix: str) -> str:
    """What may part the columns of a table, the usual one first."""
    return "\t" if suffix == ".tsv" else ",;\t"


def table_text(item: Found, source: Source, declared: str | None) -> tuple[Callable[[], io.TextIOWrapper], str | None]:
    """(what opens a table of text at its start, a remark on how it is decoded)

    Raises:
        Undecodable: it is in no encoding.
    """

    def blocks() -> Iterator[bytes]:
        with opened(item, source) as stream:
            while block := stream.read(BLOCK):
                yield block

    with opened(item, source) as stream:
        head = stream.read(4)
    settled = settle(blocks, head, declared)

    def text() -> io.TextIOWrapper:
        stream = opened(item, source)
        stream.read(settled.bom)
        return io.TextIOWrapper(stream, encoding=settled.codec, errors=settled.errors, newline="")

    return text, settled.remark


def _is_gzip(item: Found) -> bool:
    return item.path.lower().endswith(".gz")


def opened(item: Found, source: Source) -> BinaryIO:
    """What a file holds, unpacked where its name ends in `.gz`."""
    stream = source.open()
    return gzip.GzipFile(fileobj=stream) if _is_gzip(item) else stream  # type: ignore[return-value]


def _parsed(line: str) -> Any:
    try:
        # NaN and infinities are no JSON, and no numbers; of two values for one key none is the right one.
        return json.loads(line.strip(), parse_constant=lambda _: None, object_pairs_hook=single)
    except RecursionError:
        return Malformed("is nested too deeply")
    except ValueError as error:
        what = f"{error.msg.lower()} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        return Malformed(f"is not JSON: {what}")


def _lines(stream: BinaryIO, declared: str | None) -> Iterator[str | Malformed]:
    """Lines, parted by line feeds alone. A line that does not decode costs itself, in UTF-16 and the like the rest."""
    head = stream.read(4)
    codec, bom = stated(head, declared)
    codec = codec or "utf-8"
    stream.seek(bom)
    if parts_at_line_feeds(codec):
        for raw in stream:
            try:
                yield raw.decode() if not bom and codec != "utf-8" and _is_utf8(raw) else raw.decode(codec)
            except UnicodeDecodeError as error:
                yield Malformed(f"is not valid `{codec}` at byte {error.start} of the line")
        return
    try:
        yield from io.TextIOWrapper(stream, encoding=codec, newline="\n")
    except UnicodeDecodeError:
        yield Malformed(f"is not valid `{codec}`, nor can the lines after it be read")


def _is_utf8(raw: bytes) -> bool:
    """Whether a line is UTF-8, and could not as well be in any other encoding."""
    try:
        return not raw.isascii() and bool(raw.decode())
    except UnicodeDecodeError:
        return False


def header(lines: io.TextIOWrapper, delimiter: str) -> list[str]:
    """Column names of a table of text, none where it cannot be parted so."""
    csv.field_size_limit(FIELD_LIMIT)
    with lines:
        try:
            return next(csv.reader(lines, delimiter=delimiter, strict=True), [])
        except csv.Error:
            return []


def csv_rows(output: RowOutput, lines: io.TextIOWrapper, delimiter: str, literal: bool) -> Stream:
    """What `output` makes of every row of a table of text."""
    csv.field_size_limit(FIELD_LIMIT)
    quoting = csv.QUOTE_NONE if literal else csv.QUOTE_MINIMAL
    reader = csv.reader(lines, delimiter=delimiter, strict=True, quoting=quoting)
    header = _distinct(next(reader))
    number = 0
    while True:
        first = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            number += 1
            yield from output.trouble(first, f"is no CSV: {error}")
            continue
        if row is None:
            break
        if not row:
            continue
        number += 1
        if len(row) > len(header):
            yield from output.trouble(first, f"has {len(row)} fields where the header has {len(header)}")
        else:
            yield from output.row(number, first, dict(zip(header, row, strict=False)))
    yield from output.end()


def _distinct(names: list[str]) -> list[str]:
    """Column names, the second `x` called `x_2`, so that none hides another."""
    counts: dict[str, int] = {}
    result = []
    for name in names:
        counts[name] = counts.get(name, 0) + 1
        result.append(name if counts[name] == 1 else f"{name}_{counts[name]}")
    return result
