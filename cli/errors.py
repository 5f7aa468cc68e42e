"""Exceptions become one sentence, a hint and an exit code."""

import io
import os
import sys
import traceback
from collections.abc import Callable
from enum import IntEnum
from functools import wraps
from typing import Any

import typer

from ..ops.base.errors import QwenchError
from . import out


class ExitCode(IntEnum):
    """What the process ends with."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NO = 3
    INTERRUPTED = 130


#: class names, so that the libraries need not be imported to be recognised
KNOWN = {
    "OutOfMemoryError": ("out of memory on the device", "use a smaller --batch-tokens, or --device cpu"),
    "MemoryError": ("out of memory", "use a smaller --batch-tokens"),
    "SafetensorError": ("a weight file is damaged", "download or copy the model again"),
}


def explain(error: BaseException) -> tuple[str, str | None, int]:
    """(sentence, hint, exit code) of an exception."""
    if isinstance(error, QwenchError):
        return error.message, error.hint, error.code
    name = type(error).__name__
    if name in KNOWN:
        return *KNOWN[name], ExitCode.FAILED
    if isinstance(error, OSError):
        what = f"{error.strerror or error}" + (f": `{error.filename}`" if error.filename else "")
        hint = "; ".join(filter(None, ("free some space", out.current.going_on()))) if error.errno == 28 else None
        return what[0].lower() + what[1:], hint, ExitCode.FAILED
    line = str(error).strip().splitlines()[0] if str(error).strip() else ""
    return f"unexpected {name}: {line}", "set QWENCH_DEBUG=1 for the traceback", ExitCode.FAILED


class _Closed(io.TextIOBase):
    """A standard output that is closed: rows must not vanish, so the first one ends the run."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        raise QwenchError("standard output is closed", "open it, or send it to a file")


def complete_streams() -> None:
    """Streams that the caller has closed are there all the same: nothing comes in, and nothing may go out."""
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = _Closed()


def boundary(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command that ends in an exit code, never in a traceback (unless QWENCH_DEBUG is set)."""

    @wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
            sys.stdout.flush()
        except (typer.Exit, typer.Abort):
            raise
        except KeyboardInterrupt:
            out.current.close()
            out.current.talk("; ".join(filter(None, ("interrupted", out.current.going_on()))))
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        except BrokenPipeError:
            # The reader has gone; nothing more can be said on stdout, not even by the interpreter's last flush.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(ExitCode.FAILED) from None
        except Exception as error:
            out.current.close()
            if os.environ.get("QWENCH_DEBUG"):
                traceback.print_exc()
            message, hint, code = explain(error)
            out.current.error(message, hint, code)
            raise typer.Exit(code) from None

    return guarded
