"""The door of `qwench explore`: solutions gone on with from their states, and rows to train on."""

from __future__ import annotations

from typing import BinaryIO

from .base.events import Events
from .grading.explore import rows as making
from .grading.explore import run as running
from .grading.explore.rows import RowsOptions
from .grading.explore.run import ExploreOptions

__all__ = ["ExploreOptions", "RowsOptions", "rows", "run"]


def run(options: ExploreOptions, stdin: BinaryIO | None = None) -> Events:
    """One episode; see `grading.explore.run`."""
    yield from running.run(options, stdin)


def rows(options: RowsOptions, stdin: BinaryIO | None = None) -> Events:
    """Rows of a run; see `grading.explore.rows`."""
    yield from making.rows(options, stdin)
