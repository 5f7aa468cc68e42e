"""The C sources become a library, once for every machine, compiler and version of the source."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from ...base.settings import folder

SOURCE = Path(__file__).parent / "c" / "kernels.c"
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC")
#: gcc first: its OpenMP is the library that torch's Linux wheels carry, so that both share one pool of threads
COMPILERS = ("gcc", "cc", "clang")
MINUTES = 2


class NotBuilt(Exception):
    """Why there is no library, in words."""


def compiler() -> str:
    """Path of $CC or of the first compiler found.

    Raises:
        NotBuilt: there is none.
    """
    asked = os.environ.get("CC", "").split()
    for name in (*asked[:1], *COMPILERS):
        if found := shutil.which(name):
            return found
    raise NotBuilt("no C compiler (gcc, cc or clang) on this machine")


def cpu_words() -> str:
    """What -march=native depends on: model and features of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").split("\n\n")[0].splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    keys = ("model name", "flags", "Features", "CPU part")
    return " ".join([platform.machine(), *(line for line in lines if line.startswith(keys))])


def cache() -> Path:
    """Where built libraries and their measurements lie: QWENCH_NATIVE_CACHE, else below qwench's own cache."""
    return Path(os.environ.get("QWENCH_NATIVE_CACHE") or folder("cache") / "kernels")


def key(compiler_path: str) -> str:
    """Name of the library for this source, compiler and CPU.

    Raises:
        NotBuilt: the compiler does not answer.
    """
    try:
        version = subprocess.run([compiler_path, "--version"], capture_output=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise NotBuilt(f"`{compiler_path} --version` failed ({error})") from error
    digest = hashlib.sha256()
    sources = (file.read_bytes() for file in sorted(SOURCE.parent.glob("*.[ch]")))
    for part in (*sources, " ".join(FLAGS).encode(), compiler_path.encode(), version, cpu_words().encode()):
        digest.update(b"\0" + part)
    return digest.hexdigest()[:24]


def library() -> tuple[ctypes.CDLL, str]:
    """The loaded library and its key; built when it is not there yet.

    Raises:
        NotBuilt: no compiler, an unsupported machine, a failed compile, a library that does not load.
    """
    if sys.byteorder != "little" or sys.maxsize < 2**32:
        raise NotBuilt("the kernels are for 64-bit little-endian machines")
    path = compiler()
    name = key(path)
    built = cache() / f"{name}.so"
    try:
        if not built.exists():
            _build(path, built)
        return ctypes.CDLL(str(built)), name
    except OSError as error:
        raise NotBuilt(f"the built library cannot be written or loaded ({error})") from error


def _build(compiler_path: str, built: Path) -> None:
    """Compile beside and rename: a second process at the same time does the same work and harms nothing."""
    built.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=built.parent, prefix="building-") as beside:
        made = Path(beside) / "native.so"
        command = [compiler_path, *FLAGS, str(SOURCE), "-o", str(made), "-lm"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60 * MINUTES)
        except subprocess.TimeoutExpired as error:
            raise NotBuilt(f"`{compiler_path}` took more than {MINUTES} minutes") from error
        if done.returncode:
            first = next((line for line in done.stderr.splitlines() if "error" in line), f"exit {done.returncode}")
            raise NotBuilt(f"`{compiler_path}` failed: {first.strip()}")
        os.replace(made, built)
