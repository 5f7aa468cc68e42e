"""Jobs lose nothing: kills, failures, other settings, full disks; and the order is the input's."""

from __future__ import annotations

import errno
import json
import os
import random
import shlex
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
from qwench.ops.base import atomic
from qwench.ops.base.errors import QwenchError
from qwench.ops.base.events import Finished, Kept, Produced, Warned
from qwench.ops.base.lock import Lock
from qwench.ops.base.runtime import Runtime
from qwench.ops.jobs.job import Job, JobOptions
from qwench.ops.jobs.journal import Journal
from qwench.ops.jobs.work import Again, Work
from qwench.ops.writing.local import LocalWriter
from qwench.ops.writing.writer import Ask, Piece, Turn, Wait

from tests.tiny import byte_decoder


class Killed(BaseException):
    """The process is gone."""


class Lengths(Work):
    """Work by calls: how long a text is.

    Args:
        trouble: id -> errors of its first calls.
        kill: the call with this number never returns.
    """

    name = "measure"

    def __init__(self, trouble: dict[str, list[Exception]] | None = None, kill: int = 0, **settings: object) -> None:
        self.trouble, self.kill = trouble or {}, kill
        self.said = {"model": "m", "unit": "characters"} | settings
        self.called: list[str] = []

    @property
    def settings(self) -> dict[str, object]:
        return self.said

    def load(self, rows: int):
        self.rows = rows
        return iter(())

    def begin(self, row: dict[str, Any], key: str):
        if not isinstance(row.get("text"), str):
            raise QwenchError("there is no text", "give one")

        def call() -> int:
            self.called.append(key)
            if len(self.called) == self.kill:
                raise Killed
            if waiting := self.trouble.get(key):
                raise waiting.pop(0)
            time.sleep(len(row["text"]) % 3 / 200)
            return len(row["text"])

        return call

    def finish(self, row: dict[str, Any], results: list[int]) -> dict[str, Any]:
        return {"length": results[0]}

    def count(self, results: list[int]) -> dict[str, int]:
        return {"characters": results[0]}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    texts = ["ü" * (7 * i % 11) for i in range(20)]
    path.write_text("".join(json.dumps({"id": f"r{i}", "text": t, "length": None}) + "\n" for i, t in enumerate(texts)))
    return path


def run(work: object, rows: Path, out: Path | str, **options: object) -> tuple[dict, list]:
    events = list(Job(work, JobOptions(str(rows), str(out), **options)).run())
    return events[-1].result, events


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("at_once", [1, 4])
def test_rows_come_out_in_their_order_beside_their_own_fields(rows: Path, tmp_path: Path, at_once: int) -> None:
    result, events = run(Lengths(), rows, tmp_path / "out.jsonl", at_once=at_once)
    given = read(rows)
    wanted = [{"id": r["id"], "text": r["text"], "input_length": None, "length": len(r["text"])} for r in given]
    assert read(tmp_path / "out.jsonl") == wanted
    assert result["rows"] == 20 and result["failed"] == 0
    assert result["characters"] == sum(len(r["text"]) for r in given)
    _, events = run(Lengths(), rows, "-", at_once=at_once)
    assert [e.row for e in events if isinstance(e, Produced)] == wanted
    assert sorted(p.name for p in tmp_path.iterdir()) == [".out.jsonl.job", "in.jsonl", "out.jsonl"]


def test_a_row_is_out_as_soon_as_those_before_it_are(rows: Path) -> None:
    work = Lengths()
    events = Job(work, JobOptions(str(rows), at_once=1)).run()
    for count in range(1, 4):
        next(e for e in events if isinstance(e, Produced))
        assert len(work.called) == count


