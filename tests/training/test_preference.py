"""Training on rows of a run: losses against numbers worked out elsewhere, and what is saved is the better model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from qwench.ops import explore as op
from qwench.ops.base.errors import QwenchError
from qwench.ops.base.events import Chose, Finished
from qwench.ops.base.runtime import Runtime
from qwench.ops.models.template import ChatTemplate
from qwench.ops.models.tokenizer import TextTokenizer
from qwench.ops.training.preference import Pair, collated, dpo_loss, measured, pairs_loss, preference_model
from qwench.ops.training.preference_data import Pairs, end_of_turn, read
from safetensors.torch import load_file

from tests.tiny import byte_decoder, chat_tokenizer, minilm

CPU = Runtime(device="cpu", dtype="float32")
PROMPT = "<|im_start|>user\n%d?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = byte_decoder(tmp_path_factory.mktemp("base"), max_position_embeddings=512)
    chat_tokenizer(found)
    return found


def rows(path: Path, loss: str, count: int = 20, **more: Any) -> str:
    """Right answers say yes, wrong ones no, of several lengths."""
    found = []
    for n in range(count):
        texts, prompt = ["yes " * (1 + n % 3), "no " * (1 + n % 4)], PROMPT % n
        if loss == "dpo":
            found.append({"prompt": prompt, "chosen": texts[0], "rejected": texts[1]} | more)
        else:
            turn = 1 if n % 2 else -1
            row = {"query": "q", "prompt": "", "advantage": [1.5 * turn, -0.5 * turn], "response": texts[::turn]}
            found.append(row | {"rendered": prompt} | more)
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return str(path)


def options(base: Path, out: Path, name: str, **more: Any) -> op.PreferenceOptions:
    how = {"method": "full", "lr": 3e-3, "batch": 5, "runtime": CPU} | more
    return op.PreferenceOptions(name, str(base), str(out), **how)


def trained(*given: Any, **more: Any) -> dict[str, Any]:
    return next(e.result for e in op.train(options(*given, **more)) if isinstance(e, Finished))


def test_pair_loss_by_hand() -> None:
    policy, reference = torch.tensor([[-1.0, -0.4]]), torch.tensor([[-0.9, -0.4]])
    advantages = torch.tensor([[1.0, -1.0]])
    assert float(pairs_loss(policy, reference, advantages, 0.01)) == pytest.approx(0.3005, abs=1e-6)
    # Of fixed samples beta is added to every advantage, and a constant.
    constant = 0.01 * float(reference.sum()) / 2
    other = float(pairs_loss(policy, reference, advantages + 0.01, 0)) + constant
    assert other == pytest.approx(0.3005, abs=1e-6)


def test_dpo_by_hand() -> None:
    policy, reference = torch.tensor([[-3.0, -9.0]]), torch.tensor([[-4.0, -8.0]])
    assert float(dpo_loss(policy, reference, 0.1)) == pytest.approx(0.598139, abs=1e-6)


@pytest.mark.parametrize("loss", ["dpo", "pairs"])
def test_losses_are_those_of_whole_logits(base: Path, loss: str) -> None:
    """Values and gradients, against one text at a time with nothing padded, chosen or cut in chunks."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    pairs = [
        Pair([5, 6, 7], ([8, 9], [10, 11, 12, 13]), (1.2, -0.8), (-9.0, -21.0)),
        Pair([20], ([21, 22, 23], [24]), (-0.4, 1.6), (-14.0, -6.0)),
    ]
    if loss == "dpo":
        pairs = [Pair(p.prompt, p.completions, reference=p.reference) for p in pairs]
    module = preference_model(model, loss, 0.1)
    ours = module(**collated(pairs))["loss"]
    ours.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    total: Any = 0
    for pair in pairs:
        sums, means = [], []
        for said in pair.completions:
            logits = model(torch.tensor([pair.prompt + said])).logits[0].double().log_softmax(-1)
            each = [logits[len(pair.prompt) - 1 + n, token] for n, token in enumerate(said)]
            sums.append(sum(each))
            means.append(sum(each) / len(each))
        if loss == "dpo":
            d = (sums[0] - pair.reference[0]) - (sums[1] - pair.reference[1])
            total = total + (1 + (-0.1 * d).exp()).log()
        else:
            for a, mean, before, said in zip(pair.advantages, means, pair.reference, pair.completions, strict=True):
                total = total + 0.5 * (-a * mean + 0.1 * (before / len(said) - mean))
    total = total / len(pairs)
    assert float(ours.detach()) == pytest.approx(float(total.detach()), abs=1e-5)
    total.backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(gradients[name], parameter.grad, atol=1e-5), name
    # And without gradients, a batch at a time.
    again = [measured(module, pairs, batch) for batch in (1, 2)]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*again, strict=True))


