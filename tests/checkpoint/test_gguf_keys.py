"""GGUF in and out with an account of keys: what changes a model is carried or refused, the rest is told."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from qwench.ops.base.errors import QwenchError
from qwench.ops.base.runtime import Runtime
from qwench.ops.checkpoint.gguf_file import GgufFile
from qwench.ops.inspect import inspect
from qwench.ops.models.hub import resolve
from qwench.ops.writing.load import load_causal
from safetensors.torch import save_file
from tokenizers import Tokenizer

from tests.checkpoint.small import LLAMA3, decoder, held, tokenizer
from tests.checkpoint.test_checkpoint import run

BEGIN, END = "<|begin_of_text|>", "<|end_of_text|>"


def said(path: Path) -> dict[str, Any]:
    return GgufFile(path).said


def config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def written(path: Path, arch: str = "llama", experts: int = 0, **keys: Any) -> None:
    """A GGUF file of gguf-py's own making; keys with two underscores are `{arch}.` ones, their dots given so."""
    out = gguf.GGUFWriter(str(path), arch)
    own = {"block_count": 1, "context_length": 64, "embedding_length": 32, "feed_forward_length": 64}
    own |= {"attention__head_count": 2, "attention__head_count_kv": 1, "attention__layer_norm_rms_epsilon": 1e-5}
    for key, value in (own | keys).items():
        name = f"{arch}.{key.replace('__', '.')}" if "." not in key else key
        kind = {bool: "bool", int: "uint32", float: "float32", str: "string", list: "array"}[type(value)]
        getattr(out, f"add_{kind}")(name, value)
    random = np.random.default_rng(0)
    shapes = {"token_embd": (272, 32), "output_norm": (32,), "blk.0.attn_norm": (32,), "blk.0.ffn_norm": (32,)}
    shapes |= {f"blk.0.attn_{n}": (32 if n in ("q", "output") else 16, 32) for n in ("q", "k", "v", "output")}
    mlp = {"gate": (64, 32), "up": (64, 32), "down": (32, 64)}
    shapes |= {f"blk.0.ffn_{n}_exps": (experts, *s) for n, s in mlp.items()} if experts else {}
    shapes |= {"blk.0.ffn_gate_inp": (experts, 32)} if experts else {f"blk.0.ffn_{n}": s for n, s in mlp.items()}
    for name, shape in shapes.items():
        out.add_tensor(f"{name}.weight", random.standard_normal(shape).astype(np.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


@pytest.mark.parametrize("around", [(BEGIN, None), (None, END), (BEGIN, END), (None, None)])
def test_tokens_around_texts_go_both_ways(around: tuple[str | None, str | None], tmp_path: Path) -> None:
    decoder(tmp_path / "m", "llama", bos_token_id=256, eos_token_id=257)
    tokenizer(tmp_path / "m", (BEGIN, END), LLAMA3, around, bos_token=BEGIN)
    run(tmp_path / "m", tmp_path / "x.gguf")
    found = said(tmp_path / "x.gguf")
    assert found["tokenizer.ggml.add_bos_token"] is bool(around[0])
    assert found["tokenizer.ggml.add_eos_token"] is bool(around[1])
    assert (found["tokenizer.ggml.bos_token_id"], found["tokenizer.ggml.eos_token_id"]) == (256, 257)
    run(tmp_path / "x.gguf", tmp_path / "o")
    a, b = (Tokenizer.from_file(str(tmp_path / n / "tokenizer.json")) for n in ("m", "o"))
    for text in ("", "hi there", "a\n\nb"):
        assert a.encode(text).ids == b.encode(text).ids
        assert a.encode(text, "x").ids == b.encode(text, "x").ids


def test_llama_3_files_that_do_not_say_so_begin_texts(tmp_path: Path) -> None:
    decoder(tmp_path / "m", "llama")
    tokens = [*json.loads((tmp_path / "m" / "tokenizer.json").read_text())["model"]["vocab"], BEGIN]
    tokens += [f"[PAD{n}]" for n in range(257, 272)]
    keys: dict[str, Any] = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": tokens}
    keys |= {"tokenizer.ggml.token_type": [1] * 256 + [3] + [5] * 15, "tokenizer.ggml.bos_token_id": 256}
    for pre, begins in (("llama-bpe", True), ("qwen2", False)):
        written(tmp_path / f"{pre}.gguf", **keys | {"tokenizer.ggml.pre": pre})
        run(tmp_path / f"{pre}.gguf", tmp_path / pre)
        ids = Tokenizer.from_file(str(tmp_path / pre / "tokenizer.json")).encode("hi").ids
        assert (ids[0] == 256) is begins and len(ids) == 2 + begins


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize("more", [{}, {"attention_factor": 1.0}, {"mscale": 1.0, "mscale_all_dim": 0.5}])
def test_yarns_attention_factor_goes_both_ways(more: dict[str, float], tmp_path: Path) -> None:
    decoder(tmp_path / "m", rope_scaling=YARN | more)
    run(tmp_path / "m", tmp_path / "x.gguf")
    usual = 0.1 * math.log(4.0) + 1
    want = more.get("attention_factor") or (usual / (0.05 * math.log(4.0) + 1) if more else usual)
    # llama.cpp multiplies with 1 + 0.1 ln(factor).
    assert said(tmp_path / "x.gguf").get("qwen3.rope.scaling.attn_factor", 1.0) * usual == pytest.approx(want, rel=1e-6)
    run(tmp_path / "x.gguf", tmp_path / "o")
    rope = config(tmp_path / "o")["rope_scaling"]
    assert {k: rope[k] for k in YARN} == YARN
    assert rope.get("attention_factor", usual) == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("more", [{"beta_fast": 4.0}, {"beta_slow": 2.0}, {"truncate": False}])
def test_yarn_that_llama_cpp_cannot_say_is_refused(more: dict[str, Any], tmp_path: Path) -> None:
    decoder(tmp_path / "m", rope_scaling=YARN | more)
    with pytest.raises(QwenchError, match=next(iter(more))):
        run(tmp_path / "m", tmp_path / "x.gguf")
    decoder(tmp_path / "m", rope_scaling=YARN | {"beta_fast": 32.0, "beta_slow": 1, "truncate": True})
    run(tmp_path / "m", tmp_path / "x.gguf")


@pytest.mark.parametrize(
    "extra",
    [
        {"hidden_act": "relu"},
        {"hidden_act": "gelu"},
        {"layer_types": ["sliding_attention", "full_attention"]},
        {"partial_rotary_factor": 0.5},
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
        {"quantization_config": {"quant_method": "fp8"}},
        {"parscale_n": 4},
    ],
)
def test_config_keys_that_change_the_model_are_refused(extra: dict[str, Any], tmp_path: Path) -> None:
    decoder(tmp_path / "m", "llama", **extra)
    key = "partial_rotary_factor" if "rope_parameters" in extra else next(iter(extra))
    with pytest.raises(QwenchError, match=key):
        run(tmp_path / "m", tmp_path / "x.gguf")


def test_other_config_keys_are_told(tmp_path: Path) -> None:
    decoder(tmp_path / "m", "llama", my_own_key=7, layer_types=["full_attention"] * 2, use_cache=True, empty=None)
    notes = run(tmp_path / "m", tmp_path / "x.gguf")["notes"]
    assert [n for n in notes if "config.json" in n] == ["GGUF has no place for some of config.json: `my_own_key`"]


@pytest.mark.parametrize("key", ["max_position_embeddings", "rms_norm_eps", "intermediate_size"])
def test_config_keys_that_are_missing_are_named(key: str, tmp_path: Path) -> None:
    decoder(tmp_path / "m", "llama", **{key: None})
    with pytest.raises(QwenchError, match=f"config.json does not say `{key}`"):
        run(tmp_path / "m", tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("keys", "rope"),
    [
        ({"rope__scale_linear": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ({"rope__scaling__factor": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        ({"rope__scaling__type": "none", "rope__scaling__factor": 2.0}, None),
        ({"rope__scaling__type": "linear", "rope__scaling__factor": 1.0}, None),
        ({"attention__head_count": [2], "attention__head_count_kv": [1]}, None),
    ],
)
def test_gguf_keys_are_read_as_llama_cpp_reads_them(keys: dict[str, Any], rope: Any, tmp_path: Path) -> None:
    written(tmp_path / "x.gguf", **keys)
    run(tmp_path / "x.gguf", tmp_path / "o")
    assert config(tmp_path / "o").get("rope_scaling") == rope
    assert config(tmp_path / "o")["num_attention_heads"] == 2


@pytest.mark.parametrize(
    "keys",
    [
        {"logit_scale": 2.0},
        {"embedding_scale": 12.0},
        {"attention__scale": 0.1},
        {"rope__dimension_count": 8},
        {"attention__value_length": 8},
        {"final_logit_softcapping": 30.0},
        {"rope__scaling__yarn_beta_fast": 4.0},
    ],
)
def test_gguf_keys_that_change_the_model_are_refused(keys: dict[str, Any], tmp_path: Path) -> None:
    written(tmp_path / "x.gguf", **keys)
    with pytest.raises(QwenchError, match=next(iter(keys)).replace("__", ".")):
        run(tmp_path / "x.gguf", tmp_path / "o")
    # ... and before anything is written with the file as it is.
    with pytest.raises(QwenchError, match=next(iter(keys)).replace("__", ".")):
        load_causal(resolve(str(tmp_path / "x.gguf")), Runtime(device="cpu", engine="torch"))


def test_experts_of_mixtral_stay_gguf(tmp_path: Path) -> None:
    written(tmp_path / "x.gguf", experts=4, expert_count=4, expert_used_count=2)
    with pytest.raises(QwenchError, match="expert_count"):
        run(tmp_path / "x.gguf", tmp_path / "o")
    assert list(inspect(str(tmp_path / "x.gguf")))[-1].result["parameters"] > 0


def test_other_gguf_keys_are_told_or_go_along(tmp_path: Path) -> None:
    keys = {
        "general.author": "me",
        "my.own": "v",
        "my.list": [1, -2],
        "my.flag": True,
        "attention__sliding_window": 0,
    }
    written(tmp_path / "x.gguf", **keys)
    notes = run(tmp_path / "x.gguf", tmp_path / "o")["notes"]
    told = next(n for n in notes if "left behind" in n)
    assert all(f"`{k}`" in told for k in ("general.author", "my.own", "my.list", "my.flag"))
    run(tmp_path / "x.gguf", tmp_path / "y.gguf", dtype="q8_0")
    before, after = said(tmp_path / "x.gguf"), said(tmp_path / "y.gguf")
    assert {k: after.get(k) for k in before} == before
    assert after["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q8_0


def test_a_gguf_files_tokenizer_goes_along_as_it_is(tmp_path: Path) -> None:
    decoder(tmp_path / "m")
    run(tmp_path / "m", tmp_path / "x.gguf")
    run(tmp_path / "x.gguf", tmp_path / "y.gguf")
    before, after = said(tmp_path / "x.gguf"), said(tmp_path / "y.gguf")
    assert {k: after.get(k) for k in before} == before
    # Kinds of tokenizers that cannot be rebuilt as files are no hindrance.
    written(tmp_path / "s.gguf", **{"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["a"] * 272})
    run(tmp_path / "s.gguf", tmp_path / "t.gguf")
    assert said(tmp_path / "t.gguf")["tokenizer.ggml.model"] == "llama"


def test_named_templates_go_both_ways(tmp_path: Path) -> None:
    both = [{"name": "default", "template": "{{ d }}"}, {"name": "tool_use", "template": "{{ t }}"}]
    decoder(tmp_path / "m")
    tokenizer(tmp_path / "m", chat_template=both)
    (tmp_path / "m" / "additional_chat_templates").mkdir()
    (tmp_path / "m" / "additional_chat_templates" / "rag.jinja").write_text("{{ r }}")
    run(tmp_path / "m", tmp_path / "x.gguf")
    found = said(tmp_path / "x.gguf")
    assert found["tokenizer.chat_template"] == "{{ d }}"
    assert found["tokenizer.chat_templates"] == ["rag", "tool_use"]
    assert found["tokenizer.chat_template.tool_use"] == "{{ t }}"
    run(tmp_path / "x.gguf", tmp_path / "o")
    assert (tmp_path / "o" / "chat_template.jinja").read_text() == "{{ d }}"
    more = {p.stem: p.read_text() for p in (tmp_path / "o" / "additional_chat_templates").iterdir()}
    assert more == {"rag": "{{ r }}", "tool_use": "{{ t }}"}


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_biases_are_carried_or_refused(kind: str, tmp_path: Path) -> None:
    made = decoder(tmp_path / "m", kind, dtype=torch.float32, attention_bias=True, mlp_bias=True)
    wide = {"q": 0, "k": 0, "v": 0, "o": 0}
    for n in range(2):
        for part in wide:
            rows = len(made[f"model.layers.{n}.self_attn.{part}_proj.weight"])
            made[f"model.layers.{n}.self_attn.{part}_proj.bias"] = torch.randn(rows)
        for part, rows in (("gate", 64), ("up", 64), ("down", 32)):
            made[f"model.layers.{n}.mlp.{part}_proj.bias"] = torch.randn(rows)
    save_file(made, tmp_path / "m" / "model.safetensors")
    if kind != "llama":
        with pytest.raises(QwenchError, match="reads no bias"):
            run(tmp_path / "m", tmp_path / "x.gguf")
        return
    run(tmp_path / "m", tmp_path / "x.gguf", verify="bits")
    run(tmp_path / "x.gguf", tmp_path / "o")
    back = held(tmp_path / "o")
    assert back.keys() == made.keys() and all(torch.equal(back[n], made[n]) for n in made)
    assert config(tmp_path / "o")["mlp_bias"] is True and config(tmp_path / "o")["attention_bias"] is True


def test_tensors_without_a_place_are_refused(tmp_path: Path) -> None:
    made = decoder(tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    name = "model.layers.0.mlp.down_proj.weight"
    for tensors, words in (
        (made | {name: made[name].to(torch.float8_e4m3fn)}, "float8_e4m3fn"),
        ({n: t for n, t in made.items() if "embed" not in n}, "embed_tokens"),
        (made | {"model.layers.0.self_attn.q_proj.weight": torch.zeros(128, 32)}, "gates of attention"),
    ):
        save_file({n: t.contiguous() for n, t in tensors.items()}, file)
        with pytest.raises(QwenchError, match=words):
            run(tmp_path / "m", tmp_path / "x.gguf")


@pytest.mark.parametrize("kind", ["q4_0", "q5_1", "q8_0"])
def test_what_blocks_lose_is_told(kind: str, tmp_path: Path) -> None:
    made = decoder(tmp_path / "m")
    losses = run(tmp_path / "m", tmp_path / "x.gguf", dtype=kind)["losses"]
    run(tmp_path / "x.gguf", tmp_path / "o")
    back = held(tmp_path / "o")
    errors = [(made[n].float() - back[n].float()).abs().max().item() for n in made]
    assert losses["largest_error"] == pytest.approx(max(errors)) and max(errors) > 0
    made["model.layers.0.mlp.down_proj.weight"][0, 0] = 3e7
    save_file(made, tmp_path / "m" / "model.safetensors")
    with pytest.raises(QwenchError, match=r"3e\+07 do not fit into " + kind):
        run(tmp_path / "m", tmp_path / "y.gguf", dtype=kind)
    assert not (tmp_path / "y.gguf").exists()
