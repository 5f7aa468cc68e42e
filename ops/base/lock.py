"""One run at a time is at an output."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shlex
import socket
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from .atomic import hidden, trouble
from .errors import QwenchError

#: what flock answers where a file system has no locks
NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


class Lock:
    """A lock on a hidden file beside an output, which says who holds it.

    The system gives it back when the process ends, however it ends; a file that a kill leaves holds nobody up.

    Args:
        target: the output.

    Attributes:
        note: a sentence for the user where the file system has no locks, and the run goes on without.

    Raises:
        QwenchError: from `acquire` and `with`: another process holds it, or the file cannot be made.
    """

    def __init__(self, target: Path) -> None:
        self.target, self.path = target, hidden(target, ".lock")
        self.note: str | None = None
        self._handle: int | None = None

    def acquire(self) -> None:
        """Take it, or say at once who holds it."""
        try:
            while self._handle is None:
                handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
                if self._locked(handle) and self._named(handle):
                    self._handle = handle
                else:
                    os.close(handle)  # its holder removed it just now
        except OSError as error:
            raise trouble(error, self.target, "the output") from error
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "command": _command()}
        with suppress(OSError):  # a full disk: the lock holds, and does not say whose it is
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, json.dumps(owner).encode(), 0)

    def _locked(self, handle: int) -> bool:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in NO_LOCKS:
                self.note = f"the disk has no locks: see to it that no other run writes `{self.target}`"
                return True
            told = _holder(os.pread(handle, 1 << 16, 0))
            os.close(handle)
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise QwenchError(f"another run is at `{self.target}`{told}", "wait for it to end, or stop it") from None
        return True

    def _named(self, handle: int) -> bool:
        """The file still has its name: nobody removed it between opening and locking."""
        try:
            return os.path.samestat(os.fstat(handle), os.stat(self.path))
        except FileNotFoundError:
            return False

    @property
    def held(self) -> bool:
        """Whether this process has it."""
        return self._handle is not None

    def release(self) -> None:
        """Give it back; does nothing where it is not held."""
        if self._handle is not None:
            with suppress(OSError):
                self.path.unlink(missing_ok=True)
            os.close(self._handle)
            self._handle = None

    def __enter__(self) -> Lock:
        self.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()


def _command() -> str:
    name = os.path.basename(sys.argv[0] or "python")
    return shlex.join(["qwench" if name == "main.py" else name, *sys.argv[1:]])


def _holder(said: bytes) -> str:
    try:
        owner = json.loads(said)
        where = "" if owner["host"] == socket.gethostname() else f" on {owner['host']}"
        return f": process {owner['pid']}{where}, `{owner['command']}`"
    except (ValueError, KeyError, TypeError):
        return ""  # it has not written it yet
