"""The one error class of the house: a sentence, a next step and an exit code."""

from __future__ import annotations


class QwenchError(Exception):
    """Expected trouble, told in one sentence.

    Args:
        message: what went wrong and with which thing, one sentence without a full stop.
        hint: the next step, for example a flag or a command; None when there is none.
        code: process exit code: 1 failed, 2 usage, 3 "ran, and the answer is no".
    """

    def __init__(self, message: str, hint: str | None = None, code: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code
