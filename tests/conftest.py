"""Every test has its own qwench home, and no network."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from .forks import Forks

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
# Read when Triton is imported, which any test's imports may do.
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")
#: the C kernels are built once for all tests, although each has a home of its own
KERNELS = {"QWENCH_NATIVE_CACHE": str(Path(tempfile.gettempdir()) / f"qwench-test-kernels-{os.getuid()}")}
os.environ.update(KERNELS)

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Makes processes of the command line."""
    made = Forks(tempfile.mkdtemp(prefix="qwench-"))
    yield made
    made.close()


@pytest.fixture
def qwench(tmp_path: Path, forks: Forks) -> Run:
    """`qwench(*args, input=..., cwd=..., env=...)` in a process of its own."""

    def run(*args: object, input: str | bytes | None = None, **options: object) -> subprocess.CompletedProcess[str]:
        env = {k: v for k, v in os.environ.items() if not k.startswith("QWENCH")}
        env |= KERNELS | {"QWENCH_HOME": str(tmp_path / "home"), "COLUMNS": "100"} | options.pop("env", {})
        data = input.encode() if isinstance(input, str) else input
        command = forks.command([str(arg) for arg in args], env)
        done = subprocess.run(command, input=data or b"", capture_output=True, env=env, timeout=300, **options)
        return subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")
        )

    return run


@pytest.fixture
def lines() -> Callable[[str], list[dict]]:
    """JSON lines as objects."""
    return lambda text: [json.loads(line) for line in text.splitlines()]
