"""Reward models of every loadable kind against transformers' own backbone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from qwench.ops.base.errors import QwenchError
from qwench.ops.base.runtime import Runtime
from qwench.ops.models.reward_heads import RewardHead, mlp_head
from qwench.ops.scoring.process_reward import aggregate, step_rewards
from qwench.ops.scoring.reward import RewardModel, opened_texts
from qwench.ops.scoring.reward_rows import answers_of
from qwench.ops.scoring.reward_texts import TextSettings, before_pad
from safetensors.torch import load_file, save_file

from tests.tiny import cross_encoder, reward_model

CPU = Runtime(device="cpu", kernels="eager", dtype="float32")
LONG = "How do I sleep better, and is there anything that I should rather not do in the evening?"
ROWS = [
    {"prompt": LONG, "responses": ["Keep to one bedtime.", "just try", "Avoid screens.\n\nAnd coffee, too."]},
    {"prompt": "What is 2 + 2?", "chosen": "4", "rejected": "Perhaps 5."},
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"},
                  {"role": "assistant", "content": "Hello!"}]},
    {"prompt": [{"role": "user", "content": LONG}], "response": [{"role": "assistant", "content": "No coffee."}]},
]  # fmt: skip


def loaded(folder: Path, **settings: Any) -> tuple[RewardModel, Any]:
    opened, kind, texts = opened_texts(str(folder), CPU, "auto", TextSettings(**settings))
    return RewardModel(opened, kind, CPU), texts


def readies(texts: Any, rows: list[dict[str, Any]]) -> list[Any]:
    return [texts.ready(c) for row in rows for c in answers_of(row).conversations]


def theirs(folder: Path, ids: list[int]) -> torch.Tensor:
    """Hidden states of a text by transformers' backbone, (T, H)."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([ids])).last_hidden_state[0]


def by_hand(folder: Path, hidden: torch.Tensor) -> torch.Tensor:
    """The head in plain arithmetic, from the file's tensors."""
    t = load_file(folder / "model.safetensors")
    if "score.weight" in t:
        return hidden @ t["score.weight"][0]
    inner = (hidden @ t["score.0.weight"].T + t["score.0.bias"]).clamp(min=0)
    return inner @ t["score.2.weight"].T + t["score.2.bias"]


def test_oracle_2_the_head() -> None:
    w0, b0, w2, b2 = [[1, 0.5], [-1, 1]], [0.5, 1], [[2, -3]], [0.25]
    names = ("score.0.weight", "score.0.bias", "score.2.weight", "score.2.bias")
    head = mlp_head(dict(zip(names, map(torch.tensor, (w0, b0, w2, b2)), strict=True)))
    assert head(torch.tensor([[1.0, -2.0], [2.0, 1.0]])).flatten().tolist() == [1.25, 6.25]
    assert list(head.tensors) == list(names)


def test_oracle_3_the_token_before_the_pad() -> None:
    for ids, pad, at in (([5, 6, 7, 9], 9, 2), ([5, 6, 7], 9, 2), ([5, 6, 9, 9, 9], 9, 1), ([9, 5, 6, 7], 9, 3)):
        assert before_pad(ids, pad) == at


def test_oracle_4_process_logits() -> None:
    p = step_rewards(torch.tensor([[0.0, 2], [1, 0], [0, 0]])).tolist()
    assert p == pytest.approx([0.880797, 0.268941, 0.5], abs=1e-6)
    found = {how: aggregate(p, how) for how in ("min", "prod", "last", "mean")}
    assert found == pytest.approx({"min": 0.268941, "prod": 0.118441, "last": 0.5, "mean": 0.549913}, abs=1e-6)
    # A probability of 0 is a step like the others.
    assert aggregate([0.0, 1.0], "last") == 1.0 and aggregate([1.0, 0.0], "last") == 0.0


