"""Reward models that are trained: what is saved loads, here and in a class written independently of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from qwench.ops import reward as op
from qwench.ops.base.errors import QwenchError
from qwench.ops.base.events import Finished, Produced, Started
from qwench.ops.base.runtime import Runtime
from qwench.ops.models.load_reward import read_head
from qwench.ops.scoring.reward_texts import TextSettings
from qwench.ops.training.reward_data import PairOptions, TrainPair, pairs_of_votes, parted
from qwench.ops.training.reward_head import HeadOptions, Sides, Trained, pace, pair_loss, train_head
from safetensors.torch import load_file, save_file
from torch import nn

from tests.tiny import byte_decoder, chat_tokenizer

CPU = Runtime(device="cpu", kernels="eager", dtype="float32")


def base(folder: Path, kind: str = "qwen2", **extra: object) -> Path:
    byte_decoder(folder, kind, **extra)
    chat_tokenizer(folder)
    return folder


def pairs(path: Path, count: int = 40) -> str:
    """Good answers say yes, bad ones no, of any length."""
    rows = [
        {"prompt": f"Is {i} a number?", "chosen": "yes " * (1 + i % 4), "rejected": "no " * (1 + i % 3), "votes": i}
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def options(model: Path, out: Path, rows: str, **more: Any) -> op.RewardTrainOptions:
    own = {k: more.pop(k) for k in list(more) if k in PairOptions.__slots__}
    return op.RewardTrainOptions(
        str(model), str(out), runtime=CPU, pairs=PairOptions(pairs=rows, validation_share=0.25, **own), **more
    )


def finished(events: Any) -> dict[str, Any]:
    return next(e.result for e in events if isinstance(e, Finished))


def rewards(model: Path, rows: str) -> list[tuple[float, float]]:
    run = op.score(op.RewardOptions(model=str(model), runtime=CPU, job=op.JobOptions(rows=rows)))
    return [(e.row["reward_chosen"], e.row["reward_rejected"]) for e in run if isinstance(e, Produced)]


class Qwen2ForRewardModel(nn.Module):
    """Qwen's class as its description has it: the decoder, and an MLP on the final norm's output."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        from transformers import AutoConfig, Qwen2Model

        config = AutoConfig.from_pretrained(folder)
        assert config.architectures == ["Qwen2ForRewardModel"] and config.pad_token_id is None
        self.model = Qwen2Model(config)
        h = config.hidden_size
        self.score = nn.Sequential(nn.Linear(h, h), nn.ReLU(), nn.Linear(h, 1))
        self.load_state_dict(load_file(folder / "model.safetensors"), strict=True)

    def forward(self, ids: list[int]) -> float:
        with torch.no_grad():
            return float(self.score(self.eval().model(torch.tensor([ids])).last_hidden_state)[0, -1, 0])


