"""What ops tell whoever listens.

An op is a generator: it yields these events while it works, and the last one is `Finished`.
The cli shows them, `--json` collects them, tests assert on them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Started:
    """A stage begins. `total` is in `unit`s, None while unknown."""

    stage: str
    total: float | None = None
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Advanced:
    """`n` more units of the stage are done; `total` replaces the stage's total when given."""

    stage: str
    n: float
    total: float | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Chose:
    """An automatic choice, with its reason (device, dtype, batch size, pooling...)."""

    name: str
    value: Any
    reason: str


@dataclass(frozen=True, slots=True)
class Warned:
    """Something the user must know and that does not stop the run.

    `kind` is a stable word for scripts: skipped, unreadable, truncated, encoding, memory, stale...
    `failed` marks an input that was lost, so that the run ends with exit code 1.
    """

    kind: str
    message: str
    subject: str | None = None
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Kept:
    """What is done so far lies at `path` from here on, should the run be cut short: the same command goes on with it.

    `flag` is to be added to the command (or `--x left out`) where it would begin anew.
    """

    path: str
    flag: str | None = None


@dataclass(frozen=True, slots=True)
class Produced:
    """One piece of data for stdout, for ops that stream their answer."""

    row: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Finished:
    """The op is done; `result` is JSON-able and has stable keys."""

    result: dict[str, Any]


Event = Started | Advanced | Chose | Warned | Kept | Produced | Finished
Events = Iterator[Event]
