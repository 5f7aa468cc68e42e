"""Rationales: instructions to the byte, tries that survive a kill, and what is piped into measures."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from qwench.ops.grading.reliability.instructions import INSTRUCTIONS, SYSTEM, body, evaluation, synthesis, training

from tests.grading.test_reliability import write
from tests.writing.stub import Stub, counting, serving


def test_instructions_to_the_byte():
    assert sorted(n for n, text in INSTRUCTIONS.items() if text.endswith(" ")) == [
        "cb",
        "paws",
        "qqp",
        "wic",
        "winogrande",
    ]
    assert INSTRUCTIONS["cb"] == INSTRUCTIONS["anli"] + " " and INSTRUCTIONS["paraphrase"] + " " == INSTRUCTIONS["qqp"]
    assert len(INSTRUCTIONS) == 19 and "is is true" in INSTRUCTIONS["creak"] and "Follwing" in INSTRUCTIONS["sst2"]
    text = body("Q?", INSTRUCTIONS["math"], True, "training", True)
    assert text == (
        "Solve the following math problems.\n"
        'Add a line "The answer is n" at the end where n is the answer value.\n\n'
        "Here is the question:\nQ?\n\nAnswer: Let's think step by step."
    )
    assert training(text, "reference") == f"Human: {text}\n\nAssistant: "
    arc = body("Q?", INSTRUCTIONS["arc"], False, "synthesis", True)
    assert 'Give your answer ending with "The answer is x" where x is your choice.' in arc
    assert arc.endswith("Answer: Let's think step by step.\n")
    assert synthesis(arc, "reference") == [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": arc},
    ]
    plain = body("Q?", INSTRUCTIONS["arc"], False, "evaluation", False)
    assert plain.endswith("Answer:")
    assert evaluation(plain, "reference")[1]["content"] == f"Human:{plain}\n\nAssistant: "
    assert body("Q?", "I", False, "evaluation", True).endswith("Answer:\nLet's think step by step.")
    assert evaluation(plain, "reference")[0]["content"] == SYSTEM and len(evaluation(plain, "template")) == 1


def brain(body: dict) -> str:
    """Right at a third of the seeds; a question with 3 never."""
    text = str(body.get("prompt") or body["messages"][-1]["content"])
    if "Here is the question" not in text:
        return counting(body)
    time.sleep(0.03)
    number = int(text.split("What is ")[1].split()[0])
    right = 2 * number if body["seed"] % 3 == 0 and number != 3 else 99
    return f"Adding {number} twice. The answer is {right}."


def questions(path: Path, count: int = 8) -> str:
    return write(path, [{"id": f"q{n}", "question": f"What is {n} + {n}?", "label": str(2 * n)} for n in range(count)])


def lines(path: Path) -> list[dict]:
    return [json.loads(text) for text in path.read_text().splitlines()]


def test_rationales_are_the_same_after_a_kill(qwench, tmp_path: Path):
    where = questions(tmp_path / "q.jsonl")
    with serving(Stub(brain)) as stub:
        how = ["reliability", "rationales", where, "--engine", stub.address, "--api", "chat", "--instruction", "math"]
        how += ["--tries", "5", "--concurrency", "2", "--keep-failed"]
        done = qwench(*how, "--out", tmp_path / "want.jsonl", "--json")
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        command = [sys.executable, "-m", "qwench.cli.main", *map(str, how), "--out", str(tmp_path / "out.jsonl"), "-q"]
        journal = tmp_path / ".out.jsonl.job"
        for least in (2, 5):
            child = subprocess.Popen(command, stderr=subprocess.PIPE)
            while child.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < least):
                time.sleep(0.005)
            child.send_signal(signal.SIGKILL)
            assert child.wait() == -signal.SIGKILL, child.stderr.read()
            assert not (tmp_path / "out.jsonl").exists()
        done = qwench(*how, "--out", tmp_path / "out.jsonl", "--json")
        assert done.returncode == 0 and json.loads(done.stdout)["done"] >= 4, done.stderr
        done = qwench(*how, "--out", tmp_path / "out.jsonl", "--style", "template")
        assert done.returncode == 1 and 'style was "reference", is "template"' in done.stderr
        train = [*how[:-1], "--out", tmp_path / "train.jsonl", "--rows", "both", "--unsolved"]
        done = qwench(*train, "--prompts", tmp_path / "eval.jsonl")
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "want.jsonl").read_bytes()
    rows = lines(tmp_path / "want.jsonl")
    assert len(rows) == 8 and report["questions"] == 8
    solved = [row for row in rows if row["model_solution"] is not None]
    assert report["solved"] == len(solved) and report["tries"] == sum(row["tries"] for row in rows)
    failed = rows[3]
    assert failed["model_solution"] is None and len(failed["failed_tries"]) == 5
    assert all(f"The answer is {row['label']}." in row["model_solution"] for row in solved)
    trained = lines(tmp_path / "train.jsonl")
    with_, without = ([r for r in trained if r["condition"] == c] for c in ("with", "without"))
    assert [r["id"] for r in with_] == [r["id"] for r in solved] and [r["id"] for r in without] == [
        r["id"] for r in rows
    ]
    assert without[3]["completion"] == "The answer is 6" and without[3]["prompt"].endswith("Answer:\n\nAssistant: ")
    assert with_[0]["completion"] == solved[0]["model_solution"] and with_[0]["prompt"].startswith("Human: Solve")
    asked = lines(tmp_path / "eval.jsonl")
    assert [r["condition"] for r in asked[:2]] == ["with", "without"] and asked[0]["id"] == asked[1]["id"] == "q0"
    assert asked[0]["messages"][1]["content"].startswith("Human:Solve")


def test_rationales_usage(qwench, tmp_path: Path):
    where = questions(tmp_path / "q.jsonl", 1)
    for more, told in (
        ((), "--out takes a file"),
        (("--out", tmp_path / "o.jsonl", "--rows", "some"), "unknown --rows"),
        (("--out", tmp_path / "o.jsonl", "--unsolved"), "--rows asks for none"),
        (("--out", tmp_path / "o.jsonl", "--rows", "both", "--keep-failed"), "no place for"),
    ):
        done = qwench("reliability", "rationales", where, *more)
        assert done.returncode == 2 and told in done.stderr, done.stderr


def test_sample_is_piped_into_measure(qwench, tmp_path: Path):
    where = questions(tmp_path / "q.jsonl", 4)
    answers = Stub(
        lambda body: f"The answer is {4 if body['seed'] % 2 else 6}." if "What is" in str(body) else counting(body)
    )
    with serving(answers) as stub:
        done = qwench("sample", where, "--engine", stub.address, "--api", "chat", "--n", "5", "--temperature", "1")
        assert done.returncode == 0, done.stderr
    done = qwench("reliability", "measure", "-", "--json", input=done.stdout)
    assert done.returncode == 0, done.stderr
    cell = json.loads(done.stdout)["cells"][0]
    assert cell["n"] == 4 and cell["k"] == 5 and cell["unparsed"] == 0 and cell["truncated"] == 0
    assert cell["accuracy"] <= 0.5
