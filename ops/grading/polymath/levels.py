"""The benchmark's levels, and the accuracy that weighs them."""

from __future__ import annotations

from collections.abc import Mapping

from ...base.errors import QwenchError

#: level -> its weight
WEIGHTS = {"low": 1, "medium": 2, "high": 4, "top": 8}
#: questions of a language and level
QUESTIONS = 125
#: the reference's scorer has another name for one of them
MIDDLE = "middle"


def level_of(name: str) -> str | None:
    """A level by either of its names, None for what is none."""
    name = "medium" if name == MIDDLE else name
    return name if name in WEIGHTS else None


def check_levels(names: tuple[str, ...]) -> tuple[str, ...]:
    """Levels by their own names.

    Raises:
        QwenchError: one is none.
    """
    if unknown := [n for n in names if level_of(n) is None]:
        raise QwenchError(f"PolyMath has no level `{unknown[0]}`", f"use {', '.join(WEIGHTS)}", code=2)
    return tuple(level_of(n) or n for n in names)


def dw_acc(accuracy: Mapping[str, float | None]) -> float | None:
    """The difficulty-weighted accuracy of levels; None while one is missing, never a smaller number."""
    if any(accuracy.get(level) is None for level in WEIGHTS):
        return None
    return sum(weight * accuracy[level] for level, weight in WEIGHTS.items()) / sum(WEIGHTS.values())  # type: ignore[operator]
