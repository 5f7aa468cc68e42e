"""GGUF models that the C kernels run from their blocks, against plain PyTorch on the widened weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from qwench.ops.base.runtime import Runtime
from qwench.ops.checkpoint import gguf_plan
from qwench.ops.checkpoint.gguf_blocks import Blocks
from qwench.ops.checkpoint.gguf_reader import GgufReader
from qwench.ops.checkpoint.reader import Source
from qwench.ops.kernels.native import library as native_library
from qwench.ops.models.hub import resolve
from qwench.ops.writing.load import Chatty, load_causal

from tests.checkpoint.test_checkpoint import run
from tests.checkpoint.test_gguf import smollm2  # noqa: F401
from tests.models.test_step import decoded
from tests.tiny import byte_decoder

pytestmark = pytest.mark.skipif(not native_library.available().value, reason=native_library.available().reason)


def loaded(file: Path, kernels: str) -> Chatty:
    dtype = "float32" if kernels == "eager" else "auto"
    return load_causal(
        resolve(str(file)), slots=2, runtime=Runtime(device="cpu", dtype=dtype, engine="torch", kernels=kernels)
    )


def gguf_of(folder: Path, kind: str, dtype: str, **config: object) -> Path:
    if kind == "qwen3_moe":
        config["norm_topk_prob"] = True
    source = byte_decoder(folder / "in", kind, hidden_size=64, intermediate_size=96, **config)
    run(source, folder / "x.gguf", dtype=dtype)
    return folder / "x.gguf"


@pytest.mark.parametrize("dtype", ["q8_0", "q4_0", "q4_1"])
@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "qwen3_moe", "llama"])
def test_blocks_as_stored(kind: str, dtype: str, tmp_path: Path) -> None:
    file = gguf_of(tmp_path, kind, dtype)
    own = loaded(file, "native")
    kept = " and ".join(sorted({dtype, "q8_0"}))  # words and head are always in q8_0
    assert own.dtype.reason.startswith(f"{kept} weights kept as stored, float32")
    plain = loaded(file, "eager")
    assert "blocks" not in plain.dtype.reason
    torch.testing.assert_close(decoded(own.engine), decoded(plain.engine), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["q8_0", "q4_0", "q4_1"])
@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_blocks_have_the_tensors_values(kind: str, dtype: str, tmp_path: Path) -> None:
    """Exactly, with rows in transformers' order."""
    reader = Source(gguf_of(tmp_path, kind, dtype)).reader
    assert isinstance(reader, GgufReader)
    matrices = [name for name, info in reader.infos.items() if len(info.shape) == 2]
    assert len(matrices) > 14
    for name in matrices:
        found = reader.blocks(name)
        assert isinstance(found, Blocks)
        assert torch.equal(found.values(), reader.load(name)), name
    assert reader.blocks("model.norm.weight") is None


def test_parts_of_different_kinds_are_widened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries, keys and values are one product, which has one kind; kinds that the kernels lack are widened too."""
    kind_of = gguf_plan._kind
    own = {"attn_k.weight": "q8_0", "ffn_down.weight": "q5_1", "attn_output.weight": "float16"}

    def mixed(name: str, *rest: object) -> str:
        return own.get(name.split(".", 2)[-1]) or kind_of(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(gguf_plan, "_kind", mixed)
    file = gguf_of(tmp_path, "llama", "q4_1")
    assert {"q8_0", "q5_1", "float16", "q4_1"} <= set(Source(file).reader.stored.values())
    mixed_, plain = loaded(file, "native"), loaded(file, "eager")
    kinds = {name: mixed_.engine.layers[0][name].matrix.kind for name in ("qkv", "out", "gate_up", "down")}
    assert kinds["gate_up"] == native_library.KINDS["q4_1"]
    assert kinds["qkv"] == kinds["down"] == native_library.KINDS["float32"]
    assert kinds["out"] == native_library.KINDS["float16"]
    told = "float16 and q4_1 and q8_0 weights kept as stored, q4_1 and q5_1 and q8_0 weights widened to float32, "
    assert mixed_.dtype.reason == told + "float32 arithmetic in the C kernels"
    torch.testing.assert_close(decoded(mixed_.engine), decoded(plain.engine), atol=2e-4, rtol=1e-4)


def test_formats_beside_each_other_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head in bfloat16 does not make bfloat16 of what is float16 or float32."""
    kind_of = gguf_plan._kind

    def mixed(name: str, *rest: object) -> str:
        own = {"token_embd": "bfloat16", "output": "bfloat16"}.get(name.split(".")[0])
        return own or ("float16" if "ffn_" in name else kind_of(name, *rest))  # type: ignore[arg-type]

    monkeypatch.setattr(gguf_plan, "_kind", mixed)
    file = gguf_of(tmp_path, "llama", "float32")
    own, plain = loaded(file, "native"), loaded(file, "eager")
    assert own.dtype.reason.startswith("bfloat16 and float16 and float32 weights kept as stored, float32")
    torch.testing.assert_close(decoded(own.engine), decoded(plain.engine), atol=1e-4, rtol=1e-4)


def test_rows_that_are_no_whole_blocks_are_said(tmp_path: Path) -> None:
    folder = byte_decoder(tmp_path / "m", hidden_size=64, intermediate_size=100)
    found = load_causal(resolve(str(folder)), runtime=Runtime(device="cpu", quantize="int8", kernels="native"))
    assert found.dtype.reason.endswith("; 2 matrices are not packed, their rows being no whole blocks of 32")


def test_packaged_model(smollm2: Path) -> None:  # noqa: F811
    own, plain = loaded(smollm2, "native"), loaded(smollm2, "eager")
    assert own.dtype.reason == "q4_1 and q8_0 weights kept as stored, float32 arithmetic in the C kernels"
    torch.testing.assert_close(decoded(own.engine), decoded(plain.engine), atol=2e-3, rtol=1e-3)
