"""Where built libraries lie: whose they are, whether they are whole, and what is remembered about them."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...base.atomic import write as write_whole
from ...base.errors import QwenchError
from ...base.settings import folder


def cache() -> Path:
    """Where built libraries and their measurements lie: QWENCH_NATIVE_CACHE, else below qwench's own cache."""
    return Path(os.environ.get("QWENCH_NATIVE_CACHE") or folder("cache") / "kernels")


def open_to_others(path: Path) -> str | None:
    """Why somebody else may have written a file or folder, None where only its owner or root can."""
    found = path.stat()
    if hasattr(os, "geteuid") and found.st_uid not in (os.geteuid(), 0):
        return f"`{path}` belongs to somebody else"
    return f"others can write to `{path}`" if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) else None


def make() -> None:
    """The cache's folder, for its owner alone.

    Raises:
        OSError: it cannot be made.
    """
    cache().mkdir(mode=0o700, parents=True, exist_ok=True)


def read(name: str) -> dict[str, Any]:
    """A small JSON file of the cache; {} where there is none, where it is damaged or others could have written it."""
    path = cache() / name
    try:
        if open_to_others(path.parent) or open_to_others(path):
            return {}
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write(name: str, content: dict[str, Any]) -> None:
    """Such a file, where it can be written: nothing depends on it."""
    with suppress(OSError):
        make()
        if open_to_others(cache()):
            return
        place(json.dumps(content).encode(), cache() / name)


def place(content: bytes, path: Path) -> None:
    """A file of the cache, written whole, for its owner alone.

    Raises:
        OSError: it cannot be written; nothing is left beside.
    """
    try:
        write_whole(path, content, "the kernel cache")
        path.chmod(0o600)
    except QwenchError as error:
        raise OSError(str(error)) from error


def keep(key: str, content: bytes) -> Path:
    """A library in the cache, named by its key and content, so that two processes at once do not mix theirs.

    Raises:
        OSError: it cannot be written.
    """
    make()
    path = cache() / f"{key}-{hashlib.sha256(content).hexdigest()[:16]}.so"
    place(content, path)
    return path


def vouch(key: str, path: Path, fault: str | None) -> None:
    """Remember what a library is and what its check found."""
    content = path.read_bytes()
    said = {"file": path.name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "fault": fault}
    write(f"{key}.json", said)


def whole(key: str) -> tuple[Path, str | None] | None:
    """The library of a key and what its check found, None where there is none or not what was vouched for.

    Raises:
        PermissionError: others can write to it, or own it.
    """
    home = cache()
    if not home.exists():
        return None
    if reason := open_to_others(home):
        raise PermissionError(reason)
    said = read(f"{key}.json")
    path = home / Path(str(said.get("file", ""))).name
    if not said or not path.is_file():
        return None
    if reason := open_to_others(path):
        raise PermissionError(reason)
    content = path.read_bytes()
    if said.get("size") != len(content) or said.get("sha256") != hashlib.sha256(content).hexdigest():
        return None
    return path, said.get("fault")


def today() -> str:
    """The day, as failures are remembered by it."""
    return time.strftime("%Y-%m-%d")
