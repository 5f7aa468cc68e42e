"""Writing an index: one LanceDB table under a lock, in atomic steps that a kill cannot tear.

Every output goes through such a table. For `.lance` it is the output; for the file formats it stands beside
the output while the run lasts, and the file is exported from it at the end.
"""

from __future__ import annotations

import hashlib
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from ..base.atomic import move, recover, remove
from ..base.errors import QwenchError
from ..base.lock import Lock
from ..base.paths import check_output, local, make_around
from . import formats
from .columns import fit_columns, mend
from .errors import lance_errors, retried
from .fingerprint import META_KEY, Fingerprint, refuse_other
from .names import BASE_KEY, Names
from .schema import MOST_COLUMNS, build_schema, carried_columns, to_batch

FLUSH_ROWS, FLUSH_SECONDS = 4_096, 5.0
#: paths by which the folder that they count from is known again
SOME = 1_000
#: fragments after which a table is compacted
MANY_FRAGMENTS = 16
#: how long readers may go on with a version of the table that a run has replaced
KEEP_OLD = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class DocState:
    """What the table holds of one version of a document: rows in order, and whether the last one is there."""

    content_hash: str
    n_chunks_done: int
    complete: bool


def quoted(text: str) -> str:
    """A SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


class IndexWriter:
    """Rows go in, documents replace their older versions, and `finish` makes the output.

    Not for direct use: see `open_index`.

    Attributes:
        names: what paths of documents are stored as.
        notes: what the user should know.
    """

    def __init__(self, out: Path, folder: Path, fingerprint: Fingerprint, precision: str) -> None:
        self.out, self.folder = out, folder
        self.fingerprint, self.precision = fingerprint, precision
        self.notes: list[str] = []
        self.lock = Lock(out)
        self.names = Names.here()
        self._left_out: set[str] = set()
        self._table: Any = None
        self._buffer: list[dict[str, Any]] = []
        self._flushed = time.monotonic()
        self._states: dict[str, list[DocState]] = {}
        self._stale: dict[str, str] = {}
        self._written = 0

    def open(self) -> None:
        """Open the table where it exists, check its fingerprint, and take stock of its documents."""
        with lance_errors(self.out):
            self._table = open_table(self.folder)
            if self._table is None:
                return
            refuse_other(read_fingerprint(self._table, self.out), self.fingerprint, str(self.out))
            mend(self._table)
            self.names = names_of(self._table, self.out)
            self._take_stock()

    def _take_stock(self) -> None:
        seen: dict[tuple[str, str], list[int]] = {}
        columns = ["key", "content_hash", "chunk", "last"]
        for batch in self._table.search().select(columns).to_batches(16_384):
            for key, digest, chunk, last in zip(*(batch[c].to_pylist() for c in columns), strict=True):
                found = seen.setdefault((key, digest), [0, 0, 0])
                found[0] += 1
                found[1] = max(found[1], chunk + 1)
                found[2] |= last
        broken = []
        for (key, digest), (count, reach, last) in seen.items():
            if count == reach:
                self._states.setdefault(key, []).append(DocState(digest, count, bool(last)))
            else:
                broken.append(f"(key = {quoted(key)} AND content_hash = {quoted(digest)})")
        self._delete(broken)

    @property
    def has_rows(self) -> bool:
        """Whether the table holds documents already."""
        return bool(self._states)

    def state(self, key: str, content_hash: str) -> DocState | None:
        """What is there of a document: its current version when that has rows, else an older one, else None."""
        states = self._states.get(key)
        if not states:
            return None
        current = next((s for s in states if s.content_hash == content_hash), None)
        if len(states) > 1 and current and current.complete:
            # A killed run had written the new version and not yet removed the old one.
            self._stale[key] = content_hash
        return current or states[0]

    def vectors_of(self, key: str) -> dict[bytes, np.ndarray]:
        """Vectors of the passages of a document, by BLAKE2b-128 of their text."""
        if self._table is None:
            return {}
        with lance_errors(self.out):
            found = self._table.search().where(f"key = {quoted(key)}").select(["text", "vector"]).to_arrow()
        texts = (hashlib.blake2b(t.encode(), digest_size=16).digest() for t in found["text"].to_pylist())
        vectors = np.asarray(found["vector"].combine_chunks().flatten(), np.float32).reshape(found.num_rows, -1)
        return dict(zip(texts, vectors, strict=True))

    def append(self, rows: list[dict[str, Any]]) -> None:
        """Add rows (see `schema.to_batch`), in the order of their documents."""
        self._buffer += rows
        if len(self._buffer) >= FLUSH_ROWS or time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Make everything appended so far durable, then drop the versions it replaces."""
        with lance_errors(self.out):
            if self._buffer:
                self._add()
            for row in self._buffer:
                if row["last"] and row["key"] in self._states:
                    self._stale[row["key"]] = row["content_hash"]
            self._written += len(self._buffer)
            self._buffer = []
            stale, self._stale = self._stale, {}
            self._delete([f"(key = {quoted(k)} AND content_hash != {quoted(h)})" for k, h in stale.items()])
        self._flushed = time.monotonic()

    def _add(self) -> None:
        if self._table is None:
            precision = self.precision if self.out == self.folder else "float32"
            schema = build_schema(self.fingerprint, precision, {BASE_KEY: self.names.to_json(self.out)})
            self._table = connect(self.folder).create_table(self.folder.stem, schema=schema)
        for name in fit_columns(self._table, carried_columns(self._buffer)):
            if not self._left_out:
                said = f"an index has {MOST_COLUMNS} carried columns at most; `{name}` and others are in `extra` alone"
                self.notes.append(f"{said}: `{self.out}`")
            self._left_out.add(name)
        retried(self._table, lambda: self._table.add(to_batch(self._buffer, self._table.schema)))

    def _delete(self, conditions: list[str], step: int = 200) -> None:
        for at in range(0, len(conditions), step):
            some = " OR ".join(conditions[at : at + step])
            retried(self._table, lambda some=some: self._table.delete(some))

    def prune(self, gone: Callable[[str, str], bool]) -> int:
        """Delete the documents for which `gone(key, path)` holds; returns how many."""
        self.flush()
        if self._table is None:
            return 0
        keys: dict[str, str] = {}
        with lance_errors(self.out):
            for batch in self._table.search().select(["key", "path"]).to_batches(16_384):
                keys.update(zip(batch["key"].to_pylist(), batch["path"].to_pylist(), strict=True))
            dropped = [key for key, path in keys.items() if gone(key, path)]
            self._delete([f"key = {quoted(key)}" for key in dropped])
        return len(dropped)

    def finish(self) -> dict[str, Any]:
        """Flush, compact, and export where the output is a file.

        Returns:
            rows and documents of the output, and its size in bytes.
        """
        self.flush()
        if self._table is None:
            return {"rows": 0, "bytes": 0}
        with lance_errors(self.out), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if len(list((self.folder / "data").glob("*.lance"))) > MANY_FRAGMENTS:
                retried(self._table, lambda: self._table.optimize(cleanup_older_than=KEEP_OLD))
            rows = self._table.count_rows()
            if self.out != self.folder:
                base = self.names.to_json(self.out)
                formats.export(self._table, self.out, self.fingerprint, self.precision, base)
        return {"rows": rows, "bytes": size_of(self.out)}


