"""MARGE end to end: a scripted engine, kills, episodes, servers with faults, rows that trl reads."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from qwench.ops.base.errors import QwenchError
from qwench.ops.base.events import Finished, Produced
from qwench.ops.base.runtime import Runtime
from qwench.ops.explore import ExploreOptions, RowsOptions, rows, run
from qwench.ops.grading.explore.questions import SENTENCE, STYLES
from qwench.ops.writing.local import LocalWriter
from qwench.ops.writing.session import ChatOptions

from tests.tiny import byte_decoder, chat_tokenizer
from tests.writing.stub import Stub, counting, serving

#: what solutions of the scripted engine look like: three lines, then an answer
BODY = "a\nb\nc\n"
ANSWER = "=%s"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = byte_decoder(tmp_path_factory.mktemp("small"), max_position_embeddings=4096)
    chat_tokenizer(found)
    return found


def scripted(body: dict[str, Any]) -> str:
    """A table keyed by the question and by how much of the answer there is: the share of seeds that are right."""
    prompt = str(body["prompt"])
    if "<|im_start|>assistant" not in prompt or "Q" not in prompt:
        return counting(body)
    question, said = prompt.rsplit("user\n", 1)[1][:2], prompt.rsplit("assistant\n", 1)[1]
    draw = body["seed"] * 7919 % 997 / 997
    depth = said.count("\n")
    share = {"Q0": 0.0, "Q1": 1.0, "Q2": 0.3 + 0.2 * depth, "Q3": 0.8 - 0.25 * depth, "Q4": 0.5}[question]
    return (BODY + ANSWER % ("7" if draw < share else "8"))[len(said) :]


QUESTIONS = [{"id": f"q{n}", "question": f"Q{n} what is it?", "answer": "7"} for n in range(5)]


def write(path: Path, found: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return str(path)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def explored(
    stub: Stub, folder: Path, where: Path, name: str, questions: list[dict[str, Any]], **own: Any
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(states, the result)"""
    from qwench.ops.sample import JobOptions

    chat = {"max_tokens": 200, "seed": 3} | {n: own.pop(n) for n in ("max_tokens", "sampling", "slots") if n in own}
    server = stub.address.startswith("http")
    asked = Runtime(engine=stub.address, tokenizer=str(folder), concurrency=own.pop("concurrency", 4))
    runtime = asked if server else Runtime(device="cpu", engine="torch")
    job = JobOptions(write(where / f"{name}-in.jsonl", questions), str(where / f"{name}.jsonl"), **own.pop("job", {}))
    options = ExploreOptions(
        chat=ChatOptions(model="" if server else str(folder), runtime=runtime, **chat),
        job=job,
        **{"split": "lines", "root_n": 8, "n": 4} | own,
    )
    result = [e for e in run(options) if isinstance(e, Finished)][-1].result
    return read(where / f"{name}.jsonl"), result


