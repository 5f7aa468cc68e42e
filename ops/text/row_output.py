"""One row becomes a Document, or a line about what is wrong with it."""

from __future__ import annotations

import base64
import datetime
import decimal
import hashlib
import json
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

from ..base.events import Warned
from .inputs import Found, quoted
from .segments import text_segments
from .types import Document

SAID_AT_MOST = 100
#: column with the text where none is named
DEFAULT_FIELD = "text"


def no_field(item: Found, field: str, columns: list[str]) -> Warned:
    """That a table lacks the column it is to be read by."""
    has = ", ".join(quoted(column) for column in columns[:20]) + (", ..." if len(columns) > 20 else "")
    return Warned("rows", f"{quoted(item.path)} has no column {quoted(field)}, it has: {has}", item.path, True)


class RowOutput:
    """Makes the documents of one table, and tells its bad rows: the first 100 one by one, the rest by their number."""

    def __init__(self, path: str, field: str, id_field: str | None, segment_chars: int) -> None:
        self.path = path
        self.field = field
        self.id_field = id_field
        self.segment_chars = segment_chars
        self.ids: set[bytes] = set()
        self.count = 0
        self.unsaid = {True: 0, False: 0}
        self.said = 0

    def row(self, number: int, line: int | None, record: dict[str, Any]) -> Iterator[Document | Warned]:
        """The document of a row.

        Args:
            number: what the row is called, see `Document.row`.
            line: line in the file for messages, None where there are no lines.
            record: its columns.
        """
        self.count += 1
        place = number if line is None else line
        text = record.get(self.field)
        if self.field not in record:
            yield from self.trouble(place, f"has no field {quoted(self.field)}", counted=True)
        elif not isinstance(text, str):
            what = "null" if text is None else "no text"
            yield from self.trouble(place, f"has {what} in its field {quoted(self.field)}", counted=True)
        elif not text:
            yield from self.trouble(place, f"is empty in its field {quoted(self.field)}", counted=True, empty=True)
        elif not _encodes(text):
            yield from self.trouble(place, "has half a surrogate pair in its text", counted=True)
        else:
            problem, row_id = self.identity(record)
            if problem:
                yield from self.trouble(place, problem, counted=True)
            else:
                yield self.document(number, row_id, text, record)

    def identity(self, record: dict[str, Any]) -> tuple[str | None, str | None]:
        """(what is wrong, row id)"""
        if self.id_field is None:
            return None, None
        value = record.get(self.id_field)
        if value is None or isinstance(value, (dict, list)):
            return f"has no id in its field {quoted(self.id_field)}", None
        row_id = str(jsonable(value))
        mark = hashlib.blake2b(row_id.encode(), digest_size=12).digest()
        if mark in self.ids:
            return f"repeats the id {quoted(row_id)}", None
        self.ids.add(mark)
        return None, row_id

    def document(self, number: int, row_id: str | None, text: str, record: dict[str, Any]) -> Document:
        extra = {str(jsonable(key)): jsonable(value) for key, value in record.items() if key != self.field}
        content = json.dumps([text, extra], sort_keys=True).encode()
        return Document(
            path=self.path,
            content_hash=hashlib.blake2b(content, digest_size=16).hexdigest(),
            size=len(text.encode()),
            encoding="utf-8",
            segments=partial(text_segments, text, segment_chars=self.segment_chars),
            spans="row",
            row=number,
            row_id=row_id,
            extra=extra,
            field=self.field,
        )

    def trouble(self, place: int, what: str, *, counted: bool = False, empty: bool = False) -> Iterator[Warned]:
        """A line about one row; only counted once enough have been told."""
        if not counted:
            self.count += 1
        if self.said < SAID_AT_MOST:
            self.said += 1
            where = f"{self.path}:{place}"
            yield Warned("empty" if empty else "rows", f"{quoted(where)} {what}", where, not empty)
        else:
            self.unsaid[not empty] += 1

    def end(self) -> Iterator[Warned]:
        """What is left to say about the table."""
        if self.unsaid[True]:
            message = f"{quoted(self.path)} has {self.unsaid[True]:,} more rows that cannot be read"
            yield Warned("rows", message, self.path, True)
        if self.unsaid[False]:
            yield Warned("empty", f"{quoted(self.path)} has {self.unsaid[False]:,} more empty rows", self.path)
        if not self.count:
            yield Warned("empty", f"{quoted(self.path)} has no rows", self.path)


def jsonable(value: Any) -> Any:
    """`value` in what JSON has: times in ISO 8601, decimals as text, bytes in base64, NaN and infinities as null."""
    if isinstance(value, str):
        return value if _encodes(value) else value.encode("utf-8", "backslashreplace").decode()
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(jsonable(key)): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [jsonable(item) for item in value]
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (bytes, bytearray, memoryview)):
        return base64.b64encode(bytes(value)).decode()
    return str(value) if isinstance(value, (decimal.Decimal, datetime.timedelta)) else jsonable(str(value))


def _encodes(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
