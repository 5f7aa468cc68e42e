"""What a measurement depends on besides the code: the machine, its clocks, who else is at work."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any


def environment(device: str) -> dict[str, Any]:
    """Versions, device, threads and their pinning."""
    import torch

    affinity = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "processors": affinity,
        "pinned": affinity is not None and len(affinity) < (os.cpu_count() or 0),
        "device": device,
        "gpu": None,
    }
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        found["gpu"] = {"name": properties.name, "memory": properties.total_memory, "cuda": torch.version.cuda}
    return found


def clocks(device: str) -> dict[str, Any]:
    """Clocks, temperature and load now; None for what the machine does not tell."""
    now: dict[str, Any] = {"load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None}
    if device.startswith("cuda") and shutil.which("nvidia-smi"):
        fields = "clocks.sm,clocks.mem,temperature.gpu,clocks_event_reasons.active"
        command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        if done.returncode == 0:
            values = [v.strip() for v in done.stdout.splitlines()[0].split(",")]
            names = ("sm_mhz", "memory_mhz", "celsius", "throttle_reasons")
            return now | dict(zip(names, values, strict=False))
    return now | {"cpu_mhz": _mhz()}


def trouble(before: dict[str, Any], after: dict[str, Any], device: str) -> list[str]:
    """What may have disturbed the measurement, in words."""
    found = []
    a, b = before.get("cpu_mhz"), after.get("cpu_mhz")
    if a and b and b < 0.9 * a:
        found.append(f"the CPU's clock fell from {a:.0f} to {b:.0f} MHz")
    processors = os.cpu_count() or 1
    if device == "cpu" and before.get("load") is not None and before["load"] > 0.5 * processors:
        found.append(f"the machine was busy: load {before['load']:.1f} on {processors} processors before the start")
    reasons = after.get("throttle_reasons")
    if reasons and int(reasons, 16) & ~1:
        found.append(f"the GPU held its clocks back (reasons {reasons})")
    return found


def _version(name: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu() -> str | None:
    lines = _cpuinfo()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)


def _mhz() -> float | None:
    values = [float(line.split(":", 1)[1]) for line in _cpuinfo() if line.startswith("cpu MHz")]
    return sum(values) / len(values) if values else None


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return []
