"""The rows of a manifest or a folder as a job goes through them: a row whose sound has changed is another row."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from ..base.errors import QwenchError
from ..jobs.rows import Key, Row, Table
from ..text.rows import Malformed
from .manifest import PATHS, base_of, flat, of_folder

State = tuple[int, int]


class Dialogues:
    """See the module; gone through several times, and each sound is read for its hash but once.

    Args:
        name: a manifest, a folder of NAME.q.wav and NAME.a*.wav, or - for standard input.

    Attributes:
        base: the folder that paths are relative to.

    Raises:
        QwenchError: it cannot be read, then or while it is gone through.
    """

    def __init__(self, name: str, stdin: BinaryIO | None = None, id_field: str | None = None) -> None:
        folder = Path(name).expanduser()
        self._folder = folder if name != "-" and folder.is_dir() else None
        self._table = None if self._folder else Table(name, stdin, id_field)
        self.base = self._folder or base_of(name)
        self._hashes: dict[str, tuple[State, bytes]] = {}

    def __iter__(self) -> Iterator[Row]:
        for row in self._of_folder() if self._table is None else self._table:
            if isinstance(row.value, Malformed):
                yield row
            else:
                yield replace(row, digest=self._digest(row))

    def _of_folder(self) -> Iterator[Row]:
        assert self._folder is not None
        for number, row in enumerate(of_folder(self._folder)):
            yield Row(f"`{row['answer']}`", Key.of(row["id"], number), row["id"], row)

    def _digest(self, row: Row) -> str:
        """Of the row and the bytes of its waves; those that are not there will be told by the work itself."""
        assert isinstance(row.value, dict)
        digest = hashlib.blake2b(row.digest.encode(), digest_size=12)
        try:
            paths = [p for name in PATHS if (p := flat(row.value).get(name))]
        except QwenchError:
            paths = []
        for path in paths:
            digest.update(self._hash(os.path.join(self.base, path)))
        return digest.hexdigest()

    def _hash(self, path: str) -> bytes:
        try:
            there = os.stat(path)
            state = there.st_size, there.st_mtime_ns
            known = self._hashes.get(path)
            if known is None or known[0] != state:
                with open(path, "rb") as file:
                    known = state, hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=12)).digest()
                self._hashes[path] = known
            return known[1]
        except OSError:
            return b""