def test_a_scripted_engine(folder: Path, tmp_path: Path):
    with serving(Stub(scripted)) as stub:
        found, result = explored(stub, folder, tmp_path, "a", QUESTIONS, baseline="root")
        turned, _ = explored(stub, folder, tmp_path, "b", QUESTIONS[::-1], concurrency=1, baseline="root")
    by = {(row["id"], row["state"]): row for row in found}
    assert by == {(row["id"], row["state"]): row for row in turned} and len(found) == 2 + 3 * 4
    assert result["dropped"] == {"too easy": 1, "too hard": 1} and result["failed"] == 0
    assert by["q0", 0]["dropped"] == "too hard" and by["q1", 0]["dropped"] == "too easy"
    for (name, state), row in by.items():
        verdicts = [s["verdict"] for s in row["samples"]]
        right = verdicts.count("right")
        # Exact: by hand from the seeds, which are the run's own.
        share = {"q0": 0.0, "q1": 1.0, "q2": 0.3 + 0.2 * state, "q3": 0.8 - 0.25 * state, "q4": 0.5}[name]
        assert verdicts == ["right" if s["seed"] * 7919 % 997 / 997 < share else "wrong" for s in row["samples"]]
        assert row["value"] == right / len(verdicts) and row["low"] <= row["value"] <= row["high"]
        assert len(verdicts) == row["n"] == (4 if state else 8)
        assert row["prefix"] == "".join(BODY.splitlines(True)[:state]) and row["prompt"].endswith(row["prefix"])
        assert row["prompt"].startswith("<|im_start|>") and row["prompt"].count("assistant\n") == 1
    for name in ("q2", "q3", "q4"):
        root = by[name, 0]
        assert root["hit"]["right"] is (root["value"] <= 0.5) and root["hit"]["from"] == "root"
        assert root["samples"][root["hit"]["index"]]["right"] is root["hit"]["right"]
        spent = sum(by[name, n]["generated_tokens"] for n in (1, 2, 3))
        assert spent <= root["baseline_tokens"] and all(sum(pair) == 4 for pair in root["baseline"])
    assert len({s["seed"] for row in found for s in row["samples"]}) == 5 * 8 + 9 * 4
    assert result["verdicts"] == {
        w: sum(s["verdict"] == w for r in found for s in r["samples"]) for w in ("right", "wrong")
    }
    assert {(r["hit"], r["state"]): r["states"] for r in result["depths"]}
    assert result["difference"]["questions"] == 3 and result["tokens"]["baseline"] >= result["tokens"]["states"]


def test_the_next_episode_keeps_a_hit_that_has_no_heir(folder: Path, tmp_path: Path):
    with serving(Stub(scripted)) as stub:
        first, _ = explored(stub, folder, tmp_path, "a", QUESTIONS[2:3], hit="right")
        stub.brain = lambda body: scripted(body | {"prompt": str(body["prompt"]).replace("Q2", "Q0")})
        how = {"previous": str(tmp_path / "a.jsonl")}
        second, result = explored(stub, folder, tmp_path, "b", QUESTIONS[2:3], **how)
        assert [row["episode"] for row in second] == [2] * 4 and not result["dropped"]
        kept = first[0]["samples"][first[0]["hit"]["index"]]["text"]
        assert second[0]["hit"]["from"] == "previous" and second[0]["hit"]["text"] == kept
        assert not {s["seed"] for r in first for s in r["samples"]} & {s["seed"] for r in second for s in r["samples"]}
        third, _ = explored(stub, folder, tmp_path, "c", QUESTIONS[2:3], previous=str(tmp_path / "b.jsonl"))
        assert third[0]["episode"] == 3 and third[0]["hit"]["text"] == kept
        given = [QUESTIONS[0] | {"hit": BODY + ANSWER % 7}]
        fourth, _ = explored(stub, folder, tmp_path, "d", given)
        assert fourth[0]["hit"]["from"] == "row" and fourth[0]["hit"]["right"] and len(fourth) == 4
        with pytest.raises(QwenchError, match="its question has changed"):
            explored(stub, folder, tmp_path, "e", [QUESTIONS[2] | {"question": "Q3"}], **how)


def test_bad_questions(folder: Path, tmp_path: Path):
    with serving(Stub(scripted)) as stub:
        for bad, why in (
            ([*QUESTIONS, QUESTIONS[1]], "line 6 repeats the id `q1`"),
            ([{"question": "Q2"}], "line 1: there is no answer"),
            ([{"question": "Q2", "answer": "x"}], "line 1: the answer cannot be read by the verifier number"),
            ([{"answer": "7"}], "line 1: there is neither a prompt nor messages"),
        ):
            with pytest.raises(QwenchError, match=why):
                explored(stub, folder, tmp_path, "bad", bad)
        kept = [{"query": "Q2 what?", "gt": 7}, {"question": "Q3"}]
        found, result = explored(stub, folder, tmp_path, "kept", kept, job={"keep_going": True})
        assert result["bad"] == 1 and {row["question"] for row in found} == {"Q2 what?"}
        with pytest.raises(QwenchError, match="start_header_id"):
            explored(stub, folder, tmp_path, "style", QUESTIONS, prompt_style="llama3")
        found, _ = explored(stub, folder, tmp_path, "qwen", QUESTIONS[2:3], prompt_style="qwen")
        bare, _ = explored(stub, folder, tmp_path, "bare", QUESTIONS[2:3], prompt_style="bare")
        plain, _ = explored(stub, folder, tmp_path, "plain", QUESTIONS[2:3])
        assert plain[0]["prompt"].replace(f"\n{SENTENCE}", "") == bare[0]["prompt"] != plain[0]["prompt"]
        assert found[1]["prompt"] == STYLES["qwen"].replace("{query}", "Q2 what is it?") + "a\n"


