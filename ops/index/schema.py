"""Columns of an index, and rows as Arrow batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

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


def build_schema(fingerprint: Fingerprint, precision: str, carried: dict[str, pa.DataType]) -> pa.Schema:
    """Schema of a table: fixed columns, carried columns, and the vector (fixed-size list of dim floats)."""
    item = pa.float16() if precision == "float16" else pa.float32()
    fields = [
        *FIXED,
        *(pa.field(n, t) for n, t in carried.items()),
        pa.field("vector", pa.list_(item, fingerprint.dim)),
    ]
    return pa.schema(fields, metadata={META_KEY: fingerprint.to_json()})


def carried_columns(rows: Sequence[dict[str, Any]]) -> dict[str, pa.DataType]:
    """Columns of the carried fields that have one simple type in all `rows`; the others live in `extra` alone."""
    kinds: dict[str, set[type]] = {}
    for row in rows:
        for name, value in (row["extra"] or {}).items():
            kinds.setdefault(name, set()).update([type(value)] if value is not None else [])
    usable = {n: k for n, k in kinds.items() if n not in NAMES and n.replace("_", "a").isidentifier()}
    found = {}
    for name, types in usable.items():
        if types == {int, float}:
            types = {float}
        if len(types) == 1 and (kind := next(iter(types))) in TYPES:
            found[name] = TYPES[kind]
    return found


def to_batch(rows: Sequence[dict[str, Any]], schema: pa.Schema) -> pa.RecordBatch:
    """Rows (dicts with the fixed names, `extra` a dict, `vector` a float array) as a batch of `schema`."""
    arrays: list[pa.Array] = []
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
            arrays.append(
                pa.array([_fitting((r["extra"] or {}).get(field.name), field.type) for r in rows], field.type)
            )
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def row_identity(key: str, chunk: int, content_hash: str) -> str:
    """Stable id of a passage."""
    text = f"{key}\0{chunk}\0{content_hash}".encode("utf-8", "backslashreplace")
    return hashlib.blake2b(text, digest_size=12).hexdigest()


def _clean(value: Any) -> Any:
    # A name that is not UTF-8 reaches Python with surrogates, which Arrow cannot store.
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _fitting(value: Any, kind: pa.DataType) -> Any:
    """The value where it has the column's type, else None (it is still in `extra`)."""
    if value is None or TYPES.get(type(value)) == kind:
        return value
    return float(value) if kind == pa.float64() and type(value) is int else None
