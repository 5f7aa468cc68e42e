"""`qwench parscale-recycle`: data, loss, training and its faults, the checkpoint that comes out."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import types
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from qwench.ops import parscale_recycle as op
from qwench.ops.base.errors import QwenchError
from qwench.ops.base.events import Advanced, Finished, Produced, Warned
from qwench.ops.base.lock import Lock
from qwench.ops.base.runtime import Runtime
from qwench.ops.models.tokenizer import TextTokenizer
from qwench.ops.streams import report
from qwench.ops.streams.measure import gain, held_out, streams_apart
from qwench.ops.streams.work import Work
from qwench.ops.training.data import Blocks, DataOptions, end_of, read_blocks
from qwench.ops.training.loss import head_loss, token_losses
from qwench.ops.training.options import Feed
from qwench.ops.training.train import _sentence, newest, train
from safetensors.torch import load_file

from tests.tiny import byte_decoder, byte_tokenizer

FLAGS = ["--seq-len", "32", "--batch", "2", "--prefix-tokens", "4", "--eval-tokens", "512", "--dtype", "float32"]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A tiny model, and texts that repeat themselves, so that there is something to learn."""
    folder = tmp_path_factory.mktemp("recycle")
    byte_decoder(folder / "base", "llama")
    (folder / "texts").mkdir()
    for i in range(60):
        (folder / "texts" / f"{i:02}.txt").write_text(f"number {i} comes after number {i - 1}. " * 4)
    return folder


def options(home: Path, folder: Path, **changes: object) -> op.RecycleOptions:
    made = op.RecycleOptions(
        str(home / "base"),
        str(folder),
        (str(home / "texts"),),
        steps=12,
        seq_len=32,
        batch=2,
        prefix_tokens=4,
        eval_tokens=512,
        log_every=1,
        lr=0.02,
        streams=(2,),
        runtime=Runtime(dtype="float32"),
    )
    return replace(made, **changes)


def finished(events: Iterator) -> dict:
    return next(e.result for e in events if isinstance(e, Finished))


def blocks_of(how: DataOptions, tokenizer: TextTokenizer) -> tuple[Blocks, list[Warned]]:
    events = list(read_blocks(how, tokenizer, end_of(tokenizer, {}, how.end)))
    return events[-1], [e for e in events if isinstance(e, Warned)]


@pytest.fixture(scope="module")
def tokenizer(home: Path) -> TextTokenizer:
    return TextTokenizer.load(home / "base")


def test_blocks_are_whole_documents_end_to_end(home: Path, tokenizer: TextTokenizer) -> None:
    how = DataOptions((str(home / "texts"),), seq_len=32, head=4, eval_tokens=512)
    found, _ = blocks_of(how, tokenizer)
    again, _ = blocks_of(how, tokenizer)
    assert torch.equal(found.train, again.train) and torch.equal(found.held_out, again.held_out)
    assert not torch.equal(found.train, blocks_of(replace(how, seed=1), tokenizer)[0].train)
    # Every document is in one part, whole and once, with an end after it.
    texts = {}
    for name in ("train", "held_out"):
        ids = getattr(found, name).flatten().tolist()
        texts[name] = tokenizer.backend.decode(ids, skip_special_tokens=False).split("<|endoftext|>")[:-1]
    stored = {p.read_text() for p in (home / "texts").glob("*.txt")}
    assert set(texts["train"]) <= stored and len(set(texts["train"])) == len(texts["train"])
    assert set(texts["held_out"]) <= stored and not set(texts["held_out"]) & set(texts["train"])
    assert found.documents + found.held_documents == 60
    assert (found.heads[: found.documents, 0] == 256).all() and found.heads.shape[1] == 4


