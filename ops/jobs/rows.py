"""Rows of .jsonl, .csv, .tsv and .parquet as plain objects, each with a key that stays the same from run to run."""

from __future__ import annotations

import codecs
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from ..base.errors import QwenchError
from ..base.paths import local
from ..text.decode import Undecodable
from ..text.inputs import Found, kind_of
from ..text.quotes import literal_quotes
from ..text.row_output import jsonable
from ..text.rows import (
    GZIP_ERRORS,
    Malformed,
    csv_rows,
    delimiters_of,
    header,
    json_lines,
    opened,
    table_text,
)
from ..text.sources import Source, load

#: field that names a row where none is told
ID = "id"


class Key(str):
    """What a row is called; `number` is its number among the rows, from 0."""

    number: int

    @classmethod
    def of(cls, name: str, number: int) -> Key:
        """A name and a number."""
        key = cls(name)
        key.number = number
        return key


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the input.

    Attributes:
        place: where it is, for messages: `line 3` or `row 3`.
        key: its id, else its number and a hash of its content.
        digest: hash of its content.
        value: its columns, or what is wrong with it.
    """

    place: str
    key: Key
    digest: str
    value: dict[str, Any] | Malformed


class Table:
    """The rows of one file or of standard input, read anew each time they are gone through.

    Args:
        name: .jsonl, .ndjson, .csv, .tsv or .parquet, but for the last also packed as .gz; `-` and any other name is
            looked into.
        id_field: column that names a row; every row must have another value there. None takes `id` where it is there.

    Raises:
        QwenchError: it cannot be read, then or while it is gone through.
    """

    def __init__(self, name: str, stdin: BinaryIO | None = None, id_field: str | None = None) -> None:
        self.name, self.id_field = name, id_field
        if name != "-":
            local(name, "the input")
        path = os.path.abspath(os.path.expanduser(name))
        stream = name == "-" or not os.path.isfile(path)
        if stream and name != "-" and (not os.path.exists(path) or os.path.isdir(path)):
            what = "a folder, and not a file of rows" if os.path.isdir(path) else "not there"
            raise QwenchError(f"the input is {what}: `{name}`", "give a file of rows, or - for standard input")
        found = Found(name, "-" if name == "-" else path, None, kind_of(name), True, stream)
        try:
            self._source = load(found, stdin, lambda _: False)
            if found.kind != "rows" and self._source.head.startswith(b"\x1f\x8b"):
                self._source = self._source.unpacked()
        except (OSError, *GZIP_ERRORS) as error:
            raise self._unreadable(error) from error
        self._found, self._suffix = found, _suffix(found, self._source)

    def __iter__(self) -> Iterator[Row]:
        seen: set[bytes] = set()
        unit = "row" if self._suffix == ".parquet" else "line"
        try:
            for number, (line, value) in enumerate(self._values(), 1):
                place = f"{unit} {line}"
                if not isinstance(value, dict):
                    what = str(value) if isinstance(value, Malformed) else "is no JSON object"
                    yield Row(place, Key.of(f"{number}", number - 1), "", Malformed(what))
                    continue
                row = jsonable(value)
                text = json.dumps(row, sort_keys=True).encode()
                digest = hashlib.blake2b(text, digest_size=12).hexdigest()
                yield Row(place, Key.of(self._key(place, number, digest, row, seen), number - 1), digest, row)
        except Undecodable as error:
            raise QwenchError(f"the input {error}".partition(", `--encoding`")[0], "give UTF-8") from error
        except (OSError, *GZIP_ERRORS) as error:
            raise self._unreadable(error) from error

    def _key(self, place: str, number: int, digest: str, row: dict[str, Any], seen: set[bytes]) -> str:
        """The row's id; where none is asked for and it has none of its own, number and content."""
        given = row.get(self.id_field or ID)
        named = isinstance(given, str | int) and not isinstance(given, bool) and given != ""
        if self.id_field is not None and not named:
            raise QwenchError(f"{place} has no id in its field `{self.id_field}`", "every row needs one")
        key = str(given) if named else f"{number}-{digest[:12]}"
        mark = hashlib.blake2b(key.encode(), digest_size=12).digest()
        if mark in seen:
            if self.id_field is not None:
                raise QwenchError(f"{place} repeats the id `{key}`", "every row needs its own")
            key = f"{number}-{digest[:12]}"
        seen.add(mark)
        return key

    def _values(self) -> Iterator[tuple[int, Any]]:
        if self._suffix == ".parquet":
            yield from _parquet(self._found, self._source)
        elif self._suffix in (".csv", ".tsv"):
            yield from _csv(self._found, self._source, self._suffix)
        else:
            with opened(self._found, self._source) as stream:
                yield from json_lines(stream)

    def _unreadable(self, error: Exception) -> QwenchError:
        reason = getattr(error, "strerror", None) or str(error)
        return QwenchError(f"the input cannot be read ({reason.lower()}): `{self.name}`", "give a file of rows")


def _suffix(found: Found, source: Source) -> str:
    """What kind of rows it holds, by its name, else by how it begins."""
    if found.kind == "rows":
        name = found.path.lower().removesuffix(".gz")
        return name[name.rfind(".") :]
    if source.head.startswith(b"PAR1"):
        return ".parquet"
    start = source.head.lstrip(codecs.BOM_UTF8 + b" \t\r\n")
    return ".jsonl" if not start or start.startswith((b"{", b"[", b'"')) else ".csv"


def _parquet(found: Found, source: Source) -> Iterator[tuple[int, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from ..text.parquet import table_rows

    try:
        with source.open() as stream, pq.ParquetFile(stream, pre_buffer=False, buffer_size=1 << 20) as table:
            yield from enumerate(table_rows(table), 1)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        reason = (str(error).strip().splitlines() or ["damaged"])[0].rstrip(".")
        raise QwenchError(f"the input cannot be read as Parquet ({reason}): `{found.path}`") from error


class _Plain:
    """What `csv_rows` makes rows with: (line, columns), or (line, what is wrong with it)."""

    def row(self, number: int, line: int, record: dict[str, Any]) -> Iterator[tuple[int, Any]]:
        yield line, record

    def trouble(self, line: int, what: str) -> Iterator[tuple[int, Any]]:
        yield line, Malformed(what)

    def end(self) -> Iterator[tuple[int, Any]]:
        return iter(())


def _csv(found: Found, source: Source, suffix: str) -> Iterator[tuple[int, Any]]:
    text, _ = table_text(found, source, None)
    widths = {mark: len(header(text(), mark)) for mark in delimiters_of(suffix)}
    # The first of the widest: a comma, where nothing parts the line.
    mark = max(widths, key=lambda m: widths[m])
    if widths[mark]:
        literal = literal_quotes(text, mark)
        with text() as lines:
            yield from csv_rows(_Plain(), lines, mark, literal)  # type: ignore[arg-type]
