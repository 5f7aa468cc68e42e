"""`qwench sample` through a shell: kills, refusals, and what is said."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import KERNELS, Run
from tests.tiny import byte_decoder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    byte_decoder(tmp_path / "m")
    rows = ({"id": i, "prompt": f"Say {i}", "samples": None} for i in range(30))
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


ARGS = ["sample", "in.jsonl", "--model", "m", "--n", "3", "--max-tokens", "40", "--temperature", "1"]
ARGS += ["--device", "cpu", "--engine", "torch", "--kernels", "eager"]


def test_killed_it_goes_on_to_the_same_bytes(folder: Path, qwench: Run) -> None:
    """Real kills, at random points of the work; then batch, resumed or not, makes no difference."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("QWENCH")} | KERNELS | {"QWENCH_HOME": "home"}
    journal, dice, there = folder / ".out.jsonl.job", random.Random(1), 0
    for kill in (signal.SIGKILL, signal.SIGINT):
        command = [sys.executable, "-m", "qwench.cli.main", *ARGS, "--out", "out.jsonl", "--batch", "2"]
        process = subprocess.Popen(command, cwd=folder, env=env, stderr=subprocess.PIPE, text=True)
        ends = time.monotonic() + 200
        while process.poll() is None and time.monotonic() < ends:
            lines = journal.read_bytes().count(b"\n") if journal.exists() else 0
            if lines > there + 2:
                break
            time.sleep(0.01)
        time.sleep(dice.random() / 20)
        process.send_signal(kill)
        error = process.communicate(timeout=100)[1]
        assert process.returncode == (130 if kill == signal.SIGINT else -kill), error
        if kill == signal.SIGINT:
            assert "the same command goes on" in error and ".out.jsonl.job" in error
        there = journal.read_bytes().count(b"\n")
        assert not (folder / "out.jsonl").exists()
    assert there < 31
    done = qwench(*ARGS, "--out", "out.jsonl", "--batch", "8", cwd=folder)
    assert done.returncode == 0 and "of them were done before" in done.stderr, done.stderr
    assert "taken over" in done.stderr
    whole = qwench(*ARGS, "--out", "whole.jsonl", "--batch", "1", cwd=folder)
    assert whole.returncode == 0 and whole.stdout == "", whole.stderr
    assert (folder / "out.jsonl").read_bytes() == (folder / "whole.jsonl").read_bytes()
    rows = [json.loads(line) for line in (folder / "out.jsonl").read_bytes().splitlines()]
    assert [row["id"] for row in rows] == list(range(30))
    assert all(len(row["samples"]) == 3 and row["input_samples"] is None for row in rows)


def test_what_it_says_and_refuses(folder: Path, qwench: Run) -> None:
    plan = qwench(*ARGS, "--dry-run", "--limit", "3", cwd=folder)
    assert plan.returncode == 0 and plan.stdout.splitlines()[:2] == ["rows           3", "prompt tokens  15"]
    assert plan.stdout.splitlines()[-1] == "Say 0" and sorted(p.name for p in folder.iterdir()) == ["in.jsonl", "m"]
    (folder / "bad.jsonl").write_text('{"prompt": "a"}\n{"promt": "b"}\n')
    bad = [*ARGS[:1], "bad.jsonl", *ARGS[2:], "--max-tokens", "2"]
    done = qwench(*bad, cwd=folder)
    assert done.returncode == 1 and "line 2: there is neither a prompt nor messages" in done.stderr
    assert done.stdout == ""
    done = qwench(*bad, "--keep-going", "--json", "--out", "out.jsonl", cwd=folder)
    assert done.returncode == 0 and json.loads(done.stdout)["bad"] == 1
    for more, what in ((["--force"], "--force"), (["--out", "x.txt"], ".jsonl, .ndjson, .parquet")):
        done = qwench(*ARGS, *more, cwd=folder)
        assert done.returncode == 2 and what in done.stderr
