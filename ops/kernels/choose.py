"""Which kernels the models run on: `--kernels`, with its reason."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ..base.choice import Choice
from ..base.errors import QwenchError

if TYPE_CHECKING:
    from torch import Tensor

KERNELS = ("auto", "eager", "compiled", "triton", "native")
#: steps of the models that have kernels
STEPS = ("rms_norm", "norm_rotate", "silu_mul", "gated", "join", "sequence_attention")
_active = "eager"
_table: dict[str, Callable[..., Any]] = {}


def pick_kernels(kernels: str, device: str) -> Choice:
    """`auto` takes the C kernels on the CPU and Triton on CUDA where they can be had, else eager PyTorch.

    Raises:
        QwenchError: an unknown name, or kernels that do not run on the device here.
    """
    if kernels not in KERNELS:
        raise QwenchError(f"unknown kernels: `{kernels}`", f"use {', '.join(KERNELS[:-1])} or {KERNELS[-1]}", code=2)
    if kernels in ("eager", "compiled"):
        return Choice(kernels, "as asked")
    reasons = {"native": _no_native(device), "triton": no_triton(device)}
    if kernels != "auto":
        if reason := reasons[kernels]:
            raise QwenchError(f"--kernels {kernels} cannot be used: {reason}", "leave it out, or use --kernels eager")
        return Choice(kernels, "as asked")
    wanted = "native" if device == "cpu" else "triton"
    if reason := reasons[wanted]:
        return Choice("eager", reason)
    return Choice(wanted, "C kernels built for this CPU" if wanted == "native" else "Triton runs on this GPU")


def _no_native(device: str) -> str | None:
    from .native import library as native_library

    if device != "cpu":
        return f"the C kernels are for the CPU, and the device is `{device}`"
    found = native_library.available()
    return None if found.value else found.reason


@cache
def no_triton(device: str) -> str | None:
    """Why Triton cannot run on a device, None when it can; its interpreter stands in on the CPU, for tests."""
    if find_spec("triton") is None:
        return "triton is not installed"
    if device.startswith("cuda"):
        return None
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None
    return f"Triton needs CUDA, and the device is `{device}`"


def use(kernels: str) -> None:
    """Set what the models of this process run on from now on: a value of `pick_kernels`."""
    global _active, _table
    _active, _table = kernels, _functions(kernels)


def active() -> str:
    """The kernels in use."""
    return _active


def kernel(name: str, like: Tensor) -> Callable[..., Any] | None:
    """The function for a step in the kernels in use; None for eager ones, and where they are not made for `like`."""
    import torch

    if _active == "native" and (like.dtype != torch.float32 or like.device.type != "cpu"):
        return None
    return _table.get(name)


def _functions(kernels: str) -> dict[str, Callable[..., Any]]:
    if kernels == "native":
        from .native import rows as found
    elif kernels == "triton":
        from .triton import elementwise as found
    elif kernels == "compiled":
        from . import compiled as found
    else:
        return {}
    return {name: getattr(found, name) for name in STEPS if hasattr(found, name)}
