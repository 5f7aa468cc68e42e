"""Files appear whole or not at all, folders change places, and journals grow by whole lines.

A file is written under a hidden name beside its target, synced, and renamed over it. What a kill leaves under such a
name is swept away by the next write of the same target.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import itertools
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .errors import QwenchError

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
#: bytes of a file's name up to which its hidden names keep it; file systems take 255 with what is added
NAME_BYTES = 200
#: errno -> why something cannot be written, and the next step
REASONS = {
    errno.ENOSPC: ("no space left on the disk", "free some space"),
    errno.EDQUOT: ("the quota of the disk is used up", "free some space"),
    errno.EFBIG: ("larger than files may be here", "see `ulimit -f`"),
    errno.EROFS: ("the disk is read-only", "write elsewhere"),
    errno.EACCES: ("no permission", "write elsewhere, or ask for permission"),
    errno.EPERM: ("no permission", "write elsewhere, or ask for permission"),
    errno.EISDIR: ("a folder is in its place", "choose another name"),
    errno.ENOTDIR: ("a part of its path is a file", "choose another name"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter one"),
    errno.ELOOP: ("a link that leads back to itself is in its place", "remove the link"),
}
_numbers = itertools.count()


def trouble(error: OSError, path: str | Path, what: str = "the file") -> QwenchError:
    """One sentence of why `path` cannot be written."""
    if error.errno == errno.ENOENT:
        return QwenchError(
            f"the folder of {what} is not there: `{Path(os.path.realpath(path)).parent}`", "make it first"
        )
    reason, hint = REASONS.get(error.errno or 0, ((error.strerror or str(error)).lower(), None))
    return QwenchError(f"{what} cannot be written ({reason}): `{path}`", hint)


def hidden(path: Path, ending: str) -> Path:
    """A hidden name beside `path`: `.NAME` and the ending, hashed where that is too long for a name."""
    name = path.name
    if len(os.fsencode(name)) > NAME_BYTES:
        name = hashlib.blake2b(os.fsencode(name), digest_size=16).hexdigest()
    return path.with_name(f".{name}{ending}")


def is_leftover(path: Path) -> bool:
    """Whether a name is one that a file has while it is written."""
    return re.fullmatch(r"\..+\.\d+-\d+\.part(\.\w*)?", path.name) is not None


class _Part:
    """A file while it is written: `path` beside `target`, which is what a link leads to."""

    def __init__(self, path: str | Path) -> None:
        self.asked, self.target = path, Path(os.path.realpath(path))
        if self.target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "a folder", str(path))
        if self.target.is_symlink():
            raise OSError(errno.ELOOP, "a loop", str(path))
        if self.target.exists() and not self.target.is_file():
            raise QwenchError(f"a device or a pipe cannot be replaced by a file: `{path}`", "choose another name")
        _sweep(self.target)
        self.path = hidden(self.target, f".{os.getpid()}-{next(_numbers)}.part{_ending(self.target)}")
        self.handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        with suppress(OSError):  # only tells other processes that the file has a living owner
            fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def seal(self) -> None:
        sync(self.path)
        if self.target.exists():
            self.path.chmod(stat.S_IMODE(self.target.stat().st_mode))

    def close(self) -> None:
        os.close(self.handle)
        with suppress(OSError):
            self.path.unlink(missing_ok=True)


def _ending(target: Path) -> str:
    """Libraries take a format from the ending, which therefore stays."""
    return target.suffix if len(target.suffix) < 16 else ""


def _sweep(target: Path) -> None:
    """Remove what killed processes left of earlier writes of the same target."""
    pattern = re.compile(re.escape(hidden(target, "").name) + r"\.(\d+)-\d+\.part" + re.escape(_ending(target)))
    with suppress(OSError):
        for entry in os.scandir(target.parent):
            if (found := pattern.fullmatch(entry.name)) and not _alive(int(found[1])):
                with suppress(OSError), open(entry.path, "rb") as file:
                    # A process of another machine holds the lock.
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(entry.path)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def _as_os_error(error: BaseException) -> OSError | None:
    """The system's error behind one that a library raised in its own words."""
    if isinstance(error, OSError):
        return error
    found = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(found[1]), os.strerror(int(found[1]))) if found else None


