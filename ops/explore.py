"""The door of `qwench explore`: solutions gone on with from their states, rows to train on, and training."""

from __future__ import annotations

from typing import BinaryIO

from .base.events import Events
from .grading.explore import rows as making
from .grading.explore import run as running
from .grading.explore.rows import RowsOptions
from .grading.explore.run import ExploreOptions
from .training.preference_train import PreferenceOptions, PreferenceTraining
from .training.ranks import rank

__all__ = ["ExploreOptions", "PreferenceOptions", "RowsOptions", "rank", "rows", "run", "train"]


def run(options: ExploreOptions, stdin: BinaryIO | None = None) -> Events:
    """One episode; see `grading.explore.run`."""
    yield from running.run(options, stdin)


def rows(options: RowsOptions, stdin: BinaryIO | None = None) -> Events:
    """Rows of a run; see `grading.explore.rows`."""
    yield from making.rows(options, stdin)


def train(options: PreferenceOptions, stdin: BinaryIO | None = None) -> Events:
    """Train a model on rows of its run; see `PreferenceTraining`.

    Raises:
        QwenchError: see there.
    """
    yield from PreferenceTraining(options).run(stdin)
