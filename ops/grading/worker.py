"""Calls that may hang, eat the memory or end the process: each in a process of its own kind, with a time limit.

A process takes one call after another as lines of JSON. One that is late is killed, one that has died is replaced, and
the call is told apart from one that was answered. No signal is used, so that it works in any thread.
"""

from __future__ import annotations

import json
import math
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base.errors import QwenchError

#: name of a call -> module of this floor and function
CALLS = {
    "compat": ("symbolic", "compat"),
    "math-verify": ("symbolic", "lenient"),
    "langdetect": ("detectors", "langdetect"),
    "wait": ("worker", "_wait"),
}
#: seconds that a process may take to start; imports on a loaded machine
START = 300.0
#: times the limit that a call may take where its process had to wait for a CPU
PATIENCE = 6
#: bytes of address space a process may take
MEMORY = 4 << 30
#: calls after which a process is replaced, for what sympy remembers
CALLS_EACH = 5000


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of a call: its answer; or `late`, `died`, or `failed` with what was raised."""

    key: Any
    found: dict[str, Any] | None
    trouble: str | None = None
    said: str = ""


class _Process:
    def __init__(self, modules: list[str]) -> None:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
        self.child = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", f"from {__name__} import serve; serve({modules!r})"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            bufsize=0,
        )
        self.key: Any = None
        self.calls, self.ready, self.buffer = 0, False, b""
        self.begun = time.monotonic()
        self.deadline, self.limit, self.spent = self.begun + START, START, 0.0

    def send(self, key: Any, call: str, arguments: tuple[Any, ...], limit: float) -> None:
        self.key, self.calls = key, self.calls + 1
        self.limit, self.begun, self.spent = limit, time.monotonic(), self.cpu()
        self.deadline = self.begun + limit
        assert self.child.stdin is not None
        data = json.dumps([call, *arguments]).encode() + b"\n"
        with suppress(BrokenPipeError):  # it has died, which is seen when it is read
            while data:
                data = data[os.write(self.child.stdin.fileno(), data) :]

    def cpu(self) -> float:
        """Seconds of a CPU that it has used, infinite where the system does not tell."""
        try:
            stat = Path(f"/proc/{self.child.pid}/stat").read_text().rpartition(")")[2].split()
            return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError, IndexError):
            return math.inf

    def late(self, now: float) -> bool:
        """Whether its time is up; one that waited for a CPU is given what it has not used."""
        if now < self.deadline:
            return False
        left = self.limit - (self.cpu() - self.spent) if self.ready else 0.0
        # inf - inf is NaN, which is above nothing.
        if not left > 0.01 or now - self.begun >= PATIENCE * self.limit:
            return True
        self.deadline = min(now + left, self.begun + PATIENCE * self.limit)
        return False

    def read(self) -> tuple[bool, Any]:
        """(whether it lives, a line it has written whole)"""
        assert self.child.stdout is not None
        data = os.read(self.child.stdout.fileno(), 1 << 16)
        self.buffer += data
        if b"\n" not in self.buffer:
            return bool(data), None
        line, self.buffer = self.buffer.split(b"\n", 1)
        return True, json.loads(line)

    def end(self) -> None:
        self.child.kill()
        for stream in (self.child.stdin, self.child.stdout):
            with suppress(OSError):
                if stream is not None:
                    stream.close()
        self.child.wait()


class Workers:
    """Processes for calls; started when they are needed, ended with the block.

    Args:
        calls: names of CALLS that will be made; what they need is imported before a process counts as started.
        most: processes at a time, 0 for one a CPU.
        limit: seconds of a CPU that a call may take, and PATIENCE times as many of a clock's; the start of a process is
            not counted.
    """

    def __init__(self, calls: Iterable[str], most: int = 0, limit: float = 5.0) -> None:
        self._modules = sorted({CALLS[name][0] for name in calls})
        self.most, self.limit = most or len(os.sched_getaffinity(0)), limit
        self._idle: list[_Process] = []
        self._busy: list[_Process] = []
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        for process in (*self._idle, *self._busy):
            self._drop(process)
        self._idle, self._busy = [], []
        self._selector.close()

    def call(self, call: str, *arguments: Any) -> Reply:
        """One call, waited for."""
        return next(self.run([(None, (call, *arguments))]))

    def run(self, calls: Iterable[tuple[Any, tuple[Any, ...]]]) -> Iterator[Reply]:
        """Replies in any order.

        Args:
            calls: (key, (name of CALLS, arguments that JSON can hold)).

        Raises:
            QwenchError: no process can be started.
        """
        waiting = iter(calls)
        ahead = next(waiting, None)
        while ahead is not None or self._busy:
            while ahead is not None and (process := self._free()) is not None:
                key, (call, *arguments) = ahead
                process.send(key, call, tuple(arguments), self.limit)
                ahead = next(waiting, None)
            yield from self._replies()

    def _free(self) -> _Process | None:
        """A process that is ready, now busy; one more is started while there are fewer than wanted."""
        if self._idle:
            process = self._idle.pop()
            self._busy.append(process)
            return process
        if len(self._busy) < self.most:
            process = _Process(self._modules)
            self._selector.register(process.child.stdout, selectors.EVENT_READ, process)  # type: ignore[arg-type]
            self._busy.append(process)
        return None

    def _replies(self) -> Iterator[Reply]:
        """Wait for the first thing to happen."""
        nearest = min((p.deadline for p in self._busy), default=0.0) - time.monotonic()
        for key, _ in self._selector.select(max(nearest, 0.0)):
            process: _Process = key.data
            alive, line = process.read()
            if process not in self._busy:
                if not alive:
                    self._idle.remove(process)
                    self._drop(process)
            elif line is not None:
                yield from self._line(process, line)
            elif not alive:
                yield from self._lost(process, "died")
        now = time.monotonic()
        for process in [p for p in self._busy if p.late(now)]:
            yield from self._lost(process, "late")

    def _line(self, process: _Process, line: Any) -> Iterator[Reply]:
        self._busy.remove(process)
        if not process.ready:
            process.ready = True
            self._idle.append(process)
            return
        key = process.key
        if process.calls >= CALLS_EACH:
            self._drop(process)
        else:
            self._idle.append(process)
        if "failed" in line:
            yield Reply(key, None, "failed", line["failed"])
        else:
            yield Reply(key, line["found"])

    def _lost(self, process: _Process, trouble: str) -> Iterator[Reply]:
        self._busy.remove(process)
        self._drop(process)
        if not process.ready:
            raise QwenchError("the process that grades cannot be started", "free some memory, or look at `ulimit -a`")
        yield Reply(process.key, None, trouble)

    def _drop(self, process: _Process) -> None:
        with suppress(KeyError, ValueError):
            self._selector.unregister(process.child.stdout)  # type: ignore[arg-type]
        process.end()


def _wait(seconds: float) -> dict[str, Any]:
    """For tests: a call that takes its time; a negative one ends the process."""
    if seconds < 0:
        os._exit(9)
    time.sleep(seconds)
    return {"slept": seconds}


def warm() -> None:
    """Nothing to import."""


def serve(modules: list[str]) -> None:
    """What a process does until its input ends: `warm` of each module first."""
    import importlib
    import logging
    import resource

    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # libraries print
    logging.disable()
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    package = __name__.rpartition(".")[0]
    for name in modules:
        importlib.import_module(f"{package}.{name}").warm()
    out.write(b"{}\n")
    for line in sys.stdin.buffer:
        call, *arguments = json.loads(line)
        module, function = CALLS[call]
        try:
            found = {"found": getattr(importlib.import_module(f"{package}.{module}"), function)(*arguments)}
        except (Exception, RecursionError) as error:
            found = {"failed": f"{type(error).__name__}: {error}"[:200]}
        out.write(json.dumps(found).encode() + b"\n")
