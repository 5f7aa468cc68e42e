"""Where finished rows go: .jsonl and .parquet, each whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from shlex import quote
from typing import Any

from ..base.atomic import hidden, opened
from ..base.errors import QwenchError
from ..base.paths import check_output
from .journal import JOURNAL

Rows = Callable[[], Iterator[dict[str, Any]]]
BATCH = 1024


def check(name: str) -> Path:
    """The path of an output, before the work.

    Raises:
        QwenchError: no suffix of WRITERS; see `check_output`.
    """
    check_output(name)
    path = Path(name).expanduser()
    if path.suffix.lower() not in WRITERS:
        raise QwenchError(f"rows cannot be written as `{path.suffix or path.name}`", f"use {', '.join(WRITERS)}", 2)
    return path


def write(path: Path, rows: Rows) -> None:
    """All rows as a file; `rows` may be gone through twice.

    Raises:
        QwenchError: it cannot be written, or the rows have no columns in common that the format can take.
    """
    WRITERS[path.suffix.lower()](path, rows)


def _json_lines(path: Path, rows: Rows) -> None:
    with opened(path, "the output") as file:
        for row in rows():
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


def _parquet(path: Path, rows: Rows) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Rows need not have the same columns, nor the same fields in them: all are seen before the first is written.
        schema = pa.schema([])
        for some in _batches(rows()):
            found = pa.Table.from_pylist(_same_columns(some)).schema
            schema = pa.unify_schemas([schema, found], promote_options="permissive")
        with opened(path, "the output") as file, pq.ParquetWriter(file, schema) as writer:
            for some in _batches(rows()):
                writer.write_table(pa.Table.from_pylist(some, schema=schema))
    except pa.ArrowException as error:
        reason = (str(error).strip().splitlines() or ["mixed kinds"])[0].rstrip(".")
        other = path.with_suffix(".jsonl")
        raise QwenchError(
            f"the rows cannot be written as Parquet ({reason}): `{path}`",
            f"nothing of them is lost: mv {quote(f'{hidden(path, JOURNAL)}')} {quote(f'{hidden(other, JOURNAL)}')}, "
            f"and the same command with --out {quote(f'{other}')} writes them",
        ) from error


def _batches(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while some := list(islice(rows, BATCH)):
        yield some


def _same_columns(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A table takes its columns from its first row."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name) for name in names} for row in rows]


WRITERS: dict[str, Callable[[Path, Rows], None]] = {".jsonl": _json_lines, ".ndjson": _json_lines, ".parquet": _parquet}