@contextmanager
def replacing(*targets: str | Path, what: str = "the file") -> Iterator[list[Path]]:
    """Files to be written by name: one path beside each target, empty; all are renamed when the block ends.

    A file that is replaced keeps its permissions, a link stays a link. On any failure the targets are as they were.

    Raises:
        QwenchError: one cannot be written; says which and why.
    """
    parts: list[_Part] = []
    at: str | Path = targets[0]
    inside = False
    try:
        for at in targets:
            parts.append(_Part(at))
        inside = True
        yield [p.path for p in parts]
        inside = False
        for part in parts:
            at = part.asked
            part.seal()
        for part in parts:
            at = part.asked
            os.replace(part.path, part.target)
        for folder in {p.target.parent for p in parts}:
            sync(folder)
    except Exception as error:
        found = _as_os_error(error)
        ours = {str(p.path): p.asked for p in parts}
        # What the block could not read of other files is not told of this one.
        if found is None or (inside and str(found.filename or parts[0].path) not in ours):
            raise
        raise trouble(found, ours.get(str(found.filename), at), what) from error
    finally:
        for part in parts:
            part.close()


@contextmanager
def opened(path: str | Path, what: str = "the file") -> Iterator[BinaryIO]:
    """A file to be written, in bytes; see `replacing`."""
    with replacing(path, what=what) as (part,), part.open("wb") as file:
        yield file


def write(path: str | Path, content: bytes | str, what: str = "the file") -> None:
    """Write a file, text in UTF-8; see `replacing`."""
    with opened(path, what) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def append(path: str | Path, line: str, what: str = "the journal") -> None:
    """Add a line to a journal and sync it; a last line that a kill cut short is ended first, and nothing of a line
    that does not fit on the disk stays.

    Raises:
        QwenchError: it cannot be written.
    """
    try:
        fresh = not os.path.exists(path)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            size = os.fstat(handle).st_size
            torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
            data = (b"\n" if torn else b"") + line.encode() + b"\n"
            try:
                while data:
                    data = data[os.write(handle, data) :]
                os.fsync(handle)
            except OSError:
                os.ftruncate(handle, size)
                raise
        finally:
            os.close(handle)
        if fresh:
            sync(Path(path).parent)
    except OSError as error:
        raise trouble(error, path, what) from error


def sync(path: str | Path) -> None:
    """Bytes of a file, or names of a folder, reach the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems cannot sync a folder.
        if error.errno != errno.EINVAL or not os.path.isdir(path):
            raise
    finally:
        os.close(handle)


def move(new: Path, old: Path) -> None:
    """Put a file or folder in the place of another in one step where the system can, and remove the other.

    Where it cannot, a kill may leave neither under the name: `recover` brings the old one back.
    """
    if not os.path.lexists(old):
        os.rename(new, old)
    elif _exchange(new, old):
        sync(old.parent)
        remove(new)
    else:
        aside = hidden(old, ".old")
        remove(aside)
        os.rename(old, aside)
        os.rename(new, old)
        sync(old.parent)
        remove(aside)
    sync(old.parent)


def recover(path: Path) -> None:
    """After a kill in `move`: the old one is in its place again, or removed where the new one is there."""
    aside = hidden(path, ".old")
    if not os.path.lexists(aside):
        return
    if os.path.lexists(path):
        remove(aside)
    else:
        os.rename(aside, path)
        sync(path.parent)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two names in one step, where system and file system can."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return rename(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0


def remove(path: Path) -> None:
    """Remove a file, a link, a folder with all that is in it, or nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
