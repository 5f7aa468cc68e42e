"""The model-free reward: the numbers of the paper's formulas, the parser, and how trainers call it."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from qwench.ops.audio.reward import accuracy_reward, advantages, gold_of, k3, rewarded, wav_reward
from qwench.ops.audio.verdicts import PUBLISHED, verdict
from qwench.ops.base.errors import QwenchError

PLUGIN = Path(__file__).parents[2] / "examples/wav-reward/plugin.py"


def test_the_prompt_is_the_published_one() -> None:
    told = "824cefd8224bdcb7ac6dfb8df27a88fb92f3910fb44f09bf63535ca92ecbfa75"
    assert hashlib.sha256(PUBLISHED.encode()).hexdigest() == told


@pytest.mark.parametrize(
    ("sigma", "row"),
    [
        (0.5, [10, 1.3534, 0.0034, 0.0000, 0.0000]),
        (1, [10, 6.0653, 1.3534, 0.1111, 0.0034]),
        (1.5, [10, 8.0074, 4.1111, 1.3534, 0.2857]),
        (2, [10, 8.8250, 6.0653, 3.2465, 1.3534]),
    ],
)
def test_the_table_of_accuracy_rewards(sigma: float, row: list[float]) -> None:
    assert [round(accuracy_reward(1 + d, 1, sigma), 4) for d in range(5)] == row
    assert accuracy_reward(6, 1, sigma) == 0 and accuracy_reward(None, 1, sigma) == 0


def test_bounds_of_sigma() -> None:
    assert accuracy_reward(1, 5, 1e-300) == 0 and accuracy_reward(5, 5, 1e-300) == 10
    for sigma in (0, -1, math.nan, math.inf):
        with pytest.raises(QwenchError, match="above 0"):
            accuracy_reward(1, 5, sigma)


def test_advantages_of_a_group() -> None:
    said = [f"<score>{n}</score>" for n in (5, 5, 3)] + ["<score>1</score> <score>1</score>"]
    both = [rewarded(verdict(text), 5, 1.0, "gauss", 5) for text in said]
    accuracy = [a for a, _ in both]
    assert [round(a, 4) for a in accuracy] == [10, 10, 1.3534, 0.0034]
    assert round(float(np.mean(accuracy)), 4) == 5.3392 and round(float(np.std(accuracy)), 4) == 4.6852
    assert [round(a, 4) for a in advantages(accuracy)] == [0.9948, 0.9948, -0.8507, -1.1389]
    assert [f for _, f in both] == [5, 5, 5, 0]
    assert [round(a, 4) for a in advantages([sum(b) for b in both])] == [0.9348, 0.9348, -0.4327, -1.4370]
    exact = [rewarded(verdict(text), 5, 1.0, "exact", 5)[0] for text in said]
    assert advantages(exact) == [1, 1, -1, -1]
    assert advantages([0.1] * 3) == [0, 0, 0] and advantages([]) == []


def test_the_estimate_of_the_divergence() -> None:
    assert [round(k3(x), 5) for x in (-1, -0.1, 0, 0.1, 1)] == [0.36788, 0.00484, 0, 0.00517, 0.71828]


@pytest.mark.parametrize(
    ("text", "score", "form"),
    [
        ("<think><score>1</score></think><score>5</score>", 5, True),
        ("<score>1</score> or <score>3</score>", 3, False),
        ("<score> 3 </score> (fine)", 3, True),
        ("<score>4.0</score>", None, False),
        ("<think>so <score>3</score>", None, False),
        ("<score>５</score>", 5, True),
        ("so it is</think><score>2</score>", 2, True),
        *((f"<score>{n}</score>", None, False) for n in ("5/5", "five", "3.5", "0", "6", "", "-1", "05", "1 3")),
        ("five", None, False),
        ("<score>5", None, False),
        ("<score>3</score><score>six</score>", None, False),
    ],
)
def test_the_parser(text: str, score: int | None, form: bool) -> None:
    found = verdict(text)
    assert (found.score, found.form) == (score, form)
    assert (found.reason is None) == (score is not None)


def test_a_thought_is_part_of_the_form_where_it_was_asked_for() -> None:
    assert verdict("<think>a</think><score>5</score>", think=True).form
    assert verdict("<think>a</think><score>5</score>").thinking == "a"
    for text in (
        "<score>5</score>",
        "<score>5</score><think>a</think>",
        "<think>a</think><think>b</think><score>5</score>",
    ):
        assert verdict(text, think=True).score == 5 and not verdict(text, think=True).form
    assert verdict("<score>2</score>", scale=(1, 3, 5)).score is None


def test_the_parser_is_linear() -> None:
    for text in ("<think>" * 200_000, "<score>" * 200_000, "</score>" * 200_000, "<score> " + " " * 1_000_000):
        assert verdict(text).score is None


@pytest.mark.parametrize("label", [0, 6, 3.5, "five", True, [5], "<score>9</score>"])
def test_a_label_outside_the_scale_is_refused(label: object) -> None:
    with pytest.raises(QwenchError, match="gold is"):
        gold_of(label)


def test_the_reward_as_trl_calls_it() -> None:
    said = [[{"role": "assistant", "content": "<score>5</score>"}], [{"role": "assistant", "content": "no"}]]
    given = {"prompts": [[]] * 2, "completion_ids": [[1], [2]], "trainer_state": object(), "log_extra": print}
    assert wav_reward(prompts=given.pop("prompts"), completions=said, solution=[5, 5], **given) == [15.0, 0.0]
    assert wav_reward.__name__ == "wav_reward"
    assert wav_reward(["<score>3</score>", "x"], gold=["3", None]) == [15.0, None]
    assert wav_reward(["<score>1</score>"], solution=np.array([5])) == [pytest.approx(5 + 10 * math.exp(-8))]
    with pytest.raises(QwenchError, match="2 completions have 1 labels"):
        wav_reward(["a", "b"], solution=[5])
    with pytest.raises(QwenchError, match="no labels"):
        wav_reward(["a"])
    with pytest.raises(QwenchError, match="completion 2: gold is 9"):
        wav_reward(["a", "b"], solution=[5, 9])


@pytest.mark.parametrize("version", ["swift.rewards", "swift.plugin"])
def test_the_plugin_as_ms_swift_calls_it(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package, module = types.ModuleType("swift"), types.ModuleType(version)
    package.__path__ = []  # type: ignore[attr-defined]
    module.ORM, module.orms = type("ORM", (), {"__init__": lambda self, args=None, **kw: None}), {}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "swift", package)
    monkeypatch.setitem(sys.modules, version, module)
    spec = importlib.util.spec_from_file_location("external_plugin", PLUGIN)
    assert spec and spec.loader
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    columns = {"messages": [[]] * 2, "audios": [["a.wav"]] * 2, "question_id": ["q", "q"], "trainer_state": object()}
    call = module.orms["wav_reward"](args=None)  # type: ignore[attr-defined]
    assert call(["<score>5</score>", "?"], solution=["5", "1"], **columns) == [15.0, 0.0]
    call = module.orms["wav_reward_think"](args=None)  # type: ignore[attr-defined]
    assert call(["<score>5</score>", "<think>a</think><score>5</score>"], solution=["5", "5"], **columns) == [10, 15]


def test_the_command(qwench, lines, tmp_path: Path) -> None:
    said = ["<score>5</score>", "<score>5</score>", "<score>3</score>", "<score>1</score><score>1</score>"]
    rows = [{"id": n, "question_id": "q", "completion": text, "gold": 5} for n, text in enumerate(said)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    done = qwench("wav", "reward", file)
    assert done.returncode == 0, done.stderr
    assert [round(r["advantage"], 4) for r in lines(done.stdout)] == [0.9348, 0.9348, -0.4327, -1.4370]
    assert "assumed: format in advantage True; std population; sigma 1.0" in done.stderr
    out = tmp_path / "out.parquet"
    done = qwench("wav", "reward", file, "--shape", "exact", "--no-format-in-advantage", "--out", out, "--json")
    assert json.loads(done.stdout)["rows"] == 4 and out.is_file()
    file.write_text(json.dumps(rows[0] | {"gold": 7}))
    done = qwench("wav", "reward", file)
    assert done.returncode == 1 and "line 1: gold is 7, and none of 1, 2, 3, 4, 5" in done.stderr
    file.write_text(json.dumps(rows[0] | {"completion": "fine"}))
    assert qwench("wav", "reward", file).returncode == 3
