"""Device, dtype and threads, each with the reason for the choice."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from functools import cache
from pathlib import Path

from ..base.choice import Choice
from ..base.errors import QwenchError

DTYPES = ("float32", "bfloat16", "float16")
# torch asks Linux for huge pages for its large blocks, if this is set before its first one: weights were read 5 to 25 %
# faster.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def pick_device(device: str = "auto") -> Choice:
    """`auto` takes CUDA, then MPS, then the CPU; a name (`cpu`, `cuda`, `cuda:1`, `mps`) is checked.

    A CUDA device with a number becomes the current one of this process.

    Raises:
        QwenchError: the named device is not there.
    """
    import torch

    if device == "auto":
        if torch.cuda.is_available():
            return Choice("cuda", f"first CUDA device: {torch.cuda.get_device_name(0)}")
        if torch.backends.mps.is_available():
            return Choice("mps", "Apple GPU")
        return Choice("cpu", "no GPU that torch can use")
    kind, _, index = device.partition(":")
    there = {
        "cpu": not index,
        "cuda": torch.cuda.is_available() and (not index or int(index) < torch.cuda.device_count()),
        "mps": torch.backends.mps.is_available() and not index,
    }
    if kind not in there:
        raise QwenchError(f"unknown device: `{device}`", "use auto, cpu, cuda, cuda:N or mps", code=2)
    if not there[kind]:
        raise QwenchError(f"torch sees no such device: `{device}`", "use --device auto")
    if kind == "cuda" and index:
        # Triton launches its kernels, and graphs are captured, on the current device.
        torch.cuda.set_device(int(index))
    return Choice(device, "as asked")


@cache
def cpu_has(flag: str) -> bool:
    """Whether /proc/cpuinfo names a feature; False where there is no such file."""
    try:
        return flag in Path("/proc/cpuinfo").read_text("utf-8").split()
    except OSError:
        return False


@cache
def cpu_bf16_units() -> str | None:
    """Name of the CPU's bfloat16 matrix or dot-product unit, None where bfloat16 arithmetic is emulated."""
    names = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 BF16"}
    if platform.machine() in ("aarch64", "arm64"):
        names = {"bf16": "Arm BF16"}
    return next((name for flag, name in names.items() if cpu_has(flag)), None)


def cpu_int8_units() -> bool:
    """Whether the CPU multiplies 8-bit integers itself; else PyTorch's int8 product is slower than float32's."""
    return any(map(cpu_has, ("amx_int8", "avx512_vnni", "avx_vnni", "i8mm", "asimddp")))


def pick_dtype(dtype: str, device: str, stored: str) -> Choice:
    """`auto` keeps the stored dtype where the hardware computes in it at full speed, else float32.

    On a CPU without bf16 units bfloat16 matmul was measured 7 to 70 times slower than float32.

    Args:
        dtype: auto, float32, bfloat16 or float16.
        device: as from `pick_device`.
        stored: dtype of the checkpoint's matrices.
    """
    import torch

    if dtype != "auto":
        if dtype not in DTYPES:
            raise QwenchError(f"unknown dtype: `{dtype}`", f"use auto, {', '.join(DTYPES)}", code=2)
        return Choice(dtype, "as asked")
    if stored not in ("bfloat16", "float16"):
        return Choice("float32", f"the weights are stored in {stored}")
    if device.startswith("cuda"):
        if stored == "bfloat16" and torch.cuda.get_device_capability(device)[0] < 8:
            return Choice("float32", "this GPU has no bfloat16 units")
        return Choice(stored, "as the weights are stored, and the GPU computes in it")
    if device == "cpu" and stored == "bfloat16" and (unit := cpu_bf16_units()):
        return Choice("bfloat16", f"as the weights are stored, and this CPU has {unit} units")
    return Choice("float32", f"the weights are stored in {stored}, which this device is slow in")


def pick_threads(threads: int = 0) -> Choice:
    """0 takes OMP_NUM_THREADS, else the processors this process may run on."""
    if threads > 0:
        return Choice(threads, "as asked")
    if (env := os.environ.get("OMP_NUM_THREADS", "")).isdigit() and int(env) > 0:
        return Choice(int(env), "OMP_NUM_THREADS")
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Choice(count, "processors this process may use")


def steady_heap(arenas: int = 2, keep: int = 1 << 30) -> None:
    """Tell glibc to use few heaps, and to keep what is freed up to `keep` bytes; elsewhere nothing happens.

    Batches run in threads, and each heap would keep its largest batch for good (a 1 GB text: 885 MB resident and
    level, against 1185 MB and growing). Large activations would be mapped anew, page by page, in every layer:
    keeping them made a 0.6B model 5 % faster in float32 and 29 % in int8.
    """
    import ctypes

    m_trim_threshold, m_mmap_threshold, m_arena_max = -1, -3, -8
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        for option, value in ((m_arena_max, arenas), (m_mmap_threshold, keep), (m_trim_threshold, keep)):
            libc.mallopt(option, value)
