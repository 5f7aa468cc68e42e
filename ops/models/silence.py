"""The one place that keeps transformers and what it loads from talking."""

from __future__ import annotations


def silence_transformers() -> None:
    """No progress bars and no warnings of the library on standard error."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