def connect(folder: Path) -> Any:
    """LanceDB connection to the folder that holds the table folder."""
    # Read when the native library is loaded; its warnings speak to its own developers.
    os.environ.setdefault("LANCEDB_LOG", "error")
    import lancedb

    return lancedb.connect(str(folder.parent))


def open_table(folder: Path) -> Any:
    """The LanceDB table at `folder` (NAME.lance), None when there is none."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    return connect(folder).open_table(folder.stem)


def read_fingerprint(table: Any, where: str | Path) -> Fingerprint:
    """The fingerprint in a table's schema.

    Raises:
        QwenchError: the table was not made by this program.
    """
    found = (table.schema.metadata or {}).get(META_KEY.encode())
    try:
        return Fingerprint.from_json(found or b"null")
    except ValueError:
        raise QwenchError(f"the table was not made by qwench embed: `{where}`", "choose another name") from None


def names_of(table: Any, index: Path) -> Names:
    """What paths in a table count from; see `Names.found`."""
    said = (table.schema.metadata or {}).get(BASE_KEY.encode())
    stored = table.search().select(["path"]).limit(SOME).to_arrow()["path"].to_pylist()
    return Names.found(said.decode() if said else None, index, stored)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(p.stat().st_size for p in files)


def check_index(out: str, precision: str = "float32") -> Path:
    """Refuse before the work an output that could not be written after it; returns its absolute path.

    Raises:
        QwenchError: unknown suffix or precision, a URL, no such folder, one that cannot be written into.
    """
    local(out, "the index")
    path = Path(os.path.abspath(Path(out).expanduser()))
    formats.check(path, precision)
    return check_output(path, "the index", folder=path.suffix == ".lance", around=True)


def staging_folder(out: Path, rebuild: bool) -> Path:
    """Where the table of a run stands: the output itself, or a hidden neighbour."""
    if out.suffix == ".lance" and not rebuild:
        return out
    name = hashlib.blake2b(out.name.encode("utf-8", "surrogateescape"), digest_size=6).hexdigest()
    return out.with_name(f".qwench-{name}{'-rebuild' if rebuild else ''}.part.lance")


@contextmanager
def open_index(
    out: str, fingerprint: Fingerprint, *, precision: str = "float32", rebuild: bool = False
) -> Iterator[IndexWriter]:
    """Open an output for writing, new or continued.

    Args:
        out: path by suffix: .lance, .parquet, .jsonl, .npy, .safetensors.
        fingerprint: how the vectors will be made; must fit what is there already.
        precision: float32, float16, int8 or binary, as the format allows.
        rebuild: make it anew beside the old one, which stays until `finish` has been reached.

    Raises:
        QwenchError: unknown suffix or precision, another fingerprint, a run in progress, a damaged table.
    """
    path = check_index(out, precision)
    if path.is_symlink() and path.suffix == os.path.splitext(os.path.realpath(path))[1] == ".lance":
        path = Path(os.path.realpath(path))  # the link stays when a rebuild changes places
    folder = staging_folder(path, rebuild)
    make_around(path, "the index")
    with Lock(path) as lock:
        recover(path)  # a kill had struck between the two renames of a rebuild
        writer = IndexWriter(path, folder if rebuild or path.suffix != ".lance" else path, fingerprint, precision)
        writer.lock = lock
        if rebuild and path.suffix == ".lance":
            writer.out = folder
        _open_or_restart(writer, rebuild)
        if path.suffix != ".lance" and not rebuild:
            formats.reload(path, writer)
        yield writer
        if rebuild and path.suffix == ".lance":
            if folder.is_dir():
                move(folder, path)
        elif path.suffix != ".lance":
            remove(folder)


def _open_or_restart(writer: IndexWriter, rebuild: bool) -> None:
    try:
        writer.open()
    except QwenchError:
        if not rebuild:
            raise
        # A half-made rebuild with other settings is of no use to this one.
        remove(writer.folder)
        writer._table = None
