"""Fields of the input beside our own: ours keep their names, and theirs are still there under another."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

#: put before the name of a field of the input that is also one of ours
PREFIX = "input_"


def kept_name(name: str, own: Collection[str], prefix: str = PREFIX) -> str:
    """What a field of the input is called beside fields named `own`; two names never become one."""
    bare = name
    while bare.startswith(prefix):
        bare = bare[len(prefix) :]
    return prefix + name if bare in own else name


def beside(given: Mapping[str, Any], ours: Mapping[str, Any], prefix: str = PREFIX) -> dict[str, Any]:
    """Fields of the input, then ours."""
    return {kept_name(name, ours, prefix): value for name, value in given.items()} | dict(ours)
