"""Columns of carried fields in a table that exists: added when a field comes, retyped when its values change kind."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from .errors import retried
from .schema import MOST_COLUMNS, NAMES, RETYPED, TYPES, joined

SQL = {pa.float64(): "double", pa.string(): "string"}


def fit_columns(table: Any, wanted: dict[str, pa.DataType]) -> list[str]:
    """Make room for columns of these types; what the table holds already is null in new ones.

    A retyped column is made beside the old one, which is then dropped, and the new one takes its name: `mend` ends
    what a kill has cut short.

    Returns:
        Columns for which there is no room: the table has MOST_COLUMNS of them.
    """
    room = MOST_COLUMNS - len([n for n in table.schema.names if n not in NAMES])
    there = set(table.schema.names)
    fresh = [name for name in wanted if name not in there]
    if fresh[:room]:
        retried(table, lambda: table.add_columns([pa.field(name, wanted[name]) for name in fresh[:room]]))
    for name in there & set(wanted):
        old = table.schema.field(name).type
        new = joined(old, wanted[name]) if old in TYPES.values() else old
        if new == old:
            continue
        value = f"cast(`{name}` as {SQL[new]})"
        retried(table, lambda name=name, value=value: table.add_columns({RETYPED + name: value}))
        retried(table, lambda name=name: table.drop_columns([name]))
        _rename(table, name)
    return fresh[room:] if room >= 0 else fresh


def mend(table: Any) -> None:
    """End a change of type that was cut short."""
    for name in [n for n in table.schema.names if n.startswith(RETYPED)]:
        if name.removeprefix(RETYPED) in table.schema.names:
            retried(table, lambda name=name: table.drop_columns([name]))
        else:
            _rename(table, name.removeprefix(RETYPED))


def _rename(table: Any, name: str) -> None:
    retried(table, lambda: table.alter_columns({"path": RETYPED + name, "rename": name}))
