"""What is in a checkpoint: the work behind `qwench inspect`."""

from __future__ import annotations

from .base.events import Events, Finished
from .base.runtime import PLAIN, Runtime
from .conversion.describe import describe, describe_adapter
from .models.hub import adapter_at, open_source


def inspect(path: str, runtime: Runtime = PLAIN, tensors: bool = False) -> Events:
    """Describe a checkpoint without reading a tensor.

    Finished has format, architecture, parameters, bytes, dtypes, layout, tying, vocabulary, head, gates, streams,
    problems, and with `tensors` every tensor; of an adapter's folder also `adapter`, what it is and of which base.

    Raises:
        QwenchError: no checkpoint, or a damaged one.
    """
    folder = adapter_at(path, runtime.revision, runtime.offline)
    if folder is not None:
        yield Finished(describe_adapter(folder, tensors))
        return
    yield Finished(describe(open_source(path, runtime.revision, runtime.offline), tensors))
