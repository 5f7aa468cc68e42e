"""Headers by name: shapes, offsets and counts that cannot be, a head that is parsed once, metadata that goes along."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from qwench.ops.base.errors import QwenchError
from qwench.ops.base.events import Warned
from qwench.ops.base.runtime import Runtime
from qwench.ops.checkpoint import gguf_file, gguf_reader
from qwench.ops.checkpoint.reader import Source
from qwench.ops.convert import ConvertOptions, convert
from qwench.ops.inspect import inspect
from safetensors import safe_open
from safetensors.torch import save_file

from tests.checkpoint.test_checkpoint import run
from tests.checkpoint.test_fuzz import packed, small_model, word

A = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def write(path: Path, head: dict[str, Any] | bytes, data: int = 16) -> Path:
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(data))
    return path


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ({"a": A | {"shape": [-2], "data_offsets": [16, 8]}}, r"the shape of `a` is \[-2\]"),
        ({"a": A | {"shape": [0, -1], "data_offsets": [0, 0]}}, r"the shape of `a` is \[0, -1\]"),
        ({"a": A | {"shape": [1 << 62, 1 << 62, 0], "data_offsets": [0, 0]}}, "`a` is larger than any file"),
        ({"a": A | {"shape": [2.0]}}, r"the shape of `a` is \[2.0\]"),
        ({"a": A | {"data_offsets": [-8, 0]}}, r"the offsets of `a` are \[-8, 0\]"),
        ({"a": A | {"data_offsets": [0, 1e400]}}, "the offsets of `a` are"),
        ({"a": A | {"dtype": None}}, "its entry for `a` has no dtype"),
        ({"a": []}, "its entry for `a` has no dtype"),
        ({"__metadata__": ["a", "b"], "a": A}, r'its `__metadata__` is \["a", "b"\], and not text by name'),
        ({"__metadata__": {"a": 1}, "a": A}, "its `__metadata__` is an object, and not text by name"),
        ({"a": A, "b": A | {"data_offsets": [4, 12]}}, "`a` and `b` overlap"),
        ({"a": A, "b": A | {"data_offsets": [0, 8]}}, "`a` and `b` overlap"),
        ({"a": A, "b": A | {"data_offsets": [12, 20]}}, "4 bytes between `a` and `b` belong to no tensor"),
        ({"a": A | {"data_offsets": [8, 16]}}, "8 bytes before `a` belong to no tensor"),
        ({"a": A}, "8 bytes after `a` belong to no tensor"),
        (b'{"a": 1, "a": 2}', 'the key "a" is there twice'),
        (b"[" * 50_000, "nested too deep"),
    ],
)
def test_a_safetensors_header_that_cannot_be_is_damaged(head: Any, words: str, tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors", head, 20 if "12, 20" in str(head) else 16)
    with pytest.raises(Exception, match=r".") as theirs, safe_open(path, "pt"):
        pass
    assert "safetensors" in type(theirs.value).__module__ or theirs.type.__name__ == "SafetensorError"
    with pytest.raises(QwenchError, match=rf"^the weight file is damaged \(.*{words}"):
        list(inspect(str(tmp_path)))


def gguf(path: Path, keys: dict[str, Any], tensors: list[tuple[str, tuple[int, ...]]], data: int = 0) -> Path:
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys))
    head += b"".join(word(k) + packed(v) for k, v in keys.items())
    for name, shape in tensors:
        head += word(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], 0, 0)
    path.write_bytes(head + bytes(-len(head) % 32) + bytes(data))
    return path


STACK = "blk.0.ffn_up_exps.weight"


@pytest.mark.parametrize(
    ("keys", "tensors", "words"),
    [
        ({}, [(STACK, (0, 32, 32))], r"is damaged .*is no stack of experts but of shape \[0, 32, 32\]"),
        ({}, [(STACK, ())], r"is damaged .*is no stack of experts but of shape \[\]"),
        ({}, [(STACK, (1 << 40, 0))], "is damaged .*is no stack of experts"),
        ({}, [("a", (1 << 40, 1 << 40, 0))], "is damaged .*larger than any file"),
        ({}, [("a", (1,) * 5)], "is damaged .*has 5 axes"),
        (
            {"split.count": "3"},
            [],
            '`split.count` must be a whole number of at least 0 and at most 65535, and is `"3"`',
        ),
        (
            {"qwen3moe.attention.head_count": "2"},
            [("token_embd.weight", (4, 4))],
            "`qwen3moe.attention.head_count` must",
        ),
        ({"general.alignment": 0}, [], "`general.alignment` must be a whole number above 0, and is `0`"),
    ],
)
def test_a_gguf_header_that_cannot_be_ends_at_once(keys: dict, tensors: list, words: str, tmp_path: Path) -> None:
    keys = {"general.architecture": "qwen3moe"} | keys
    path = gguf(tmp_path / "model.gguf", keys, tensors, 64)
    assert path.stat().st_size < 400
    begun = time.monotonic()
    with pytest.raises(QwenchError, match=words):
        list(inspect(str(path)))
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("deep", [9, 3000, 60_000])
def test_nested_arrays_are_damaged(deep: int, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    nest = struct.pack("<IQ", 9, 1) * deep + struct.pack("<IQ", 4, 0)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + word("a") + struct.pack("<I", 9) + nest)
    with pytest.raises(QwenchError, match=r"is damaged .*nested more than 8 deep"):
        list(inspect(str(path)))


def test_keys_and_counts_of_a_gguf_header_are_bounded_by_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    for counts in ((0, 1 << 60), (1 << 60, 0)):
        path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, *counts) + bytes(64))
        with pytest.raises(QwenchError, match="is damaged"):
            list(inspect(str(path)))
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + 2 * (word("a") + packed(1)) + bytes(64))
    with pytest.raises(QwenchError, match=r"is damaged .*has `a` twice"):
        list(inspect(str(path)))


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("once")
    run(small_model(folder / "src"), folder / "model.gguf")
    return folder / "model.gguf"


def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often a GGUF head is parsed, and its tensors looked through for their common dtype."""
    counts = {"parsed": 0, "scanned": 0}
    parse, scan = gguf_file.GgufFile.__init__, gguf_reader.GgufReader.exact

    def parsed(self: Any, path: Path) -> None:
        counts["parsed"] += 1
        parse(self, path)

    def scanned(self: Any) -> Any:
        counts["scanned"] += 1
        return scan(self)

    monkeypatch.setattr(gguf_file.GgufFile, "__init__", parsed)
    monkeypatch.setattr(gguf_reader.GgufReader, "exact", scanned)
    return counts


