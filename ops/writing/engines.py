"""Which writer answers: a model on this machine, or a server."""

from __future__ import annotations

from ..base.errors import QwenchError
from ..base.runtime import Runtime
from ..models.hub import Checkpoint
from .local import LocalWriter
from .writer import Writer


def is_server(engine: str) -> bool:
    """`--engine` names a server by its address."""
    return engine.startswith(("http://", "https://"))


def writer_of(
    model: str | Checkpoint, runtime: Runtime, *, context: int = 0, slots: int = 1, streams: int = 0
) -> Writer:
    """The writer that `--engine` asks for, nothing loaded yet.

    Args:
        context, slots, streams: see `load_causal`.

    Raises:
        QwenchError: an address that cannot be asked.
    """
    if is_server(runtime.engine):
        raise QwenchError(f"servers cannot be asked yet: `{runtime.engine}`", "use --engine torch or llama.cpp", code=2)
    return LocalWriter(model, runtime, context=context, slots=slots, streams=streams)
