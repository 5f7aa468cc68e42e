"""Files that stand where a model's file should: Git LFS pointers and web pages."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from ..base.errors import QwenchError


def impostor(path: Path) -> QwenchError | None:
    """The error for a file that a download left in the place of the real one, None for any other."""
    head = b""
    with suppress(OSError), open(path, "rb") as file:
        head = file.read(512).lstrip(b"\xef\xbb\xbf \t\r\n")
    if head.startswith(b"version https://git-lfs"):
        return QwenchError(
            f"the file is a Git LFS pointer, and what it points to was not downloaded: `{path}`",
            "run `git lfs pull` in its repository, or download the model with `hf download`",
        )
    if head[:15].lower().startswith((b"<!doctype html", b"<html")):
        return QwenchError(
            f"the file is a web page, as a failed download leaves one: `{path}`", "download the model again"
        )
    return None
