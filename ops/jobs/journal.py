"""What is done of a job, beside its output: a line of settings, then a line for every row as it is finished."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base.atomic import append, hidden, trouble, write
from ..base.errors import QwenchError
from ..base.events import Kept, Warned
from ..base.lock import Lock

#: ending of a journal's name
JOURNAL = ".job"
#: version of the lines below
FORMAT = 1
#: settings that name things, and do not change an answer
LOOSE = ("model",)


@dataclass(frozen=True, slots=True)
class Entry:
    """A finished row: what was found, or why nothing was; numbers to be summed."""

    found: dict[str, Any]
    failed: str | None
    counts: dict[str, int]


class Journal:
    """Lines that survive a kill; a last line that one cut short counts for nothing.

    Args:
        out: the output that it belongs to.
    """

    def __init__(self, out: Path) -> None:
        self.out, self.path = out, hidden(out, JOURNAL)
        self.torn = False
        self._at: dict[str, tuple[int, str, bool]] = {}  # key -> where its line begins, hash of the row, failed

    def settings(self) -> dict[str, Any] | None:
        """What the job was begun with, None where none was.

        Raises:
            QwenchError: it cannot be read, or is no journal.
        """
        try:
            with self.path.open("rb") as file:
                first = json.loads(file.readline())
            if first["job"] != FORMAT or not isinstance(first["settings"], dict):
                raise ValueError("another version")
            return first["settings"]
        except FileNotFoundError:
            return None
        except OSError as error:
            raise trouble(error, self.path, "the journal") from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise QwenchError(
                f"the journal of `{self.out}` is damaged or of another version: `{self.path}`",
                "begin anew with --force",
            ) from error

    def take(self, settings: Mapping[str, Any], force: bool = False) -> Iterator[Kept | Warned]:
        """Go on, or begin where there is nothing to go on with; tells what is kept, and of a row that a kill cut short.

        Raises:
            QwenchError: see `go_on`; it cannot be written.
        """
        if force or self.settings() is None:
            self.begin(settings)
        else:
            self.go_on(settings)
        if self.torn:
            yield Warned("journal", f"a kill cut the last row short, which is done again: `{self.path}`")
        yield Kept(str(self.path), "--force left out" if force else None)

    def begin(self, settings: Mapping[str, Any]) -> None:
        """A new one in the place of what is there.

        Raises:
            QwenchError: it cannot be written.
        """
        line = json.dumps({"job": FORMAT, "settings": settings}, ensure_ascii=False)
        write(self.path, line + "\n", "the journal")
        self._at = {}

    def go_on(self, settings: Mapping[str, Any]) -> None:
        """Take up what is there.

        Raises:
            QwenchError: it was begun with other settings; says which.
        """
        there = self.settings() or {}
        if differs := difference(there, settings):
            raise QwenchError(
                f"`{self.out}` was begun with other settings: {'; '.join(differs)}",
                "give the same, choose another --out, or begin anew with --force",
            )
        with self.path.open("rb") as file:
            at = len(file.readline())
            for line in file:
                begins, at = at, at + len(line)
                if not line.endswith(b"\n"):
                    self.torn = True
                    break
                try:
                    entry = json.loads(line)
                    self._at[entry["key"]] = begins, entry["row"], entry["failed"] is not None
                except (ValueError, KeyError, TypeError):
                    continue  # cut short by a kill, and ended by the next line

    def add(self, key: str, digest: str, entry: Entry) -> None:
        """Keep a row, on the disk when this returns.

        Raises:
            QwenchError: it cannot be written.
        """
        told = {"key": key, "row": digest, "failed": entry.failed, "counts": entry.counts, "found": entry.found}
        line = json.dumps(told, ensure_ascii=False)
        append(self.path, line, "the journal")
        self._at[key] = self.path.stat().st_size - len(line.encode()) - 1, digest, entry.failed is not None

    def done(self, key: str, digest: str) -> bool:
        """Whether a row of this content is finished; a failed one is not."""
        at = self._at.get(key)
        return at is not None and at[1] == digest and not at[2]

    def entry(self, key: str) -> Entry | None:
        """What there is of a row."""
        if key not in self._at:
            return None
        with self.path.open("rb") as file:
            file.seek(self._at[key][0])
            told = json.loads(file.readline())
        return Entry(told["found"], told["failed"], told["counts"])


@contextmanager
def kept(out: Path, force: bool = False) -> Iterator[tuple[Journal, list[Warned]]]:
    """(the journal of an output that is this run's alone, what is to be said of that)

    Raises:
        QwenchError: another run is at it, or a file that no job made is there.
    """
    journal = Journal(out)
    with Lock(out) as lock:
        if not force and journal.settings() is None and out.exists():
            raise QwenchError(
                f"the output is there, and no job that could go on with it: `{out}`",
                "choose another --out, or write over it with --force",
            )
        yield journal, [Warned("lock", lock.note)] if lock.note else []


def difference(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`temperature was 0.7, is 1.0` for every setting that is another, but for those of LOOSE."""
    old, new = _flat(there), _flat(json.loads(json.dumps(now)))
    names = [n for n in dict.fromkeys([*old, *new]) if old.get(n) != new.get(n) and n not in LOOSE]
    return [f"{n} was {_said(old.get(n))}, is {_said(new.get(n))}" for n in names]


def _flat(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{above}{name}.")
        else:
            found[above + name] = value
    return found


def _said(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return "not set" if value is None else text if len(text) < 80 else text[:77] + "..."
