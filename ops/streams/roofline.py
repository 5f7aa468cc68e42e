"""Bandwidth and throughput of a device: from a table that names its sources, as given, or measured now."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..base.errors import QwenchError
from ..bench.roofs import SHEETS

#: part of a data sheet's figure that the paper's cost model takes as reached (`cost_analysis.py`)
REACHED_BANDWIDTH, REACHED_FLOPS = 0.9, 0.7
_TIMES = f"times {REACHED_BANDWIDTH} and {REACHED_FLOPS}, as the paper's cost model takes them"
_SHEET = f"NVIDIA data sheet, dense bf16, {_TIMES}"
_WHITE = f"NVIDIA Ada and Ampere GA102 white papers, dense bf16 with float32 sums, {_TIMES}"
_MEASURED = "copy and bf16 GEMM measured on one card, 2026-11"


def _sheet(part: str, memory: float, source: str = _SHEET) -> tuple[float, float, float, str]:
    bandwidth, half, _ = SHEETS[part]
    return bandwidth / 1e9, half / 1e12, memory, source


#: name -> GB/s, TFLOP/s, GB of memory, source; data sheets before their part that is reached
TABLE: dict[str, tuple[float, float, float, str]] = {
    "h100": (3000, 798, 80, _MEASURED),
    "h200": (4300, 780, 141, f"{_MEASURED}, GEMM the middle of 769 to 798"),
    "h100-sxm": _sheet("H100 80GB HBM3", 80),
    "h100-pcie": _sheet("H100 PCIe", 80),
    "h200-sxm": _sheet("H200", 141),
    "a100": _sheet("A100-SXM4-80GB", 80),
    "a100-40gb": _sheet("A100-SXM4-40GB", 40),
    "l40s": _sheet("L40S", 48),
    "rtx4090": _sheet("RTX 4090", 24, _WHITE),
    "rtx3090": _sheet("RTX 3090", 24, _WHITE),
}


@dataclass(frozen=True, slots=True)
class Roof:
    """What a device reaches.

    Attributes:
        bandwidth: bytes a second; None when unknown.
        flops: FLOP a second; None when unknown.
        memory: bytes there are; None when unknown.
        source: where the figures are from.
    """

    name: str
    bandwidth: float | None
    flops: float | None
    memory: float | None
    source: str

    @property
    def ridge(self) -> float | None:
        """FLOP a byte above which arithmetic is the limit; None while either figure is unknown."""
        return self.flops / self.bandwidth if self.flops and self.bandwidth else None


def known(name: str) -> Roof:
    """A row of the table.

    Raises:
        QwenchError: there is no such row.
    """
    if name.lower() not in TABLE:
        raise QwenchError(
            f"nothing is known of the device: `{name}`",
            f"use {', '.join(TABLE)}, measure one here with cpu, cuda or mps, or give --bandwidth and --flops",
            code=2,
        )
    bandwidth, flops, memory, source = TABLE[name.lower()]
    reached = (1.0, 1.0) if source.startswith(_MEASURED) else (REACHED_BANDWIDTH, REACHED_FLOPS)
    return Roof(name.lower(), bandwidth * 1e9 * reached[0], flops * 1e12 * reached[1], memory * 1e9, source)


def given(bandwidth: float | None, flops: float | None, name: str = "given") -> Roof:
    """A user's figures in GB/s and TFLOP/s, taken as reached; None stays unknown."""
    return Roof(
        name,
        bandwidth * 1e9 if bandwidth else None,
        flops * 1e12 if flops else None,
        None,
        "as given by --bandwidth and --flops",
    )


def measure(device: str, dtype: str, repeats: int = 5) -> Roof:
    """Copy 256 MB and multiply two matrices on `device`, the best of some repeats; takes about a second.

    Args:
        device: as torch names it.
        dtype: of the product.
    """
    import torch

    kind = getattr(torch, dtype)
    size = 4096 if device != "cpu" else 1536
    source = torch.ones(1 << 26, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    a, b = (torch.randn(size, size, device=device).to(kind) for _ in range(2))
    copy = _best(device, repeats, lambda: target.copy_(source))
    product = _best(device, repeats, lambda: a @ b)
    memory = None
    if device.startswith("cuda"):
        memory = float(torch.cuda.get_device_properties(device).total_memory)
    return Roof(
        device, 2 * source.nbytes / copy, 2 * size**3 / product, memory, f"copy and {dtype} GEMM measured in this run"
    )


def _best(device: str, repeats: int, work: Callable[[], object]) -> float:
    """Least seconds of `work()`, after one that does not count."""
    import time

    import torch

    def wait() -> None:
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        elif device == "mps":
            torch.mps.synchronize()

    best = float("inf")
    work()
    for _ in range(repeats):
        wait()
        began = time.perf_counter()
        work()
        wait()
        best = min(best, time.perf_counter() - began)
    return best
