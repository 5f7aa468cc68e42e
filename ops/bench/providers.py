"""Who computes a kernel: ours, PyTorch's and other packages', each present or absent for a reason."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ..base.errors import QwenchError
from ..kernels.choose import no_triton

if TYPE_CHECKING:
    from torch import dtype


@dataclass(frozen=True, slots=True)
class Provider:
    """An implementation of some kernels.

    Attributes:
        find: (function name, dtype, device) -> the function, or the reason why there is none.
    """

    name: str
    find: Callable[[str, dtype, str], Callable[..., Any] | str]


def _eager(function: str, kind: dtype, device: str) -> Callable[..., Any] | str:
    from ..kernels import eager

    return getattr(eager, function)


def _compile(function: str, kind: dtype, device: str) -> Callable[..., Any] | str:
    import shutil

    from ..kernels import compiled

    if device == "cpu" and not any(map(shutil.which, ("g++", "clang++", "c++"))):
        return "torch.compile needs a C++ compiler on the CPU"
    return getattr(compiled, function)


def _native(function: str, kind: dtype, device: str) -> Callable[..., Any] | str:
    import torch

    from ..kernels.native import library as native_library
    from ..kernels.native import rows as native
    from ..kernels.native import step as native_step

    if device != "cpu":
        return "the C kernels are for the CPU"
    if not (found := native_library.available()).value:
        return found.reason
    if function == "linear":
        return lambda x, weight: native.linear(x.float(), weight).to(x.dtype)
    if kind != torch.float32:
        return f"its activations are float32, not {str(kind)[6:]}"
    if function in ("decode_attention", "prefix_attention"):
        return native_step.attend
    return getattr(native, function, "no C version")


def _triton(function: str, kind: dtype, device: str) -> Callable[..., Any] | str:
    if reason := no_triton(device):
        return reason
    if device == "cpu":
        return "Triton's interpreter is for tests, its time says nothing"
    import torch

    from ..kernels.triton import elementwise as triton_kernels

    if function not in ("decode_attention", "prefix_attention"):
        return getattr(triton_kernels, function, "no Triton version")

    @cache
    def on_device(*lengths: int) -> Any:
        return torch.tensor(lengths, device=device)

    def attend(q: Any, keys: Any, values: Any, lengths: list[int], *prefix: Any) -> Any:
        # As in a step, where they are on the device before the first layer.
        return triton_kernels.prefix_attention(q, keys, values, on_device(*lengths), *prefix)

    return attend


def _torch(function: str, kind: dtype, device: str) -> Callable[..., Any] | str:
    import torch

    if function == "rms_norm":
        return lambda x, weight, eps: torch.nn.functional.rms_norm(x, x.shape[-1:], weight, eps)
    if function == "linear":
        return torch.nn.functional.linear
    return "torch has no such function"


def _sdpa(backend: str, function: str, kind: dtype, device: str) -> Callable[..., Any] | str:
    import torch
    from torch.nn import functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from ..kernels import eager

    if not function.endswith("attention"):
        return "not an attention"
    if device == "cpu" and backend in ("efficient", "cudnn"):
        return "needs CUDA"
    kinds = {
        "flash": SDPBackend.FLASH_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "math": SDPBackend.MATH,
    }

    def chosen() -> AbstractContextManager[Any]:
        return sdpa_kernel(kinds[backend]) if backend else nullcontext()

    def causal(q: Any, k: Any, v: Any, gate: Any) -> Any:
        with chosen():
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
        return eager.gated(out.transpose(1, 2).flatten(0, 1).flatten(1), gate, q.shape[1])

    def decode(q: Any, keys: Any, values: Any, lengths: Any, *prefix: Any) -> Any:
        if prefix:
            # The prefix of a stream is copied to its rows: what a model without a kernel for it does.
            repeat = len(keys) // len(prefix[0])
            keys, values = (
                torch.cat((p.repeat_interleave(repeat, 0), t), 2) for p, t in zip(prefix, (keys, values), strict=True)
            )
        with chosen():
            return F.scaled_dot_product_attention(q.unflatten(1, (keys.shape[1], -1)), keys, values).flatten(1)

    return causal if function == "gated_attention" else decode


def _liger(function: str, kind: dtype, device: str) -> Callable[..., Any] | str:
    if find_spec("liger_kernel") is None:
        return "liger-kernel is not installed"
    if device == "cpu":
        return "liger-kernel needs CUDA"
    if function == "rms_norm":
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction

        return lambda x, weight, eps: LigerRMSNormFunction.apply(x, weight, eps, 0.0, "llama", False)
    if function == "silu_mul":
        from liger_kernel.ops.swiglu import LigerSiLUMulFunction

        return lambda gate_up: LigerSiLUMulFunction.apply(*(t.contiguous() for t in gate_up.chunk(2, -1)))
    return "liger-kernel has no such kernel"


def _flash(function: str, kind: dtype, device: str) -> Callable[..., Any] | str:
    import torch

    if find_spec("flash_attn") is None:
        return "flash-attn is not installed"
    if device == "cpu":
        return "flash-attn needs CUDA"
    if kind not in (torch.float16, torch.bfloat16):
        return f"flash-attn does not take {str(kind)[6:]}"
    from ..kernels import eager

    if function != "gated_attention":
        return "not a causal attention over whole sequences"
    from flash_attn import flash_attn_func

    def causal(q: Any, k: Any, v: Any, gate: Any) -> Any:
        out = flash_attn_func(*(t.transpose(1, 2) for t in (q, k, v)), causal=True)
        return eager.gated(out.flatten(0, 1).flatten(1), gate, q.shape[1])

    return causal


PROVIDERS = {
    p.name: p
    for p in (
        Provider("eager", _eager),
        Provider("compile", _compile),
        Provider("native", _native),
        Provider("triton", _triton),
        Provider("torch", _torch),
        Provider("sdpa", partial(_sdpa, "")),
        *(Provider(f"sdpa-{name}", partial(_sdpa, name)) for name in ("math", "flash", "efficient", "cudnn")),
        Provider("liger", _liger),
        Provider("flash-attn", _flash),
    )
}


def providers(names: list[str]) -> list[Provider]:
    """The providers of these names, all when there are none; QWENCH_BENCH_PROVIDERS names a module with more.

    That module has PROVIDERS, a dict of name -> Provider.

    Raises:
        QwenchError: an unknown name, or a module that cannot be imported.
    """
    known = dict(PROVIDERS)
    if module := os.environ.get("QWENCH_BENCH_PROVIDERS"):
        try:
            known |= importlib.import_module(module).PROVIDERS
        except (ImportError, AttributeError) as error:
            message = f"QWENCH_BENCH_PROVIDERS cannot be used ({error}): `{module}`"
            raise QwenchError(message, "name a module on PYTHONPATH that has PROVIDERS") from error
    if unknown := [n for n in names if n not in known]:
        raise QwenchError(f"unknown provider: `{unknown[0]}`", f"use {', '.join(known)}", code=2)
    return [known[n] for n in names] if names else list(known.values())
