"""The library of C kernels: found or built, loaded, and checked against eager PyTorch."""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...base.choice import Choice
from . import build, store
from .border import KINDS, Matrix, enter, library
from .check import fault_of

__all__ = ["KINDS", "Matrix", "available", "library", "prepare", "warning"]


@dataclass(frozen=True, slots=True)
class _Found:
    """What the first look came to, for the rest of the process: one library serves every model.

    Attributes:
        warn: the reason is one that the user should hear of.
    """

    value: bool
    reason: str
    warn: bool = False


_found: list[_Found] = []


def available() -> Choice:
    """Whether the C kernels can be used here: Choice(bool, reason). The first call builds them (seconds, once)."""
    for _ in prepare():
        pass
    return Choice(_found[0].value, _found[0].reason)


def warning() -> str | None:
    """What the user should hear of, after `prepare` or `available`."""
    return _found[0].reason if _found and _found[0].warn else None


def prepare() -> Iterator[None]:
    """What `available` waits for; yields while the compiler takes long, for whoever wants to tell."""
    import torch  # noqa: F401  before the library, so that its OpenMP is the one that is used

    if _found:
        return
    if os.environ.get("QWENCH_NATIVE") == "0":
        _found.append(_Found(False, "QWENCH_NATIVE=0"))
        return
    try:
        _found.append((yield from _ready()))
    except (build.NotBuilt, AttributeError, OSError) as error:
        enter(None)
        _found.append(_Found(False, str(error), getattr(error, "new", False)))


def _ready() -> Generator[None, None, _Found]:
    """Load the library that is there, or build it.

    Raises:
        build.NotBuilt: no compiler, an unsupported machine, a failed compile, wrong results.
        OSError: the library cannot be loaded.
    """
    build.supported()
    command = build.compiler()
    key = build.key(command)
    reason = "C kernels built for this CPU"
    try:
        if known := store.whole(key):
            if known[1]:
                raise build.NotBuilt(known[1])
            _load(known[0], key)
            return _Found(True, reason)
        apart = None
    except PermissionError as error:
        apart = str(error)
    with tempfile.TemporaryDirectory(prefix="qwench-kernels-") as private:
        made = Path(private) / "native.so"
        yield from build.compiled(command, key, made)
        kept = made
        if apart is None:
            try:
                kept = store.keep(key, made.read_bytes())
            except OSError as error:
                apart = f"`{store.cache()}` cannot be written ({error.strerror})"
        fault = _load(kept, key) or fault_of()
        if apart is None:
            store.vouch(key, kept, fault)
        if fault:
            raise build.NotBuilt(fault, new=True)
    if apart is None:
        return _Found(True, reason)
    return _Found(True, f"{reason}, for this run alone: {apart}", warn=True)


def _load(path: Path, key: str) -> None:
    lib = ctypes.CDLL(str(path))
    _declare(lib)
    enter(lib, key)


def _declare(lib: Any) -> None:
    p, n, f, i = ctypes.c_void_p, ctypes.c_long, ctypes.c_float, ctypes.c_int
    for name, kinds in {
        "linear": [p, p, n, p, n, i, i],
        "widen": [p, n, n, p, i],
        "to_blocks": [p, i, p, i],
        "rms_norm": [p, p, p, n, n, f, i],
        "norm_rotate": [p, n, p, p, p, p, n, n, n, f, i],
        "silu_mul": [p, p, n, n, i],
        "add_rms_norm": [p, p, p, p, p, n, n, f, i],
        "gate": [p, p, n, p, n, n, n, n, i],
        "attend": [p, p, n, p, p, p, p, n, i],
        "join": [p, p, n, n, p, p, f, p, p, n, n, n],
        "step": [p, p, p, p, n, p, p, p, p, i],
    }.items():
        function = getattr(lib, f"qwench_{name}")
        function.restype, function.argtypes = None, kinds
