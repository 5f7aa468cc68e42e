"""Several processes of one run, as torchrun and accelerate start them: the first decides, the others hear of it."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import Any

from ..base.errors import QwenchError

#: how long the others wait for the first
PATIENCE = timedelta(minutes=30)
_decisions = itertools.count()


def rank() -> int:
    """Number of this process where torchrun or accelerate started several."""
    return int(os.environ.get("RANK", "0"))


def first(decide: Callable[[], Any]) -> Any:
    """What the first process decides, for all: it alone runs `decide`, and the others wait until it has.

    Every process calls it at the same points of a run.

    Args:
        decide: returns something JSON-able.

    Raises:
        QwenchError: the first one's, in every process.
    """
    key = f"decision {next(_decisions)}"
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return decide()
    store = _store()
    if rank() > 0:
        store.wait([key], PATIENCE)
        told = json.loads(store.get(key))
        if "error" in told:
            raise QwenchError(*told["error"])
        return told["value"]
    told = {"error": ["the first process failed", None, 1]}
    try:
        value = decide()
        told = {"value": value}
        return value
    except QwenchError as error:
        told = {"error": [error.message, error.hint, error.code]}
        raise
    finally:
        store.set(key, json.dumps(told))


@cache
def _store() -> Any:
    """The launcher's key-value store, which is there before any process group; a restart begins with its own keys."""
    import torch.distributed as group

    store, _, _ = next(group.rendezvous("env://"))
    return group.PrefixStore(f"qwench {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