def texts(model: Path, rows: str) -> list[list[int]]:
    """Tokens of every chosen and rejected answer, by the documented rendering alone."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    found = []
    for line in Path(rows).read_text().splitlines():
        row = json.loads(line)
        for name in ("chosen", "rejected"):
            text = f"<|im_start|>system\n<|im_end|>\n<|im_start|>user\n{row['prompt']}<|im_end|>\n"
            text += f"<|im_start|>assistant\n{row[name]}<|im_end|><|endoftext|>"
            found.append(tokenizer.encode(text, add_special_tokens=False).ids)
    return found


def test_a_head_for_qwen2_is_qwens_own_class(tmp_path: Path) -> None:
    rows = pairs(tmp_path / "p.jsonl")
    model = base(tmp_path / "m")
    found = finished(op.train(options(model, tmp_path / "out", rows, epochs=30, swap_check=True)))
    assert found["saved"] == "checkpoint" and found["accuracy"] > 0.9 and found["validation_loss"] < 0.5
    assert found["pairs"] == 30 and found["validation_pairs"] == 10 and len(found["history"]) == 30
    assert found["swapped_accuracy"] < 0.1
    ours = [r for pair in rewards(tmp_path / "out", rows) for r in pair]
    theirs = Qwen2ForRewardModel(tmp_path / "out")
    for ids, reward in zip(texts(model, rows), ours, strict=True):
        assert reward == pytest.approx(theirs(ids), abs=1e-5)
    told = [json.loads(x) for x in (tmp_path / "out" / "validation.jsonl").read_text().splitlines()]
    prompts = [json.loads(x)["prompt"] for x in Path(rows).read_text().splitlines()]
    by_prompt = dict(zip(prompts, rewards(tmp_path / "out", rows), strict=True))
    for row in told:
        assert (row["reward_chosen"], row["reward_rejected"]) == pytest.approx(by_prompt[row["prompt"]], abs=1e-4)
    assert len(told) == 10 and told[0]["train_pairs"] == 30
    card = (tmp_path / "out" / "README.md").read_text()
    assert "30 pairs" in card and f"{found['accuracy']:.4f}" in card
    # What was computed of the base is kept, and used by another training.
    shutil.rmtree(tmp_path / "out")
    again = list(op.train(options(model, tmp_path / "out", rows, epochs=3, lr=1e-2)))
    assert next(e.total for e in again if isinstance(e, Started) and e.stage == "hidden states") == 0
    assert finished(again)["accuracy"] > 0.9


@pytest.mark.parametrize(("kind", "head"), [("qwen3", "mlp"), ("llama", "linear")])
def test_a_head_for_others_stands_alone(kind: str, head: str, tmp_path: Path) -> None:
    rows = pairs(tmp_path / "p.jsonl")
    model = base(tmp_path / "m", kind)
    width = 8 if head == "mlp" else 0
    found = finished(op.train(options(model, tmp_path / "out", rows, head=head, width=width, epochs=20, lr=1e-2)))
    assert found["saved"] == "head" and found["accuracy"] > 0.9
    note, made = read_head(tmp_path / "out")
    assert note.kind == head and made.layers[0][0].shape == (8 if head == "mlp" else 1, 32)
    d = [a - b for a, b in rewards(tmp_path / "out", rows)]
    assert sum(x > 0 for x in d) > 36
    # Begun with, and not trained, it is the same head.
    same = options(model, tmp_path / "two", rows, head=head, width=width, epochs=0, init_from=str(tmp_path / "out"))
    finished(op.train(same))
    assert [a - b for a, b in rewards(tmp_path / "two", rows)] == pytest.approx(d, abs=1e-3)
    with pytest.raises(QwenchError, match="trained with --pool last"):
        list(op.score(op.RewardOptions(str(tmp_path / "out"), runtime=CPU, texts=TextSettings(pool="before-pad"),
                                       job=op.JobOptions(rows=rows))))  # fmt: skip
    tensors = load_file(tmp_path / "out" / "head.safetensors")
    name = sorted(tensors)[0]
    save_file({k: v for k, v in tensors.items() if k != name}, tmp_path / "out" / "head.safetensors")
    with pytest.raises(QwenchError, match=f"the head lacks a tensor: `{name}`"):
        rewards(tmp_path / "out", rows)
    weights = load_file(model / "model.safetensors")
    save_file(weights | {"model.norm.weight": weights["model.norm.weight"] * 2}, model / "model.safetensors")
    with pytest.raises(QwenchError, match="of another state of its base"):
        rewards(tmp_path / "two", rows)


@pytest.mark.parametrize(("method", "kind"), [("full", "qwen2"), ("lora", "qwen2"), ("lora", "qwen3")])
def test_the_base_is_trained(method: str, kind: str, tmp_path: Path) -> None:
    rows = pairs(tmp_path / "p.jsonl")
    model = base(tmp_path / "m", kind)
    before = load_file(model / "model.safetensors")
    run = options(model, tmp_path / "out", rows, method=method, epochs=2, lr=3e-3, batch=5)
    found = finished(op.train(run))
    assert found["saved"] == "checkpoint" and found["accuracy"] > 0.9, found
    assert not (tmp_path / "out.run").exists()
    after = load_file(tmp_path / "out" / "model.safetensors")
    moved = [n for n in before if n in after and not torch.equal(before[n], after[n])]
    assert any("q_proj" in n for n in moved) and any("embed" in n for n in moved) == (method == "full")
    scored = rewards(tmp_path / "out", rows)
    assert sum(a > b for a, b in scored) > 36
    if kind == "qwen2":
        theirs = Qwen2ForRewardModel(tmp_path / "out")
        flat = [r for pair in scored for r in pair]
        assert flat[:6] == pytest.approx([theirs(ids) for ids in texts(model, rows)[:6]], abs=1e-4)
    else:
        from transformers import AutoModelForSequenceClassification

        them = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
        assert torch.equal(them.score.weight, after["score.weight"])


def test_a_training_that_is_cut_short_goes_on(tmp_path: Path) -> None:
    rows, model = pairs(tmp_path / "p.jsonl"), base(tmp_path / "m")
    whole = finished(op.train(options(model, tmp_path / "one", rows, method="full", epochs=2, lr=3e-3, batch=5)))
    run = options(model, tmp_path / "two", rows, method="full", epochs=2, lr=3e-3, batch=5)
    events = op.train(run)
    steps = 0
    for event in events:
        steps += getattr(event, "stage", "") == "train full" and getattr(event, "n", 0) == 1
        if steps == 6:
            break
    events.close()
    assert not (tmp_path / "two").exists() and list((tmp_path / "two.run").glob("checkpoint-*"))
    with pytest.raises(QwenchError, match=r"is of another run: .*lr"):
        list(op.train(options(model, tmp_path / "two", rows, method="full", epochs=2, lr=1e-3, batch=5)))
    found = finished(op.train(run))
    assert found["validation_loss"] == pytest.approx(whole["validation_loss"], abs=1e-5)


def test_oracle_1_and_11_in_training() -> None:
    chosen, rejected, none = torch.tensor([2, 0.1, 1]), torch.tensor([0.5, 0.4, 1]), torch.zeros(3)
    assert float(pair_loss(chosen, rejected, none, 0)) == pytest.approx(0.582972, abs=1e-6)
    assert float(pair_loss(chosen, rejected, none, 0.01)) == pytest.approx(0.617972, abs=1e-6)
    one = pair_loss(chosen[:1], rejected[:1], torch.tensor([0.5]), 0)
    assert float(one) == pytest.approx(0.313262, abs=1e-6)
    # The saved head takes raw states: its margins are those of the epoch that is kept.
    torch.manual_seed(0)
    h = 50 + 20 * torch.randn(64, 2, 6)
    h[:, 0, 2] += 30
    sides = Sides(h[:, 0], h[:, 1], torch.zeros(64))
    for kind in ("mlp", "linear"):
        found = next(e for e in train_head(sides, sides, HeadOptions(kind, 4, epochs=30)) if isinstance(e, Trained))
        d = (found.head(h[:, 0]) - found.head(h[:, 1]))[:, 0]
        best = min(found.history, key=lambda r: r["validation_loss"])
        assert best["epoch"] == found.epoch
        assert float(nn.functional.softplus(-d).mean()) == pytest.approx(best["validation_loss"], abs=1e-4)
    assert [pace(s, 20, 0.1, "constant") for s in (0, 1, 2, 19)] == [0.5, 1, 1, 1]
    assert pace(2, 20, 0.1, "cosine") == 1 and pace(20, 20, 0.1, "cosine") == pytest.approx(0)


def test_votes_become_pairs() -> None:
    row = {"prompt": "q", "answers": [{"text": t, "n": n} for t, n in (("a", 9), ("b", 4), ("c", 4), ("d", 3))]}
    many = PairOptions(from_votes="n", pairs_per_prompt=9)
    found = {(r["chosen"], r["rejected"]) for r in pairs_of_votes(row, many, "k")}
    assert found == {("a", "b"), ("a", "c"), ("a", "d"), ("b", "d"), ("c", "d")}  # b and c are level
    assert pairs_of_votes(row, many, "k") == pairs_of_votes(row, many, "k")
    wide = pairs_of_votes(row, PairOptions(from_votes="n", min_gap=5, pairs_per_prompt=9), "k")
    assert {r["rejected"] for r in wide} == {"b", "c", "d"} and len(wide) == 3
    assert len(pairs_of_votes(row, PairOptions(from_votes="n"), "k")) == 1
    with pytest.raises(QwenchError, match="no number in `score`"):
        pairs_of_votes(row, PairOptions(from_votes="score"), "k")


def test_prompts_are_never_parted() -> None:
    many = [TrainPair(None, None, f"g{i // 5}") for i in range(100)]  # type: ignore[arg-type]
    for seed in range(3):
        train, held = parted(many, 0.2, seed)
        assert not {p.group for p in train} & {p.group for p in held} and len(held) == 20
    assert parted(many, 0.2, 0) != parted(many, 0.2, 1)


def test_what_training_refuses(tmp_path: Path) -> None:
    rows, model = pairs(tmp_path / "p.jsonl", 4), base(tmp_path / "m", "qwen3")
    for change, said in (
        ({"method": "magic"}, "unknown --method"),
        ({"schedule": "wsd"}, "unknown --schedule"),
        ({"lr": 0.0}, "--lr must be above 0"),
        ({"method": "full", "head": "mlp"}, "an MLP head is a class of Qwen2 alone"),
        ({"method": "lora", "swap_check": True}, "--swap-check trains a second head"),
        ({"margin_field": "gap"}, "line 1: there is no number in the field `gap`"),
        ({"group_by": "gap"}, "line 1: there is nothing in the field `gap`"),
        ({"init_from": str(model)}, "no reward head to begin with"),
    ):
        with pytest.raises(QwenchError, match=said):
            list(op.train(options(model, tmp_path / "out", rows, **change)))
    assert not (tmp_path / "out").exists()
    one = pairs(tmp_path / "one.jsonl", 1)
    with pytest.raises(QwenchError, match="no pairs to validate with"):
        list(op.train(options(model, tmp_path / "out", one)))


def test_pairs_for_trl(tmp_path: Path) -> None:
    rows, model = pairs(tmp_path / "p.jsonl"), base(tmp_path / "m")
    run = options(model, tmp_path / "out", rows, export="trl", margin_field="votes")
    assert finished(op.train(run))["pairs"] == 30
    lines = [json.loads(x) for x in (tmp_path / "out" / "train.jsonl").read_text().splitlines()]
    assert len(lines) == 30 and set(lines[0]) == {"chosen", "rejected", "margin"}
    assert lines[0]["chosen"].startswith("<|im_start|>system\n<|im_end|>") and "yes " in lines[0]["chosen"]
