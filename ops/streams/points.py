"""Points of the parallel scaling law from a .csv, .json or .jsonl file."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..base.errors import QwenchError
from ..base.parse import json_value
from ..base.paths import local
from ..text.rows import Malformed, json_lines
from .law import Point

#: column of a Point -> names it may have
COLUMNS = {"parameters": ("n", "parameters"), "streams": ("p", "streams"), "loss": ("loss",)}
UNITS = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}


def number(text: Any) -> float:
    """A number, or text such as 0.6B, 535_813_376 or 1.7e9.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(text, bool) or text is None:
        raise ValueError(text)
    if not isinstance(text, str):
        return float(text)
    bare = text.strip().replace("_", "")
    if re.fullmatch(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?[A-Za-z]?", bare):
        bare = bare.replace(",", "")
    unit = UNITS.get(bare[-1:].lower())
    return float(bare[:-1]) * unit if unit else float(bare)


def read_points(path: Path) -> list[Point]:
    """The points of a file, in its order.

    Raises:
        QwenchError: no such file, another ending, damaged, without a column, or with a value that is no number.
    """
    local(path, "the file of points")
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".json", ".jsonl"):
        raise QwenchError(f"points cannot be read from this kind of file: `{path}`", "use .csv, .json or .jsonl", 2)
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise QwenchError(f"the points cannot be read ({reason}): `{path}`") from error
    return [_point(row, place, path) for place, row in _rows(text, suffix, path)]


def _rows(text: str, suffix: str, path: Path) -> Iterable[tuple[str, Any]]:
    """(place, row) of each row of a file."""
    if suffix == ".csv":
        return [(f"row {i}", row) for i, row in enumerate(csv.DictReader(io.StringIO(text, newline="")), 1)]
    if suffix == ".jsonl":
        rows = list(json_lines(io.BytesIO(text.encode())))
        if bad := next(((i, row) for i, row in rows if isinstance(row, Malformed)), None):
            raise QwenchError(f"line {bad[0]} of the points {bad[1]}: `{path}`")
        return [(f"line {i}", row) for i, row in rows]
    try:
        value = json_value(text)
    except ValueError as error:
        raise QwenchError(f"the points are not JSON ({error}): `{path}`") from error
    value = value.get("points") if isinstance(value, dict) else value
    if not isinstance(value, list):
        raise QwenchError(f"the file holds no list of points: `{path}`", "give a list, or an object with `points`")
    return [(f"point {i}", row) for i, row in enumerate(value, 1)]


def _point(row: Any, place: str, path: Path) -> Point:
    if not isinstance(row, dict):
        raise QwenchError(f"{place} is no object: `{path}`", "give n, p and loss")
    low = {str(k).strip().lower(): v for k, v in row.items()}
    values = {}
    for name, columns in COLUMNS.items():
        found = next((c for c in columns if c in low), None)
        if found is None:
            raise QwenchError(f"{place} has no column `{columns[0]}`: `{path}`", "give n, p and loss")
        try:
            values[name] = number(low[found])
        except (TypeError, ValueError):
            raise QwenchError(f"{place} has a `{found}` that is no number: `{low[found]}` in `{path}`") from None
    if values["streams"] != values["streams"] // 1:
        raise QwenchError(f"{place} has {values['streams']:g} streams, which is no whole number: `{path}`")
    return Point(values["parameters"], int(values["streams"]), values["loss"])
