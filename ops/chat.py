"""The door of `qwench chat`: a conversation, many prompts, and the same prompts at several budgets."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from .base.events import Events
from .jobs.job import Job, JobOptions
from .jobs.prompts import Answers
from .jobs.rows import Table
from .writing import many as sweeps
from .writing.right import right
from .writing.session import Chat, ChatOptions

__all__ = ["Chat", "ChatOptions", "JobOptions", "many", "right", "sweep"]


def many(options: ChatOptions, job: JobOptions, stdin: BinaryIO | None = None) -> Events:
    """Answer every row of prompts, several at a time, in the order of the rows; see `Job.run` and `Answers`.

    Raises:
        QwenchError: see `Job.run`; a model that cannot do what is asked.
    """
    yield from Job(Answers(options), job, stdin).run()


def sweep(
    options: ChatOptions,
    rows: str,
    budgets: list[str],
    answer_field: str = "answer",
    plot: Path | None = None,
    stdin: BinaryIO | None = None,
) -> Events:
    """Answer the same rows of prompts at several budgets of thinking; see `writing.many.sweep`.

    Raises:
        QwenchError: the rows cannot be read; see `writing.many.sweep`.
    """
    table = [(row.place, row.value) for row in Table(rows, stdin)]
    yield from sweeps.sweep(options, table, budgets, answer_field, plot)
