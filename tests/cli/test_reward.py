"""`qwench reward` through a shell: streams, exit codes, and what is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Run
from tests.tiny import reward_model

ON = ["--device", "cpu", "--kernels", "eager"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    reward_model(tmp_path / "m")
    answers = [("yes " * (i % 5 + 1), "no " * 3) for i in range(7)]
    answers.append(("the same", "the same"))  # no model is right on all
    rows = [
        {"id": i, "prompt": f"q{i // 2}", "chosen": a, "rejected": b, "category": "ab"[i % 2]}
        for i, (a, b) in enumerate(answers)
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return tmp_path


def test_score_then_eval(folder: Path, qwench: Run) -> None:
    done = qwench("reward", "score", "in.jsonl", "--model", "m", "--out", "s.jsonl", *ON, cwd=folder)
    assert done.returncode == 0 and done.stdout == "", done.stderr
    assert "16 answers of 8 rows scored" in done.stderr
    done = qwench("reward", "eval", "s.jsonl", "--json", "--plot", "p.png", cwd=folder)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {"accuracy", "strict_accuracy", "bt_loss", "phi_length", "rulers", "style", "by", "n"} <= set(found)
    assert found["n"] == 8 and set(found["by"]) == {"a", "b"} and (folder / "p.png").stat().st_size > 1000
    assert len(found["by"]["a"]["accuracy_interval"]) == 2
    done = qwench("reward", "eval", "s.jsonl", "--min-accuracy", "1", cwd=folder)
    assert done.returncode == 3 and "is below 1" in done.stderr
    assert "ruler       longest" in done.stdout and "nats over style" in done.stdout
    again = qwench("reward", "score", "in.jsonl", "--model", "m", "--out", "s.jsonl", "--json", *ON, cwd=folder)
    assert json.loads(again.stdout)["done"] == 8


def test_what_is_refused(folder: Path, qwench: Run) -> None:
    (folder / "bad.jsonl").write_text('{"prompt": "a"}\n')
    (folder / "none.jsonl").write_text("")
    for args, code, said in (
        (["score", "in.jsonl"], 2, "no reward model is named"),
        (["score", "in.jsonl", "--model", "smollm2"], 1, "GGUF files have no reward heads"),
        (["score", "bad.jsonl", "--model", "m"], 1, "line 1: there is no answer to score"),
        (["score", "bad.jsonl", "--model", "m", "--keep-going"], 1, "left out: line 1"),
        (["score", "none.jsonl", "--model", "m"], 3, "nothing was scored"),
        (["score", "in.jsonl", "--model", "m", "--pool", "first"], 2, "unknown --pool: `first`"),
        (["score", "in.jsonl", "--model", "m", "--pool", "before-pad"], 2, "has no pad token"),
        (["score", "in.jsonl", "--model", "m", "--aggregate", "min"], 2, "is for the steps of process models"),
        (["eval", "in.jsonl", "--pool", "last"], 2, "without --model"),
        (["eval", "in.jsonl", "--benchmark", "mmlu"], 2, "unknown --benchmark"),
        (["eval", "in.jsonl", "--against", "gone.jsonl"], 1, "the input is not there"),
        (["best-of", "in.jsonl", "--sizes", "x"], 2, "not numbers of samples"),
        (["best-of", "in.jsonl", "--by", "coin"], 2, "unknown --by: `coin`"),
    ):
        done = qwench("reward", *args, cwd=folder)
        assert done.returncode == code and said in done.stderr, (args, done.stderr)
        assert done.stdout == "" and "unexpected" not in done.stderr


def test_best_of_and_selftest(folder: Path, qwench: Run) -> None:
    row = {"prompt": "q", "answer": "7", "responses": ["#### 7", "#### 8"], "reward": [0.1, 0.9], "model": "m"}
    (folder / "r.jsonl").write_text(json.dumps(row) + "\n")
    done = qwench("reward", "best-of", "r.jsonl", "--json", cwd=folder)
    lines = [json.loads(x) for x in done.stdout.splitlines()]
    assert [(r["n"], r["reward"], r["oracle"]) for r in lines] == [(1, 0.5, 0.5), (2, 0.0, 1.0)], done.stderr
    assert {"majority", "weighted"} <= set(lines[0])
    done = qwench("reward", "score", "--model", "m", "--selftest", "--json", *ON, cwd=folder)
    assert done.returncode == (0 if json.loads(done.stdout)["right"] else 3)


def test_train_from_a_reward_model(folder: Path, qwench: Run) -> None:
    """Begun with the base's own head and not trained, what comes out rewards as the base does."""
    args = ["reward", "train", "in.jsonl", "--model", "m", "--epochs", "0", "--validation-share", "0.5", *ON]
    done = qwench(*args, "--out", "o", "--init-from", "m", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["saved"] == "checkpoint" and found["validation_pairs"] == 4 and not found["warnings"]
    rewards = []
    for model in ("m", "o"):
        rows = qwench("reward", "score", "in.jsonl", "--model", model, *ON, cwd=folder).stdout.splitlines()
        rewards += [[json.loads(row)[name] for row in rows for name in ("reward_chosen", "reward_rejected")]]
    assert rewards[1] == pytest.approx(rewards[0], abs=1e-4)
    again = qwench(*args, "--out", "o", cwd=folder)
    assert again.returncode == 1 and "the output is there already" in again.stderr
    fresh = qwench(*args, "--out", "p", cwd=folder)
    assert "has a reward head of its own" in fresh.stderr and "ruler       longest" in fresh.stdout
