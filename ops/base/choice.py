"""A choice made for the user, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Choice:
    """A value and why it was taken."""

    value: Any
    reason: str
