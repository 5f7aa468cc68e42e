"""`qwench polymath run`: trees that the reference reads, settings that are refused, runs that go on after a kill."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from qwench.ops import polymath as op
from qwench.ops.base.errors import QwenchError
from qwench.ops.base.events import Warned
from qwench.ops.base.runtime import Runtime
from qwench.ops.grading.polymath.levels import WEIGHTS
from qwench.ops.grading.polymath.strings import prompt, strings
from qwench.ops.jobs.job import JobOptions
from qwench.ops.writing.session import ChatOptions

from tests.tiny import byte_decoder
from tests.writing.stub import Stub, counting, serving


def data(folder: Path, count: int = 3) -> Path:
    """Questions of two languages and two levels, as the benchmark keeps them."""
    for language in ("en", "sw"):
        for level in ("low", "top"):
            rows = [
                {"id": f"{level}-{language}-{n + 1}", "question": f"{n} + {n} = ?", "answer": str(2 * n)}
                for n in range(count)
            ]
            (folder / language).mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(rows), folder / language / f"{level}.parquet")
    return folder


def asked(where: Path, out: Path, **options: object) -> list:
    chat = {n: options.pop(n) for n in ("model", "max_tokens", "runtime", "think_budget") if n in options}
    questions = op.QuestionOptions(
        str(where), **{n: options.pop(n) for n in ("langs", "levels", "limit") if n in options}
    )
    job = JobOptions(force=options.pop("force", False), dry_run=options.pop("dry_run", False))
    own = ChatOptions(**{"seed": 1, "slots": 2, "max_tokens": 4, **chat})
    return list(op.run(op.RunOptions(str(out), questions=questions, chat=own, job=job, **options)))


def lines(path: Path) -> list[dict]:
    return [json.loads(text) for text in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return byte_decoder(tmp_path_factory.mktemp("model") / "small", max_position_embeddings=400)


def test_a_tree_that_the_reference_reads(small: Path, tmp_path: Path):
    runtime = Runtime(device="cpu", engine="torch")
    where = data(tmp_path / "data")
    events = asked(where, tmp_path / "out", model=str(small), runtime=runtime, samples=2, level_names="middle")
    folder = tmp_path / "out" / "small"
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*.jsonl")) == [
        f"{level}/{lang}.jsonl" for level in ("low", "top") for lang in ("en", "sw")
    ]
    rows = lines(folder / "low" / "sw.jsonl")
    assert [(r["idx"], r["sample"]) for r in rows] == [(i, s) for i in range(3) for s in range(2)]
    assert list(rows[0])[:5] == ["idx", "question", "answer", "thinking_pred", "answer_pred"]
    assert {
        "id",
        "prompt_sha",
        "finish",
        "prompt_tokens",
        "thinking_tokens",
        "answer_tokens",
        "seconds",
        "seed",
        "control",
    } < set(rows[0])
    assert rows[0]["prompt_tokens"] >= len(prompt("0 + 0 = ?", "sw").encode())
    assert len({r["seed"] for r in rows}) == 6 and rows[0]["id"] == "low-sw-1"
    assert events[-1].result["samples"] == 24
    # More of the data later: what is there stays.
    shutil.rmtree(folder)
    asked(where, tmp_path / "out2", model=str(small), runtime=runtime, limit=1, langs=("en",))
    assert len(lines(tmp_path / "out2" / "small" / "low" / "en.jsonl")) == 1
    result = asked(where, tmp_path / "out2", model=str(small), runtime=runtime, levels=("low",))[-1].result
    assert result["done"] == 1 and result["rows"] == 6
    asked(where, tmp_path / "out2", model=str(small), runtime=runtime, levels=("low",), limit=1)
    assert len(lines(tmp_path / "out2" / "small" / "low" / "en.jsonl")) == 3
    assert len(lines(tmp_path / "out2" / "small" / "top" / "en.jsonl")) == 1


def test_another_control_or_joiner_is_refused(small: Path, tmp_path: Path):
    where, runtime = data(tmp_path / "data", 1), Runtime(device="cpu", engine="torch")
    asked(where, tmp_path / "out", model=str(small), runtime=runtime)
    with pytest.raises(QwenchError, match='control was "none", is "forcing_en"'):
        asked(where, tmp_path / "out", model=str(small), runtime=runtime, control="forcing_en")
    with pytest.raises(QwenchError, match="joiner was"):
        asked(where, tmp_path / "out", model=str(small), runtime=runtime, joiner=("|",))
    events = asked(where, tmp_path / "out", model=str(small), runtime=runtime, control="forcing_prefer", force=True)
    assert "strings" in [e.kind for e in events if isinstance(e, Warned)]


def test_a_prompt_that_does_not_fit_has_its_row(small: Path, tmp_path: Path):
    where = tmp_path / "rows.jsonl"
    rows = [{"lang": "en", "level": "low", "question": "x" * n, "answer": "1"} for n in (5, 500)]
    where.write_text("".join(json.dumps(r) + "\n" for r in rows))
    result = asked(where, tmp_path / "out", model=str(small), runtime=Runtime(device="cpu", engine="torch"))[-1].result
    assert [r["finish"] for r in lines(tmp_path / "out" / "small" / "low" / "en.jsonl")][1] == "context"
    assert result["too_long"] == 1 and result["failed"] == 0


def test_data_that_is_not_as_it_should_be(tmp_path: Path):
    good = {"id": "low-en-1", "question": "?", "answer": "1"}
    for rows, told in (
        ([good, good], "line 2 has the id `low-en-1` of another row"),
        ([good, {"id": "low-en-2", "question": "?"}], "line 2 has no answer"),
        ([{"id": "low-en-1", "answer": "1"}], "line 1 has no text in its field `question`"),
        ([{"question": "?", "answer": "1"}], "line 1 does not say its language and level"),
    ):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        with pytest.raises(QwenchError, match=told):
            asked(tmp_path / "rows.jsonl", tmp_path / "out", runtime=Runtime(engine="http://127.0.0.1:9/v1"), name="x")


def test_a_dry_run_counts(qwench, small: Path, tmp_path: Path):
    where = data(tmp_path / "data")
    done = qwench("polymath", "run", where, "--model", small, "--out", tmp_path / "o", "--dry-run", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    table = [text.split() for text in done.stdout.splitlines()]
    assert table[:3] == [list(WEIGHTS), ["en", "3", "0", "0", "3"], ["sw", "3", "0", "0", "3"]]
    assert "prompts 12" in done.stdout and strings()["notes"]["en"] in done.stdout
    assert not (tmp_path / "o").exists()


def brain(body: dict) -> str:
    text = str(body.get("prompt") or body["messages"][-1]["content"])
    if " = ?" not in text:
        return counting(body)  # it is being looked at
    time.sleep(0.05)
    number = int(text.split(" + ")[0].split()[-1])
    return rf"That is \boxed{{{2 * number if body['seed'] % 3 else 0}}}."


def told(folder: Path) -> dict[str, list[dict]]:
    """All rows but for how long they took."""
    return {
        str(p.relative_to(folder)): [{k: v for k, v in row.items() if k != "seconds"} for row in lines(p)]
        for p in sorted(folder.rglob("*.jsonl"))
    }


def test_killed_at_random_it_comes_to_the_same_answers(qwench, tmp_path: Path):
    where = data(tmp_path / "data", 5)
    with serving(Stub(brain)) as stub:
        how = ["polymath", "run", where, "--engine", stub.address, "--api", "chat", "--max-tokens", "60"]
        how += ["--concurrency", "2", "--samples", "2"]
        done = qwench(*how, "--out", tmp_path / "want")
        assert done.returncode == 0, done.stderr
        command = [sys.executable, "-m", "qwench.cli.main", *map(str, how), "--out", str(tmp_path / "out"), "-q"]
        journal = tmp_path / "out" / ".tiny.job"
        for least in (3, 9):
            child = subprocess.Popen(command, stderr=subprocess.PIPE)
            while child.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < least):
                time.sleep(0.005)
            child.send_signal(signal.SIGKILL)
            assert child.wait() == -signal.SIGKILL, child.stderr.read()
            with journal.open("ab") as file:
                file.write(b'{"key": "low-en-')
        done = qwench(*how, "--out", tmp_path / "out", "--json")
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        assert result["done"] >= 5 and "cut the last row short" in str(result["warnings"])
        done = qwench(*how, "--out", tmp_path / "out", "--control", "forcing_raw")
        assert done.returncode == 1 and 'control was "none", is "forcing_raw"' in done.stderr
    assert told(tmp_path / "out") == told(tmp_path / "want")
    assert len(told(tmp_path / "out")) == 4


def test_reasoning_of_a_server_is_the_thought(tmp_path: Path):
    def thinking(handler) -> bool:
        if " = ?" not in str(handler.body):
            return False
        said = {"role": "assistant", "content": r"\boxed{0}", "reasoning_content": "nothing and nothing"}
        handler.send(200, {"choices": [{"index": 0, "finish_reason": "stop", "message": said}]})
        return True

    with serving(Stub()) as stub:
        stub.faults = [thinking] * 30
        runtime = Runtime(engine=stub.address, api="chat")
        asked(data(tmp_path / "data", 1), tmp_path / "out", model="", runtime=runtime, langs=("en",), levels=("low",))
    (row,) = lines(tmp_path / "out" / "tiny" / "low" / "en.jsonl")
    assert row["thinking_pred"] == "nothing and nothing" and row["answer_pred"] == r"\boxed{0}"
