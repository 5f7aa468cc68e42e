"""Columns of an index, and rows as Arrow batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ..text.fields import kept_name
from .fingerprint import META_KEY, Fingerprint

FIXED = [
    pa.field("id", pa.string()),
    pa.field("key", pa.string()),
    pa.field("path", pa.string()),
    pa.field("row", pa.int64()),
    pa.field("row_id", pa.string()),
    pa.field("spans", pa.string()),
    pa.field("start_byte", pa.int64()),
    pa.field("end_byte", pa.int64()),
    pa.field("start_line", pa.int64()),
    pa.field("end_line", pa.int64()),
    pa.field("text", pa.string()),
    pa.field("tokens", pa.int32()),
    pa.field("truncated", pa.bool_()),
    pa.field("chunk", pa.int32()),
    pa.field("last", pa.bool_()),
    pa.field("content_hash", pa.string()),
    pa.field("extra", pa.string()),
]
NAMES = {f.name for f in FIXED} | {"vector"}
TYPES = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}
#: what a hit has besides, and columns that LanceDB makes itself: a carried field of such a name is `input_NAME`
HIT = {"schema", "rank", "score", "fused", "search_score", "best_start", "best_end"}
LANCE = {
    *("_distance", "_score", "_relevance_score", "_rowid", "_rowaddr", "_rowoffset", "_fragid", "_indexid"),
    *("_row_created_at_version", "_row_last_updated_at_version", "_doc_index"),
}
#: put before the name of a column while it is given another type
RETYPED = "_retyped_"
OURS = NAMES | HIT | LANCE
#: carried columns at most; fields beyond are in `extra` alone
MOST_COLUMNS = 256


def build_schema(fingerprint: Fingerprint, precision: str, metadata: dict[str, str]) -> pa.Schema:
    """Schema of a table without carried columns: fixed ones, and the vector (fixed-size list of dim floats)."""
    item = pa.float16() if precision == "float16" else pa.float32()
    fields = [*FIXED, pa.field("vector", pa.list_(item, fingerprint.dim))]
    return pa.schema(fields, metadata={META_KEY: fingerprint.to_json()} | metadata)


def column_name(field: str) -> str | None:
    """Column of a carried field, None where its name can be none: such a field is in `extra` alone."""
    if field.startswith(RETYPED) or not field.replace("_", "a").isidentifier():
        return None
    return kept_name(field, OURS)


def joined(a: pa.DataType, b: pa.DataType) -> pa.DataType:
    """The type for values of both: numbers are floats together, anything else is text."""
    if a == b:
        return a
    return pa.float64() if {a, b} == {pa.int64(), pa.float64()} else pa.string()


def carried_columns(rows: Sequence[dict[str, Any]]) -> dict[str, pa.DataType]:
    """Columns of the carried fields whose values are simple; lists and objects live in `extra` alone."""
    found: dict[str, pa.DataType] = {}
    for row in rows:
        for field, value in (row["extra"] or {}).items():
            kind = _type(value)
            if kind is not None and (name := column_name(field)) is not None:
                found[name] = joined(found.get(name, kind), kind)
    return found


def _type(value: Any) -> pa.DataType | None:
    """Type of a simple value; whole numbers beyond 64 bits are floats."""
    if type(value) is int and not -(1 << 63) <= value < 1 << 63:
        return pa.float64()
    return TYPES.get(type(value))


def to_batch(rows: Sequence[dict[str, Any]], schema: pa.Schema) -> pa.RecordBatch:
    """Rows (dicts with the fixed names, `extra` a dict, `vector` a float array) as a batch of `schema`."""
    arrays: list[pa.Array] = []
    carried = [_by_column(r["extra"] or {}) for r in rows]
    for field in schema:
        if field.name == "vector":
            kind = np.float16 if field.type.value_type == pa.float16() else np.float32
            flat = np.concatenate([np.asarray(r["vector"], kind) for r in rows]) if rows else np.empty(0, kind)
            arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(flat), field.type.list_size))
        elif field.name == "id":
            arrays.append(pa.array([row_identity(r["key"], r["chunk"], r["content_hash"]) for r in rows]))
        elif field.name == "extra":
            arrays.append(pa.array([json.dumps(r["extra"], ensure_ascii=False) if r["extra"] else None for r in rows]))
        elif field.name in NAMES:
            arrays.append(pa.array([_clean(r[field.name]) for r in rows], field.type))
        else:
            arrays.append(pa.array([_fitting(values.get(field.name), field.type) for values in carried], field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def row_identity(key: str, chunk: int, content_hash: str) -> str:
    """Stable id of a passage."""
    text = f"{key}\0{chunk}\0{content_hash}".encode("utf-8", "backslashreplace")
    return hashlib.blake2b(text, digest_size=12).hexdigest()


def _clean(value: Any) -> Any:
    # A name that is not UTF-8 reaches Python with surrogates, which Arrow cannot store.
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _by_column(extra: dict[str, Any]) -> dict[str, Any]:
    """Carried values by their columns, and by their own names, which are columns of older indexes."""
    return extra | {name: value for field, value in extra.items() if (name := column_name(field)) is not None}


def _fitting(value: Any, kind: pa.DataType) -> Any:
    """The value as the column's type, None where it is none of it (it is still in `extra`)."""
    own = _type(value)
    if own == kind and own != pa.float64():
        return value
    if kind == pa.float64() and own in (pa.int64(), kind):
        try:
            return float(value)
        except OverflowError:
            return None
    return json.dumps(value) if kind == pa.string() and own is not None else None