def test_oracle_11_folding_is_exact() -> None:
    torch.manual_seed(0)
    w, b, h = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, dtype=torch.float64), torch.randn(9, 3).double()
    mean, deviation = h.mean(0), h.std(0)
    head = RewardHead(((w, b), (torch.randn(1, 4).double(), torch.randn(1).double())))
    folded = head.folded(mean, deviation)
    inner = torch.relu((h - mean) / deviation @ w.T + b)
    wanted = inner @ head.layers[1][0].T + head.layers[1][1]
    assert torch.allclose(folded(h).double(), wanted, atol=1e-5)
    linear = RewardHead(((w[:1], None),)).folded(mean, deviation)
    one = (h - mean) / deviation @ w[:1].T
    # A row without a bias keeps every difference.
    assert torch.allclose(linear(h)[:, 0].double().diff(), one[:, 0].diff(), atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "family"),
    [("mlp", "qwen2"), ("linear", "qwen2"), ("linear", "qwen3"), ("linear", "llama"), ("linear", "mistral")],
)
def test_scores_are_transformers_own(kind: str, family: str, tmp_path: Path) -> None:
    folder = reward_model(tmp_path / "m", kind, family)
    for pool in ("last", "before-pad"):
        if pool == "before-pad":
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": 256}))
        model, texts = loaded(folder, pool=pool)
        assert model.loaded.engine.value == ("transformers" if family == "mistral" else "packed")
        found = readies(texts, ROWS)
        together = model.score(found)
        shared = [len(head) for head, _ in model._groups(found)]
        assert family == "mistral" or max(shared) > 100  # prompts that answers share are computed once
        for ready, value in zip(found, together, strict=True):
            whole = texts.tokenizer.ids([ready.text])[0]
            at = len(whole) - 1 if pool == "last" else whole.index(256) - 1
            assert texts.pooled_token(ready) == ("<|endoftext|>" if pool == "last" else "<|im_end|>")
            wanted = float(by_hand(folder, theirs(folder, whole))[at])
            assert value == pytest.approx(wanted, abs=1e-5)
            assert model.score([ready])[0] == pytest.approx(value, abs=1e-5)  # alone as in a batch
        backwards = model.score(found[::-1])[::-1]
        assert backwards == pytest.approx(together, abs=1e-5)  # the order of the rows says nothing
        small = RewardModel(*opened_texts(str(folder), CPU, "auto", TextSettings())[:2], CPU, batch_tokens=64)
        assert small.score(found) == pytest.approx(together, abs=1e-5)


def test_what_the_text_is(tmp_path: Path) -> None:
    """An empty system message stays a block, and nothing opens another answer."""
    folder = reward_model(tmp_path / "m")
    _, texts = loaded(folder)
    ready = readies(texts, ROWS[1:2])[0]
    assert ready.text == (
        "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n"
        "<|im_start|>assistant\n4<|im_end|><|endoftext|>"
    )
    assert ready.answer_tokens == 1 and ready.tokens == len(ready.ids) and not texts.notes
    own = readies(texts, ROWS[2:3])[0]
    assert "system\nBe brief." in own.text and "trained with an empty one" in texts.notes["system"]
    asked = readies(loaded(folder, system="Judge.")[1], ROWS[1:3])
    assert "system\nJudge." in asked[0].text and "system\nBe brief." in asked[2].text
    linear = reward_model(tmp_path / "l", "linear")
    assert "You are a helpful assistant." in readies(loaded(linear)[1], ROWS[1:2])[0].text


def test_a_text_that_ends_elsewhere_is_told(tmp_path: Path) -> None:
    folder = reward_model(tmp_path / "m")
    said = json.loads((folder / "tokenizer_config.json").read_text())
    said["chat_template"] = said["chat_template"].replace("<|endoftext|>", "")
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    _, texts = loaded(folder)
    assert texts.pooled_token(readies(texts, ROWS[1:2])[0]) == "<|im_end|>"
    assert "do not end in `<|endoftext|>`" in texts.notes["end"]


