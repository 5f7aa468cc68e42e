"""The folder OUT.run of a training: what it is of, held by one run at a time, and gone on with by the same command."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..base.atomic import hidden, is_leftover, remove, write
from ..base.errors import QwenchError
from ..base.events import Event, Kept, Warned
from ..base.lock import Lock
from ..checkpoint.staging import difference
from .ranks import first

#: what the run is of
NOTE = "run.json"


class RunFolder:
    """See the module.

    Args:
        out: the output that it stands beside. force: begin anew; resume: and still go on with a killed run.

    Attributes:
        path: the folder. mark: hash of what the run is of, once it is open.
    """

    def __init__(self, out: Path, force: bool, resume: bool) -> None:
        self.path, self._force, self._resume = out.with_name(out.name + ".run"), force, resume
        self.mark = ""
        self._lock = Lock(self.path)

    def open(self, whole: Any, job: dict[str, Any]) -> None:
        """Make the folder, or go on with this very run's; the first process does it for all.

        Args:
            whole: JSON-able, all that a run depends on. job: what of it is told where another run's differs.

        Raises:
            QwenchError: one is there of other options, or another run is at it.
        """
        self.mark = hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()
        first(lambda: self._open(json.loads(json.dumps(job, default=str))))

    def _open(self, job: dict[str, Any]) -> None:
        # Before anything is looked at or removed: another run may be at it.
        self._lock.acquire()
        try:
            begun = self._begun() if self.path.exists() else None
            same = begun is not None and begun.get("plan") == self.mark
            if begun is not None and not self._force and not same:
                if begun:
                    told = f"`{self.path}` is of another run: {difference(begun.get('job', {}), job)}"
                    raise QwenchError(told, "give the same options to go on with it, or add --force to begin anew")
                told = f"there is a `{self.path}` that does not say what it is of"
                raise QwenchError(told, "move it away, or add --force to replace it")
            if not same or (self._force and not self._resume):
                made = hidden(self.path, ".new")
                for old in (made, self.path):
                    remove(old)
                made.mkdir()
                write(made / NOTE, json.dumps({"plan": self.mark, "job": job}))
                made.rename(self.path)
        except BaseException:
            self._lock.release()
            raise

    def _begun(self) -> dict[str, Any]:
        """What the folder says it is of, empty where it does not."""
        try:
            found = json.loads((self.path / NOTE).read_text("utf-8"))
            return found if isinstance(found["plan"], str) else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def told(self) -> Iterator[Event]:
        """Where a run that is cut short leaves its work, and a warning where another run cannot be kept away."""
        if self._lock.note:
            yield Warned("lock", self._lock.note)
        yield Kept(str(self.path), "--resume" if self._force and not self._resume else None)

    def close(self) -> None:
        """Let another run at the folder; one without anything to go on with is removed."""
        if not self._lock.held:
            return
        if self.path.is_dir() and all(f.name == NOTE or is_leftover(f) for f in self.path.iterdir()):
            remove(self.path)
        self._lock.release()
