"""Parts of models, stand-ins for files, and linked folders: nothing passes for what it is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from qwench.ops.base.errors import QwenchError
from qwench.ops.checkpoint.reader import Source
from qwench.ops.inspect import inspect
from safetensors.torch import save_file

from tests.checkpoint.small import adapter, decoder, held
from tests.checkpoint.test_checkpoint import run

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab\nsize 12345\n"
PAGES = (b"<!DOCTYPE html>\n<html><head><title>Sign in</title>", b"\n <HTML lang=en>", b'<?xml version="1.0"?><Error/>')


def split(folder: Path) -> dict[str, torch.Tensor]:
    """A model in two parts without an index."""
    made = decoder(folder)
    (folder / "model.safetensors").unlink()
    names = list(made)
    for n, part in enumerate((names[:12], names[12:]), 1):
        save_file({k: made[k] for k in part}, folder / f"model-{n:05}-of-00002.safetensors")
    return made


def test_parts_without_an_index_are_read_together_or_not_at_all(tmp_path: Path) -> None:
    made = split(tmp_path / "m")
    notes = run(tmp_path / "m", tmp_path / "o")["notes"]
    found = held(tmp_path / "o")
    assert found.keys() == made.keys() and all(torch.equal(found[n], made[n]) for n in made)
    assert any("no weight index" in n for n in notes)
    part = tmp_path / "m" / "model-00001-of-00002.safetensors"
    with pytest.raises(QwenchError, match="part 1 of 2, not the whole model"):
        run(part, tmp_path / "p")
    assert any("part 1 of 2" in p for p in list(inspect(str(part)))[-1].result["problems"])
    (tmp_path / "m" / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(QwenchError, match=r"1 of the model's 2 parts are not there.*00002-of-00002"):
        run(tmp_path / "m", tmp_path / "p")


@pytest.mark.parametrize("to", ["p", "p.gguf"])
@pytest.mark.parametrize(
    ("gone", "words"),
    [("layers.1.", "layer 1 of 2 is missing"), ("layers.0.mlp.up_proj", "layer 0 lacks `mlp.up_proj")],
)
def test_missing_layers_are_named(gone: str, words: str, to: str, tmp_path: Path) -> None:
    made = decoder(tmp_path / "m")
    save_file({n: t for n, t in made.items() if gone not in n}, tmp_path / "m" / "model.safetensors")
    with pytest.raises(QwenchError, match=words):
        run(tmp_path / "m", tmp_path / to)
    problems = list(inspect(str(tmp_path / "m")))[-1].result["problems"]
    assert any(words in p for p in problems), problems


@pytest.mark.parametrize("content", [POINTER, *PAGES])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "tokenizer.json", "config.json"])
def test_stand_ins_are_called_what_they_are(name: str, content: bytes, tmp_path: Path) -> None:
    decoder(tmp_path / "m")
    if name.endswith(".bin"):
        (tmp_path / "m" / "model.safetensors").unlink()
    (tmp_path / "m" / name).write_bytes(content)
    words = "Git LFS pointer" if content is POINTER else "web page"
    with pytest.raises(QwenchError, match=f"{words}.*{name}"):
        run(tmp_path / "m", tmp_path / "o")


def test_a_page_as_a_lone_file(tmp_path: Path) -> None:
    for name in ("x.gguf", "x.safetensors", "x.bin"):
        (tmp_path / name).write_bytes(PAGES[0])
        with pytest.raises(QwenchError, match="web page"):
            Source(tmp_path / name)


def test_linked_folders_are_copied_full(tmp_path: Path) -> None:
    decoder(tmp_path / "m")
    run(tmp_path / "m", tmp_path / "e", head="embedding")
    linked = tmp_path / "elsewhere"
    (tmp_path / "e" / "1_Pooling").rename(linked)
    (tmp_path / "e" / "1_Pooling").symlink_to(linked, target_is_directory=True)
    (tmp_path / "e" / "again").symlink_to(tmp_path / "e", target_is_directory=True)
    run(tmp_path / "e", tmp_path / "o")
    assert json.loads((tmp_path / "o" / "1_Pooling" / "config.json").read_text())["pooling_mode_lasttoken"] is True
    assert not (tmp_path / "o" / "again").exists()
    (tmp_path / "e" / "LICENSE").symlink_to(tmp_path / "nowhere")
    with pytest.raises(QwenchError, match=r"link to nothing.*LICENSE"):
        run(tmp_path / "e", tmp_path / "o2")


def test_an_adapter_is_described_and_is_no_model(tmp_path: Path) -> None:
    name = "base_model.model.model.layers.{}.self_attn.{}_proj.lora_{}.weight"
    parts = {name.format(n, p, "A"): torch.zeros(4, 32) for n in range(2) for p in "qv"}
    parts |= {name.format(n, p, "B"): torch.zeros(64, 4) for n in range(2) for p in "qv"}
    more = {"base_model_name_or_path": "Qwen/Qwen3-0.6B", "target_modules": ["q_proj", "v_proj"], "use_rslora": True}
    folder = adapter(tmp_path / "a", parts, **more)
    report = list(inspect(str(folder)))[-1].result
    assert report["head"] == "none: an adapter"
    assert report["adapter"] == {
        "type": "LORA",
        "base": "Qwen/Qwen3-0.6B",
        "r": 4,
        "alpha": 8,
        "modules": ["q_proj", "v_proj"],
        "extras": ["use_rslora"],
    }
    assert report["tensors"] == 8 and report["parameters"] == 2 * 2 * (4 * 32 + 64 * 4)
    with pytest.raises(QwenchError, match="the folder is an adapter, not a model"):
        run(folder, tmp_path / "o")


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: torch.ones(2, dtype=torch.complex64), "of the dtype complex64"),
        (lambda: torch.eye(4).to_sparse(), "not dense"),
        (lambda: torch.eye(4).to_sparse_csr(), "not dense"),
        (lambda: torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8), "of the dtype qint8"),
        (lambda: torch.ones(4, device="meta"), "without values"),
    ],
)
def test_tensors_that_no_file_can_hold_are_named(made: Any, words: str, tmp_path: Path) -> None:
    torch.save({**decoder(tmp_path / "m"), "model.odd": made()}, tmp_path / "m" / "pytorch_model.bin")
    (tmp_path / "m" / "model.safetensors").unlink()
    with pytest.raises(QwenchError, match=rf"`model\.odd` is {words}"):
        run(tmp_path / "m", tmp_path / "o", to="safetensors")
