"""Peak memory of a process that a benchmark started."""

from __future__ import annotations

from pathlib import Path


def peak_bytes() -> int:
    """Bytes that were resident at most since this program began (Linux).

    getrusage's figure is not it: after fork and exec that begins with what the parent held.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
