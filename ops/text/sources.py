"""Opening inputs: small ones are read once and kept, large ones are read again, streams are put aside in a file."""

from __future__ import annotations

import gzip
import io
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import BinaryIO

from .decode import SNIFF
from .inputs import Found

SMALL = 1 << 20
BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Source:
    """The bytes of one input, readable as often as needed.

    Attributes:
        head: the first bytes, at least 8 KiB if there are that many.
        size: bytes when opened.
        data: all bytes, of a small input.
        file: absolute path, of a large file.
        spool: unlinked temporary file, of a large stream.
        packed: the bytes are those that a gzip file holds.
    """

    head: bytes
    size: int
    data: bytes | None = None
    file: str | None = None
    spool: BinaryIO | None = field(default=None, repr=False)
    packed: bool = False

    def open(self) -> BinaryIO:
        """A new seekable reader from the start.

        Raises:
            OSError: the file is gone or closed to us.
        """
        return gzip.GzipFile(fileobj=self._open()) if self.packed else self._open()  # type: ignore[return-value]

    def unpacked(self) -> Source:
        """What a gzip file holds.

        Raises:
            OSError, EOFError, zlib.error: it is damaged at its start.
        """
        inside = replace(self, packed=True)
        with inside.open() as stream:
            return replace(inside, head=stream.read(SNIFF))

    def _open(self) -> BinaryIO:
        if self.data is not None:
            return io.BytesIO(self.data)
        if self.file is not None:
            return os.fdopen(_open_regular(self.file), "rb")
        assert self.spool is not None
        return io.BufferedReader(_Reread(self.spool), BLOCK)

    def blocks(self) -> Iterator[bytes]:
        """All bytes, about 1 MiB at a time."""
        if self.data is not None and not self.packed:
            yield self.data
            return
        with self.open() as stream:
            while block := stream.read(BLOCK):
                yield block


def load(found: Found, stdin: BinaryIO | None, refused: Callable[[bytes], bool]) -> Source:
    """The source behind a found file.

    Args:
        found: what to open.
        stdin: what `-` stands for, None for the process's own.
        refused: asked with the first 8 KiB of a regular file; the rest of a refused one is not read.

    Raises:
        OSError: it cannot be opened or read, or is no regular file any more.
    """
    if found.stream:
        if found.file == "-":
            return _spooled(stdin if stdin is not None else _standard_input())
        with open(found.file, "rb", buffering=0) as stream:
            return _spooled(stream)
    handle = _open_regular(found.file)
    try:
        head = _read_up_to(handle, b"", SNIFF)
        if len(head) < SNIFF:
            return Source(head, len(head), data=head)
        # The size is not asked for: some file systems say 0 for files with content.
        data = b"" if refused(head) else _read_up_to(handle, head, SMALL + 1)
        if 0 < len(data) <= SMALL:
            return Source(head, len(data), data=data)
        return Source(head, os.fstat(handle).st_size, file=found.file)
    finally:
        os.close(handle)


def _open_regular(path: str) -> int:
    """A descriptor. Does not hang if a pipe has taken the file's place since it was found."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    handle = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(0, "is no regular file any more", path)
    return handle


def _read_up_to(handle: int, head: bytes, limit: int) -> bytes:
    """`head` and what follows it, `limit` bytes together if there are that many."""
    parts, size = [head], len(head)
    while size < limit and (part := os.read(handle, limit - size)):
        parts.append(part)
        size += len(part)
    return b"".join(parts)


def _standard_input() -> BinaryIO:
    import sys

    return sys.stdin.buffer


def _spooled(stream: BinaryIO) -> Source:
    """A stream read to its end: kept in memory if small, else in a file without a name."""
    parts, size = [], 0
    while size <= SMALL and (block := stream.read(BLOCK)):
        parts.append(block)
        size += len(block)
    data = b"".join(parts)
    if size <= SMALL:
        return Source(data[:SNIFF], size, data=data)
    head = data[:SNIFF]
    spool = tempfile.TemporaryFile(prefix="qwench-")  # noqa: SIM115  kept open as long as a document needs it
    while data:
        spool.write(data)
        data = stream.read(BLOCK)
    spool.flush()
    return Source(head, spool.tell(), spool=spool)


class _Reread(io.RawIOBase):
    """A reader with its own position over the file of another handle, which it keeps open."""

    def __init__(self, spool: BinaryIO) -> None:
        self._spool = spool
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = (0, self._position, os.fstat(self._spool.fileno()).st_size)[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: memoryview) -> int:
        data = os.pread(self._spool.fileno(), len(buffer), self._position)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
