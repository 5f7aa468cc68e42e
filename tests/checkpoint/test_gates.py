"""Attention gates: exact insertion, layouts there and back, and the published code's own outputs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from qwench.ops.base.errors import QwenchError
from qwench.ops.checkpoint.cast import same_bits
from qwench.ops.checkpoint.gates import ZERO, Heads, gate_kind, read_rows, write_rows
from qwench.ops.checkpoint.reader import Source
from qwench.ops.convert import ConvertOptions, convert
from qwench.ops.inspect import inspect
from safetensors.torch import load_file, save_file

from tests import tiny


def run(src: Path, out: Path, **options: Any) -> Path:
    list(convert(ConvertOptions(str(src), str(out), verify="bits", **options)))
    return out


def logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with torch.inference_mode():
        return model.eval()(ids).logits


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    source = Source(folder)
    return {n: source.reader.load(n).clone() for n in source.infos}


@st.composite
def shapes(draw: st.DrawFn) -> Heads:
    groups, per_group = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    return Heads(groups * per_group, groups, draw(st.sampled_from([1, 2, 8])))


@given(heads=shapes())
def test_layouts_there_and_back(heads: Heads) -> None:
    count = 2 * heads.count * heads.width
    fork = read_rows("elementwise", "fork", heads)
    stock = write_rows(fork, "elementwise", "stock", heads)
    assert sorted(stock) == list(range(count))
    back = write_rows(read_rows("elementwise", "stock", heads), "elementwise", "fork", heads)
    assert [stock[i] for i in back] == list(range(count))
    assert (stock == list(range(count))) or heads.per_group > 1
    headwise = read_rows("headwise", "fork", heads)
    assert write_rows(headwise, "headwise", "fork", heads) == list(range(heads.count * (heads.width + 1)))
    inserted = write_rows(read_rows(None, "fork", heads), "headwise", "fork", heads)
    assert inserted.count(ZERO) == heads.count
    assert gate_kind(len(inserted), heads) == ("headwise" if heads.width > 1 else "elementwise")


@pytest.mark.parametrize("gate", ["headwise", "elementwise"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_inserted_gates_change_nothing(tmp_path: Path, gate: str, dtype: str) -> None:
    src = run(tiny.qwen3_reranker(tmp_path / "lm"), tmp_path / "src", dtype=dtype)
    out = run(src, tmp_path / "out", gate=gate)
    ids = torch.randint(0, 1000, (2, 40), generator=torch.Generator().manual_seed(0))
    if dtype == "float32":
        assert (logits(out, ids) - logits(src, ids)).abs().max() == 0.0
    else:
        made = tensors(out)
        for name, tensor in tensors(src).items():
            if name.endswith("o_proj.weight"):
                assert same_bits(made[name], tensor * 2)
    report = next(iter(inspect(str(out)))).result
    assert report["gates"] == "elementwise"
    assert report["architectures"] == ["Qwen3NextForCausalLM"]


def test_the_published_head_wise_gates_run_in_a_stock_class(tmp_path: Path) -> None:
    src = tiny.reference("gated-headwise")
    want = load_file(src / "expected.safetensors")
    out = run(src, tmp_path / "out", gate_layout="stock")
    got = logits(out, want["input_ids"])
    torch.testing.assert_close(got, want["logits"], atol=2e-5, rtol=1e-5)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    greedy = model.generate(want["input_ids"][:1], max_new_tokens=24, do_sample=False, pad_token_id=0, eos_token_id=-1)
    assert torch.equal(greedy, want["greedy"])


def test_the_fork_without_gates_stays_what_it_is_with_inserted_ones(tmp_path: Path) -> None:
    src = tiny.reference("gated-none")
    want = load_file(src / "expected.safetensors")
    out = run(src, tmp_path / "out", gate="elementwise")
    torch.testing.assert_close(logits(out, want["input_ids"]), want["logits"], atol=2e-5, rtol=1e-5)


def test_fork_and_stock_are_each_other_to_the_bit(tmp_path: Path) -> None:
    src = tiny.qwen3_reranker(tmp_path / "lm")
    fork = run(src, tmp_path / "fork", gate="elementwise", gate_layout="fork")
    # Gates that are not zero, and norms that 1 can be taken from and given back.
    made = tensors(fork)
    torch.manual_seed(0)
    for name, tensor in made.items():
        if name.endswith("q_proj.weight"):
            made[name] = torch.randn_like(tensor)
        elif name.endswith("norm.weight"):
            made[name] = 1 + torch.randint(-64, 64, tensor.shape) / 128
    save_file(made, fork / "model.safetensors", {"format": "pt"})
    stock = run(fork, tmp_path / "stock", gate_layout="stock")
    assert not same_bits(*(tensors(f)["model.layers.0.self_attn.q_proj.weight"] for f in (fork, stock))), (
        "grouped heads are in another order"
    )
    back = run(stock, tmp_path / "back", gate_layout="fork")
    after = tensors(back)
    for name, tensor in made.items():
        assert same_bits(after[name], tensor), name
    config = json.loads((back / "config.json").read_text())
    assert (config["model_type"], config["elementwise_attn_output_gate"]) == ("qwen3", True)


def test_what_gates_do_not_fit_is_refused(tmp_path: Path) -> None:
    src = tiny.qwen3_reranker(tmp_path / "lm")
    with pytest.raises(QwenchError, match="no gates to move"):
        run(src, tmp_path / "out", gate_layout="fork")
    gated = run(src, tmp_path / "gated", gate="elementwise", gate_layout="fork")
    with pytest.raises(QwenchError, match="head-wise ones cannot say the same"):
        run(gated, tmp_path / "out", gate="headwise", gate_layout="fork")
    with pytest.raises(QwenchError, match="gates are for Qwen3"):
        run(tiny.minilm(), tmp_path / "out", gate="headwise")
    shutil.copytree(src, tmp_path / "odd")
    config = json.loads((src / "config.json").read_text())
    (tmp_path / "odd" / "config.json").write_text(json.dumps(config | {"num_attention_heads": 6}))
    with pytest.raises(QwenchError, match="fits no kind of gate"):
        run(tmp_path / "odd", tmp_path / "out", gate="headwise")
