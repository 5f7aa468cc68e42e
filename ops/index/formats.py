"""Indexes as plain files: .parquet, .jsonl, .npy and .safetensors, written from a table and read back.

Vectors of .npy and .safetensors are a matrix; its rows are described, in order, by the lines of OUT.rows.jsonl.
Formats without room for metadata have it in OUT.meta.json. Files are written beside, flushed to the disk and
renamed, the metadata last, so that a reader sees the old set or the new one, or counts that do not agree.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pyarrow as pa

from ..base.atomic import replacing
from ..base.errors import QwenchError
from .fingerprint import META_KEY, Fingerprint, refuse_other
from .names import BASE_KEY, Names

if TYPE_CHECKING:
    from .table import IndexWriter

PRECISIONS = {
    ".lance": ("float32", "float16"),
    ".parquet": ("float32", "float16", "int8", "binary"),
    ".jsonl": ("float32", "int8", "binary"),
    ".npy": ("float32", "float16", "int8", "binary"),
    ".safetensors": ("float32", "float16", "int8", "binary"),
}
#: precisions from which vectors can be read back
LOSSLESS = ("float32",)
BATCH = 8_192
Rows = Iterator[pa.RecordBatch]
#: a file -> what writes its content
Files = dict[Path, Callable[[BinaryIO], Any]]


def check(path: Path, precision: str) -> None:
    """Raise QwenchError (usage) for an unknown suffix, or a precision the format cannot hold."""
    if path.suffix not in PRECISIONS:
        raise QwenchError(
            f"unknown output format: `{path.name}`", f"end it in {', '.join(PRECISIONS)}, or use `-`", code=2
        )
    if precision not in PRECISIONS[path.suffix]:
        known = ", ".join(PRECISIONS[path.suffix])
        raise QwenchError(f"--precision {precision} is not there for {path.suffix}", f"use {known}", code=2)
    if path.suffix == ".lance" and not all(c.isalnum() or c in "._-" for c in path.stem):
        raise QwenchError(f"a table name may have letters, digits, `.`, `_` and `-`: `{path.name}`", code=2)


class Quantizer:
    """float32 vectors to the stored precision.

    int8 maps each dimension's range over all rows to -128..127; binary packs signs, 8 to a byte, first
    dimension in the highest bit. Both equal sentence-transformers' `int8` and `ubinary`.
    """

    def __init__(self, precision: str, table: Any) -> None:
        self.precision = precision
        self.ranges: np.ndarray | None = _ranges(table) if precision == "int8" else None

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        if self.precision == "int8" and self.ranges is not None:
            low = self.ranges[0]
            step = (self.ranges[1] - low) / 255
            step = np.where(step == 0, 1, step)
            return np.floor((vectors - low) / step - 128).clip(-128, 127).astype(np.int8)
        if self.precision == "binary":
            return np.packbits(vectors > 0, axis=1)
        return vectors.astype(self.precision)

    def meta(self) -> dict[str, Any]:
        """Precision, and the int8 ranges as [minima, maxima]."""
        return {"precision": self.precision, "ranges": None if self.ranges is None else self.ranges.tolist()}


def _ranges(table: Any) -> np.ndarray:
    low = high = None
    for batch in table.search().select(["vector"]).to_batches(BATCH):
        v = matrix(batch)
        low = v.min(0) if low is None else np.minimum(low, v.min(0))
        high = v.max(0) if high is None else np.maximum(high, v.max(0))
    return np.stack([low, high])


def matrix(batch: pa.RecordBatch) -> np.ndarray:
    """The vectors of a batch, (n, dim) float32."""
    column = batch.column(batch.schema.get_field_index("vector"))
    return np.asarray(column.flatten(), np.float32).reshape(batch.num_rows, -1)


def export(table: Any, out: Path, fingerprint: Fingerprint, precision: str, base: str) -> None:
    """Write the table's rows, in order, as the file that `out` names; `base` is `Names.to_json`.

    Raises:
        QwenchError: disk full, folder not writable.
    """
    quantize = Quantizer(precision, table)
    meta = {
        "schema": 1,
        "fingerprint": fingerprint.to_dict(),
        "rows": table.count_rows(),
        BASE_KEY: base,
        **quantize.meta(),
    }
    writers = {".parquet": _parquet, ".jsonl": _jsonl, ".npy": _npy, ".safetensors": _safetensors}
    files = writers[out.suffix](lambda: table.search().to_batches(BATCH), out, quantize, meta)
    if out.suffix != ".parquet":
        said = json.dumps(meta, ensure_ascii=False, indent=1).encode()
        files[out.with_name(out.name + ".meta.json")] = lambda file: file.write(said)
    with replacing(*files, what="the output") as parts:
        for part, body in zip(parts, files.values(), strict=True):
            with part.open("wb") as file:
                body(file)


def _described(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """Rows without their vectors, carried fields in one `extra` object."""
    for row in batch.drop_columns(["vector"]).to_pylist():
        row["extra"] = json.loads(row["extra"]) if row["extra"] else {}
        yield row


def _dump_rows(batches: Rows, file: BinaryIO) -> None:
    for batch in batches:
        for row in _described(batch):
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


def _jsonl(batches: Callable[[], Rows], out: Path, quantize: Quantizer, meta: dict[str, Any]) -> Files:
    def body(file: BinaryIO) -> None:
        for batch in batches():
            vectors = quantize(matrix(batch)).tolist()
            for row, vector in zip(_described(batch), vectors, strict=True):
                file.write(json.dumps(row | {"vector": vector}, ensure_ascii=False).encode() + b"\n")

    return {out: body}


def _parquet(batches: Callable[[], Rows], out: Path, quantize: Quantizer, meta: dict[str, Any]) -> Files:
    import pyarrow.parquet as pq

    def body(file: BinaryIO) -> None:
        writer = None
        for batch in batches():
            vectors = quantize(matrix(batch))
            column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
            index = batch.schema.get_field_index("vector")
            batch = batch.set_column(index, pa.field("vector", column.type), column)
            batch = batch.replace_schema_metadata({META_KEY: json.dumps(meta)})
            writer = writer or pq.ParquetWriter(file, batch.schema, compression="zstd")
            writer.write_batch(batch)
        if writer:
            writer.close()

    return {out: body}


def _rows_file(out: Path) -> Path:
    return out.with_name(out.name + ".rows.jsonl")


def _width(quantize: Quantizer, meta: dict[str, Any]) -> tuple[np.dtype, int]:
    sample = quantize(np.zeros((1, meta["fingerprint"]["dim"]), np.float32))
    return sample.dtype, sample.shape[1]


def _npy(batches: Callable[[], Rows], out: Path, quantize: Quantizer, meta: dict[str, Any]) -> Files:
    def body(file: BinaryIO) -> None:
        kind, width = _width(quantize, meta)
        shape = (meta["rows"], width)
        header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for batch in batches():
            file.write(np.ascontiguousarray(quantize(matrix(batch))).tobytes())

    return {_rows_file(out): lambda file: _dump_rows(batches(), file), out: body}


def _safetensors(batches: Callable[[], Rows], out: Path, quantize: Quantizer, meta: dict[str, Any]) -> Files:
    names = {"float32": "F32", "float16": "F16", "int8": "I8", "uint8": "U8"}

    def body(file: BinaryIO) -> None:
        kind, width = _width(quantize, meta)
        entry = {
            "dtype": names[kind.name],
            "shape": [meta["rows"], width],
            "data_offsets": [0, meta["rows"] * width * kind.itemsize],
        }
        header = json.dumps({"__metadata__": {META_KEY: json.dumps(meta)}, "vectors": entry}).encode()
        header += b" " * (-len(header) % 8)
        file.write(len(header).to_bytes(8, "little") + header)
        for batch in batches():
            file.write(np.ascontiguousarray(quantize(matrix(batch))).tobytes())

    return {_rows_file(out): lambda file: _dump_rows(batches(), file), out: body}


def read_meta(path: Path) -> dict[str, Any] | None:
    """Metadata of a file that `export` wrote, None when the file has none.

    Raises:
        QwenchError: the file is damaged.
    """
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            text = (pq.read_schema(path).metadata or {}).get(META_KEY.encode())
            return json.loads(text) if text else None
        return json.loads(path.with_name(path.name + ".meta.json").read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, pa.ArrowInvalid) as error:
        raise QwenchError(f"the file is damaged ({error}): `{path}`", "move it away, or use --rebuild") from error


def reload(path: Path, writer: IndexWriter) -> None:
    """Take the rows of an earlier output back into a run's table, so that only what changed is embedded.

    Raises:
        QwenchError: the file was made otherwise, is damaged, or is not ours.
    """
    if not path.exists():
        return
    meta = read_meta(path)
    if meta is None:
        raise QwenchError(f"the file was not written by qwench embed: `{path}`", "choose another --out, or --rebuild")
    refuse_other(Fingerprint.from_json(json.dumps(meta["fingerprint"])), writer.fingerprint, str(path))
    if writer.has_rows:
        return  # a killed run had begun with them
    if meta["precision"] not in LOSSLESS:
        writer.notes.append(f"vectors cannot be taken back from {meta['precision']}, all are made again: `{path}`")
        return
    count = 0
    try:
        for rows in _read_rows(path, meta):
            if not count:
                writer.names = Names.found(meta.get(BASE_KEY), path, [r["path"] for r in rows])
            writer.append(rows)
            count += len(rows)
    except (OSError, ValueError, KeyError, pa.ArrowInvalid) as error:
        raise QwenchError(f"the file is damaged ({error}): `{path}`", "move it away, or use --rebuild") from error
    if count != meta["rows"]:
        raise QwenchError(f"the file should have {meta['rows']} rows and has {count}: `{path}`", "use --rebuild")
    writer.flush()
    writer.open()


def _read_rows(path: Path, meta: dict[str, Any]) -> Iterator[list[dict[str, Any]]]:
    """Rows of an exported file as `schema.to_batch` takes them."""
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        for batch in pq.ParquetFile(path).iter_batches(BATCH):
            vectors = matrix(batch)
            yield [r | {"vector": v} for r, v in zip(_described(batch), vectors, strict=True)]
        return
    lines = path if path.suffix == ".jsonl" else _rows_file(path)
    vectors = None
    if path.suffix == ".npy":
        vectors = np.load(path, mmap_mode="r")
    elif path.suffix == ".safetensors":
        with path.open("rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
        shape = (meta["rows"], meta["fingerprint"]["dim"])
        vectors = np.memmap(path, np.float32, "r", start, shape) if meta["rows"] else np.empty(shape, np.float32)
    held: list[dict[str, Any]] = []
    with lines.open("rb") as file:
        for at, line in enumerate(file):
            row = json.loads(line)
            held.append(row if vectors is None else row | {"vector": vectors[at]})
            if len(held) == BATCH:
                yield held
                held = []
    if held:
        yield held
