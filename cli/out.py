"""Data goes to stdout, talk to stderr; progress, colours and --json are decided here and nowhere else."""

import json as json_
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from ..ops.base.events import Advanced, Chose, Events, Finished, Kept, Produced, Started, Warned
from .screen import json_safe, one_line, paint, visible

#: a bar is for work longer than this, in seconds
PATIENCE = 1.0
#: without a terminal, a line tells every so many seconds that the run is alive
HEARTBEAT = 30.0


class Out:
    """The streams of one command.

    Args:
        json: one document, or lines, for programs; errors become JSON on stderr.
        quiet: no talk but errors and lost inputs.
        verbose: reasons for automatic choices; no progress bar.
    """

    def __init__(self, json: bool = False, quiet: bool = False, verbose: bool = False) -> None:
        self.json, self.quiet, self.verbose = json, quiet, verbose
        self.choices: dict[str, dict[str, Any]] = {}
        self.warnings: list[dict[str, Any]] = []
        #: what an interrupt leaves to go on from
        self.kept: Kept | None = None
        self._bar: _Bar | None = None
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")

    def data(self, text: str) -> None:
        """A line of the answer, for a reader."""
        self._data(visible(text) + "\n")

    def raw(self, text: str) -> None:
        """Somebody else's line as the answer: to the byte for a file or a pipe, escaped on a terminal."""
        self._data((visible(text) if sys.stdout.isatty() else text) + "\n")

    def piece(self, text: str) -> None:
        """Part of a line of the answer, seen at once; to the byte as `raw`."""
        self.close()
        sys.stdout.write(visible(text) if sys.stdout.isatty() else text)
        sys.stdout.flush()

    def thought(self, text: str, color: str | None = None) -> None:
        """Part of a line of talk, seen at once."""
        self.close()
        sys.stderr.write(visible(paint(text, color) if color else text))
        sys.stderr.flush()

    def document(self, value: Any) -> None:
        """The answer as JSON, on one line."""
        plain = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
        self._data(json_safe(json_.dumps(value, ensure_ascii=plain)) + "\n")

    def _data(self, text: str) -> None:
        if self._bar and self._bar.drawn and _one_terminal():
            self._bar.above(text)
        else:
            sys.stdout.write(text)

    def talk(self, text: str) -> None:
        """A line for the person at the terminal."""
        if not self.quiet and not self.json:
            self._say(text)

    def warn(self, text: str) -> None:
        """A line that a person must see; --json collects it."""
        if not self.json:
            self._say(f"warning: {text}")

    def error(self, message: str, hint: str | None, code: int) -> None:
        """Why the command failed."""
        if self.json:
            told = {"error": message, "hint": hint, "code": code}
            sys.stderr.write(json_safe(json_.dumps(told, ensure_ascii=False)) + "\n")
            return
        self._say(f"{paint('error:', 'red')} {one_line(message)}")
        if hint:
            self._say(f"\nhint: {hint}")

    def going_on(self) -> str:
        """How to go on with what is done so far, where that is possible."""
        if self.kept is None or not os.path.exists(self.kept.path):
            return ""
        added = f" with {self.kept.flag}" if self.kept.flag else ""
        return f"what was written is kept in `{self.kept.path}`, and the same command{added} goes on"

    def _say(self, text: str) -> None:
        line = visible(text) + "\n"
        if self._bar:
            self._bar.above(line)
        else:
            sys.stderr.write(line)

    def run(self, events: Events, show: Callable[[dict[str, Any]], None] | None = None) -> dict[str, Any]:
        """Follow an op to its end: progress, warnings, produced rows; returns its result."""
        result: dict[str, Any] = {}
        try:
            for event in events:
                if isinstance(event, Finished):
                    result = event.result
                else:
                    self._follow(event, show)
        finally:
            self.close()
            if close := getattr(events, "close", None):
                close()  # an interrupt between two events: the op tidies up before anything is said of it
        self.kept = None
        return result

    def _follow(self, event: Any, show: Callable[[dict[str, Any]], None] | None) -> None:
        if isinstance(event, Produced):
            if show:
                show(event.row)
        elif isinstance(event, Warned):
            self.warnings.append({"kind": event.kind, "message": event.message, "subject": event.subject})
            if event.failed or not self.quiet:
                self.warn(event.message)
        elif isinstance(event, Kept):
            self.kept = event
        elif isinstance(event, Chose):
            self.choices[event.name] = {"value": event.value, "reason": event.reason}
            if self.verbose:
                self.talk(f"{event.name}: {event.value} ({event.reason})")
        elif isinstance(event, Started):
            self.close()
            self._bar = _Bar(event) if self._wants_progress() else None
        elif isinstance(event, Advanced) and self._bar:
            self._bar.advance(event)

    def _wants_progress(self) -> bool:
        return not (self.quiet or self.json or self.verbose or os.environ.get("QWENCH_NO_PROGRESS"))

    def close(self) -> None:
        """Take the bar away."""
        if self._bar:
            self._bar.close()
            self._bar = None


