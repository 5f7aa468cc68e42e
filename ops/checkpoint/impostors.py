"""Files that stand where a model's file should and are something else: Git LFS pointers and web pages."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from ..base.errors import QwenchError

_PAGES = (b"<!doctype html", b"<html", b"<head", b"<?xml")


def impostor(path: Path) -> QwenchError | None:
    """The error for a file that a download left in the place of the real one, None for any other."""
    head = b""
    with suppress(OSError), open(path, "rb") as file:
        head = file.read(512).lstrip(b"\xef\xbb\xbf \t\r\n")
    if head.startswith(b"version https://git-lfs"):
        return QwenchError(
            f"the file is a Git LFS pointer to the real one, which was not downloaded: `{path}`",
            "run `git lfs pull` in its repository, or download the model with `hf download`",
        )
    if head[:15].lower().startswith(_PAGES):
        return QwenchError(
            f"the file is a web page, as a failed download leaves one: `{path}`",
            "download the model again, logged in where it asks for that",
        )
    return None


def genuine(path: Path) -> Path:
    """The path of a file that is taken as it is, when it is no stand-in; what is parsed is looked at where that fails.

    Raises:
        QwenchError: see `impostor`.
    """
    if error := impostor(path):
        raise error
    return path
