"""Which writer answers: a model on this machine, or a server."""

from __future__ import annotations

from ..base.runtime import Runtime
from ..models.hub import Checkpoint
from .local import LocalWriter
from .remote import RemoteWriter
from .writer import Writer


def writer_of(
    model: str | Checkpoint, runtime: Runtime, *, context: int = 0, slots: int = 1, streams: int = 0
) -> Writer:
    """The writer that `--engine` asks for, nothing loaded yet.

    Args:
        model: of a server the served name, "" for the only one.
        context, slots, streams: see `load_causal`. With one slot a server's answer comes in pieces.

    Raises:
        QwenchError: an address that cannot be asked.
    """
    if runtime.server:
        return RemoteWriter(model if isinstance(model, str) else model.name, runtime, live=slots == 1)
    return LocalWriter(model, runtime, context=context, slots=slots, streams=streams)
