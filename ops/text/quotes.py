"""Whether the quotes of a table enclose its cells, or are characters of them, as in most of what is parted by tabs."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator


def literal_quotes(lines: Callable[[], io.TextIOWrapper], delimiter: str) -> bool:
    """Whether quotes are to be read as characters.

    They are when some line has a quote that is not closed on it, and taking every line for a row fits the header no
    worse than cells of several lines do. A header in quotes says that quotes enclose. Between commas, where cells of
    several lines are usual, such cells must break the table, and single lines must fit without exception.

    Args:
        lines: opens the table; called twice at most.
    """
    with lines() as text:
        told = _told(_filled(text), delimiter)
    if told is None:
        return False
    width, unfit = told
    with lines() as text:
        broken, misfits = _enclosed(text, delimiter, width)
    if delimiter != "\t":
        return bool(broken) and not unfit
    return unfit <= broken + misfits


def _enclosed(text: Iterable[str], delimiter: str, width: int) -> tuple[int, int]:
    """(rows that break, rows with another number of columns) where quotes enclose cells."""
    rows = csv.reader(text, delimiter=delimiter, strict=True)
    broken = misfits = 0
    while True:
        try:
            row = next(rows, None)
        except csv.Error:
            broken += 1
            continue
        if row is None:
            return broken, misfits
        misfits += bool(row) and len(row) != width


def _filled(lines: Iterable[str]) -> Iterator[str]:
    return (line for line in lines if line.strip("\r\n"))


def _told(lines: Iterator[str], delimiter: str) -> tuple[int, int] | None:
    """(columns, lines with another number of them) of a table that has open quotes; None when quotes cannot mislead."""
    header = next(lines, "")
    if header.startswith('"'):
        return None
    width = header.count(delimiter) + 1
    unfit, open_ = 0, False
    for line in lines:
        unfit += line.count(delimiter) + 1 != width
        open_ = open_ or ('"' in line and not _closed(line, delimiter))
    return (width, unfit) if open_ else None


def _closed(line: str, delimiter: str) -> bool:
    try:
        list(csv.reader([line], delimiter=delimiter, strict=True))
    except csv.Error:
        return False
    return True
