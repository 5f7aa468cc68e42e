"""Which kernels the models run on: `--kernels`, with its reason."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ..base.choice import Choice
from ..base.errors import QwenchError
from ..base.events import Advanced, Events, Started, Warned
from ..base.runtime import Runtime
from . import parscale, plain

if TYPE_CHECKING:
    from torch import dtype

KERNELS = ("auto", "eager", "compiled", "triton", "native")
Step = Callable[..., Any]


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


def for_dtype(kernels: Choice, dtype: str) -> Choice:
    """The kernels that a model of a dtype really runs on: those in C compute in float32 alone."""
    if kernels.value != "native" or dtype == "float32":
        return kernels
    return Choice("eager", f"the C kernels compute in float32, and the model in {dtype}")


def prepared(runtime: Runtime) -> Events:
    """Tell of a build of the C kernels that takes long, before `pick_kernels` waits for it without a word.

    Where `--device auto` turns out to be a GPU nothing is built.
    """
    import torch

    kernels, device = runtime.kernels, runtime.device
    elsewhere = device == "auto" and (torch.cuda.is_available() or torch.backends.mps.is_available())
    if kernels not in ("auto", "native") or device not in ("auto", "cpu") or elsewhere:
        return
    from .native import library as native_library

    told, stage = False, "build kernels"
    for _ in native_library.prepare():
        yield Advanced(stage, 0, detail="once for this machine") if told else Started(stage)
        told = True
    if told:
        yield Started("load")
    if words := native_library.warning():
        yield Warned("kernels", words)


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


@dataclass(frozen=True, slots=True)
class Kernels:
    """The steps that one model runs, looked up once when it is loaded; what its kernels lack is plain PyTorch.

    Attributes:
        name: a value of `pick_kernels`.
        sequence_attention: sequences of any length and their gates in one launch; None where nothing does that.
    """

    name: str = "eager"
    rms_norm: Step = plain.rms_norm
    norm_rotate: Step = plain.norm_rotate
    silu_mul: Step = plain.silu_mul
    gated: Step = plain.gated
    join: Step = parscale.join
    sequence_attention: Step | None = None


#: of a model without kernels
EAGER = Kernels()


def bind(kernels: str, dtype: dtype, device: str) -> Kernels:
    """The kernels of a model that computes in a dtype on a device.

    Args:
        kernels: a value of `pick_kernels`.
    """
    import torch

    if kernels == "native":
        from .native import rows as found
    elif kernels == "triton":
        from .triton import elementwise as found
    elif kernels == "compiled":
        from . import compiled as found
    else:
        return Kernels(kernels)
    steps = {f.name: getattr(found, f.name) for f in fields(Kernels)[1:] if hasattr(found, f.name)}
    if kernels == "native" and (dtype != torch.float32 or device != "cpu"):
        steps = {}
    if device.startswith("cuda") and dtype.itemsize != 2:
        steps.pop("sequence_attention", None)  # made for tensor cores
    return Kernels(kernels, **steps)