def test_killed_anywhere_it_goes_on_to_the_same_bytes(rows: Path, tmp_path: Path) -> None:
    run(Lengths(), rows, tmp_path / "whole.jsonl")
    dice = random.Random(5)
    out, journal = tmp_path / "out.jsonl", Journal(tmp_path / "out.jsonl").path
    called: list[str] = []
    for _ in range(5):
        work = Lengths(kill=dice.randint(1, 6))
        with pytest.raises(Killed):
            run(work, rows, out, at_once=dice.choice([1, 3]))
        called += work.called
        assert not out.exists()
        # The line that was being written is cut anywhere, or everything of it is there but its end.
        data = journal.read_bytes()
        head = data.index(b"\n") + 1
        last = max(data.rfind(b"\n", 0, len(data) - 1) + 1, head)
        journal.write_bytes(data[: dice.randint(last, len(data))])
    work = Lengths()
    result, events = run(work, rows, out)
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert result["done"] > 0 and len(work.called) == 20 - result["done"]
    assert result["characters"] == sum(len(r["text"]) for r in read(rows))
    assert [e.path for e in events if isinstance(e, Kept)] == [str(journal)]
    # And once more there is nothing left to do.
    work = Lengths()
    result, _ = run(work, rows, out)
    assert result["done"] == 20 and work.called == []


