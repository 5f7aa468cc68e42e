"""Output appears whole or not at all: written into OUT.part with a journal, then renamed.

A killed run's part is gone on with by the same command; a part of another job is never touched without --force.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from ..base.atomic import append, hidden, move, recover, remove, sync
from ..base.errors import QwenchError
from ..base.events import Event, Kept, Warned
from ..base.lock import Lock
from ..base.paths import check_output

JOURNAL = ".qwench-journal"


class Staging:
    """The folder OUT.part while it is filled.

    Args:
        out: what it becomes.
        fingerprint: of the plan; a part of another plan is never gone on with.
        resume: with `force`: go on with this plan's part all the same. Without it, that is what is done anyway.
        force: replace what is there, begin anew.
        file: OUT is this one file of the part, not a folder.
        files: names of everything that will be in the part.
        also: fingerprints of other plans whose part may be there too; not to be entered with these.
        job: settings and inputs by name, to say in what a part's job was another.

    Attributes:
        part: where to write.
        done: names journalled as written.

    Raises:
        QwenchError: OUT is there already or cannot be written; a part is there of another plan; another run is at it.
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
        job: Mapping[str, Any] | None = None,
        also: Collection[str] = (),
    ) -> None:
        # A link stays one, and the part is on the disk of what it leads to.
        if out.is_symlink() and not force:
            raise QwenchError(f"the output is there already: `{out}`", "choose another name, or add --force")
        out = Path(os.path.realpath(out)) if out.is_symlink() else out
        self.out, self.fingerprint, self.file = out, fingerprint, file
        self.part = out.with_name(out.name + ".part")
        self.done: set[str] = set()
        self._resume, self._force, self._files, self._also = resume, force, files, also
        self._job = json.loads(json.dumps(dict(job or {}), default=str))
        self._lock = Lock(out)
        self._look()
        check_output(out, folder=not file)

    def _look(self) -> None:
        """What is there, and whether it may be gone on with or replaced."""
        if self.out.exists() and not self._force:
            raise QwenchError(f"the output is there already: `{self.out}`", "choose another name, or add --force")
        self.done = set()
        begun = self._read() if self.part.exists() else None
        same = begun is not None and begun.get("plan") in (self.fingerprint, *self._also)
        self._keep = same and (self._resume or not self._force)
        if begun is None or self._keep or self._force or (not begun and self._resume and self._only_ours()):
            return
        if not begun:
            told = f"there is a `{self.part}` that does not say what it is of"
            raise QwenchError(told, "move it away, or add --force to replace it")
        raise QwenchError(
            f"`{self.part}` is of another job: {difference(begun.get('job', {}), self._job)}",
            "give the same options to go on with it, or add --force to begin anew",
        )

    def _only_ours(self) -> bool:
        """Nothing is in the part but what this plan writes."""
        if not self.part.is_dir() or self.part.is_symlink():
            return False
        held = (p.relative_to(self.part).as_posix() for p in self.part.rglob("*") if not p.is_dir())
        return all(name == JOURNAL or name in self._files for name in held)

    def _read(self) -> dict[str, Any]:
        """The first line of the part's journal, empty where it has none; fills `done`."""
        aside = hidden(self.part, ".journal")
        # A kill in `commit` leaves it aside, of a part that is whole as long as it has not become OUT.
        moved = () if self.out.exists() or not self._only_ours() else (aside,)
        for path in (self.part / JOURNAL, *moved):
            try:
                lines = path.read_text("utf-8").splitlines()
                begun = json.loads(lines[0])
                if not isinstance(begun["plan"], str):
                    continue
            except (OSError, ValueError, LookupError, TypeError):
                continue
            for line in lines[1:]:
                # A kill can leave the last line half written.
                with contextlib.suppress(ValueError, LookupError, TypeError):
                    self.done.update(json.loads(line)["done"])
            return begun
        return {}

    def held(self) -> int:
        """Bytes on disk that the part holds already, whether it is gone on with or removed."""
        if not self.part.is_dir():
            return 0
        return sum(p.stat().st_blocks * 512 for p in self.part.rglob("*") if p.is_file())

    def __enter__(self) -> Staging:
        self._lock.acquire()
        try:
            recover(self.out)
            # Another run may have come to its end since the first look.
            self._look()
            if not self._keep:
                self.done = set()
                self._begin()
            elif not (self.part / JOURNAL).exists():
                os.rename(hidden(self.part, ".journal"), self.part / JOURNAL)  # a kill had struck in `commit`
        except BaseException:
            self.close()
            raise
        return self

    def _begin(self) -> None:
        """A part that has its journal's first line from the moment it is there."""
        made = hidden(self.part, ".new")
        for old in (made, self.part, hidden(self.part, ".journal")):
            remove(old)
        made.mkdir()
        append(made / JOURNAL, json.dumps({"plan": self.fingerprint, "job": self._job}))
        os.rename(made, self.part)

    def told(self) -> Iterator[Event]:
        """Where a run that is cut short leaves its work, and a warning where another run cannot be kept away."""
        if self._lock.note:
            yield Warned("lock", self._lock.note)
        yield Kept(str(self.part), "--resume" if self._force and not self._resume else None)

    def journal(self, names: list[str]) -> None:
        """Note names as written; their bytes must have been synced."""
        if names:
            append(self.part / JOURNAL, json.dumps({"done": names}))
            self.done.update(names)

    def commit(self) -> None:
        """Sync everything and put it in the place of OUT in one step."""
        aside = hidden(self.part, ".journal")
        # Not removed yet: until the renames are done it says what the part is.
        os.rename(self.part / JOURNAL, aside)
        for folder, _, files in os.walk(self.part):
            for path in (*(os.path.join(folder, f) for f in files), folder):
                sync(path)
        if self.file:
            move(self.part / self.file, self.out)
            remove(self.part)
        else:
            move(self.part, self.out)
        remove(aside)
        self.close()

    def close(self) -> None:
        """Give the lock back."""
        self._lock.release()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def state_of(files: Iterable[Path]) -> dict[str, list[int]]:
    """Size and time of change of each input, by its path."""
    return {os.path.realpath(f): [f.stat().st_size, f.stat().st_mtime_ns] for f in files}


def job_of(options: Any, apart: Collection[str], state: dict[str, list[int]]) -> dict[str, Any]:
    """An options dataclass and the state of its input as `Staging` takes them.

    Args:
        apart: options that may be others when a part is gone on with, beside those of every command.
    """
    same = {*apart, "resume", "force", "threads", "offline", "revision"}
    return {n: v for n, v in asdict(options).items() if n not in same} | {"input": state}


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """In what two jobs, options by name and files under `input`, differ; in a few words."""
    names = [n for n in new if n in old and old[n] != new[n]]
    inputs = old.get("input"), new.get("input")
    if "input" in names and all(isinstance(i, dict) for i in inputs):
        names.remove("input")
        changed = sorted(f for f in {*inputs[0], *inputs[1]} if inputs[0].get(f) != inputs[1].get(f))
        if not names:
            return f"its input has changed since, `{changed[0]}`"
    if not names:
        return "its input or options differ"
    said = [f"--{n.replace('_', '-')} was {_shown(old[n])} and is {_shown(new[n])}" for n in names[:3]]
    return ", ".join(said) + (f", and {len(names) - 3} more" if len(names) > 3 else "")


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_shown, value)) or "not given"
    return "not given" if value is None or value is False or value == "" else "given" if value is True else f"`{value}`"
