"""The eager kernels through torch.compile, each compiled at its first call (seconds; inductor keeps it on disk)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from . import eager


@cache
def _compiled(name: str) -> Callable[..., Any]:
    import torch

    return torch.compile(getattr(eager, name), dynamic=None)


def __getattr__(name: str) -> Callable[..., Any]:
    if name.startswith("_") or not callable(getattr(eager, name, None)):
        raise AttributeError(name)
    return _compiled(name)