def test_failed_rows_are_told_apart_and_stay_open(rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    broken = Lengths({"r3": [QwenchError("the server is gone")], "r9": [Again("busy")] * 9, "r5": [Again("busy")] * 2})
    result, events = run(broken, rows, out)
    assert result["failed"] == 2
    told = {row["id"]: row for row in read(out) if "failed" in row}
    assert {k: v["failed"] for k, v in told.items()} == {"r3": "the server is gone", "r9": "busy"}
    assert all("length" in row and row["length"] is None for row in told.values())
    assert [e.message for e in events if isinstance(e, Warned) and e.failed] == [
        "line 4 failed: the server is gone",
        "line 10 failed: busy",
    ]
    # Only what says that it may pass is tried again, three times in all.
    assert broken.called.count("r3") == 1 and broken.called.count("r9") == 3 and broken.called.count("r5") == 3
    again = Lengths()
    result, _ = run(again, rows, out)
    assert sorted(again.called) == ["r3", "r9"] and result["failed"] == 0
    run(Lengths(), rows, tmp_path / "whole.jsonl")
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_another_setting_is_refused_with_the_difference(rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run(Lengths(sampling={"top_k": 20}), rows, out, limit=3)
    before = out.read_bytes()
    with pytest.raises(QwenchError) as caught:
        run(Lengths(sampling={"top_k": 5}, unit="bytes"), rows, out)
    assert 'unit was "characters", is "bytes"; sampling.top_k was 20, is 5' in caught.value.message
    assert "--force" in caught.value.hint and out.read_bytes() == before
    # What only names the model may be another; a limit may, too.
    work = Lengths(model="elsewhere", sampling={"top_k": 20})
    assert run(work, rows, out)[0]["done"] == 3 and len(work.called) == 17
    work = Lengths(unit="bytes")
    run(work, rows, out, force=True)
    assert len(work.called) == 20


def test_rows_that_changed_are_worked_on_again(rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run(Lengths(), rows, out)
    lines = rows.read_text().splitlines(keepends=True)
    more = json.dumps({"id": "new", "text": "abc"}) + "\n"
    changed = json.dumps(json.loads(lines[2]) | {"text": "changed"}) + "\n"
    rows.write_text("".join([*lines[:2], changed, *lines[3:5], more]))
    work = Lengths()
    run(work, rows, out)
    assert sorted(work.called) == ["new", "r2"]
    assert [(r["id"], r["length"]) for r in read(out)][2] == ("r2", 7) and len(read(out)) == 6


def test_bad_rows_end_it_before_it_begins(rows: Path, tmp_path: Path) -> None:
    rows.write_text(rows.read_text() + '{"id": "x"}\n{"text": \n')
    work = Lengths()
    with pytest.raises(QwenchError, match="line 22 is not JSON"):
        run(work, rows, tmp_path / "out.jsonl")
    with pytest.raises(QwenchError, match="line 21: there is no text"):
        run(work, rows, tmp_path / "out.jsonl", limit=21)
    assert work.called == []
    result, events = run(work, rows, tmp_path / "out.jsonl", keep_going=True)
    assert result["bad"] == 2 and len(read(tmp_path / "out.jsonl")) == 20 and work.rows == 21
    assert [e.message[:17] for e in events if isinstance(e, Warned) and e.failed] == [
        "left out: line 21",
        "left out: line 22",
    ]
    assert len([e for e in run(work, rows, "-", keep_going=True)[1] if isinstance(e, Produced)]) == 20


def test_outputs_that_cannot_be(rows: Path, tmp_path: Path) -> None:
    work = Lengths()
    for out, what in ((tmp_path / "no" / "out.jsonl", "is not there"), (tmp_path / "out.xlsx", "cannot be written as")):
        with pytest.raises(QwenchError, match=what):
            run(work, rows, out)
    (tmp_path / "mine.jsonl").write_text("mine\n")
    with pytest.raises(QwenchError, match="the output is there"):
        run(work, rows, tmp_path / "mine.jsonl")
    with Lock(tmp_path / "out.jsonl"), pytest.raises(QwenchError, match="another run is at"):
        run(work, rows, tmp_path / "out.jsonl")
    Journal(tmp_path / "out.jsonl").path.write_text("nothing\n")
    with pytest.raises(QwenchError, match="is damaged"):
        run(work, rows, tmp_path / "out.jsonl")
    assert work.called == [] and (tmp_path / "mine.jsonl").read_text() == "mine\n"


def test_a_full_disk_loses_nothing_of_what_is_done(rows: Path, tmp_path: Path, monkeypatch) -> None:
    out, written, real = tmp_path / "out.jsonl", 0, os.write

    def full(handle: int, data: bytes) -> int:
        nonlocal written
        written += data.startswith(b'{"key"')
        if written == 8:
            real(handle, data[:20])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(handle, data)

    with monkeypatch.context() as patched, pytest.raises(QwenchError, match="no space left"):
        patched.setattr(atomic.os, "write", full)
        run(Lengths(), rows, out, at_once=1)
    work = Lengths()
    result, _ = run(work, rows, out, at_once=1)
    assert result["done"] == 7 and len(work.called) == 13
    run(Lengths(), rows, tmp_path / "whole.jsonl")
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_rows_of_many_kinds_as_parquet(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("qwench.ops.jobs.output.BATCH", 2)
    values = [{"text": "a"}, {"text": "bc", "n": 1}, {"text": "", "n": 2.5}, {"text": "x", "tags": [{"a": 1}]}]
    values.append({"text": "y", "tags": [{"b": "z"}]})
    rows = tmp_path / "in.jsonl"
    rows.write_text("".join(json.dumps(v) + "\n" for v in values))
    run(Lengths(), rows, tmp_path / "out.parquet")
    found = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [(r["text"], r["n"], r["length"]) for r in found] == [
        *[("a", None, 1), ("bc", 1.0, 2), ("", 2.5, 0), ("x", None, 1), ("y", None, 1)],
    ]
    assert found[3]["tags"] == [{"a": 1, "b": None}] and found[4]["tags"] == [{"a": None, "b": "z"}]
    rows.write_text(rows.read_text() + '{"text": "z", "n": "many"}\n')
    with pytest.raises(QwenchError, match=r"cannot be written as Parquet") as caught:
        run(Lengths(), rows, tmp_path / "out.parquet")
    # What was there is there, and the rows are kept: the next step is one that works.
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 5
    move = caught.value.hint.partition("mv ")[2].partition(", ")[0]
    subprocess.run(["mv", *shlex.split(move)], check=True)
    work = Lengths()
    assert run(work, rows, tmp_path / "out.jsonl")[0]["done"] == 6 and work.called == []
    assert len(read(tmp_path / "out.jsonl")) == 6


class Dialogue(Work):
    """Work by asks: every row's answer is gone on from in a second ask, which depends on the first."""

    name = "talk"

    def __init__(self, writer: LocalWriter) -> None:
        self.writer = writer

    def begin(self, row: dict[str, Any], key: str) -> list[Ask]:
        return [Ask(text=row["prompt"], max_tokens=4, sampling=(("temperature", 0),))] if row["prompt"] else []

    def finish(self, row: dict[str, Any], results: list[Turn]) -> dict[str, Any] | list[Ask]:
        if len(results) == 1:
            prompt = row["prompt"] + results[0].answer
            return [Ask(text=prompt, max_tokens=2, samples=2, sampling=(("temperature", 0),))]
        return {"said": [turn.answer for turn in results]}

    def count(self, results: list[Turn]) -> dict[str, int]:
        return {"turns": len(results)}


def test_rows_may_go_on_with_more_asks(tmp_path: Path) -> None:
    writer = LocalWriter(str(byte_decoder(tmp_path / "m")), Runtime(device="cpu"), slots=3)
    list(writer.load())
    rows = tmp_path / "in.jsonl"
    prompts = ["one", "", "three is longer", "x" * 251, "five"]
    rows.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts))
    events = list(Job(Dialogue(writer), JobOptions(str(rows), retries=0)).run())
    found = [e.row for e in events if isinstance(e, Produced)]
    assert [r["prompt"] for r in found] == prompts and found[1]["said"] == []
    # The fourth has room for the first answer, and none for the second.
    assert "no room" in found[3]["failed"] and events[-1].result["failed"] == 1
    for n in (0, 2, 4):
        first, *rest = found[n]["said"]
        assert len(rest) == 2 and rest[0] == rest[1]
        alone = Ask(text=prompts[n] + first, max_tokens=2, sampling=(("temperature", 0),))
        assert next(t for t in writer.run([alone]) if isinstance(t, Turn)).answer == rest[0]
    assert isinstance(events[-1], Finished) and events[-1].result["turns"] == 9


class Flaky:
    """A writer of two asks at a time that some asks fail with.

    Args:
        failing: text -> failures before there is an answer.
    """

    name, context = "flaky", 100
    can = frozenset({"text"})

    def __init__(self, failing: dict[str, int], error: QwenchError) -> None:
        self.failing, self.error = failing, error
        self.asked: list[str] = []

    def prepare(self, ask: Ask) -> SimpleNamespace:
        return SimpleNamespace(key=ask.key, max_tokens=1, prompt_tokens=None, ask=ask)

    def shown(self, prepared: SimpleNamespace) -> str:
        return prepared.ask.text

    def run(self, asks):
        asks, running, ended = iter(asks), [], False
        while True:
            while len(running) < 2 and not ended:
                prepared = next(asks, None)
                if isinstance(prepared, Wait):
                    assert running, "it waits for nothing"
                    break
                ended = prepared is None
                running += [(prepared.ask, n) for n in range(prepared.ask.samples)] if prepared else []
            if not running:
                return
            ask, sample = running.pop(0)
            self.asked.append(ask.text)
            left = self.failing.get(ask.text, 0)
            self.failing[ask.text] = left - 1
            failed = left > 0
            yield Piece(ask.key, "answer", "...", sample)
            yield Turn(ask.key, answer=ask.text, finish="failed" if failed else "stop", sample=sample, error=self.error)


class Echo(Dialogue):
    """One ask of two samples a row."""

    def begin(self, row: dict[str, Any], key: str) -> list[Ask]:
        return [Ask(text=row["text"] + "!", samples=2)]

    def finish(self, row: dict[str, Any], results: list[Turn]) -> dict[str, Any]:
        assert [turn.sample for turn in results] == [0, 1]
        return {"said": [turn.answer for turn in results]}

    @property
    def settings(self) -> dict[str, object]:
        return {}


def test_an_answer_that_fails_is_no_answer(tmp_path: Path) -> None:
    rows, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows.write_text("".join(json.dumps({"text": t}) + "\n" for t in "abcde"))
    gone = Flaky({"b!": 1, "e!": 1}, QwenchError("the connection is cut"))
    result, _ = run(Echo(gone), rows, out)
    assert result["failed"] == 2 and result["turns"] == 6
    told = {row["text"]: row for row in read(out)}
    assert told["a"]["said"] == ["a!", "a!"] and "said" not in told["b"]
    assert told["b"]["failed"] == told["e"]["failed"] == "the connection is cut"
    # They alone are asked again, with all of their samples.
    well = Flaky({}, gone.error)
    assert run(Echo(well), rows, out)[0]["failed"] == 0
    assert sorted(well.asked) == ["b!", "b!", "e!", "e!"]
    assert [row["said"] for row in read(out)] == [[f"{t}!"] * 2 for t in "abcde"]
    # What says that it may pass is asked again at once, be it the last row.
    busy = Flaky({"a!": 1, "e!": 2}, Again("busy"))
    result, events = run(Echo(busy), rows, "-")
    assert result["failed"] == 0 and [e.row["text"] for e in events if isinstance(e, Produced)] == list("abcde")
    result, _ = run(Echo(Flaky({"e!": 99}, Again("busy"))), rows, "-")
    assert result["failed"] == 1