def test_a_gguf_head_is_parsed_once_by_a_plan(qwen3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = counted(monkeypatch)
    list(convert(ConvertOptions(str(qwen3), str(tmp_path / "out"))))
    # Once for the config, once for the dtype of the output.
    assert counts == {"parsed": 1, "scanned": 2}


def test_a_gguf_head_is_parsed_once_by_a_load(qwen3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qwench.ops.models.hub import resolve
    from qwench.ops.writing.load import load_causal

    counts = counted(monkeypatch)
    load_causal(resolve(str(qwen3)), runtime=Runtime(device="cpu", engine="torch", kernels="eager"))
    assert counts == {"parsed": 1, "scanned": 1}


def test_metadata_of_safetensors_goes_along(tmp_path: Path) -> None:
    source = tmp_path / "model"
    source.mkdir()
    save_file({"a": torch.ones(2, 2)}, source / "model.safetensors", {"format": "mlx", "trained": "on texts"})
    (source / "config.json").write_text("{}")
    run(source, tmp_path / "out", max_shard_size="1GB")
    assert Source(tmp_path / "out").reader.metadata == {"format": "pt", "trained": "on texts"}
    events = list(convert(ConvertOptions(str(source), str(tmp_path / "bin"), to="bin")))
    assert any("metadata (trained)" in e.message for e in events if isinstance(e, Warned))


@pytest.mark.parametrize(
    ("file", "value", "words"),
    [
        ("config.json", {"num_attention_heads": "x", "hidden_size": 4}, "`num_attention_heads` must be a whole number"),
        ("config.json", [], "`the whole` must be an object, and is `\\[\\]`"),
        ("config.json", {"architectures": "Qwen3ForCausalLM"}, "`architectures` must be a list, each text"),
        ("modules.json", {"type": "x"}, "`the whole` must be a list"),
        ("modules.json", [{"type": 3}], r"`\[0\]\.type` must be text, and is `3`"),
        ("modules.json", [{"type": "x", "path": "../up"}], "a module lies outside the model folder: `../up`"),
        ("model.safetensors.index.json", {"weight_map": {"a": 3}}, "`weight_map` must be an object, each value text"),
        ("model.safetensors.index.json", {"weight_map": {"a": "/etc/passwd"}}, "names a file outside the folder"),
        ("model.safetensors.index.json", {}, "does not say `weight_map`"),
        ("tokenizer.json", {"added_tokens": [{"id": -1}]}, r"`added_tokens\[0\]\.id` must be a whole number"),
    ],
)
def test_side_files_of_other_kinds_are_named(file: str, value: Any, words: str, tmp_path: Path) -> None:
    names = {"model.embed_tokens.weight": torch.ones(4, 4), "l.0.self_attn.q_proj.weight": torch.ones(4, 4)}
    weights = "part.safetensors" if "index" in file else "model.safetensors"
    save_file(names, tmp_path / weights)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / file).write_text(json.dumps(value))
    with pytest.raises(QwenchError, match=words) as caught:
        list(inspect(str(tmp_path)))
    assert file in caught.value.message
