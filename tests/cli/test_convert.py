"""`qwench convert`, `inspect`, `diff` in the shell: kills, full and read-only disks, exit codes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests import tiny

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.qwen3_reranker(tmp_path_factory.mktemp("m") / "m")


def big(folder: Path, count: int = 40, rows: int = 2_000) -> Path:
    """A checkpoint of some hundred megabytes."""
    folder.mkdir()
    torch.manual_seed(0)
    tensors = {f"layers.{i}.weight": torch.randn(rows, 1000) for i in range(count)}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def kill_and_resume(qwench: Run, tmp_path: Path, times: int) -> None:
    src = big(tmp_path / "src")
    arguments = ["convert", src, "--dtype", "bfloat16", "--max-shard-size", "50MB", "--threads", "1"]
    assert qwench(*arguments, tmp_path / "want").returncode == 0
    want = {p.name: p.read_bytes() for p in (tmp_path / "want").iterdir()}
    rng = random.Random(1)
    command = [sys.executable, "-m", "qwench.cli.main", *map(str, arguments), "-q"]
    started = time.monotonic()
    subprocess.run([*command, tmp_path / "timed"], capture_output=True, check=True)
    span = time.monotonic() - started
    command.append(str(tmp_path / "out"))
    for killed in range(times):
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        time.sleep(rng.uniform(0.55, 1.0) * span)
        child.send_signal(signal.SIGKILL)
        ended = child.wait()
        error = child.stderr.read().decode()
        if (tmp_path / "out").exists():
            # It came to its end first, or was killed after the rename.
            assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == want
            (tmp_path / "out").rename(tmp_path / f"done{killed}")
        else:
            assert ended == -signal.SIGKILL, error
    if not (tmp_path / "out").exists():
        done = qwench(*arguments, tmp_path / "out")
        assert done.returncode == 0, done.stderr
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == want


def test_kills_and_resume(qwench: Run, tmp_path: Path) -> None:
    kill_and_resume(qwench, tmp_path, 3)


@pytest.mark.slow
def test_twenty_kills_and_resume(qwench: Run, tmp_path: Path) -> None:
    kill_and_resume(qwench, tmp_path, 20)


def test_a_dry_run_writes_nothing(qwench: Run, model: Path, tmp_path: Path) -> None:
    done = qwench("convert", model, tmp_path / "out", "--dtype", "bfloat16", "--dry-run", "--json")
    plan = json.loads(done.stdout)
    assert plan["tensors"][0].keys() == {"name", "from", "shape", "dtype", "bytes", "shard", "action"}
    assert plan["bytes"] == sum(t["bytes"] for t in plan["tensors"])
    assert list(tmp_path.glob("out*")) == []
    done = qwench("convert", model, tmp_path / "out", "--dry-run")
    assert "model.norm.weight  [64]  float32  copied" in done.stdout


def test_diff_and_inspect_exit_codes(qwench: Run, model: Path, tmp_path: Path) -> None:
    assert qwench("convert", model, tmp_path / "half", "--dtype", "float16").returncode == 0
    assert qwench("diff", model, model).returncode == 0
    done = qwench("diff", model, tmp_path / "half")
    assert done.returncode == 3
    assert "float32 -> float16" in done.stdout
    assert qwench("diff", model, tmp_path / "half", "--tolerance", "0.01").returncode == 0
    done = qwench("inspect", tmp_path / "half", "--json")
    assert json.loads(done.stdout)["dtypes"].keys() == {"float16"}
    done = qwench("inspect", tmp_path / "nothing")
    assert (done.returncode, "nothing" in done.stderr, "Traceback" in done.stderr) == (1, True, False)


@pytest.mark.skipif(os.geteuid() != 0 or not Path("/proc/mounts").exists(), reason="mounting needs root on Linux")
def test_full_and_read_only_disks(qwench: Run, tmp_path: Path) -> None:
    src, disk = big(tmp_path / "src", 10), tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", disk], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        done = qwench("convert", src, disk / "out")
        assert done.returncode == 1
        assert "there is room for 0.1" in done.stderr
        assert list(disk.iterdir()) == []
        done = qwench("convert", src, disk / "out", "--dtype", "bfloat16")
        assert done.returncode == 0, done.stderr
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        done = qwench("convert", src, disk / "again")
        assert done.returncode == 1
        assert len(done.stderr.strip().splitlines()) <= 3
        assert "Traceback" not in done.stderr
        assert [p.name for p in disk.iterdir()] == ["out"]
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--dtype", "float8"], 2, "unknown --dtype"),
        (["--to", "onnx"], 2, "unknown --to"),
        (["--max-shard-size", "big"], 2, "not a size"),
        (["--head", "tail"], 2, "unknown --head"),
        (["--layout", "round"], 2, "unknown --layout"),
    ],
)
def test_bad_use_is_one_sentence(
    qwench: Run, model: Path, tmp_path: Path, arguments: list[str], code: int, said: str
) -> None:
    done = qwench("convert", model, tmp_path / "out", *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert list(tmp_path.glob("out*")) == []