@pytest.mark.parametrize(("loss", "method"), [("dpo", "lora"), ("pairs", "full")])
def test_what_is_saved_is_the_better_model(base: Path, loss: str, method: str, tmp_path: Path) -> None:
    name = rows(tmp_path / "rows.jsonl", loss)
    found = trained(base, tmp_path / "out", name, loss=loss, method=method)
    assert found["pairs"] == 20 and found["steps"] == 8 and not (tmp_path / "out.run").exists()
    assert found["before"]["loss"] == pytest.approx(math.log(2), abs=1e-6) if loss == "dpo" else found["before"]
    assert found["after"]["loss"] < found["before"]["loss"] and found["after"]["ordered"] > 0.9
    before, after = (load_file(f / "model.safetensors") for f in (base, tmp_path / "out"))
    assert set(before) == set(after) and all(before[n].dtype == after[n].dtype for n in before)
    moved = {n for n in before if not torch.equal(before[n], after[n])}
    assert any("q_proj" in n for n in moved) and ("model.embed_tokens.weight" in moved) == (method == "full")
    # As a reference it is its own: nothing is to be gained at first, and the base is as far away as it was.
    again = trained(tmp_path / "out", tmp_path / "next", name, loss=loss, ref=str(base), lr=1e-9, epochs=1)
    assert again["before"]["loss"] == pytest.approx(found["after"]["loss"], abs=1e-4)
    assert "2 epochs" in (tmp_path / "out" / "README.md").read_text()
    assert json.loads((tmp_path / "out" / "explore_train.json").read_text())["history"][-1]["step"] == 8


def test_what_comes_out_is_explored_again(base: Path, tmp_path: Path, qwench: Any) -> None:
    name = rows(tmp_path / "rows.jsonl", "dpo", 8)
    done = qwench("explore", "train", name, "-m", base, "--out", tmp_path / "out", "--lr", "1e-2", "--batch", "4")
    assert done.returncode == 0, done.stderr
    assert "8 of" in done.stdout and "0.6931 before" in done.stdout and "ordered" in done.stdout
    question = tmp_path / "q.jsonl"
    question.write_text(json.dumps({"id": "a", "question": "1?", "answer": "1", "hit": "1 and 2 and 3 make 6"}) + "\n")
    how = ("explore", "run", question, "--root-n", "2", "--n", "2", "--max-tokens", "24")
    first = qwench(*how, "-m", base, "--out", tmp_path / "a.jsonl")
    assert first.returncode in (0, 3), first.stderr
    second = qwench(*how, "-m", tmp_path / "out", "--previous", tmp_path / "a.jsonl", "--out", tmp_path / "b.jsonl")
    assert second.returncode in (0, 3), second.stderr
    assert {json.loads(x)["episode"] for x in (tmp_path / "b.jsonl").read_text().splitlines()} == {2}
    done = qwench("explore", "train", name, "-m", base, "--out", tmp_path / "x", "--method", "full", "--lora-rank", "4")
    assert done.returncode == 2 and "has no adapters" in done.stderr


def test_a_training_that_is_cut_short_goes_on(base: Path, tmp_path: Path) -> None:
    name = rows(tmp_path / "rows.jsonl", "pairs")
    whole = trained(base, tmp_path / "one", name, loss="pairs")
    events, steps = op.train(options(base, tmp_path / "two", name, loss="pairs")), 0
    for event in events:
        steps += getattr(event, "stage", "") == "train full" and getattr(event, "n", 0) == 1
        if steps == 3:
            break
    events.close()
    assert not (tmp_path / "two").exists() and list((tmp_path / "two.run").glob("checkpoint-*"))
    with pytest.raises(QwenchError, match=r"is of another run: .*beta"):
        trained(base, tmp_path / "two", name, loss="pairs", beta=0.5)
    found = trained(base, tmp_path / "two", name, loss="pairs")
    assert found["after"] == whole["after"]
    one, two = (load_file(tmp_path / n / "model.safetensors") for n in ("one", "two"))
    assert all(torch.equal(one[n], two[n]) for n in one)


