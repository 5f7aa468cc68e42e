"""LanceDB's exceptions as one sentence: damage is said only of what is damaged."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..base.errors import QwenchError

#: words of a message -> (sentence, next step); the first that fits
KNOWN = (
    (r"no space left", "no space left on the disk", "free some; the same command goes on"),
    (r"permission denied|read-only", "the folder cannot be written", "choose another --out"),
    (
        r"commit conflict|conflicting|concurrent|retryable",
        "another program is writing this index",
        "wait for it; the same command goes on",
    ),
    (
        r"non-?null|null values|not nullable|nullab",
        "the index has a column of its own that may not be empty, and a row of qwench has nothing for it",
        "drop that column or make it nullable with LanceDB, or embed into another --out",
    ),
    (
        r"reserved name|incompatible fields|multiple matches for fieldref|ambiguous",
        "the index has a column whose name LanceDB uses itself",
        "rename that column with LanceDB, or make the index anew with --rebuild",
    ),
    (
        r"manifest|corrupt|magic|protobuf|too (small|short)|"
        r"unexpected eof|early eof|invalid range|was not found|not found: |no such file",
        "the index is damaged",
        "restore it from a copy, or move it away and embed again",
    ),
)


def sentence(error: BaseException) -> str:
    """The first line of LanceDB's message, without places in its source."""
    line = re.split(r", (?:/\S*|rust/)", str(error))[0].strip()
    return (line.splitlines() or [type(error).__name__])[0][:200]


def is_conflict(error: BaseException) -> bool:
    """Whether another writer came first, so that the same step may succeed when it is tried again."""
    return re.search(KNOWN[2][0], str(error).lower()) is not None


def retried(table: Any, step: Callable[[], Any], tries: int = 6) -> Any:
    """What `step` gives; where another writer came first, the table's latest version is taken and it is tried again."""
    for left in range(tries - 1, -1, -1):
        try:
            return step()
        except (RuntimeError, ValueError, OSError) as error:
            if not left or not is_conflict(error):
                raise
        table.checkout_latest()
        time.sleep(0.05 * 2 ** (tries - 1 - left))
    return None


@contextmanager
def lance_errors(where: str | Path) -> Iterator[None]:
    """LanceDB's exceptions as QwenchErrors."""
    try:
        yield
    except QwenchError:
        raise
    except OSError as error:
        raise QwenchError(f"the index cannot be written ({error.strerror or error}): `{where}`") from error
    except (RuntimeError, ValueError) as error:
        line = sentence(error)
        for words, said, hint in KNOWN:
            if re.search(words, str(error).lower()):
                raise QwenchError(f"{said} ({line}): `{where}`", hint) from error
        raise QwenchError(f"LanceDB cannot do this ({line}): `{where}`", "see the message; nothing was lost") from error
