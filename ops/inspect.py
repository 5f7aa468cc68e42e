"""What is in a checkpoint: the work behind `qwench inspect`."""

from __future__ import annotations

from .base.events import Events, Finished
from .base.runtime import Runtime
from .conversion.describe import describe
from .models.hub import open_source


def inspect(path: str, runtime: Runtime, tensors: bool = False) -> Events:
    """Describe a checkpoint without reading a tensor.

    Finished has format, architecture, parameters, bytes, dtypes, layout, tying, vocabulary, head, gates, streams,
    problems, and with `tensors` every tensor.

    Raises:
        QwenchError: no checkpoint, or a damaged one.
    """
    yield Finished(describe(open_source(path, runtime.revision, runtime.offline), tensors))