def test_steps(tmp_path: Path) -> None:
    """Every step's probability against transformers; what comes after a mark changes nothing before it."""
    folder = reward_model(tmp_path / "m", "process")
    model, texts = loaded(folder)
    rows = [
        {"prompt": "2 + 2 * 3?", "steps": ["2 * 3 = 6", "2 + 6 = 8", "So 8."]},
        {"prompt": "2 + 2 * 3?", "response": "2 * 3 = 6\n\n2 + 6 = 8\n\nSo 8."},
        {"prompt": "2 + 2 * 3?", "response": "2 * 3 = 6<extra_0>2 + 6 = 8<extra_0>So 8.<extra_0>"},
        {"prompt": "2 + 2 * 3?", "steps": ["2 * 3 = 6", "2 + 6 = 9", "So 9, I think."]},
    ]
    found = readies(texts, rows)
    values = model.score(found)
    assert "step by step" in found[0].text and found[0].ids == found[1].ids == found[2].ids
    for ready, value in zip(found, values, strict=True):
        at = [i for i, t in enumerate(ready.ids) if t == 259]
        assert len(at) == 3 == len(value)
        logits = by_hand(folder, theirs(folder, ready.ids))[at]
        assert value == pytest.approx(logits.softmax(-1)[:, 1].tolist(), abs=1e-5)
    assert values[3][0] == pytest.approx(values[0][0], abs=1e-5) and abs(values[3][1] - values[0][1]) > 1e-4
    assert texts.notes == {} and readies(texts, [{"prompt": "a", "response": "one"}])
    assert "one step alone" in texts.notes["steps"]
    for row, said in (
        ({"prompt": "a<extra_0>", "response": "b"}, "in a message of `user`, and would be read as a step"),
        ({"prompt": "a", "steps": ["b<extra_0>c"]}, "inside a step"),
    ):
        with pytest.raises(QwenchError, match=said):
            readies(texts, [row])
    with pytest.raises(QwenchError, match="`steps` are for process reward models"):
        readies(loaded(reward_model(tmp_path / "r"))[1], rows[:1])


