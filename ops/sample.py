"""The door of `qwench sample`: many prompts, several samples of each, kept as they are done."""

from __future__ import annotations

from typing import BinaryIO

from .base.events import Events
from .jobs.job import Job, JobOptions
from .jobs.samples import SampleOptions, Samples
from .writing.session import ChatOptions

__all__ = ["ChatOptions", "JobOptions", "SampleOptions", "sample"]


def sample(options: SampleOptions, stdin: BinaryIO | None = None) -> Events:
    """Draw samples of every prompt; see `Job.run` and `Samples`.

    Raises:
        QwenchError: see `Job.run`; a model that cannot do what is asked.
    """
    yield from Job(Samples(options), options.job, stdin).run()
