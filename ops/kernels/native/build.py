"""The C sources become a library, once for every machine, compiler and version of the source."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from . import store

SOURCE = Path(__file__).parent / "c" / "kernels.c"
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC")
#: gcc first: its OpenMP is the library that torch's Linux wheels carry, so that both share one pool of threads
COMPILERS = ("gcc", "cc", "clang")
MINUTES = 5
#: seconds of a compile that nobody needs to be told of
PATIENCE = 2.0


class NotBuilt(Exception):
    """Why there is no library, in words; `new` where somebody should be told, once."""

    def __init__(self, reason: str, new: bool = False) -> None:
        super().__init__(reason)
        self.new = new


def compiler() -> list[str]:
    """The command of $CC, which may have words of its own as `ccache gcc` has, or of the first compiler found.

    Raises:
        NotBuilt: there is none, or not the one that $CC names.
    """
    asked = os.environ.get("CC", "")
    try:
        words = shlex.split(asked)
    except ValueError as error:
        raise NotBuilt(f"$CC is no command ({error}): `{asked}`") from error
    if words:
        if not (found := shutil.which(words[0])):
            raise NotBuilt(f"no C compiler `{words[0]}`, which $CC names")
        return [found, *words[1:]]
    for name in COMPILERS:
        if found := shutil.which(name):
            return [found]
    raise NotBuilt("no C compiler (gcc, cc or clang) on this machine")


def cpu_words() -> str:
    """What -march=native depends on: model and features of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").split("\n\n")[0].splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    keys = ("model name", "flags", "Features", "CPU part")
    return " ".join([platform.machine(), *(line for line in lines if line.startswith(keys))])


def key(command: list[str]) -> str:
    """Name of the library for this source, compiler and CPU.

    Raises:
        NotBuilt: the compiler does not answer.
    """
    told = shlex.join(command)
    try:
        version = subprocess.run([*command, "--version"], capture_output=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise NotBuilt(f"`{told} --version` failed ({error})") from error
    digest = hashlib.sha256()
    sources = (file.read_bytes() for file in sorted(SOURCE.parent.glob("*.[ch]")))
    for part in (*sources, " ".join(FLAGS).encode(), told.encode(), version, cpu_words().encode()):
        digest.update(b"\0" + part)
    return digest.hexdigest()[:24]


def supported() -> None:
    """Check the machine.

    Raises:
        NotBuilt: the sources are not for it.
    """
    if sys.byteorder != "little" or sys.maxsize < 2**32:
        raise NotBuilt("the kernels are for 64-bit little-endian machines")


def compiled(command: list[str], name: str, made: Path) -> Iterator[None]:
    """Compile the sources into a file; yields every PATIENCE while that goes on.

    A compiler that fails is not asked again on the same day.

    Raises:
        NotBuilt: the compiler fails, today or now.
    """
    told, note = shlex.join(command), f"{name}-failed.json"
    before = store.read(note)
    if before.get("day") == store.today() and isinstance(before.get("reason"), str):
        raise NotBuilt(f"{before['reason']}; asked again tomorrow, or without `{store.cache() / note}`")
    whole = [*command, *FLAGS, str(SOURCE), "-o", str(made), "-lm"]
    began = time.monotonic()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        running = subprocess.Popen(whole, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said)
        try:
            while not _ended(running, PATIENCE):
                if time.monotonic() - began > 60 * MINUTES:
                    raise _failed(note, f"`{told}` took more than {MINUTES} minutes")
                yield
        finally:
            if running.poll() is None:
                running.kill()
                running.wait()
        said.seek(0)
        lines = said.read().splitlines()
    if running.returncode < 0:
        raise NotBuilt(f"`{told}` was ended by signal {-running.returncode}")
    if running.returncode:
        first = next((line for line in lines if "error" in line), f"exit {running.returncode}")
        raise _failed(note, f"`{told}` failed: {first.strip()}")


def _ended(running: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        running.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _failed(note: str, reason: str) -> NotBuilt:
    store.write(note, {"day": store.today(), "reason": reason})
    return NotBuilt(reason, new=True)
