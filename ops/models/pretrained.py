"""The one door to transformers' auto classes: quiet, from the disk, and never with code of the model's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..base.errors import QwenchError


def silence_transformers() -> None:
    """No progress bars and no warnings of the library on standard error."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def pretrained(auto: str, folder: Path, **options: Any) -> Any:
    """What `auto` (the name of an auto class of transformers) makes of a folder; `options` are from_pretrained's.

    Raises:
        QwenchError: it would need Python code that lies in the folder.
        QwenchError: transformers cannot; its own first line is told.
    """
    import transformers

    silence_transformers()
    kind = getattr(transformers, auto)
    try:
        # Left open, transformers asks on stdout and takes an answer from stdin, which here are data.
        return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **options)
    except Exception as error:  # configs are checked deep inside, by whatever meets a value first
        if "trust_remote_code" not in str(error):
            line = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise QwenchError(f"transformers cannot load the model ({line}): `{folder}`") from error
        raise QwenchError(
            f"the model needs Python code that comes with it (auto_map), and qwench never runs a model's "
            f"code: `{folder}`",
            "take a checkpoint of an architecture that the installed transformers knows, or a newer transformers",
        ) from error
