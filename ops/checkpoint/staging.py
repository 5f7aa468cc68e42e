"""Output appears whole or not at all: written into OUT.part with a journal, then renamed."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
from collections.abc import Collection
from pathlib import Path
from types import TracebackType

from ..base.errors import QwenchError

JOURNAL = ".qwench-journal"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


class Staging:
    """The folder OUT.part while it is filled.

    Args:
        out: what it becomes.
        fingerprint: of the plan; a part of another plan is never gone on with.
        resume: go on with what an interrupted run left.
        force: replace what is there.
        file: OUT is this one file of the part, not a folder.
        files: names of everything that will be in the part.

    Attributes:
        part: where to write.
        done: names journalled as written.

    Raises:
        QwenchError: OUT is there already; a part is there, of this plan or another; another run is at it.
    """

    def __init__(
        self,
        out: Path,
        fingerprint: str,
        *,
        resume: bool = False,
        force: bool = False,
        file: str | None = None,
        files: Collection[str] = (),
    ) -> None:
        self.out, self.fingerprint, self.file = out, fingerprint, file
        self.part = out.with_name(out.name + ".part")
        self.done: set[str] = set()
        self._journal: int | None = None
        if (out.exists() or out.is_symlink()) and not force:
            raise QwenchError(f"the output is there already: `{out}`", "choose another name, or add --force")
        if file and out.is_dir():
            raise QwenchError(f"the output is a file, and a folder is in its place: `{out}`", "choose another name")
        if not out.parent.is_dir():
            raise QwenchError(f"the folder of the output is not there: `{out.parent}`", "make it first")
        old = self._read() if self.part.exists() else None
        if old is not None and not resume and not force:
            raise QwenchError(
                f"an interrupted run left `{self.part}`", "add --resume to go on with it, or --force to begin anew"
            )
        if old == "" and self._only(files):
            # A kill struck before the journal's first line, or after its last: nothing to go on from, nothing to lose.
            old = None if resume else old
        elif old is not None and resume and old != fingerprint:
            raise QwenchError(
                f"`{self.part}` is of another conversion: its input or options differ", "add --force to begin anew"
            )
        self._keep = old is not None and resume

    def _only(self, files: Collection[str]) -> bool:
        """Nothing is in the part but what this plan writes."""
        if not self.part.is_dir() or self.part.is_symlink():
            return False
        held = (p.relative_to(self.part).as_posix() for p in self.part.rglob("*") if not p.is_dir())
        return all(name == JOURNAL or name in files for name in held)

    def _read(self) -> str:
        """Fingerprint of the part that is there; fills `done`."""
        try:
            lines = (self.part / JOURNAL).read_text("utf-8").splitlines()
        except OSError:
            return ""
        fingerprint = ""
        for number, line in enumerate(lines):
            # A kill can leave the last line half written.
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                if number == 0:
                    fingerprint = entry["plan"]
                else:
                    self.done.update(entry["done"])
        return fingerprint

    def held(self) -> int:
        """Bytes on disk that the part holds already, whether it is gone on with or removed."""
        if not self.part.is_dir():
            return 0
        return sum(p.stat().st_blocks * 512 for p in self.part.rglob("*") if p.is_file())

    def __enter__(self) -> Staging:
        if not self._keep:
            self.done = set()
            if self.part.is_dir() and not self.part.is_symlink():
                self._lock()
                shutil.rmtree(self.part)
            self.part.mkdir()
        self._lock()
        if not self._keep:
            self._append({"plan": self.fingerprint})
        return self

    def _lock(self) -> None:
        import fcntl

        self.close()
        self._journal = os.open(self.part / JOURNAL, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise QwenchError(f"another run is writing `{self.part}`", "wait for it to end") from None

    def _append(self, entry: dict[str, object]) -> None:
        assert self._journal is not None
        os.write(self._journal, json.dumps(entry).encode() + b"\n")
        os.fsync(self._journal)

    def journal(self, names: list[str]) -> None:
        """Note names as written; their bytes must have been synced."""
        if names:
            self._append({"done": names})
            self.done.update(names)

    def commit(self) -> None:
        """Sync everything and put it in the place of OUT in one step."""
        self.close()
        (self.part / JOURNAL).unlink()
        for folder, _, files in os.walk(self.part):
            for path in (*(os.path.join(folder, f) for f in files), folder):
                sync(path)
        if self.file:
            os.replace(self.part / self.file, self.out)
            _remove(self.part)
        elif not (self.out.exists() or self.out.is_symlink()):
            os.rename(self.part, self.out)
        elif _exchange(self.part, self.out):
            _remove(self.part)
        else:
            aside = self.out.with_name(self.out.name + ".old")
            os.rename(self.out, aside)
            os.rename(self.part, self.out)
            _remove(aside)
        sync(self.out.parent)

    def close(self) -> None:
        """Give the lock back."""
        if self._journal is not None:
            os.close(self._journal)
            self._journal = None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def sync(path: str | Path) -> None:
    """Bytes, or a folder's names, reach the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two names in one step, where system and file system can."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return rename(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
