"""The gated fork with `use_qk_norm: false` and `qkv_bias: true`, alone and together, against plain torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from qwench.ops.base.errors import QwenchError
from qwench.ops.base.runtime import Runtime
from qwench.ops.convert import ConvertOptions, convert
from qwench.ops.models.hub import resolve
from qwench.ops.streams.model import check_family
from qwench.ops.writing.load import load_causal
from safetensors.torch import load_file, save_file

from tests.tiny import byte_tokenizer

HIDDEN, HEADS, GROUPS, D, FF, WORDS, LAYERS = 32, 4, 2, 8, 64, 272, 2
EPS, BASE = 1e-6, 10_000.0
IDS = [5, 60, 61, 7, 99, 100, 33, 8, 12]
SETTINGS = [(gate, norms, bias) for gate in ("headwise", "elementwise") for norms, bias in ((0, 0), (1, 1), (0, 1))]


def fork(folder: Path, gate: str, norms: bool, bias: bool) -> Path:
    """A random checkpoint of the published code's form."""
    folder.mkdir()
    torch.manual_seed(0)
    rows = {"q": HEADS * D + HEADS * (1 if gate == "headwise" else D), "k": GROUPS * D, "v": GROUPS * D}
    made = {"model.embed_tokens.weight": torch.randn(WORDS, HIDDEN), "model.norm.weight": 1 + 0.1 * torch.randn(HIDDEN)}
    for i in range(LAYERS):
        at = f"model.layers.{i}."
        shapes = {f"self_attn.{n}_proj": (size, HIDDEN) for n, size in rows.items()}
        shapes |= {"self_attn.o_proj": (HIDDEN, HEADS * D), "mlp.gate_proj": (FF, HIDDEN), "mlp.up_proj": (FF, HIDDEN)}
        for name, shape in (shapes | {"mlp.down_proj": (HIDDEN, FF)}).items():
            made[f"{at}{name}.weight"] = torch.randn(shape) * 0.3
            if bias and "attn" in name:
                made[f"{at}{name}.bias"] = torch.randn(shape[0]) * 0.3
        for name in ("input_layernorm", "post_attention_layernorm"):
            made[f"{at}{name}.weight"] = 1 + 0.1 * torch.randn(HIDDEN)
        for name in ("q_norm", "k_norm") if norms else ():
            made[f"{at}self_attn.{name}.weight"] = 1 + 0.1 * torch.randn(D)
    save_file(made, folder / "model.safetensors", {"format": "pt"})
    config: dict[str, Any] = {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": HIDDEN, "vocab_size": WORDS,
        "num_attention_heads": HEADS, "num_key_value_heads": GROUPS, "head_dim": D, "intermediate_size": FF,
        "num_hidden_layers": LAYERS, "max_position_embeddings": 64, "rms_norm_eps": EPS, "rope_theta": BASE,
        "tie_word_embeddings": True, "hidden_act": "silu", "eos_token_id": 256, "attention_bias": False,
        "headwise_attn_output_gate": gate == "headwise", "elementwise_attn_output_gate": gate == "elementwise",
        "use_qk_norm": norms, "qkv_bias": bias,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    byte_tokenizer(folder)
    return folder


def rms(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS) * weight


def turned(x: torch.Tensor) -> torch.Tensor:
    """Rotary positions of (heads, tokens, D)."""
    angles = torch.arange(x.shape[1])[:, None] * BASE ** (-torch.arange(0, D, 2) / D)
    cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
    return x * cos + torch.cat([-x[..., D // 2 :], x[..., : D // 2]], -1) * sin


def logits(folder: Path, ids: list[int]) -> torch.Tensor:
    """All logits, a key-value group at a time."""
    w, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    x, n = w["model.embed_tokens.weight"][ids], len(ids)
    hidden = torch.full((n, n), float("-inf")).triu(1)
    for i in range(LAYERS):
        at = f"model.layers.{i}.self_attn."

        def linear(name: str, x: torch.Tensor, at: str = at) -> torch.Tensor:
            bias = w[f"{at}{name}.bias"] if config["qkv_bias"] else 0
            return x @ w[f"{at}{name}.weight"].T + bias

        y = rms(x, w[f"model.layers.{i}.input_layernorm.weight"])
        q, k, v = linear("q_proj", y), linear("k_proj", y), linear("v_proj", y)
        each, wide = q.shape[1] // GROUPS, HEADS // GROUPS * D
        said = []
        for group in range(GROUPS):
            mine = q[:, group * each : (group + 1) * each]
            queries = mine[:, :wide].reshape(n, -1, D).transpose(0, 1)
            gates = mine[:, wide:].reshape(n, HEADS // GROUPS, -1).transpose(0, 1)
            keys, values = (t[:, group * D : (group + 1) * D][None] for t in (k, v))
            if config["use_qk_norm"]:
                queries, keys = rms(queries, w[at + "q_norm.weight"]), rms(keys, w[at + "k_norm.weight"])
            queries, keys = turned(queries), turned(keys)
            weights = (queries @ keys.transpose(1, 2) / D**0.5 + hidden).softmax(-1)
            said.append(((weights @ values) * gates.sigmoid()).transpose(0, 1).reshape(n, -1))
        x = x + linear("o_proj", torch.cat(said, 1))
        y, at = rms(x, w[f"model.layers.{i}.post_attention_layernorm.weight"]), f"model.layers.{i}.mlp."
        inner = torch.nn.functional.silu(y @ w[at + "gate_proj.weight"].T) * (y @ w[at + "up_proj.weight"].T)
        x = x + inner @ w[at + "down_proj.weight"].T
    return rms(x, w["model.norm.weight"]) @ w["model.embed_tokens.weight"].T


def ours(folder: Path, kernels: str) -> torch.Tensor:
    runtime = Runtime(device="cpu", dtype="float32", kernels=kernels)
    engine = load_causal(resolve(str(folder)), runtime=runtime).engine
    return torch.cat([engine.feed({0: IDS[:4]}), *(engine.feed({0: [token]}) for token in IDS[4:])])


@pytest.mark.parametrize(("gate", "norms", "bias"), SETTINGS)
def test_engines_say_what_plain_torch_says(tmp_path: Path, gate: str, norms: int, bias: int) -> None:
    folder = fork(tmp_path / "m", gate, bool(norms), bool(bias))
    want = logits(folder, IDS)[3:]
    for kernels in ("eager", "native"):
        torch.testing.assert_close(ours(folder, kernels), want, atol=1e-5 * want.abs().max().item(), rtol=0)


@pytest.mark.parametrize(("gate", "norms", "bias"), SETTINGS)
def test_they_convert_or_are_refused_by_name(tmp_path: Path, gate: str, norms: int, bias: int) -> None:
    from transformers import AutoModelForCausalLM

    folder = fork(tmp_path / "m", gate, bool(norms), bool(bias))
    list(convert(ConvertOptions(str(folder), str(tmp_path / "same"), dtype="float32", verify="bits")))
    torch.testing.assert_close(ours(tmp_path / "same", "eager"), ours(folder, "eager"), atol=0, rtol=0)
    stock = ConvertOptions(str(folder), str(tmp_path / "stock"), gate_layout="stock")
    if not norms:
        with pytest.raises(QwenchError, match="stock classes norm queries and keys"):
            list(convert(stock))
        return
    list(convert(stock))
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "stock", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    want = logits(folder, IDS)
    with torch.inference_mode():
        got = model.eval()(torch.tensor([IDS])).logits[0]
    torch.testing.assert_close(got, want, atol=1e-5 * want.abs().max().item(), rtol=0)
    torch.testing.assert_close(ours(tmp_path / "stock", "eager"), want[3:], atol=1e-5 * want.abs().max().item(), rtol=0)
    list(convert(ConvertOptions(str(tmp_path / "stock"), str(tmp_path / "back"), gate_layout="fork")))
    torch.testing.assert_close(ours(tmp_path / "back", "eager"), want[3:], atol=1e-5 * want.abs().max().item(), rtol=0)


def test_streams_are_refused_by_name() -> None:
    for key, value in (("use_qk_norm", False), ("qkv_bias", True)):
        with pytest.raises(QwenchError, match="gated fork of Qwen3"):
            check_family({"model_type": "qwen3", key: value})


def test_gates_are_put_beside_biases(tmp_path: Path) -> None:
    """Inserted gates have a bias of zero, and the bias of o_proj is not doubled."""
    folder = fork(tmp_path / "m", "headwise", True, True)
    file, config = folder / "model.safetensors", json.loads((folder / "config.json").read_text())
    made = load_file(file)
    for name, tensor in made.items():
        if "q_proj" in name:
            made[name] = tensor[: HEADS * D].clone()
    save_file(made, file, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config | {"headwise_attn_output_gate": False}))
    want = ours(folder, "eager")
    for layout in ("stock", "fork"):
        out = tmp_path / layout
        list(convert(ConvertOptions(str(folder), str(out), gate="elementwise", gate_layout=layout)))
        torch.testing.assert_close(ours(out, "eager"), want, atol=1e-6 * want.abs().max().item(), rtol=0)
