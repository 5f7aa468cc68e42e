"""Rows of a .parquet file, read in batches so that memory does not grow with the file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..base.events import Warned
from .inputs import Found, quoted
from .row_output import DEFAULT_FIELD, no_field
from .sources import Source
from .types import Document

if TYPE_CHECKING:
    from .rows import RowReader

BATCH_ROWS = 1024


def read_parquet(reader: RowReader, item: Found, source: Source) -> Iterator[Document | Warned]:
    """Documents of the rows; always returns True, there is no plain text to fall back to."""
    named = reader.options.text_field
    field = named or DEFAULT_FIELD
    stream = source.open()
    try:
        with stream, pq.ParquetFile(stream, pre_buffer=False, buffer_size=1 << 20) as table:
            columns = table.schema_arrow.names
            if field not in columns:
                missing = no_field(item, field, columns)
                hint = "" if named else ", `--text-field` names the one to read"
                yield Warned("rows", missing.message + hint, item.path, named is not None or item.named)
                return True
            if not _is_text(table.schema_arrow.field(field).type):
                yield Warned("rows", f"{quoted(item.path)} has no text in its column {quoted(field)}", item.path, True)
                return True
            yield from reader.choice(item, ".parquet", True)
            output = reader.output(item, field)
            for number, row in enumerate(table_rows(table), 1):
                yield from output.row(number, None, row)
            yield from output.end()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = (str(error).strip().splitlines() or ["damaged"])[0].rstrip(".")
        yield Warned("unreadable", f"{quoted(item.path)} cannot be read as Parquet: {reason}", item.path, True)
    return True


def table_rows(table: pq.ParquetFile) -> Iterator[dict[str, Any]]:
    """Rows as they are, a batch at a time."""
    for batch in table.iter_batches(batch_size=BATCH_ROWS):
        values = [_values(column) for column in batch.columns]
        for row in zip(*values, strict=True):
            yield dict(zip(table.schema_arrow.names, row, strict=True))


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def _values(column: pa.Array) -> list[Any]:
    if pa.types.is_temporal(column.type) and getattr(column.type, "unit", "") == "ns":
        column = column.cast(pa.string())  # finer than Python's own times, and with pandas about something else again
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        raise
    except (ValueError, OverflowError):  # such times inside a list or struct, or dates beyond the year 9999
        return [repr(value) if value.is_valid else None for value in column]
