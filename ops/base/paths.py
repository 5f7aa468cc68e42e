"""What a path given by a user may be."""

from __future__ import annotations

import os
import re
from pathlib import Path

from .errors import QwenchError

#: a scheme of two letters at least; the second slash is gone where pathlib has seen the name before
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def local(name: str | os.PathLike[str], what: str = "the path") -> str:
    """The name as it is, when it is one of this machine.

    Args:
        name: as the user gave it.
        what: it is, in words, such as `the output`.

    Raises:
        QwenchError: it is a URL, of whatever scheme (code 2).
    """
    text = os.fspath(name)
    if URL.match(text):
        told = text if "://" in text else text.replace(":/", "://", 1)
        scheme = told.partition(":")[0]
        raise QwenchError(
            f"{what} is a URL, and only files and folders of this machine are read and written: `{told}`",
            "leave out file://" if scheme == "file" else "give a path, and copy from or to the URL with its own tool",
            code=2,
        )
    return text


def check_output(
    name: str | os.PathLike[str], what: str = "the output", *, folder: bool | None = False, around: bool = False
) -> Path:
    """Refuse before the work what could not be written after it; changes nothing.

    Args:
        name: of what is to be written.
        what: as in `local`.
        folder: it is a folder to be made or filled, a file, or with None whichever is there.
        around: folders around it that are not there are made when it is written, see `make_around`.

    Returns:
        The absolute path.

    Raises:
        QwenchError: a URL, a folder in the place of a file or the other way round, no such folder around it, or one
            that cannot be written into.
    """
    path = Path(os.path.abspath(Path(local(name, what)).expanduser()))
    target = Path(os.path.realpath(path))
    if folder and target.exists() and not target.is_dir():
        raise QwenchError(f"{what} is to be a folder, and a file is in its place: `{path}`", "choose another name")
    if folder is False and target.is_dir():
        raise QwenchError(f"{what} is a file, and a folder is in its place: `{path}`", "choose another name")
    above = target if folder and target.is_dir() else target.parent
    while around and not os.path.lexists(above):
        above = above.parent
    if not above.is_dir() and above.exists():
        raise QwenchError(f"{what} cannot lie in a file: `{above}`", "choose another name")
    if not above.is_dir():
        raise QwenchError(f"the folder of {what} is not there: `{above}`", "make it first")
    if not os.access(above, os.W_OK | os.X_OK):
        raise QwenchError(f"the folder of {what} cannot be written into: `{above}`", "choose another one")
    return path


def make_around(path: Path, what: str = "the output") -> None:
    """Make the folders around an output where they are not there.

    Raises:
        QwenchError: they cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        told = f"the folder of {what} cannot be made ({error.strerror}): `{path.parent}`"
        raise QwenchError(told, "choose another name") from error
