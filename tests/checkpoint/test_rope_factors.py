"""Llama 3's rotary scaling in GGUF: divisors both ways, against transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from qwench.ops.base.errors import QwenchError
from qwench.ops.checkpoint.reader import Source
from qwench.ops.checkpoint.rope_factors import NAME, factors, scaling_of
from qwench.ops.convert import ConvertOptions, convert

from tests import tiny
from tests.conftest import Run

USUAL = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
ROPE = {"rope_type": "llama3", "factor": 32.0, "rope_theta": 500_000.0, **USUAL}


@pytest.mark.parametrize(
    ("factor", "base", "width"), [(8.0, 500_000.0, 128), (32.0, 500_000.0, 64), (4.0, 10_000.0, 16)]
)
def test_divisors_are_transformers(factor: float, base: float, width: int) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = ROPE | {"factor": factor, "rope_theta": base}
    shape = {"hidden_size": width * 2, "num_attention_heads": 2, "max_position_embeddings": 131072}
    theirs = ROPE_INIT_FUNCTIONS["llama3"](LlamaConfig(**shape, rope_parameters=rope), "cpu")[0]
    plain = 1 / base ** (torch.arange(0, width, 2).double() / width)
    made = factors(rope, width, base)
    torch.testing.assert_close(plain / made.double(), theirs.double(), rtol=2e-6, atol=0)
    assert made.min() == 1 and made.max() == factor
    assert scaling_of(made, base, Path("m")) == {k: v for k, v in rope.items() if k != "rope_theta"}


def test_there_and_back(tmp_path: Path, qwench: Run) -> None:
    model = tiny.byte_decoder(tmp_path / "m", "llama", head_dim=32, rope_parameters=ROPE)
    for out, dtype in ((tmp_path / "m.gguf", "auto"), (tmp_path / "q.gguf", "q8_0")):
        list(convert(ConvertOptions(str(model), str(out), dtype=dtype, verify="bits")))
    source = Source(tmp_path / "m.gguf")
    assert NAME not in source.infos and source.config()["rope_scaling"] == scaling_of(
        factors(ROPE, 32, 5e5), 5e5, model
    )
    list(convert(ConvertOptions(str(tmp_path / "m.gguf"), str(tmp_path / "again.gguf"))))
    assert (tmp_path / "again.gguf").stat().st_size == (tmp_path / "m.gguf").stat().st_size
    list(convert(ConvertOptions(str(tmp_path / "again.gguf"), str(tmp_path / "back"))))
    said = json.loads((tmp_path / "back" / "config.json").read_text())
    assert said["rope_scaling"]["factor"] == 32.0 and said["rope_theta"] == 500_000.0
    text = "A long enough prompt, so that far positions are turned by their own angles. " * 2
    how = (text, "--max-tokens", 16, "--temperature", 0, "--dtype", "float32")
    answers = [
        qwench("chat", "-m", m, "--engine", "torch", *how) for m in (model, tmp_path / "m.gguf", tmp_path / "back")
    ]
    assert all(a.returncode == 0 for a in answers), answers[1].stderr
    assert len({a.stdout for a in answers}) == 1


def test_llama_cpp_says_the_same(tmp_path: Path, qwench: Run) -> None:
    pytest.importorskip("llama_cpp")
    model = tiny.byte_decoder(tmp_path / "m", "llama", head_dim=32, rope_parameters=ROPE)
    list(convert(ConvertOptions(str(model), str(tmp_path / "m.gguf"))))
    text = "A long enough prompt, so that far positions are turned by their own angles. " * 2
    said = [
        qwench("chat", "-m", tmp_path / "m.gguf", text, "--engine", engine, "--max-tokens", 16, "--temperature", 0)
        for engine in ("torch", "llama.cpp")
    ]
    assert said[0].returncode == said[1].returncode == 0 and said[0].stdout == said[1].stdout, said[1].stderr


def test_other_divisors_are_refused_with_their_numbers() -> None:
    with pytest.raises(QwenchError, match=r"divisors \(1, 2, 3, 4, \.\.\.\) are not Llama 3's"):
        scaling_of(torch.tensor([1.0, 2, 3, 4, 5]), 1e4, Path("m"))
    with pytest.raises(QwenchError, match="are not Llama 3's"):
        scaling_of(torch.full((4,), float("nan")), 1e4, Path("m"))