def test_rows_become_ids(base: Path, tmp_path: Path) -> None:
    tokenizer = TextTokenizer.load(base)
    template = ChatTemplate(json.loads((base / "tokenizer_config.json").read_text())["chat_template"], {})
    # The template closes a turn with im_end (258); an end of text (256) is what the config has.
    assert end_of_turn(tokenizer, template, [256, 258]) == 258
    assert end_of_turn(tokenizer, ChatTemplate(None, {}), [256]) == 256
    with pytest.raises(QwenchError, match="what ends an answer"):
        end_of_turn(tokenizer, ChatTemplate(None, {}), [])

    def pairs(path: str, loss: str, room: int = 512, keep_going: bool = False) -> Pairs:
        events = read(path, loss, tokenizer, 258, room, keep_going)
        return next(e for e in events if isinstance(e, Pairs))

    found = pairs(rows(tmp_path / "a.jsonl", "dpo", 4), "dpo").rows
    assert found[0].prompt == tokenizer.ids([PROMPT % 0])[0] and found[0].prompt[0] == 257
    assert found[3].completions[0] == [*tokenizer.ids(["yes "])[0], 258] and found[3].advantages == (1, -1)
    # A completion that was cut does not end there.
    cut = pairs(rows(tmp_path / "b.jsonl", "dpo", 2, truncated=[False, True]), "dpo").rows
    assert cut[0].completions[0][-1] == 258 and cut[0].completions[1] == tokenizer.ids(["no "])[0]
    long = pairs(rows(tmp_path / "c.jsonl", "pairs", 12), "pairs", room=len(tokenizer.ids([PROMPT % 0])[0]) + 10)
    assert long.long > 0 and len(long.rows) == 12 - long.long and long.rows[0].advantages == (-1.5, 0.5)
    mixed = tmp_path / "d.jsonl"
    mixed.write_text((tmp_path / "a.jsonl").read_text() + (tmp_path / "c.jsonl").read_text())
    assert pairs(str(mixed), "dpo", keep_going=True).bad == 12
    with pytest.raises(QwenchError, match="line 5: there are no `prompt`, `chosen` and `rejected`"):
        pairs(str(mixed), "dpo")
    with pytest.raises(QwenchError, match="line 1: there are no `rendered`"):
        pairs(str(mixed), "pairs")


def test_what_training_refuses(base: Path, tmp_path: Path) -> None:
    name = rows(tmp_path / "rows.jsonl", "dpo", 4)
    for change, said in (
        ({"loss": "ppo"}, "unknown --loss"),
        ({"method": "head"}, "unknown --method"),
        ({"beta": 0.0}, "--beta must be above 0"),
        ({"lr": -1.0}, "--lr must be above 0"),
        ({"warmup": 1.0}, "--warmup is a share"),
        ({"seq_len": 4096}, "longer than the model's context of 512"),
        ({"seq_len": 8}, "there is nothing to train on"),
        ({"runtime": Runtime(device="cpu", dtype="float16")}, "float16 is too narrow"),
    ):
        with pytest.raises(QwenchError, match=said):
            trained(base, tmp_path / "out", name, **change)
    with pytest.raises(QwenchError, match="explore train knows no"):
        trained(minilm(), tmp_path / "out", name)
    assert not (tmp_path / "out").exists()


def test_dpo_is_that_of_trl(base: Path, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="trl is not installed")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name = rows(tmp_path / "rows.jsonl", "dpo", 8)
    chosen = [e for e in op.train(options(base, tmp_path / "out", name)) if isinstance(e, Chose | Finished)]
    assert next(e for e in chosen if isinstance(e, Chose)).value == "<|im_end|>"
    data = [json.loads(line) for line in Path(name).read_text().splitlines()]
    args = trl.DPOConfig(
        str(tmp_path / "trl"), beta=0.1, per_device_train_batch_size=8, use_cpu=True, bf16=False, report_to="none"
    )
    model, ref = (AutoModelForCausalLM.from_pretrained(f, dtype=torch.float32) for f in (tmp_path / "out", base))
    tokenizer = AutoTokenizer.from_pretrained(base, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    trainer = trl.DPOTrainer(model, ref, args=args, train_dataset=Dataset.from_list(data), processing_class=tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    assert len(batch["input_ids"]) == 16
    with torch.no_grad():
        theirs = float(trainer.compute_loss(trainer.model, batch))
    assert theirs == pytest.approx(chosen[-1].result["after"]["loss"], abs=1e-4)
    assert theirs < 0.6
