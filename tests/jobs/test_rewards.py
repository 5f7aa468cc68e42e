"""Rows become rows with rewards: resumed, remote, measured; and the properties of what is measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from qwench.ops import reward as op
from qwench.ops.base.errors import QwenchError
from qwench.ops.base.events import Finished, Produced, Warned
from qwench.ops.base.runtime import Runtime
from qwench.ops.jobs.journal import Journal
from qwench.ops.scoring.reward_eval import EvalSettings, Scored, report
from qwench.ops.scoring.reward_texts import TextSettings

from tests.tiny import reward_model
from tests.writing.stub import Stub, serving

CPU = Runtime(device="cpu", kernels="eager", dtype="float32")
WORDS = ("sleep", "early", "drink", "water", "avoid", "screens", "walk", "a", "little", "read", "something", "dull")


def pairs(count: int = 24) -> list[dict[str, Any]]:
    return [
        {
            "id": f"p{i}",
            "prompt": f"Tip number {i // 2}, please, for somebody who sleeps badly?",
            "chosen": " ".join(WORDS[i % 5 : i % 5 + 3 + i % 7]) + ".",
            "rejected": "**" + " ".join(WORDS[i % 7 : i % 7 + 8 - i % 6]) + "**",
            "category": "abc"[i % 3],
            "kept": [i],
        }
        for i in range(count)
    ]


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def options(model: Path | str, rows: str, **more: Any) -> op.RewardOptions:
    job = op.JobOptions(rows=rows, **{k: more.pop(k) for k in ("out", "keep_going", "dry_run", "force") if k in more})
    return op.RewardOptions(model=str(model), runtime=more.pop("runtime", CPU), job=job, **more)


def scored(events: Any) -> tuple[list[dict[str, Any]], dict[str, Any], list[str]]:
    found = list(events)
    done = next(e.result for e in found if isinstance(e, Finished))
    return [e.row for e in found if isinstance(e, Produced)], done, [e.message for e in found if isinstance(e, Warned)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reward_model(tmp_path_factory.mktemp("rewards") / "m")


def test_rows_keep_their_fields(model: Path, tmp_path: Path) -> None:
    rows = [*pairs(2), {"id": 1, "prompt": "q", "responses": ["a", "bb"], "reward": "mine"}]
    rows += [{"id": 2, "prompt": "q", "chosen": ["a"], "rejected": ["b", "a"]}]
    found, done, _ = scored(op.score(options(model, written(tmp_path / "in.jsonl", rows))))
    assert [r["id"] for r in found] == ["p0", "p1", 1, 2] and found[0]["kept"] == [0]
    assert isinstance(found[0]["reward_chosen"], float) and len(found[0]["tokens"]) == 2
    assert found[2]["input_reward"] == "mine" and len(found[2]["reward"]) == 2
    assert found[3]["reward_chosen"][0] == found[3]["reward_rejected"][1] == found[2]["reward"][0]
    assert done["scored"] == done["answers"] == 9 and done["failed"] == 0


def test_a_killed_run_goes_on(model: Path, tmp_path: Path) -> None:
    """What is in the journal is not scored again, and the file has the bytes it would have had."""
    rows, out = written(tmp_path / "in.jsonl", pairs()), tmp_path / "out.jsonl"
    whole = tmp_path / "whole.jsonl"
    scored(op.score(options(model, rows, out=str(whole))))
    run = op.score(options(model, rows, out=str(out), batch_tokens=64))
    ended = 0
    for event in run:
        ended += getattr(event, "stage", "") == "score" and getattr(event, "n", 0) == 1
        if ended == 9:
            break
    run.close()
    assert not out.exists() and 8 < Journal(out).path.read_bytes().count(b"\n") < 24
    _, done, _ = scored(op.score(options(model, rows, out=str(out))))
    assert 8 <= done["done"] < 24 and done["scored"] == 48
    them, ours = ([json.loads(x) for x in p.read_bytes().splitlines()] for p in (whole, out))
    for a, b in zip(them, ours, strict=True):
        assert b["reward_chosen"] == pytest.approx(a["reward_chosen"], abs=1e-5)
        assert a | {"reward_chosen": 0, "reward_rejected": 0} == b | {"reward_chosen": 0, "reward_rejected": 0}
    for change, said in (({"texts": TextSettings(system="x")}, "system was"), ({"head": "linear"}, "lacks a weight")):
        with pytest.raises(QwenchError, match=said):
            scored(op.score(options(model, rows, out=str(out), **change)))


def test_bad_rows(model: Path, tmp_path: Path) -> None:
    rows = written(tmp_path / "in.jsonl", [*pairs(1), {"prompt": "a"}, {"prompt": "a", "response": ""}])
    with pytest.raises(QwenchError, match="line 2: there is no answer to score"):
        scored(op.score(options(model, rows)))
    found, done, said = scored(op.score(options(model, rows, keep_going=True)))
    assert len(found) == 1 and done["bad"] == 2 and any("line 3: the answer is empty" in s for s in said)
    long = written(tmp_path / "long.jsonl", [{"prompt": "a", "response": "y" * 600}, *pairs(1)])
    with pytest.raises(QwenchError, match="line 1: the text has"):
        scored(op.score(options(model, long)))
    found, done, _ = scored(op.score(options(model, long, texts=TextSettings(long="skip"))))
    assert found[0]["reward"] is None and found[0]["truncated"] is False and done["skipped"] == 1


def test_no_number_is_a_failed_row(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder = reward_model(tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"score.2.bias": torch.tensor([float("nan")])}, folder / "model.safetensors")
    found, done, _ = scored(op.score(options(folder, written(tmp_path / "in.jsonl", pairs(2)))))
    assert done["failed"] == 2 and all("gave no number" in r["failed"] and "reward_chosen" not in r for r in found)
    there = Scored([("row 1", r) for r in found], EvalSettings())
    assert there.failed == 2 and report(there, EvalSettings())["n"] == 0


def test_explain_tells_what_bfloat16_costs(model: Path, tmp_path: Path) -> None:
    rows = written(tmp_path / "in.jsonl", pairs(3))
    narrow = Runtime(device="cpu", kernels="eager", dtype="bfloat16")
    found = list(op.score(options(model, rows, explain=True, runtime=narrow)))
    told = next(e for e in found if getattr(e, "name", "") == "float32")
    here = [e.row["reward_chosen"] for e in found if isinstance(e, Produced)]
    wide = [r["reward_chosen"] for r in scored(op.score(options(model, rows)))[0]]
    assert 0 < max(abs(a - b) for a, b in zip(here, wide, strict=True)) <= float(told.value) + 1e-3
    assert "6 texts" in told.reason
    assert not any(getattr(e, "name", "") == "float32" for e in op.score(options(model, rows, explain=True)))


def test_a_dry_run_reads_no_weights(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    from safetensors.torch import load_file, save_file

    # The head is missing, which would be told if weights were loaded.
    tensors = {k: v for k, v in load_file(folder / "model.safetensors").items() if "score" not in k}
    save_file(tensors, folder / "model.safetensors")
    rows = written(tmp_path / "in.jsonl", pairs(3))
    _, done, _ = scored(op.score(options(folder, rows, dry_run=True)))
    full, _, _ = scored(op.score(options(model, rows)))
    assert done["rows"] == 3 and done["answers"] == 6
    assert done["tokens"] == sum(sum(r["tokens"]) for r in full)
    assert done["longest"] == max(max(r["tokens"]) for r in full)
    assert done["memory"] > sum(t.numel() * 4 for t in tensors.values())


def test_oracle_12_what_changes_nothing(model: Path, tmp_path: Path) -> None:
    """Order of rows, a constant a prompt; swapping the answers turns accuracy over."""
    rows, _, _ = scored(op.score(options(model, written(tmp_path / "in.jsonl", pairs()))))
    settings = EvalSettings(bootstrap=50)

    def measured(some: list[dict[str, Any]]) -> dict[str, Any]:
        return report(Scored([(f"row {i}", r) for i, r in enumerate(some)], settings), settings)

    base = measured(rows)
    assert base["n"] == 24 and base["prompts"] == 12 and set(base["by"]) == set("abc")
    assert base["length_unit"] == "tokens" and base["rulers"]["longest"]["n"] == 24
    turned = measured(rows[::-1])
    assert turned["accuracy"] == base["accuracy"] and turned["phi_length"] == pytest.approx(base["phi_length"])
    assert turned["bt_loss"] == pytest.approx(base["bt_loss"])
    shifted = [
        r | {k: r[k] + len(r["prompt"]) + i // 2 for k in ("reward_chosen", "reward_rejected")}
        for i, r in enumerate(rows)
    ]
    for name in ("accuracy", "bt_loss", "phi_length"):
        assert measured(shifted)[name] == pytest.approx(base[name])
    assert measured(shifted)["style"]["both"]["bt_loss"] == pytest.approx(base["style"]["both"]["bt_loss"], abs=1e-6)
    swapped = [
        r | {"chosen": r["rejected"], "rejected": r["chosen"], "reward_chosen": r["reward_rejected"],
             "reward_rejected": r["reward_chosen"], "answer_tokens": r["answer_tokens"][::-1]}
        for r in rows
    ]  # fmt: skip
    assert measured(swapped)["accuracy"] == pytest.approx(1 - base["accuracy"])


def test_scored_rows_need_no_model(model: Path, tmp_path: Path) -> None:
    rows = written(tmp_path / "in.jsonl", pairs())
    direct = scored(op.evaluate(op.EvalOptions(rewards=options(model, rows), settings=EvalSettings(bootstrap=20))))[1]
    scored(op.score(options(model, rows, out=str(tmp_path / "s.jsonl"))))
    alone = op.EvalOptions(rewards=options("", str(tmp_path / "s.jsonl")), settings=EvalSettings(bootstrap=20))
    found = scored(op.evaluate(alone))[1]
    assert found["accuracy"] == direct["accuracy"] and found["bt_loss"] == pytest.approx(direct["bt_loss"], abs=1e-6)
    lines = [json.loads(x) for x in (tmp_path / "s.jsonl").read_text().splitlines()]
    mixed = written(tmp_path / "mixed.jsonl", [*lines, lines[0] | {"model": "another"}])
    with pytest.raises(QwenchError, match="rewards of 2 models"):
        scored(op.evaluate(replace(alone, rewards=options("", mixed))))
    with pytest.raises(QwenchError, match="line 1: there is no `reward_chosen`"):
        scored(op.evaluate(replace(alone, rewards=options("", rows))))
    # Against itself with one margin turned: one discordant pair.
    other = [r | ({"reward_chosen": 99.0} if i == next_wrong(lines) else {}) for i, r in enumerate(lines)]
    against = written(tmp_path / "other.jsonl", [r | {"model": "b"} for r in other[::-1]])
    told = scored(op.evaluate(replace(alone, against=against)))[1]["against"]
    assert (told["only_this"], told["only_other"], told["p"], told["missing"]) == (0, 1, 1.0, 0)
    assert told["difference"] == pytest.approx(-1 / 24) and all("p_holm" in r for r in told["by"].values())


def next_wrong(rows: list[dict[str, Any]]) -> int:
    return next(i for i, r in enumerate(rows) if r["reward_chosen"] < r["reward_rejected"])


def test_rewardbench_rows(tmp_path: Path) -> None:
    rows = [
        {"id": i, "prompt": f"q{i}", "chosen": "a", "rejected": "b", "chosen_model": "x", "subset": s,
         "reward_chosen": 1.0, "reward_rejected": 0.0 if s == "alpacaeval-easy" else 1.0}
        for i, s in enumerate(("alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard", "mt-bench-easy",
                               "mt-bench-med", "alpacaeval-easy"))
    ]  # fmt: skip
    settings = EvalSettings(benchmark="rewardbench", bootstrap=0)
    found = report(Scored([("r", r) for r in rows], settings), settings)["benchmark"]
    assert found["sections"]["Chat"] == pytest.approx(0.279330, abs=1e-6)  # ties are wrong there
    four = [
        {"id": "ref:1", "subset": "Ties", "prompt": "q", "chosen": ["a"], "rejected": ["b", "c"],
         "reward_chosen": [2.0], "reward_rejected": [1.0, 0.5]},
        {"id": "tied:1", "subset": "Ties", "prompt": "q", "chosen": ["a", "d"], "rejected": ["b", "c"],
         "reward_chosen": [3.0, 2.5], "reward_rejected": [1.0, 0.0]},
    ]  # fmt: skip
    settings = EvalSettings(benchmark="rewardbench2", bootstrap=0)
    found = report(Scored([("r", r) for r in four], settings), settings)
    assert found["benchmark"]["sections"]["Ties"] == pytest.approx(1.007616, abs=1e-6) and found["n"] == 6


def test_best_of_rows(tmp_path: Path) -> None:
    row = {"prompt": "q", "answer": "7", "responses": ["so #### 7", "is 8", "\\boxed{7.0}", "no idea"]}
    row |= {"reward": [0.9, 0.7, 0.4, 0.1], "model": "m"}
    file = written(tmp_path / "r.jsonl", [row])
    found = scored(op.best_of(op.BestOptions(sizes=(1, 2, 3, 4), rewards=options("", file))))[1]
    assert [r["reward"] for r in found["sizes"]] == pytest.approx([0.5, 2 / 3, 0.75, 1])
    assert [r["oracle"] for r in found["sizes"]] == pytest.approx([0.5, 5 / 6, 1, 1])
    assert found["without_answer"] == 1 and found["weights"] == "sigmoid of the reward"
    one, _, _ = scored(op.best_of(op.BestOptions(emit=True, rewards=options("", file))))
    assert one == [{"prompt": "q", "answer": "7", "reward": 0.9, "model": "m", "response": "so #### 7", "winner": 0}]
    with pytest.raises(QwenchError, match="do not tell which answers are right"):
        scored(op.best_of(op.BestOptions(answer_field="gold", rewards=options("", file))))
    given = written(tmp_path / "c.jsonl", [row | {"correct": [False, True, False, False]}])
    assert scored(op.best_of(op.BestOptions(rewards=options("", given))))[1]["sizes"][0]["reward"] == 0.25


def body_text(body: dict[str, Any]) -> str:
    return body["input"] if "input" in body else body["text"]


@pytest.mark.parametrize(
    ("owner", "kind"),
    [("vllm", "mlp"), ("vllm", "linear"), ("vllm", "process"), ("sglang", "mlp"), ("sglang", "linear")],
)
def test_a_server_scores_the_same_text(owner: str, kind: str, tmp_path: Path) -> None:
    """The stub computes with the same model from the text alone, and answers as vLLM and SGLang do."""
    folder = reward_model(tmp_path / "m", kind)
    rows = pairs(3)
    if kind == "process":
        rows = [{"prompt": "2 + 2?", "steps": ["2 + 2", "is 4"]}, {"prompt": "1?", "response": "one\n\ntwo"}]
    file = written(tmp_path / "in.jsonl", rows)
    here, _, _ = scored(op.score(options(folder, file, explain=True)))
    by_text: dict[str, Any] = {}
    for row in here:
        texts = row["text"] if isinstance(row["text"], list) else [row["text"]]
        values = [row["step_rewards"]] if kind == "process" else [row["reward_chosen"], row["reward_rejected"]]
        by_text |= dict(zip(texts, values, strict=True))

    def said(body: dict[str, Any]) -> Any:
        text = body_text(body)
        marks = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<extra_0>")  # a token each, all else a byte a token
        value, count = by_text[text], len(text.encode()) - sum((len(m) - 1) * text.count(m) for m in marks)
        if owner == "sglang":
            return [{"embedding": [value], "meta_info": {"prompt_tokens": count}}]
        if kind == "linear":
            return {"data": [{"index": 0, "probs": [value]}], "usage": {"prompt_tokens": count}}
        data = [[0.25], [0.5], [value]] if kind == "mlp" else [[1 - p, p] for p in value]
        return {"data": [{"index": 0, "data": data}], "usage": {"prompt_tokens": count}}

    with serving(Stub()) as stub:
        stub.owner, stub.others = owner, {"/pooling": said, "/classify": said}
        remote = Runtime(engine=stub.address, tokenizer=str(folder))
        there, _, _ = scored(op.score(options("", file, runtime=remote)))
        names = ("step_rewards", "reward") if kind == "process" else ("reward_chosen", "reward_rejected")
        for a, b in zip(here, there, strict=True):
            assert b["model"] == "tiny" and all(b[n] == pytest.approx(a[n], abs=1e-6) for n in names)
        path, _, body = stub.requests[-1]
        wanted = "/classify" if owner == "sglang" or kind == "linear" else "/pooling"
        assert path == wanted and ("activation" in body) == (owner == "vllm")
        # Raw pairs are told from probabilities, and get their softmax here.
        if kind == "process":
            import math

            raw = {t: [[0.0, math.log(p / (1 - p))] for p in v] for t, v in by_text.items()}
            stub.others = {"/pooling": lambda body: {"data": [{"data": raw[body["input"]]}]}}
            again, _, _ = scored(op.score(options("", file, runtime=remote)))
            assert again[0]["step_rewards"] == pytest.approx(here[0]["step_rewards"], abs=1e-6)
            stub.others = {"/pooling": lambda body: {"data": [{"data": [[0.5, 0.5]]}]}}
            assert "gives 1 values for 2 steps" in scored(op.score(options("", file, runtime=remote)))[0][0]["failed"]
        else:
            stub.others = {
                wanted: lambda body: {"data": [{"data": [1.0], "probs": [1.0]}], "usage": {"prompt_tokens": 3}}
            }
            assert "the server reads 3 tokens" in scored(op.score(options("", file, runtime=remote)))[0][0]["failed"]


def test_servers_without_heads(model: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "in.jsonl", pairs(1))
    with serving(Stub()) as stub:
        for owner, said in (("llamacpp", "llama.cpp has no reward heads"), ("library", "ollama has no reward heads")):
            stub.owner = owner
            remote = Runtime(engine=stub.address, tokenizer=str(model))
            with pytest.raises(QwenchError, match=said):
                scored(op.score(options("", file, runtime=remote)))
        stub.owner = "vllm"
        with pytest.raises(QwenchError, match="no tokenizer called `tiny`"):
            scored(op.score(options("", file, runtime=Runtime(engine=stub.address))))
        with pytest.raises(QwenchError, match="a server reads the last token"):
            scored(op.score(options("", file, runtime=remote, texts=TextSettings(pool="before-pad"))))


def test_the_selftest_is_a_verdict(model: Path) -> None:
    done = scored(op.selftest(options(model, "-")))[1]
    good, bad = done["rows"]
    assert done["right"] == (good["reward"] > bad["reward"]) and good["published"] is None
    from qwench.ops.scoring.reward_selftest import verdict

    told = verdict("Qwen/WorldPM-72B", (0.63, -1.64))
    assert told["right"] and abs(told["rows"][0]["difference"]) < 1e-3 and abs(told["rows"][1]["difference"]) < 3e-3
    assert not verdict("m", (0.0, 0.0))["right"]
