"""The door of `qwench reliability`: sampled answers measured, improvements fitted, rationales made."""

from __future__ import annotations

from dataclasses import replace
from typing import BinaryIO

from .base.events import Events
from .grading.reliability import fit as fitting
from .grading.reliability import measure as measuring
from .grading.reliability import rationales as making
from .grading.reliability.extract import Extraction
from .grading.reliability.fit import FitOptions
from .grading.reliability.measure import MeasureOptions
from .grading.reliability.rationales import RationaleOptions
from .grading.reliability.samples import Reading

__all__ = ["Extraction", "FitOptions", "MeasureOptions", "RationaleOptions", "Reading", "fit", "measure", "rationales"]


def measure(options: MeasureOptions, stdin: BinaryIO | None = None) -> Events:
    """Accuracy and calibration; see `grading.reliability.measure`."""
    yield from measuring.measure(options, stdin)


def fit(options: FitOptions, stdin: BinaryIO | None = None) -> Events:
    """The line over tasks; see `grading.reliability.fit`."""
    yield from fitting.fit(options, stdin)


def reading(options: RationaleOptions, rows: str) -> RationaleOptions:
    """Options with a job that reads these rows; the flag of that name says what is written."""
    return replace(options, job=replace(options.job, rows=rows))


def rationales(options: RationaleOptions, stdin: BinaryIO | None = None) -> Events:
    """Rationales by a teacher; see `grading.reliability.rationales`."""
    yield from making.rationales(options, stdin)
