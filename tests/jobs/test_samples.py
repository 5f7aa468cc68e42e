"""`qwench sample`: every sample is its own, whatever is drawn beside it; the distribution is the exact one."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from qwench.ops.base.errors import QwenchError
from qwench.ops.base.events import Produced
from qwench.ops.base.runtime import Runtime
from qwench.ops.chat import Chat, many
from qwench.ops.sample import ChatOptions, JobOptions, SampleOptions, sample
from qwench.ops.writing.local import LocalWriter
from qwench.ops.writing.writer import Ask, Turn

from tests.tiny import byte_decoder
from tests.writing.test_chat import causal

TORCH = Runtime(device="cpu", engine="torch")


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return byte_decoder(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory) -> Path:
    return causal(tmp_path_factory.mktemp("qwen"), "qwen3")


def drawn(
    model: Path, rows: list[dict], where: Path, n: int = 1, slots: int = 8, out: str = "-", **options: object
) -> tuple[list[dict], dict]:
    """(rows that came out, the result)"""
    (where / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = {name: options.pop(name) for name in ("shots", "prefix_field") if name in options}
    job = {name: options.pop(name) for name in ("limit", "dry_run") if name in options}
    chat = ChatOptions(model=str(model), runtime=TORCH, slots=slots, **{"seed": 3, "max_tokens": 6} | options)
    events = list(sample(SampleOptions(n, chat=chat, job=JobOptions(str(where / "in.jsonl"), out, **job), **own)))
    return [e.row for e in events if isinstance(e, Produced)], events[-1].result


ROWS = [{"id": f"r{i}", "prompt": "Say " + "x" * (13 * i % 17), "kept": i} for i in range(6)]
WARM = (("temperature", 1.0), ("top_k", 0), ("top_p", 1.0))


def test_samples_depend_on_nothing_beside_them(small: Path, tmp_path: Path) -> None:
    alone, few = drawn(small, ROWS, tmp_path, 5, slots=1, sampling=WARM)
    many, result = drawn(small, ROWS, tmp_path, 5, slots=8, sampling=WARM)
    assert json.dumps(alone) == json.dumps(many)
    turned, _ = drawn(small, ROWS[::-1][:4], tmp_path, 5, slots=3, sampling=WARM)
    assert turned == many[::-1][:4]
    fewer, _ = drawn(small, ROWS, tmp_path, 2, sampling=WARM)
    assert [row["samples"] for row in fewer] == [row["samples"][:2] for row in many]
    other, _ = drawn(small, ROWS, tmp_path, 5, seed=4, sampling=WARM)
    seeds = [s["seed"] for rows in (many, other) for row in rows for s in row["samples"]]
    assert len(set(seeds)) == 60 and max(seeds) < 1 << 31
    assert len({s["text"] for row in many for s in row["samples"]}) > 25
    # The prompts once at most: what the samples would have taken each falls by their number.
    prompts = sum(len(row["prompt"]) for row in ROWS)
    assert 0 < result["prefilled_tokens"] <= prompts
    assert result["prefilled_tokens"] + result["cached_tokens"] == 5 * prompts
    assert few["prefilled_tokens"] <= prompts
    assert result["samples"] == 30 and result["rows"] == 6


def test_a_sample_is_drawn_again_by_its_seed(small: Path, tmp_path: Path) -> None:
    rows, _ = drawn(small, ROWS[:2], tmp_path, 3, sampling=WARM)
    for row in rows:
        for found in row["samples"]:
            asked = ChatOptions(
                model=str(small), runtime=TORCH, seed=found["seed"], max_tokens=6, sampling=WARM, logprobs=0
            )
            chat = Chat(asked)
            list(chat.load())
            turn = list(chat.turn(row["prompt"]))[-1].result
            assert (turn["answer"], turn["finish"]) == (found["text"], found["finish"])
            assert turn["answer_tokens"] == found["tokens"]


def test_greedy_is_what_chat_says(qwen: Path, tmp_path: Path) -> None:
    greedy = {"sampling": (("temperature", 0),), "max_tokens": 8, "think_budget": "5", "system": "Be brief."}
    given = [{"prompt": "What is red?", "samples": "mine"}, {"messages": [{"role": "user", "content": "Who?"}]}]
    rows, _ = drawn(qwen, [*given, {"question": "What is red?"}], tmp_path, 2, force_think=True, **greedy)
    chat = Chat(ChatOptions(model=str(qwen), runtime=TORCH, force_think=True, **greedy))
    list(chat.load())
    for row, prompt in zip(rows, ("What is red?", "Who?", "What is red?"), strict=True):
        chat.reset()
        turn = list(chat.turn(prompt))[-1].result
        for found in row["samples"]:
            assert (found["text"], found["thinking"]) == (turn["answer"], turn["thinking"])
            assert (found["closed_by"], found["thinking_tokens"]) == ("budget", 5)
    assert rows[0]["input_samples"] == "mine" and list(rows[2]) == ["question", "samples"]


def test_shots_and_prefixes_are_part_of_the_prompt(qwen: Path, tmp_path: Path) -> None:
    shots = tmp_path / "shots.csv"
    shots.write_text("question,answer\n1+1?,2\n2+2?,4\n")
    given = [{"prompt": "3+3?", "start": "The answer"}, {"prompt": "4+4?", "start": None}]
    asked = {"shots": str(shots), "prefix_field": "start", "system": "Count.", "think_budget": "0"}
    _, plan = drawn(qwen, given, tmp_path, dry_run=True, **asked)
    turns = [("system", "Count."), ("user", "1+1?"), ("assistant", "2"), ("user", "2+2?"), ("assistant", "4")]
    said = "".join(f"<|im_start|>{who}\n{text}<|im_end|>\n" for who, text in [*turns, ("user", "3+3?")])
    assert plan["first_prompt"] == said + "<|im_start|>assistant\n<think>\n\n</think>\n\nThe answer"
    assert plan["rows"] == 2
    writer = LocalWriter(str(qwen), TORCH)
    list(writer.load())
    first = len(writer.loaded.tokenizer.ids([plan["first_prompt"]])[0])
    second = len(writer.loaded.tokenizer.ids([said.replace("3+3", "4+4") + plan["first_prompt"][len(said) : -10]])[0])
    assert plan["prompt_tokens"] == first + second
    rows, result = drawn(qwen, given, tmp_path, sampling=(("temperature", 0),), **asked)
    ask = Ask(text=plan["first_prompt"][:-10], prefix="The answer", max_tokens=6, sampling=(("temperature", 0),))
    assert rows[0]["samples"][0]["text"] == next(t for t in writer.run([ask]) if isinstance(t, Turn)).answer
    assert result["prefilled_tokens"] + result["cached_tokens"] == first + second
    with pytest.raises(QwenchError, match="line 2: there is no text in the field `start`"):
        drawn(qwen, [given[0], {"prompt": "x"}], tmp_path, **asked)
    shots.write_text("question,reply\n1+1?,2\n")
    with pytest.raises(QwenchError, match="--shots, line 2: there is no text in the field `answer`"):
        drawn(qwen, given, tmp_path, **asked)


def test_what_changes_an_answer_is_a_setting(small: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out.jsonl")
    drawn(small, ROWS, tmp_path, 2, out=out, limit=2)
    other = byte_decoder(tmp_path / "other", seed=1)
    for changed, what in (
        ({"seed": 4}, "seed was 3, is 4"),
        ({"max_tokens": 7}, "max_tokens was 6, is 7"),
        ({"sampling": (("top_k", 5),)}, "sampling.top_k was not set, is 5"),
        ({"stops": ("x",)}, "stops"),
        ({"system": "Hi."}, "before"),
        ({"model": other}, "revision"),
        ({"n": 3}, "n was 2, is 3"),
    ):
        asked = {"model": small, "n": 2} | changed
        with pytest.raises(QwenchError, match=what):
            drawn(asked.pop("model"), ROWS, tmp_path, out=out, **asked)
    # How many at a time is none, and a limit is none.
    _, result = drawn(small, ROWS, tmp_path, 2, out=out, slots=1)
    assert result["done"] == 2 and len((tmp_path / "out.jsonl").read_text().splitlines()) == 6


def test_answers_of_chat_are_gone_on_with(small: Path, tmp_path: Path) -> None:
    """A seed that was drawn is part of the job."""
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    options = ChatOptions(model=str(small), runtime=TORCH, max_tokens=4, sampling=WARM, slots=2)
    job = JobOptions(str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"))
    list(many(options, replace(job, limit=2)))
    first = (tmp_path / "out.jsonl").read_bytes()
    result = list(many(options, job))[-1].result
    assert result["done"] == 2 and (tmp_path / "out.jsonl").read_bytes().startswith(first)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["seed"] - rows[0]["seed"] for row in rows] == list(range(6))
    with pytest.raises(QwenchError, match="seed was"):
        list(many(replace(options, seed=rows[0]["seed"] + 1), job))


def chi_square(model: Path, count: int, **sampling: float) -> float:
    """p of one-token samples under transformers' own filters."""
    from scipy.stats import chisquare
    from transformers import AutoModelForCausalLM, LogitsProcessorList
    from transformers.generation.logits_process import (
        MinPLogitsWarper,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    kinds = {"temperature": TemperatureLogitsWarper, "top_k": TopKLogitsWarper, "top_p": TopPLogitsWarper}
    kinds["min_p"] = MinPLogitsWarper
    filters = LogitsProcessorList([kinds[name](value) for name, value in sampling.items()])
    writer = LocalWriter(str(model), Runtime(device="cpu", dtype="float32", engine="torch"), slots=4)
    list(writer.load())
    off = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    ask = Ask(text="Once upon", samples=count, max_tokens=1, seed=11, sampling=tuple((off | sampling).items()))
    found = Counter(turn.generated[0] for turn in writer.run([ask]) if isinstance(turn, Turn))
    ids = torch.tensor([writer.prepare(ask).ids])
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)(ids).logits[:, -1]
    exact = filters(ids, logits)[0].double().softmax(-1)
    assert set(found) <= set(exact.nonzero().flatten().tolist()), "a token that the filters leave out"
    # Tokens of fewer than 5 expected draws are counted together.
    common = [i for i in range(len(exact)) if exact[i] * count >= 5]
    wanted = [float(exact[i]) * count for i in common]
    counts = [found[i] for i in common]
    if count - sum(wanted) > 5:
        wanted.append(count - sum(wanted))
        counts.append(count - sum(counts))
    wanted = [w * sum(counts) / sum(wanted) for w in wanted]
    assert len(counts) > 5
    return float(chisquare(counts, wanted).pvalue)


def test_twenty_thousand_tokens_are_of_the_exact_distribution(small: Path) -> None:
    assert chi_square(small, 20_000, temperature=1.4, top_k=60, top_p=0.95, min_p=0.01) > 1e-3


#: each so that a token at its border would be missed
ALONE = [{"temperature": 0.7}, {"top_k": 12}, {"temperature": 0.5, "top_p": 0.5}, {"min_p": 0.05}]


@pytest.mark.parametrize("one", ALONE, ids=str)
def test_each_filter_alone(small: Path, one: dict[str, float]) -> None:
    assert chi_square(small, 2000, **one) > 1e-3