class _Bar:
    """A rich bar once the work has taken PATIENCE; plain lines where stderr is no terminal."""

    def __init__(self, started: Started) -> None:
        self.started, self.done, self.total, self.detail = time.monotonic(), 0.0, started.total, ""
        self.stage, self.unit = started.stage, started.unit
        self.live = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self.beat = self.started
        self._rich: Any = None

    def advance(self, event: Advanced) -> None:
        self.done += event.n
        self.total = event.total if event.total is not None else self.total
        self.detail = event.detail or self.detail
        now = time.monotonic()
        if self.live and (self._rich or now - self.started > PATIENCE):
            self._draw()
        elif not self.live and now - self.beat > HEARTBEAT:
            self.beat = now
            sys.stderr.write(visible(self._line()) + "\n")

    def _line(self) -> str:
        spent = time.monotonic() - self.started
        if not self.total or not self.done:
            return f"{self.stage}: {self.detail}"
        left = spent * max(self.total - self.done, 0) / self.done
        parts = [f"{self.done / self.total:.0%}", self.detail, f"{clock(left)} left"]
        return f"{self.stage}: " + ", ".join(part for part in parts if part)

    def _draw(self) -> None:
        from rich import progress
        from rich.console import Console

        if self._rich is None:
            count = progress.DownloadColumn() if self.unit == "B" else progress.MofNCompleteColumn()
            stage, detail = (
                progress.TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[detail]}")
            )
            left = progress.TimeRemainingColumn(elapsed_when_finished=True)
            # Rich would put a writer to the terminal in the place of sys.stdout, which may be a file or a pipe.
            self._rich = progress.Progress(
                *(stage, progress.BarColumn(), count, detail, left),
                console=Console(stderr=True),
                transient=True,
                redirect_stdout=False,
            )
            self._task = self._rich.add_task(self.stage, total=self.total, detail=one_line(self.detail))
            self._rich.start()
        self._rich.update(self._task, completed=self.done, total=self.total, detail=one_line(self.detail))

    @property
    def drawn(self) -> bool:
        """Whether it is on the screen."""
        return self._rich is not None

    def above(self, text: str) -> None:
        """Write whole lines to the terminal, above the bar."""
        if self._rich:
            self._rich.console.print(text, end="", markup=False, highlight=False, emoji=False, soft_wrap=True)
        else:
            sys.stderr.write(text)

    def close(self) -> None:
        if self._rich:
            self._rich.stop()


def _one_terminal() -> bool:
    """Whether both streams are the same terminal, so that a bar is in the way of data."""
    if not (sys.stdout.isatty() and sys.stderr.isatty()):
        return False
    return os.fstat(sys.stdout.fileno()).st_rdev == os.fstat(sys.stderr.fileno()).st_rdev


def clock(seconds: float) -> str:
    """Seconds as 42s, 3m 05s or 2h 10m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02}m"


def size(count: float | None) -> str:
    """Bytes as 12 B, 3.4 MB, 1.2 GB."""
    if count is None:
        return "-"
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def rows_done(result: dict[str, Any]) -> str:
    """What a job on rows of prompts came to, in a line."""
    parts = [f"{result['rows'] - result['bad'] - result['failed']:,} rows in {clock(result['seconds'])}"]
    if result["done"]:
        parts.append(f"{result['done']:,} of them were done before")
    if "samples" in result:
        computed, taken = (f"{result[name]:,}" for name in ("prefilled_tokens", "cached_tokens"))
        parts.append(f"{result['samples']:,} samples of {result['generated_tokens']:,} tokens")
        parts.append(f"of their prompts {computed} tokens computed and {taken} taken over")
    if result["failed"]:
        parts.append(f"{result['failed']:,} failed")
        if result["out"] != "-":
            parts[-1] += ", which the same command asks again"
    return "; ".join(parts)


#: the streams of the running command; a command replaces them when its flags are known
current = Out()


def start(json: bool = False, quiet: bool = False, verbose: bool = False) -> Out:
    """The streams for a command with these flags."""
    global current
    current = Out(json, quiet, verbose)
    return current