def test_servers_with_faults(folder: Path, tmp_path: Path):
    def busy(handler: Any) -> bool:
        handler.send(429, {"error": "later"}, Retry_After="0")
        return True

    def gone(handler: Any) -> bool:
        handler.send(503, {"error": "away"}, Retry_After="90000")
        return True

    with serving(Stub(scripted)) as stub:
        want, _ = explored(stub, folder, tmp_path, "want", QUESTIONS)
        stub.choices = False
        # More slots than one: all samples in one request where the server has several choices, and it has not.
        found, result = explored(stub, folder, tmp_path, "alone", QUESTIONS, slots=8)
        assert found == want and result["failed"] == 0
        stub.choices = True
        stub.requests.clear()
        found, _ = explored(stub, folder, tmp_path, "choices", QUESTIONS, slots=8)
        assert {body["n"] for body in stub.posts() if body["max_tokens"] == 200} == {8}
        assert [row["n"] for row in found] == [8 if row["state"] == 0 else 4 for row in found]
        # A request that fails is no wrong answer: its question is left out, and asked again by the same command.
        stub.faults = [*[lambda handler: False] * 11, gone]
        found, result = explored(stub, folder, tmp_path, "gone", QUESTIONS, concurrency=1)
        assert not stub.faults and result["failed"] == 1
        lost = {row["id"] for row in want} - {row["id"] for row in found}
        assert len(lost) == 1 and found == [row for row in want if row["id"] not in lost]
        found, result = explored(stub, folder, tmp_path, "gone", QUESTIONS, concurrency=1)
        assert found == want and result["failed"] == 0 and result["done"] == 4
        stub.faults = [*[lambda handler: False] * 8, busy]
        found, _ = explored(stub, folder, tmp_path, "busy", QUESTIONS)
        assert found == want and not stub.faults
        stub.wraps = True
        with pytest.raises(QwenchError, match="puts a template around it"):
            explored(stub, folder, tmp_path, "wrapped", QUESTIONS)


def test_ids_here_whatever_is_drawn_beside_them(tmp_path: Path):
    """A tiny model's noise that soon ends, judged by a program that looks for some letters."""
    folder = byte_decoder(tmp_path / "soon", max_position_embeddings=4096, eos_token_id=[256, *range(0, 272, 16)])
    chat_tokenizer(folder)
    judge = """command:grep -qE '"text": "[^"]*[hjkxyzQJK]'"""
    own = {"verifier": judge, "split": "tokens", "states": 3, "root_n": 6, "n": 4, "max_tokens": 60}
    here = Stub()
    here.address = "torch"
    found, other = (explored(here, folder, tmp_path, f"here{s}", QUESTIONS[:4], slots=s, **own)[0] for s in (1, 8))
    turned, _ = explored(here, folder, tmp_path, "turned", QUESTIONS[3::-1], slots=3, **own)
    assert found == other and sum(row["state"] > 0 for row in found) > 2
    assert sorted(turned, key=lambda row: (row["id"], row["state"])) == found
    # A server that runs the same model says the same.
    local = LocalWriter(str(folder), Runtime(device="cpu", engine="torch"))
    list(local.load())
    with serving(Stub(local)) as stub:
        there, _ = explored(stub, folder, tmp_path, "there", QUESTIONS[:4], **own)
    assert len(there) >= 4
    for one, other in zip(*([row for row in some if not row["state"]] for some in (found, there)), strict=True):
        # An answer's first blanks are no part of what a server is said to have told.
        told = [
            [(s["text"].lstrip(), s["verdict"], s["right"], s["finish"], s["seed"]) for s in row["samples"]]
            for row in (one, other)
        ]
        assert told[0] == told[1]
        assert one["value"] == other["value"] and one["prompt"] == other["prompt"]
    for row in found:
        whole = next(r for r in found if r["id"] == row["id"])
        if row["state"]:
            hit = whole["samples"][row["hit"]["index"]]
            assert row["prefix_ids"] == hit["ids"][: len(row["prefix_ids"])] and hit["text"].startswith(row["prefix"])