def test_the_split_is_of_the_texts_wherever_they_lie(
    home: Path, tokenizer: TextTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(home / "texts", tmp_path / "elsewhere")
    how = DataOptions((str(home / "texts"),), seq_len=32, head=4, eval_tokens=512)
    found, _ = blocks_of(how, tokenizer)
    monkeypatch.chdir(tmp_path)
    for data in ("elsewhere", "./elsewhere/", str(tmp_path / "elsewhere")):
        again, _ = blocks_of(replace(how, data=(data,)), tokenizer)
        assert torch.equal(found.train, again.train) and torch.equal(found.held_out, again.held_out), data


def test_reading_stops_where_there_is_enough(home: Path, tokenizer: TextTokenizer) -> None:
    how = DataOptions((str(home / "texts"),), seq_len=32, head=4, tokens=640, eval_tokens=64)
    found, _ = blocks_of(how, tokenizer)
    assert 640 <= found.train.numel() <= 640 + 32 + 256 and found.held_out.numel() == 64


def test_one_text_is_held_out_from_its_end(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(f"{i} " for i in range(900)))
    found, _ = blocks_of(DataOptions((str(tmp_path / "a.txt"),), seq_len=32, head=4), tokenizer)
    assert "890" in tokenizer.backend.decode(found.held_out.flatten().tolist()) and "the end" in found.note
    assert found.train.numel() > 10 * found.held_out.numel()


def test_rows_of_a_hub_data_set(tokenizer: TextTokenizer, monkeypatch) -> None:
    asked = {}

    class Rows(list):
        def shuffle(self, **kept: object) -> Rows:
            asked.update(kept)
            return self

    def load_dataset(name: str, **kept: object) -> Rows:
        asked.update(kept, name=name)
        return Rows({"body": f"row {i} " * 5} for i in range(40))

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    from qwench.ops.text.inputs import ReadOptions

    how = DataOptions(("org/set:test",), read=ReadOptions(text_field="body"), seq_len=16, head=4, seed=5)
    found, _ = blocks_of(how, tokenizer)
    assert asked == {"name": "org/set", "split": "test", "streaming": True, "seed": 5, "buffer_size": 10_000}
    assert found.documents + found.held_documents == 40
    with pytest.raises(QwenchError, match="no text column `text`, only body"):
        blocks_of(replace(how, read=ReadOptions()), tokenizer)


def test_data_that_is_none(home: Path, tokenizer: TextTokenizer, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("short")
    for data, said in (
        ((), "there is no data"),
        ((str(tmp_path / "nowhere"),), "no such data"),
        ((str(tmp_path / "short.txt"),), "shorter than one sequence of 32 tokens"),
    ):
        with pytest.raises(QwenchError, match=said) as error:
            blocks_of(DataOptions(data, seq_len=32, head=4), tokenizer)
        assert "--data" in error.value.hint or "--seq-len" in error.value.hint or "hub" in error.value.hint
    byte_tokenizer(tmp_path, end=None)
    bare = TextTokenizer.load(tmp_path)
    with pytest.raises(QwenchError, match="end-of-text") as error:
        end_of(bare, {}, None)
    assert "--end-token" in error.value.hint
    assert end_of(bare, {"eos_token_id": [7, 8]}, None) == 7 and end_of(bare, {}, "A") == bare.token_id("A")
    with pytest.raises(QwenchError, match="no such token"):
        end_of(bare, {}, "<nonesuch>")


@pytest.mark.parametrize("room", [64, 1 << 20])
def test_loss_and_gradients_are_torchs(room: int, monkeypatch) -> None:
    monkeypatch.setattr("qwench.ops.training.loss.ROOM", room)
    made = torch.Generator().manual_seed(0)
    hidden, head = (torch.randn(n, 8, generator=made, dtype=torch.float64) for n in (13, 30))
    labels = torch.randint(30, (13,), generator=made)
    found, wanted = [], []
    for grads, loss in ((found, head_loss), (wanted, None)):
        h, w = hidden.clone().requires_grad_(), head.clone().requires_grad_()
        value = loss(h, w, labels) if loss else torch.nn.functional.cross_entropy(h @ w.t(), labels)
        (value * 3).backward()
        grads += [value.detach(), h.grad, w.grad]
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a.double(), b, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(token_losses(hidden, head, labels).mean().double(), wanted[0], atol=1e-6, rtol=0)
    frozen = head_loss(hidden.clone().requires_grad_(), head, labels)
    frozen.backward()


def test_gain_has_its_error() -> None:
    fall, error = gain([2.0, 3.0, 4.0], [1.5, 2.5, 3.8])
    assert fall == pytest.approx(0.4) and error == pytest.approx(0.1)


@pytest.fixture(scope="module")
def result(home: Path) -> dict:
    """A run over two numbers of streams, with its baseline."""
    made = options(home, home / "wide", streams=(2, 3), baseline=True, steps=30)
    events = list(op.recycle(made))
    return finished(events) | {"rows": [e.row for e in events if isinstance(e, Produced)]}


def test_training_brings_the_loss_down(result: dict) -> None:
    loss = {r["name"]: r["loss"] for r in result["losses"]}
    for name in ("baseline", "p2", "p3"):
        assert loss[name] < loss[f"{name} untrained"] - 0.05
    fall = next(r["gain"] for r in result["losses"] if r["name"] == "p2")
    assert loss["base"] - loss["p2"] == pytest.approx(fall, abs=1e-4)
    wide = next(r for r in result["losses"] if r["name"] == "p3")
    assert len(wide["single"]) == 3 and sum(wide["weights"]) == pytest.approx(1, abs=1e-5)
    assert 0 < wide["entropy"] <= 1.0001 and -1 <= wide["cosine"] <= 1
    assert result["streams"] == min((2, 3), key=lambda p: loss[f"p{p}"])
    untrained = next(r for r in result["losses"] if r["name"] == "p3 untrained")
    assert untrained["uniform"] == pytest.approx(untrained["loss"], abs=1e-5)
    steps = [r["step"] for r in result["rows"] if r["event"] == "step" and r["run"] == "p2"]
    assert steps == list(range(1, 31))
    estimate = next(r for r in result["rows"] if r["event"] == "estimate")
    assert [r["streams"] for r in estimate["runs"]] == [2, 3]
    assert estimate["runs"][0]["added"] == estimate["runs"][0]["trained"]


def test_the_checkpoint_loads_everywhere_and_keeps_the_base(home: Path, result: dict, qwench) -> None:
    out = home / "wide"
    base, made = load_file(home / "base" / "model.safetensors"), load_file(out / "model.safetensors")
    assert all(torch.equal(made[n], t) for n, t in base.items())
    added = {n for n in made if n not in base}
    assert added == {n for n in made if "prefix_" in n or "aggregate_layer" in n}
    names = {"README.md", "recycle.json", "loss.png", "modeling_parscale.py", "config.json", "tokenizer.json"}
    assert names <= {p.name for p in out.iterdir()} and not (home / "wide.run").exists()
    assert f"| p2 | {next(r['loss'] for r in result['losses'] if r['name'] == 'p2'):.4f} |" in (
        out / "README.md"
    ).read_text("utf-8")
    # Plain transformers, in a process that has no qwench on its path.
    script = (
        "import sys, json, torch\n"
        "from transformers import AutoModelForCausalLM\n"
        "m = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True).eval()\n"
        "ids = torch.tensor([[110, 117, 109, 98, 101, 114]])\n"
        "made = m.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=None)\n"
        "found = [m.config.parscale_n, made[0].tolist()]\n"
        "for p in (2, 3):\n"
        "    m.load_streams(f'{sys.argv[1]}/adapters/p{p}.safetensors')\n"
        "    found.append(m(ids).logits[0, -1].tolist())\n"
        "assert 'qwench' not in sys.modules\n"
        "print(json.dumps(found))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(out)], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    streams, tokens, *logits = json.loads(done.stdout.splitlines()[-1])
    assert streams == result["streams"]
    from qwench.ops.models.hub import resolve
    from qwench.ops.writing.load import load_causal

    for wanted, number in zip(logits, (2, 3), strict=True):
        engine = load_causal(resolve(str(out)), streams=number, runtime=Runtime(device="cpu", dtype="float32")).engine
        torch.testing.assert_close(engine.feed({0: tokens[:6]})[0].tolist(), wanted, atol=2e-5, rtol=0)
    said = qwench("chat", "--model", out, "number", "--max-tokens", 4, "--temperature", 0, "--json", "--streams", 3)
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout)["answer_tokens"] == 4
    refused = qwench("chat", "--model", out, "number", "--streams", 5)
    assert refused.returncode == 1 and "has no 5 streams" in refused.stderr and "2, 3" in refused.stderr


def curve(out: Path, name: str = "p2") -> list[tuple[int, float]]:
    rows = json.loads((out / "recycle.json").read_text("utf-8"))["history"][name]
    return [(r["step"], r["loss"]) for r in rows if r["event"] == "step"]


@pytest.fixture(scope="module")
def undisturbed(home: Path) -> list[tuple[int, float]]:
    finished(op.recycle(options(home, home / "calm", save_every=3)))
    return curve(home / "calm")


def test_kill_and_resume_give_the_same_curve(home: Path, undisturbed, qwench, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "qwench.cli.main", "parscale-recycle", home / "base", out]
    command += ["--data", home / "texts", *FLAGS, "--steps", 12, "--log-every", 1, "--save-every", 3]
    command += ["--lr", 0.02, "--streams", 2, "--json"]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    history = tmp_path / "killed.run" / "p2" / "history.jsonl"
    deadline = time.monotonic() + 120
    while not (history.exists() and '"step": 5' in history.read_text()):
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    # A checkpoint that the kill cut short is not gone on from.
    (tmp_path / "killed.run" / "p2" / "checkpoint-9").mkdir(exist_ok=True)
    other = qwench(*command[3:], "--seed", 3)
    assert other.returncode == 1 and "another run: --seed was `0` and is `3`" in other.stderr
    done = qwench(*command[3:])
    assert done.returncode in (0, 3), done.stderr
    found = curve(out)
    assert [s for s, _ in found] == [s for s, _ in undisturbed]
    for (step, a), (_, b) in zip(found, undisturbed, strict=True):
        assert a == pytest.approx(b, abs=1e-5), step
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert rows[-1]["streams"] == 2 and {"estimate", "measured", "step"} <= {r.get("event") for r in rows}


def test_an_interrupt_saves_the_step_in_hand(home: Path, undisturbed, tmp_path: Path) -> None:
    made = options(home, tmp_path / "out", save_every=0)
    events = op.recycle(made)
    for event in events:
        if isinstance(event, Produced) and event.row.get("step") == 4:
            break
    with pytest.raises(KeyboardInterrupt):
        events.throw(KeyboardInterrupt)
    assert newest(tmp_path / "out.run" / "p2") is not None
    finished(op.recycle(made))
    for (step, a), (_, b) in zip(curve(tmp_path / "out"), undisturbed, strict=True):
        assert a == pytest.approx(b, abs=1e-5), step


@pytest.mark.parametrize("init", ["random", "reparam"])
def test_other_beginnings_learn_too(init: str, home: Path, tmp_path: Path) -> None:
    found = finished(op.recycle(options(home, tmp_path / "out", init=init, gradient_checkpointing=True, steps=20)))
    loss = {r["name"]: r["loss"] for r in found["losses"]}
    assert loss["p2"] < loss["p2 untrained"] - 0.02
    from qwench.ops.streams.modeling_parscale import LlamaParScaleForCausalLM

    model = LlamaParScaleForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    made = options(home, tmp_path / "x")
    blocks, _ = blocks_of(
        DataOptions(made.data, seq_len=32, head=4, tokens=20 * 64, eval_tokens=512), TextTokenizer.load(home / "base")
    )
    # What was measured in training is what the saved file computes, the merged prefixes included.
    assert held_out(model, blocks.held_out, 2)["loss"] == pytest.approx(loss["p2"], abs=1e-5)


def test_all_parameters(home: Path, tmp_path: Path) -> None:
    byte_decoder(tmp_path / "base", "qwen3_moe")
    shutil.copytree(home / "texts", tmp_path / "texts")
    found = finished(op.recycle(options(tmp_path, tmp_path / "out", train="all", baseline=True, lr=0.003, steps=20)))
    loss = {r["name"]: r["loss"] for r in found["losses"]}
    assert loss["p2"] < loss["p2 untrained"] - 0.05 and loss["baseline"] < loss["base"] - 0.05
    base, made = (load_file(tmp_path / n / "model.safetensors") for n in ("base", "out"))
    assert set(base) <= set(made) and not any(torch.equal(made[n], t) for n, t in base.items() if t.dim() > 1)
    from qwench.ops.streams.modeling_parscale import Qwen3MoeParScaleForCausalLM

    model = Qwen3MoeParScaleForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert model.config.parscale_n == 2
    assert streams_apart(model, torch.randint(256, (2, 16)), 2)["uniform"] > 0


def test_what_is_not_finite_is_named(home: Path, tmp_path: Path) -> None:
    with pytest.raises(QwenchError, match=r"not finite at step \d+: `.*(prefix_|aggregate_layer|layers)"):
        list(op.recycle(options(home, tmp_path / "out", lr=1e30, warmup=0, clip=1e30)))


def test_out_of_memory_names_the_flags(home: Path, tmp_path: Path) -> None:
    for error in (MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")):
        found = _sentence(error)
        assert isinstance(found, QwenchError) and "--batch" in found.hint and "--gradient-checkpointing" in found.hint
    assert isinstance(_sentence(ValueError("x")), ValueError)
    work = Work(options(home, tmp_path / "out"))
    work.open_folder()
    list(work.read())
    work.build()
    module = work.prepare(2)

    def full(**_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    module.forward = full
    (tmp_path / "out.run" / "p2").mkdir()
    with pytest.raises(QwenchError, match="out of memory in training"):
        feed = Feed.of_blocks(work.blocks.train)
        list(train(module, feed, dict, work.train_options(), tmp_path / "out.run" / "p2", "p2"))


def test_what_fails_before_training_leaves_nothing(home: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("one sequence of thirty-two tokens, and not two more.")
    for changes, said in (
        ({"data": (str(tmp_path / "nowhere"),)}, "no such data"),
        ({"eval_data": (str(tmp_path / "short.txt"),)}, "two held-out sequences of 32 tokens"),
    ):
        with pytest.raises(QwenchError, match=said):
            list(op.recycle(options(home, tmp_path / "out", **changes)))
        assert not list(tmp_path.glob("out*"))


def test_an_interrupt_before_training_keeps_the_tokens(home: Path, qwench, tmp_path: Path) -> None:
    made = options(home, tmp_path / "out")
    events = op.recycle(made)
    next(e for e in events if isinstance(e, Produced) and e.row.get("event") == "estimate")
    with pytest.raises(KeyboardInterrupt):
        events.throw(KeyboardInterrupt)
    assert {f.name for f in (tmp_path / "out.run").iterdir()} == {"data.safetensors", "run.json"}
    finished(op.recycle(made))


def test_wrong_words_get_a_sentence(home: Path, qwench, tmp_path: Path) -> None:
    for changes, said, code in (
        ({"streams": (1,)}, "from 2 up", 2),
        ({"streams": (2, 4), "train": "all"}, "decoder of its own", 2),
        ({"init": "zero"}, "unknown --init", 2),
        ({"steps": 0}, "how long to train", 2),
        ({"tokens": 100}, "how long to train", 2),
        ({"smooth": 1.0}, "--smooth", 2),
        ({"prefix_tokens": 64}, "--prefix-tokens", 2),
        ({"runtime": Runtime(dtype="float16")}, "float16 is too narrow", 2),
        ({"out": str(home / "base")}, "there already", 1),
        ({"out": str(tmp_path / "no" / "out")}, "not there", 1),
        ({"out": str(home / "base" / "out")}, "lies in the input", 1),
        ({"model": str(tmp_path / "nothing")}, "no such", 1),
    ):
        with pytest.raises(QwenchError, match=said) as error:
            list(op.dry_run(options(home, tmp_path / "out", **changes)))
        assert error.value.code == code
    done = qwench("parscale-recycle", home / "base", tmp_path / "out", "--tokens", "many", "--json")
    assert done.returncode == 2 and "not a number of tokens" in json.loads(done.stderr)["error"]
    assert not list(tmp_path.glob("out*"))


def test_a_dry_run_writes_nothing_and_a_file_has_options(home: Path, qwench, tmp_path: Path) -> None:
    file = tmp_path / "how.toml"
    file.write_text(f'data = "{home / "texts"}"\nseq-len = 32\nbatch = 2\nstreams = [2, 3]\nprefix_tokens = 4\n')
    done = qwench(
        *("parscale-recycle", home / "base", tmp_path / "out", "--config", file, "--tokens", "2k"),
        *("--batch", 4, "--dry-run", "--json"),
    )
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["steps"] == round(2000 / 32 / 4) and [r["streams"] for r in plan["runs"]] == [2, 3]
    assert all(r["seconds"] > 0 and r["flops"] > 0 and r["memory"] > 0 for r in plan["runs"])
    assert not list(tmp_path.glob("out*"))
    file.write_text("learning = 3\n")
    done = qwench("parscale-recycle", home / "base", tmp_path / "out", "--config", file, "--tokens", "2k")
    assert done.returncode == 2 and "no such option: `learning`" in done.stderr


def test_progress_and_choices_are_told(home: Path, tmp_path: Path) -> None:
    events = list(op.recycle(options(home, tmp_path / "out", steps=3, eval_every=1)))
    assert sum(e.n for e in events if isinstance(e, Advanced) and e.stage == "train p2") == 3
    assert [e.row["step"] for e in events if isinstance(e, Produced) and e.row["event"] == "held_out"] == [1, 2]
    chosen = {e.name: e.reason for e in events if hasattr(e, "reason")}
    assert {"device", "dtype", "threads", "one stream"} <= set(chosen) and all(chosen.values())


def test_the_estimate_is_of_all_that_is_done(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "_timed", lambda work, run: 1.0)
    events = op.recycle(options(home, tmp_path / "out", steps=4, eval_every=1, baseline=True))
    rows = [e.row for e in events if isinstance(e, Produced)]
    count = Counter(row["event"] for row in rows)
    assert (count["step"], count["measured"], count["held_out"]) == (8, 5, 6)
    plan = rows[0]
    batches = plan["held_out_blocks"] / 2
    # Every batch takes a second; what is measured in between is a quarter.
    assert plan["seconds"] == pytest.approx(8 + 5 * batches + 6 * batches / 4, abs=0.1)
    assert (
        plan["baseline_seconds"] + plan["runs"][0]["seconds"] + plan["runs"][0]["measuring_seconds"] < plan["seconds"]
    )


RANKED = (
    "import sys; from pathlib import Path; from types import SimpleNamespace\n"
    "from qwench.ops.base.errors import QwenchError; from qwench.ops.training.run_folder import RunFolder\n"
    "from qwench.ops.streams.options import RecycleOptions; from qwench.ops.streams.work import Work\n"
    "work, folder = Work.__new__(Work), Path(sys.argv[1])\n"
    "work.o, work.source = RecycleOptions('m', 'out'), SimpleNamespace(files=[])\n"
    "work.run_folder = RunFolder(folder.with_suffix(''), False, False)\n"
    "print('here', flush=True); sys.stdin.readline()\n"
    "try: work.open_folder(); print('made', folder.is_dir(), flush=True)\n"
    "except QwenchError as error: print(error.message, flush=True)\n"
    "sys.stdin.read()\n"  # the first holds the store of all
)


def ranked(folder: Path) -> list[str]:
    """What each of two processes says of a run's folder, where the second comes to it first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    first, second = (
        subprocess.Popen(
            [sys.executable, "-c", RANKED, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | shared | {"RANK": str(n)},
        )
        for n in range(2)
    )
    for process in (second, first):
        assert process.stdout.readline() == "here\n"
        process.stdin.write("go\n")
        process.stdin.flush()
        time.sleep(0.3)
    said = [process.stdout.readline().strip() for process in (first, second)]
    for process in (first, second):
        process.communicate()
    return said


def test_the_first_process_decides_for_all(tmp_path: Path) -> None:
    assert ranked(tmp_path / "out.run") == ["made True"] * 2
    (tmp_path / "out.run" / "run.json").write_text('{"plan": "another", "job": {"seed": 9}}')
    first, second = ranked(tmp_path / "out.run")
    assert first == second and "another run: --seed was `9` and is `0`" in first


def test_force_takes_nothing_from_a_run_that_lives(home: Path, tmp_path: Path) -> None:
    kept = tmp_path / "out.run" / "p2" / "history.jsonl"
    kept.parent.mkdir(parents=True)
    kept.write_text("hours of work")
    with Lock(tmp_path / "out.run"):
        for changes in ({"force": True}, {}, {"resume": True}):
            with pytest.raises(QwenchError, match=r"another run is at `.*out\.run`: process \d+"):
                finished(op.recycle(options(home, tmp_path / "out", **changes)))
        assert kept.read_text() == "hours of work"
    with pytest.raises(QwenchError, match="does not say what it is of"):
        finished(op.recycle(options(home, tmp_path / "out")))
    assert kept.read_text() == "hours of work" and not (tmp_path / ".out.run.lock").exists()
    work = Work(options(home, tmp_path / "out", force=True))
    work.open_folder()
    assert not kept.exists() and (tmp_path / "out.run" / "run.json").exists()
    work.run_folder.close()
    assert list(tmp_path.iterdir()) == []
