"""What travels from finding files to reading them: the options, a found file, and how names are shown."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from ..base.errors import QwenchError
from ..base.events import Warned
from .decode import check_codec
from .globs import Globs, parse_glob

ROW_SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".jsonl.gz", ".ndjson.gz", ".csv.gz", ".tsv.gz")
CONVERTED_SUFFIXES = (".html", ".htm", ".xhtml", ".pdf", ".docx", ".ipynb")


@dataclass(frozen=True)
class ReadOptions:
    """How inputs are chosen and read; JSON-able with `dataclasses.asdict`.

    Attributes:
        include: gitignore-style globs, relative to the walked folder; only files that match one are read. Files
            that are named themselves are not held against them.
        exclude: the same for what is left out, named files included.
        hidden: walk entries whose name starts with a dot.
        ignore_files: keep to `.gitignore` files and `.git/info/exclude`. `.git` is never entered either way.
        encoding: declared codec of files without a BOM. None means strict UTF-8, then detection, said aloud.
        text_field: column that holds the text of rows. None means `text` where the first row has it.
        id_field: column that names a row, None for its number.
        stdin_name: what standard input is called; its suffix says what it is (`notes.jsonl`, `page.html`).

    Raises:
        QwenchError: unknown codec or unusable glob (code 2).
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    hidden: bool = False
    ignore_files: bool = True
    encoding: str | None = None
    text_field: str | None = None
    id_field: str | None = None
    stdin_name: str = "-"

    def __post_init__(self) -> None:
        filters(self.include, "--include")
        filters(self.exclude, "--exclude")
        if self.encoding is not None:
            check_codec(self.encoding)


@dataclass(frozen=True, slots=True)
class Found:
    """A file to read.

    Attributes:
        path: what the user is shown, see `Document.path`.
        file: absolute path for the system, `-` for standard input.
        size: bytes, None for a stream.
        kind: `text`, `rows` or `converted`, by suffix.
        named: the user named this very file, so that passing it over is a failure.
        stream: standard input or a pipe: readable once.
    """

    path: str
    file: str
    size: int | None
    kind: str
    named: bool = False
    stream: bool = False


def filters(patterns: Iterable[str], flag: str) -> Globs | None:
    """The user's globs, None without any.

    Raises:
        QwenchError: a pattern means nothing (code 2).
    """
    globs = []
    for pattern in patterns:
        glob = parse_glob(pattern)
        if glob is None:
            raise QwenchError(f"{flag} has a pattern that matches nothing: `{pattern}`", code=2)
        globs.append(glob)
    return Globs(globs) if globs else None


def shown(path: str) -> str:
    """`path` without bytes that are not UTF-8: those become `\\xff` escapes."""
    if path.isascii():
        return path
    try:
        path.encode()
    except UnicodeEncodeError:
        return os.fsencode(path).decode("utf-8", "backslashreplace")
    return path


def quoted(path: str) -> str:
    """`path` in backticks for a message of one line: control characters are escaped."""
    text = shown(path)
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return f"`{text}`"


def kind_of(name: str) -> str:
    """`rows`, `converted` or `text`, by the suffix of `name`."""
    lower = name.lower()
    if lower.endswith(ROW_SUFFIXES):
        return "rows"
    return "converted" if lower.endswith(CONVERTED_SUFFIXES) else "text"


def lost(item: Found, error: OSError) -> Warned:
    """The line for a file that was found and cannot be read."""
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return Warned("vanished", f"{quoted(item.path)} vanished before it was read", item.path, True)
    reason = "permission denied" if isinstance(error, PermissionError) else (error.strerror or str(error)).lower()
    return Warned("unreadable", f"{quoted(item.path)} cannot be read: {reason}", item.path, True)