def test_rows_of_every_form(folder: Path, tmp_path: Path, qwench: Any, lines: Any):
    with serving(Stub(scripted)) as stub:
        states, _ = explored(stub, folder, tmp_path, "a", QUESTIONS)
    at = {row["prompt"]: row for row in states}

    def made(form: str, **own: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        events = list(rows(RowsOptions(str(tmp_path / "a.jsonl"), form=form, **own)))
        return [e.row for e in events if isinstance(e, Produced)], events[-1].result

    inside = [row for row in states if 0.3 < row["value"] < 0.7]
    dpo, result = made("dpo")
    assert [row["prompt"] for row in dpo] == [row["prompt"] for row in inside] and result["used"] == len(inside) > 2
    for row in dpo:
        verdict = {s["text"]: s["right"] for s in at[row["prompt"]]["samples"]}
        assert verdict[row["chosen"]] is True and verdict[row["rejected"]] is False
    pairs, _ = made("pairs", keep="0.1,1.1")
    wide = [row for row in states if row["value"] > 0.1 and 0 < row["value"] < 1]
    assert len(pairs) == sum(len(row["samples"]) // 2 for row in wide)
    groups, _ = made("group", keep="0.1,1.1")
    for row in groups:
        assert abs(sum(row["advantages"])) < 1e-9 and len(row["completions"]) == len(row["advantages"])
        assert sum(a * a for a in row["advantages"]) / len(row["advantages"]) == pytest.approx(1)
    flat = [a for row in pairs for a in row["advantage"]]
    assert flat == [a for row in groups for a in row["advantages"]]
    assert all(row["rendered"].endswith(row["prompt"]) and row["rendered"] in at for row in pairs)
    steps, _ = made("stepwise")
    assert len(steps) == 3
    for row in steps:
        root = at[row["prompt"]]
        assert "".join(row["completions"]) == root["samples"][root["hit"]["index"]]["text"]
        values = [s["value"] for s in states if s["id"] == root["id"] and s["state"]]
        assert row["values"] == [*values, float(root["hit"]["right"])] and row["labels"] == [
            v > 0 for v in row["values"]
        ]
    sft, counts = made("sft", keep="0,1.1")
    said = [(row["prompt"], row["completion"]) for row in sft]
    assert len(set(said)) == len(said) and all("=7" in text for _, text in said) and counts["duplicates"] > 0
    balanced, _ = made("group", keep="0,1.1", balance=True)
    # As many states of both kinds are drawn; those of them that are all alike give no row.
    _, counts = made("group", keep="0,1.1", balance=True)
    kinds = [row["hit"]["right"] for row in states if 0 < row["value"] < 1.1 and row["hit"]]
    assert counts["unbalanced"] == abs(kinds.count(True) - kinds.count(False)) + sum(
        r["hit"] is None for r in states if r["value"] > 0
    )
    assert len(balanced) + counts["alike"] == 2 * min(kinds.count(True), kinds.count(False)) > 0
    done = qwench("explore", "rows", tmp_path / "a.jsonl", "--form", "group", "--keep", "0.7,0.3")
    assert done.returncode == 2 and "a lower and a higher value" in done.stderr
    done = qwench("explore", "rows", tmp_path / "a.jsonl", "--form", "dpo")
    assert done.returncode == 0 and lines(done.stdout) == dpo and "rows of 14 states" in done.stderr
    done = qwench("explore", "rows", tmp_path / "a-in.jsonl")
    assert done.returncode == 1 and "line 1 is no state of `explore run`" in done.stderr
    done = qwench("explore", "rows", tmp_path / "a.jsonl", "--keep", "0.998,0.999")
    assert done.returncode == 3


def test_truncated_completions_are_no_rows(folder: Path, tmp_path: Path):
    with serving(Stub(scripted)) as stub:
        long = lambda body: scripted(body).replace("=", "!" * (body.get("seed", 0) % 3) + "=")  # noqa: E731
        stub.brain = long
        states, result = explored(stub, folder, tmp_path, "a", QUESTIONS, max_tokens=len(BODY + ANSWER % 7))
    cut = [s for row in states for s in row["samples"] if s["verdict"] == "truncated"]
    assert cut and all(s["right"] is False and s["finish"] == "length" for s in cut)
    assert result["verdicts"]["truncated"] == len(cut)
    for drop in (True, False):
        how = RowsOptions(str(tmp_path / "a.jsonl"), form="group", keep="0,1", drop_truncated=drop)
        made = [e.row for e in rows(how) if isinstance(e, Produced)]
        texts = [t for row in made for t in row["completions"]]
        assert any(t in {s["text"] for s in cut} for t in texts) is not drop
        # Rows with such completions say so: no end of turn belongs after them.
        said = [dict(zip(row["completions"], row.get("truncated", ()), strict=False)) for row in made]
        assert all(is_cut is (text in {s["text"] for s in cut}) for one in said for text, is_cut in one.items())
        assert any(any(one.values()) for one in said) is not drop


def test_the_same_after_a_kill(folder: Path, tmp_path: Path, qwench: Any):
    def slow(body: dict[str, Any]) -> str:
        time.sleep(0.02)
        return scripted(body)

    where = write(tmp_path / "q.jsonl", QUESTIONS)
    with serving(Stub(slow)) as stub:
        how = ["explore", "run", where, "--engine", stub.address, "--tokenizer", folder, "--split", "lines"]
        how += ["--root-n", "8", "--n", "4", "--max-tokens", "200", "--concurrency", "2", "--baseline", "root"]
        how += ["--seed", "3"]
        done = qwench(*how, "--out", tmp_path / "want.jsonl")
        assert done.returncode == 0 and "too easy" in done.stdout and "at equal tokens" in done.stdout, done.stderr
        told = done.stdout
        command = [sys.executable, "-m", "qwench.cli.main", *map(str, how), "--out", str(tmp_path / "out.jsonl"), "-q"]
        journal = tmp_path / ".out.jsonl.job"
        child = subprocess.Popen(command, stderr=subprocess.PIPE)
        while child.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < 3):
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL, child.stderr.read()
        assert not (tmp_path / "out.jsonl").exists()
        done = qwench(*how, "--out", tmp_path / "out.jsonl")
        assert done.returncode == 0 and "of them were done before" in done.stderr, done.stderr
        assert done.stdout == told
        assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "want.jsonl").read_bytes()
        done = qwench(*how, "--out", tmp_path / "out.jsonl", "--threshold", "0.6")
        assert done.returncode == 1 and "threshold was 0.5, is 0.6" in done.stderr
        stub.models = ["other"]
        hard = write(tmp_path / "hard.jsonl", QUESTIONS[:2])
        how[2] = hard
        done = qwench(*how, "--out", tmp_path / "none.jsonl")
        assert done.returncode == 3 and "no group of completions says anything" in done.stderr
    done = qwench("explore", "run", where, "--out", "-")
    assert done.returncode == 2 and "--out takes a file" in done.stderr


def test_rows_load_in_trl(folder: Path, tmp_path: Path):
    pytest.importorskip("trl", reason="trl is not installed")
    from datasets import Dataset
    from trl.data_utils import is_conversational

    with serving(Stub(scripted)) as stub:
        explored(stub, folder, tmp_path, "a", QUESTIONS)
    found = [e.row for e in rows(RowsOptions(str(tmp_path / "a.jsonl"))) if isinstance(e, Produced)]
    data = Dataset.from_list(found)
    assert set(data.column_names) == {"prompt", "chosen", "rejected"} and not is_conversational(data[0])
