"""What a device could do at best: from its data sheet, and as measured in the same run. Unknown is None."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import cycle
from typing import Any


@dataclass(frozen=True, slots=True)
class Roof:
    """Bytes a second, FLOP a second per dtype, and where the figures are from."""

    source: str
    bandwidth: float | None = None
    peak: dict[str, float] = field(default_factory=dict)

    def floor(self, flops: int, moved: int, kind: str) -> tuple[float | None, str | None]:
        """(least seconds, what bounds them: memory or compute); None where a figure is unknown."""
        peak = self.peak.get(kind)
        if not self.bandwidth or not peak:
            return None, None
        memory, compute = moved / self.bandwidth, flops / peak
        return max(memory, compute), "memory" if memory >= compute else "compute"

    def told(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


#: part of the name torch gives: (bytes a second, dense FLOP a second in bfloat16/float16, in float32 without TF32)
SHEETS = {
    "B200": (8.0e12, 2250e12, 80e12),
    "H200": (4.8e12, 989e12, 67e12),
    "H100 PCIe": (2.0e12, 756e12, 51e12),
    "H100 NVL": (3.9e12, 835e12, 60e12),
    "H100 80GB HBM3": (3.35e12, 989e12, 67e12),
    "A100-SXM4-80GB": (2.039e12, 312e12, 19.5e12),
    "A100-SXM4-40GB": (1.555e12, 312e12, 19.5e12),
    "A100 80GB PCIe": (1.935e12, 312e12, 19.5e12),
    "L40S": (0.864e12, 362e12, 91.6e12),
    "NVIDIA L4": (0.3e12, 121e12, 30.3e12),
    "RTX 4090": (1.008e12, 165.2e12, 82.6e12),
    "RTX 3090": (0.936e12, 71e12, 35.6e12),
    "RTX 5090": (1.792e12, 209.5e12, 104.8e12),
}


def sheet(device: str) -> Roof:
    """The data sheet's roof of a device; nothing is guessed from a similar name."""
    if not device.startswith("cuda"):
        return Roof("none: data sheets of CPUs name no such figures")
    import torch

    name = torch.cuda.get_device_name(device)
    for part, (bandwidth, half, single) in SHEETS.items():
        if part in name:
            return Roof(f"data sheet of {part}", bandwidth, {"bfloat16": half, "float16": half, "float32": single})
    return Roof(f"none: `{name}` is not in the table")


def measured(device: str, kinds: list[str], seconds: float = 1.0) -> Roof:
    """The best of all threads and, on a CPU, of one, which is not held up by a thread that waits for its processor."""
    import torch

    threads = torch.get_num_threads()
    if device != "cpu" or threads == 1:
        return _measured(device, kinds, seconds)
    many = _measured(device, kinds, seconds)
    torch.set_num_threads(1)
    try:
        one = _measured(device, kinds, seconds / 2)
    finally:
        torch.set_num_threads(threads)
    peak = {kind: max(many.peak[kind], one.peak[kind]) for kind in kinds}
    best = many if many.bandwidth >= one.bandwidth else one
    return Roof(best.source, best.bandwidth, peak)


def _measured(device: str, kinds: list[str], seconds: float) -> Roof:
    """Best copy or read, and best square product per dtype, on this device now.

    Memory is gone through piece by piece, so that one piece is short beside a turn of the scheduler and no cache
    still holds it when it comes again: the best piece is the machine's own speed though others are at work.
    """
    import torch

    cuda = device.startswith("cuda")
    whole = torch.ones(1 << (30 if cuda else 27), device=device)
    pieces = whole.view(2 if cuda else 16, -1)
    half = len(pieces) // 2
    each = pieces[0].nbytes
    copies = [partial(pieces[i + half].copy_, pieces[i]) for i in range(half)]
    copy = 2 * each / _best(copies, device, seconds / 2)
    read = each / _best([p.sum for p in pieces], device, seconds / 2)
    peak = {}
    for kind in kinds:
        side = 8192 if cuda else 512
        x, y = (torch.randn(side, side, device=device).to(getattr(torch, kind)) for _ in range(2))
        peak[kind] = 2 * side**3 / _best([lambda x=x, y=y: x @ y], device, seconds)
    if device == "cpu" and "float32" in kinds:
        peak["float32"] = max(peak["float32"], _native_peak(seconds))
    which = "copy" if copy >= read else "read"
    return Roof(f"measured in this run: {which} of {each >> 20} MiB pieces, products", max(copy, read), peak)


def _native_peak(seconds: float) -> float:
    """Our own product's best, which on some CPUs is above the library's: a roof must not lie below a kernel."""
    import torch

    from ..kernels.native import library as native_library
    from ..kernels.native import rows as native

    if not native_library.available().value:
        return 0.0
    x, weight = torch.randn(128, 1024), torch.randn(1024, 1024)
    return 2 * 128 * 1024**2 / _best([lambda: native.linear(x, weight)], "cpu", seconds / 2)


def _best(calls: list[Callable[[], Any]], device: str, seconds: float) -> float:
    """Least seconds of one of the calls, which are gone through in turn."""
    import torch

    best, until = float("inf"), time.perf_counter() + seconds
    for call in cycle(calls):
        begun = time.perf_counter()
        call()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begun)
        if time.perf_counter() > until:
            break
    return best
