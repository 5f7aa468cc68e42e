"""Servers that people run, on loopback: `-m real_server`, where they are installed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
from qwench.ops.base.events import Chose
from qwench.ops.base.runtime import Runtime
from qwench.ops.models.hub import resolve
from qwench.ops.writing.local import LocalWriter
from qwench.ops.writing.remote import RemoteWriter
from qwench.ops.writing.writer import Ask, Turn

from tests.writing.test_chat import causal

pytestmark = pytest.mark.real_server
GREEDY = (("temperature", 0),)
ASKS = [
    Ask("messages", ({"role": "user", "content": "What is the capital of France?"},), max_tokens=12, sampling=GREEDY),
    Ask("text", text="One, two, three, four,", max_tokens=12, sampling=GREEDY),
    Ask("prefix", text="The sun rises in the", prefix=" east, and", max_tokens=12, sampling=GREEDY),
]


@contextmanager
def running(*command: str, **env: str) -> Iterator[str]:
    """A server's address for the time of a test."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port)], env=os.environ | env)
    try:
        address = f"http://127.0.0.1:{port}/v1"
        for _ in range(120):
            assert server.poll() is None, "the server has ended"
            try:
                with urllib.request.urlopen(f"{address}/models", timeout=5):
                    break
            except OSError:
                time.sleep(1)
        yield address
    finally:
        server.terminate()
        server.wait(30)


def both(model: str, remote: RemoteWriter, engine: str = "torch") -> tuple[dict, dict]:
    """Greedy answers of an engine here and of the server, by key."""
    local = LocalWriter(model, Runtime(device="cpu", engine=engine, dtype="float32" if engine == "torch" else "auto"))
    list(local.load())
    return tuple({t.key: t for t in w.run(ASKS) if isinstance(t, Turn)} for w in (local, remote))


@pytest.mark.skipif(not (find_spec("llama_cpp") and find_spec("uvicorn")), reason="no llama-cpp-python[server]")
def test_llama_cpp_python(tmp_path: Path) -> None:
    path = str(resolve("smollm2").path)
    command = (sys.executable, "-m", "llama_cpp.server", "--model", path, "--n_ctx", "2048")
    # By itself it ends a stream when another request comes, and sums attention otherwise than the library does here.
    with running(*command, "--interrupt_requests", "false", "--flash_attn", "true") as address:
        for live in (False, True):
            remote = RemoteWriter("", Runtime(engine=address, tokenizer="smollm2"), live=live)
            told = {e.name: e.value for e in remote.load() if isinstance(e, Chose)}
            assert told["api"] == "completions" and told["seed"] == "honoured"
            local, found = both("smollm2", remote, "llama.cpp")
            assert {k: t.answer for k, t in found.items()} == {k: t.answer for k, t in local.items()}
            ask = Ask(1, ASKS[0].messages, budget=8, force_think=True, max_tokens=8, sampling=GREEDY)
            turn = next(t for t in remote.run([ask]) if isinstance(t, Turn))
            assert turn.closed_by in ("budget", "model") and turn.thinking_tokens <= 8 and turn.answer


@pytest.mark.skipif(not (find_spec("llama_cpp") and find_spec("uvicorn")), reason="no llama-cpp-python[server]")
def test_values_of_states_on_llama_cpp_python(tmp_path: Path) -> None:
    """The same prefixes gone on with there and here: values whose intervals meet."""
    from qwench.ops.base.events import Finished
    from qwench.ops.explore import ExploreOptions, run
    from qwench.ops.jobs.job import JobOptions
    from qwench.ops.writing.session import ChatOptions

    questions = tmp_path / "q.jsonl"
    hits = (("21 + 35", "56", "21 + 35 = 56. The answer is 56."), ("64 + 27", "91", "64 + 27 = 81. The answer is 81."))
    rows = [{"id": q, "question": f"What is {q}?", "answer": a, "hit": hit} for q, a, hit in hits]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def values(name: str, model: str, runtime: Runtime) -> dict[tuple[str, int], dict]:
        out = tmp_path / f"{name}.jsonl"
        options = ExploreOptions(
            *(8, 8),
            states=3,
            hit="given",
            prompt_style="bare",
            chat=ChatOptions(model, max_tokens=24, seed=1, slots=8, runtime=runtime),
            job=JobOptions(str(questions), str(out)),
        )
        assert [e for e in run(options) if isinstance(e, Finished)][-1].result["failed"] == 0
        return {(r["id"], r["state"]): r for r in map(json.loads, out.read_text().splitlines())}

    path = str(resolve("smollm2").path)
    command = (sys.executable, "-m", "llama_cpp.server", "--model", path, "--n_ctx", "1024")
    with running(*command, "--interrupt_requests", "false", "--flash_attn", "true") as address:
        there = values("there", "", Runtime(engine=address, tokenizer="smollm2", concurrency=1))
    here = values("here", "smollm2", Runtime(device="cpu", engine="torch"))
    assert set(there) == set(here) and len(here) == 6
    for key, row in here.items():
        other = there[key]
        assert other["prompt"] == row["prompt"] and other["prefix"] == row["prefix"]
        assert row["low"] <= other["high"] and other["low"] <= row["high"], key


@pytest.mark.skipif(not (find_spec("fastapi") and find_spec("uvicorn")), reason="no transformers[serving]")
def test_transformers_serve(qwench, tmp_path: Path) -> None:
    model = str(causal(tmp_path / "model", "qwen3"))
    command = (sys.executable, "-m", "transformers.cli.transformers", "serve", "--device", "cpu", "--dtype", "float32")
    (tmp_path / "none").mkdir()  # nothing else is served
    with running(*command, HF_HUB_CACHE=str(tmp_path / "none")) as address:
        for live in (False, True):
            remote = RemoteWriter(model, Runtime(engine=address), live=live)
            told = {e.name: e.value for e in remote.load() if isinstance(e, Chose)}
            assert told["api"] == "completions" and told["tokenizer"] == model
            local, found = both(model, remote)
            # Messages open a thought there, which these weights would not.
            assert all(found[k].answer == local[k].answer for k in ("text", "prefix"))
            ask = Ask(1, ASKS[0].messages, budget=8, max_tokens=8, sampling=GREEDY)
            turn = next(t for t in remote.run([ask]) if isinstance(t, Turn))
            assert (turn.closed_by, turn.thinking_tokens, turn.answer_tokens) == ("budget", 8, 8)
        done = qwench(
            "chat", "--engine", address, "-m", model, "Hello", "--json", "--max-tokens", 4, "--think-budget", 3
        )
        assert done.returncode == 0 and json.loads(done.stdout)["thinking_tokens"] == 3, done.stderr