@pytest.mark.parametrize("family", ["bert", "electra"])
def test_an_encoder_reads_question_and_answer(family: str, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = cross_encoder(tmp_path / "m", family=family)
    model, texts = loaded(folder)
    found = readies(texts, ROWS[:2])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    them = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    for ready, value in zip(found, model.score(found), strict=True):
        with torch.no_grad():
            wanted = them(**tokenizer(*ready.pair, return_tensors="pt")).logits[0, 0]
        assert value == pytest.approx(float(wanted), abs=1e-5)  # a raw logit, no sigmoid
        assert texts.pooled_token(ready) is None
    with pytest.raises(QwenchError, match="one question and one answer, and the row has a prompt of 2 messages"):
        readies(texts, ROWS[2:3])


@pytest.mark.parametrize(
    ("kind", "name"),
    [("mlp", "score.0.weight"), ("mlp", "score.0.bias"), ("mlp", "score.2.bias"), ("process", "score.2.weight"),
     ("linear", "score.weight")],
)  # fmt: skip
def test_oracle_12_a_missing_head_is_an_error(kind: str, name: str, tmp_path: Path) -> None:
    folder = reward_model(tmp_path / "m", kind)
    tensors = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if k != name}, folder / "model.safetensors")
    with pytest.raises(QwenchError, match=f"lacks a weight of its architecture: `{name}`"):
        loaded(folder)
    save_file(tensors | {"score.1.weight": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(QwenchError, match=r"no place for: `score\.1\.weight`"):
        loaded(folder)
    if kind == "mlp":
        save_file(tensors | {"score.2.weight": torch.zeros(2, 32)}, folder / "model.safetensors")
        with pytest.raises(QwenchError, match=r"`score.2.weight` has shape \(2, 32\)"):
            loaded(folder)


def test_other_architectures_are_named(tmp_path: Path) -> None:
    folder = reward_model(tmp_path / "m", "linear")
    config = json.loads((folder / "config.json").read_text())
    for change, said in (
        ({"architectures": ["LlamaForRewardModelWithGating"]}, "architecture LlamaForRewardModelWithGating"),
        ({"architectures": ["Qwen2ForCausalLM"]}, "no reward head"),
        ({"id2label": {"0": "a", "1": "b"}}, "has 2 labels, and a reward model has one"),
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(QwenchError, match=said) as caught:
            loaded(folder)
        assert "Qwen2ForProcessRewardModel" in (caught.value.hint or "")
    from qwench.ops.scoring.rerank_kind import decide_kind

    with pytest.raises(QwenchError, match="a reward model") as caught:
        decide_kind(folder, {"architectures": ["Qwen2ForRewardModel"], "model_type": "qwen2"})
    assert "qwench reward score" in (caught.value.hint or "")


def test_long_texts(tmp_path: Path) -> None:
    folder = reward_model(tmp_path / "m", positions=300)
    turns = [{"role": r, "content": f"{r} says {i} " + "x" * 60} for i in range(3) for r in ("user", "assistant")]
    row = {"messages": turns}
    with pytest.raises(QwenchError, match=r"has 5\d\d tokens, and the model takes 300"):
        readies(loaded(folder)[1], [row])
    cut = readies(loaded(folder, long="cut-prompt")[1], [row])[0]
    assert cut.truncated and "user says 2" in cut.text and "user says 0" not in cut.text
    assert cut.text.endswith("x" * 60 + "<|im_end|><|endoftext|>") and cut.tokens <= 300
    skipped = readies(loaded(folder, long="skip")[1], [row])[0]
    assert skipped.skipped and not skipped.truncated
    with pytest.raises(QwenchError, match="takes 300"):
        readies(loaded(folder, long="cut-prompt")[1], [{"prompt": "a", "response": "y" * 400}])
    with pytest.raises(QwenchError, match="--max-tokens-in is 999"):
        loaded(folder, max_tokens_in=999)
    assert loaded(folder, max_tokens_in=200, long="skip")[1].limit == 200


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a"}, "no answer to score"),
        ({"prompt": "a", "response": "  "}, "the answer is empty in `response`"),
        ({"prompt": "a", "responses": ["b", ""]}, "empty in `responses, number 2`"),
        ({"messages": [{"role": "user", "content": "a"}]}, "from `user`, and not the assistant"),
        ({"prompt": "a", "chosen": "b"}, "no answer in `rejected`"),
        ({"prompt": 3, "response": "b"}, "`prompt` is neither"),
        ({"prompt": "a", "response": [{"role": "assistant", "content": [{"type": "image"}]}]}, "only text"),
        ({"prompt": "a", "steps": "b"}, "`steps` is no list"),
    ],
)
def test_rows_without_an_answer(row: dict[str, Any], said: str) -> None:
    with pytest.raises(QwenchError, match=said):
        answers_of(row)


def test_rows_of_trl_and_rewardbench() -> None:
    user, good, bad = ({"role": r, "content": c} for r, c in (("user", "q"), ("assistant", "g"), ("assistant", "b")))
    shapes = [
        {"prompt": "q", "chosen": "g", "rejected": "b"},
        {"prompt": [user], "chosen": [good], "rejected": [bad]},
        {"chosen": [user, good], "rejected": [user, bad]},
        {"prompt": "q", "chosen": [user, good], "rejected": [user, bad], "messages": [user, good]},
    ]
    for row in shapes:
        found = answers_of(row)
        assert (found.form, found.chosen, found.lists) == ("pair", 1, (False, False))
        assert [c.messages for c in found.conversations] == [(user, good), (user, bad)]
    four = answers_of({"prompt": "q", "chosen": ["g"], "rejected": ["b", "c", "d"], "subset": "Math"})
    assert four.chosen == 1 and four.lists == (True, True) and [c.answer for c in four.conversations] == list("gbcd")
    bare = answers_of({"chosen": "The sky is blue.", "rejected": "The sky is green."})
    assert all(c.bare for c in bare.conversations)
    sampled = answers_of({"question": "q", "samples": [{"text": "a"}, {"text": "b"}]})
    assert sampled.form == "several" and [c.answer for c in sampled.conversations] == ["a", "b"]
