"""What llama.cpp's architectures call their tensors and settings, and what transformers calls them."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from math import log
from typing import Any

from ..base.errors import QwenchError
from ..base.fields import Fields
from .account import Account
from .gguf_keys import CONFIG, ROPE, silent_in_config
from .rope_factors import USUAL
from .schemas import GGUF

#: transformers' model_type -> general.architecture
ARCHS = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "qwen3_moe": "qwen3moe"}
#: general.architecture -> (model_type, prefix of transformers' classes)
TYPES = {
    "llama": ("llama", "Llama"),
    "qwen2": ("qwen2", "Qwen2"),
    "qwen3": ("qwen3", "Qwen3"),
    "qwen3moe": ("qwen3_moe", "Qwen3Moe"),
}
#: llama.cpp's llama rotates neighbouring coordinates, transformers' the two halves: rows of q and k move
PERMUTED = ("llama",)
#: general.architecture -> modules that llama.cpp reads biases of
BIASES = {
    "llama": ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"),
    "qwen2": ("attn_q", "attn_k", "attn_v"),
}
#: settings that config.json has one value of
_SCALAR = ("attention.head_count", "attention.head_count_kv", "feed_forward_length", "attention.key_length")
#: values of `{arch}.pooling_type`
POOLING = {"mean": 1, "cls": 2, "last": 3, "rank": 4}

_TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "score.weight": "cls.output.weight",
}
_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
}
_EXPERTS = {"gate_proj": "ffn_gate_exps", "up_proj": "ffn_up_exps", "down_proj": "ffn_down_exps"}
_TOP_BACK = {v: k for k, v in _TOP.items()}
_LAYER_BACK = {v: k for k, v in _LAYER.items()}
_EXPERTS_BACK = {v: k for k, v in _EXPERTS.items()}
_HF = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")
_HF_EXPERT = re.compile(r"mlp\.experts\.(\d+)\.(\w+)")
_GGUF = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")


def gguf_name(name: str) -> tuple[str, int | None] | None:
    """(name in a GGUF file, number of the expert in its stack or None); None for a tensor llama.cpp has no name for."""
    if name in _TOP:
        return _TOP[name], None
    if not (found := _HF.fullmatch(name)):
        return None
    layer, inner, end = found.groups()
    if inner in _LAYER:
        return f"blk.{layer}.{_LAYER[inner]}.{end}", None
    if (expert := _HF_EXPERT.fullmatch(inner)) and expert[2] in _EXPERTS:
        return f"blk.{layer}.{_EXPERTS[expert[2]]}.{end}", int(expert[1])
    return None


def hf_name(name: str) -> str | None:
    """transformers' name; of a stack of experts with `{}` for the expert; None where there is none."""
    if name in _TOP_BACK:
        return _TOP_BACK[name]
    if not (found := _GGUF.fullmatch(name)):
        return None
    layer, inner, end = found.groups()
    if inner in _LAYER_BACK:
        return f"model.layers.{layer}.{_LAYER_BACK[inner]}.{end}"
    if inner in _EXPERTS_BACK:
        return f"model.layers.{layer}.mlp.experts.{{}}.{_EXPERTS_BACK[inner]}.{end}"
    return None


def settings_of(config: dict[str, Any], vocab: int, notes: list[str]) -> dict[str, Any]:
    """`general.*` and `{arch}.*` of a config; ints become uint32, floats float32.

    Args:
        config: config.json.
        vocab: rows of the embedding.
        notes: told of keys that are left behind.

    Raises:
        QwenchError: a model type, activation, rope scaling or other setting that cannot be said in GGUF, or one that
            is missing.
    """
    kind = config.get("model_type")
    if kind not in ARCHS:
        raise QwenchError(
            f"no GGUF architecture is known here for model type `{kind}`", "known: " + ", ".join(sorted(ARCHS))
        )
    arch = ARCHS[kind]
    if config.get("use_sliding_window") and config.get("sliding_window"):
        raise QwenchError("sliding-window attention cannot be written to GGUF here", "keep it in safetensors")
    said = Account(config, "config.json")
    heads, hidden = said.need("num_attention_heads"), said.need("hidden_size")
    head_dim = said.get("head_dim") or hidden // heads
    rope = said.get("rope_parameters") or said.get("rope_scaling") or {}
    said.read |= {"rope_parameters", "rope_scaling"}
    found: dict[str, Any] = {
        "block_count": said.need("num_hidden_layers"),
        "context_length": said.need("max_position_embeddings"),
        "embedding_length": hidden,
        "feed_forward_length": said.need("intermediate_size"),
        "attention.head_count": heads,
        "attention.head_count_kv": said.get("num_key_value_heads", heads),
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": float(said.need("rms_norm_eps")),
        "rope.freq_base": float(said.get("rope_theta") or rope.get("rope_theta") or 10000.0),
        "rope.dimension_count": head_dim,
        "vocab_size": vocab,
    }
    found |= _rope_settings(Account(rope, "the rope scaling of config.json"), arch, notes)
    if arch == "qwen3moe":
        if config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1:
            raise QwenchError("dense layers among expert layers cannot be written to GGUF here")
        if not config.get("norm_topk_prob", True):
            raise QwenchError("llama.cpp normalises the weights of experts, and this model does not (norm_topk_prob)")
        found |= {
            "expert_count": said.get("num_experts") or said.need("num_local_experts"),
            "expert_used_count": said.need("num_experts_per_tok"),
            "expert_feed_forward_length": said.need("moe_intermediate_size"),
        }
    if left := said.close(CONFIG, silent_in_config, "GGUF"):
        notes.append(f"GGUF has no place for some of config.json: {names_of(left)}")
    return {"general.architecture": arch} | {f"{arch}.{k}": v for k, v in found.items()}


def names_of(keys: list[str]) -> str:
    """A list of keys, the first of many."""
    more = f" and {len(keys) - 12} more" if len(keys) > 12 else ""
    return ", ".join(f"`{k}`" for k in keys[:12]) + more


def _rope_settings(rope: Account, arch: str, notes: list[str]) -> dict[str, Any]:
    """`rope.scaling.*`; of YaRN the attention factor, which llama.cpp multiplies with its own 1 + 0.1 ln(factor).

    Llama 3's is a tensor (see `rope_factors`), which llama.cpp reads for that family alone.
    """
    scaling = rope.get("rope_type") or rope.get("type") or "default"
    rope.read |= {"type", "rope_theta"}
    found: dict[str, Any] = {}
    if scaling == "llama3" and arch == "llama":
        for key in ("factor", *USUAL):
            rope.need(key)
    elif scaling not in ("default", "yarn", "linear"):
        raise QwenchError(f"rope scaling `{scaling}` cannot be written to GGUF here", "keep it in safetensors")
    elif scaling != "default":
        factor = float(rope.need("factor"))
        found |= {"rope.scaling.type": scaling, "rope.scaling.factor": factor}
        if original := rope.get("original_max_position_embeddings"):
            found["rope.scaling.original_context_length"] = original
        if scaling == "yarn":
            own = _mscale(factor, 1.0)
            both = rope.get("mscale"), rope.get("mscale_all_dim")
            usual = _mscale(factor, both[0]) / _mscale(factor, both[1]) if all(both) else own
            share = float(rope.get("attention_factor", usual)) / own
            if abs(share - 1) > 1e-7:
                found["rope.scaling.attn_factor"] = share
    changes = ROPE if scaling == "yarn" else {k: v for k, v in ROPE.items() if k not in ("beta_fast", "beta_slow")}
    if left := rope.close(changes, lambda key: False, "GGUF"):
        notes.append(f"GGUF has no place for some of the rope scaling: {names_of(left)}")
    return found


def _mscale(factor: float, by: float) -> float:
    """YaRN's attention factor (arXiv 2309.00071, section 3.4), as transformers generalises it."""
    return 0.1 * by * log(factor) + 1.0 if factor > 1 else 1.0


def config_of(
    said: Mapping[str, Any], vocab: int, tied: bool, dtype: str, biases: set[str], ranks: bool
) -> tuple[dict[str, Any], Account]:
    """(config.json from a file's settings, the account of what was read).

    Args:
        said: metadata of the file.
        vocab: rows of the embedding.
        tied: no head of its own.
        dtype: of the tensors.
        biases: what has them: `self_attn`, `mlp`.
        ranks: it has a head that ranks.

    Raises:
        QwenchError: a setting is missing, or a rope scaling that cannot be rebuilt.
    """
    arch = said["general.architecture"]
    kind, prefix = TYPES[arch]
    where = f"the GGUF file ({arch})"
    own = {k.removeprefix(f"{arch}."): _plain(v) for k, v in said.items() if k.startswith(f"{arch}.")}
    if odd := next((k for k in _SCALAR if isinstance(own.get(k), list)), None):
        raise QwenchError(f"{where}'s `{odd}` differs by layer", "get the model in safetensors")
    kinds = {k.removeprefix("*."): v for k, v in GGUF.items() if k.startswith("*.")}
    held = Account(Fields(own, getattr(said, "file", where), kinds, f"{arch}."), where)
    heads, hidden = held.need("attention.head_count"), held.need("embedding_length")
    head_dim = _head_dim(held, heads, hidden, prefix)
    config: dict[str, Any] = {
        "architectures": [f"{prefix}For{'SequenceClassification' if ranks else 'CausalLM'}"],
        "model_type": kind,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": held.need("feed_forward_length"),
        "num_hidden_layers": held.need("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": held.get("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": held.need("context_length"),
        "rms_norm_eps": held.need("attention.layer_norm_rms_epsilon"),
        "rope_theta": held.get("rope.freq_base", 10000.0),
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "attention_bias": "self_attn" in biases,
        "dtype": dtype,
    }
    if arch == "llama":
        config["mlp_bias"] = "mlp" in biases
    if arch == "qwen2":
        config.pop("attention_bias")
    if rope := _rope_config(held):
        config["rope_scaling"] = rope
    if arch == "qwen3moe":
        config |= {
            "num_experts": held.need("expert_count"),
            "num_experts_per_tok": held.need("expert_used_count"),
            "moe_intermediate_size": held.need("expert_feed_forward_length"),
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
    for key, name in (("bos", "bos"), ("eos", "eos"), ("padding", "pad")):
        # Some files say 2^32 - 1 for none.
        if (number := said.get(f"tokenizer.ggml.{key}_token_id")) is not None and number < vocab:
            config[f"{name}_token_id"] = number
    return config, held


def _head_dim(held: Account, heads: Any, hidden: int, prefix: str) -> int:
    """The one width of every head, of queries, keys and values alike, all of it turned.

    Raises:
        QwenchError: they differ.
    """
    head_dim = held.get("attention.key_length") or hidden // heads
    for key in ("attention.value_length", "rope.dimension_count"):
        if (value := held.get(key, head_dim)) != head_dim:
            raise QwenchError(
                f"{held.where}'s `{key}` is {value} and its heads have {head_dim}, which {prefix} cannot say",
                "get the model in safetensors",
            )
    return head_dim


def _rope_config(held: Account) -> dict[str, Any]:
    """transformers' rope scaling; llama.cpp takes a factor without a type for a linear one."""
    scaling = held.get("rope.scaling.type", "linear")
    factor = held.get("rope.scaling.factor") or held.get("rope.scale_linear") or 1.0
    held.read.add("rope.scale_linear")
    original = held.get("rope.scaling.original_context_length")
    share = held.get("rope.scaling.attn_factor", 1.0)
    if scaling == "yarn":
        found = {"rope_type": scaling, "factor": factor}
        if original:
            found["original_max_position_embeddings"] = original
        if share != 1.0:
            found["attention_factor"] = _short(share * _mscale(factor, 1.0))
        return found
    if scaling not in ("none", "linear") or share != 1.0:
        words = f"rope scaling `{scaling}`" if share == 1.0 else f"an attention factor of `{scaling}` rope scaling"
        raise QwenchError(f"{words} cannot be rebuilt from GGUF here", "get the model in safetensors")
    return {"rope_type": "linear", "factor": factor} if scaling == "linear" and factor != 1.0 else {}


def _plain(value: Any) -> Any:
    """Floats as they were meant, and one number for a list of equal ones."""
    if isinstance(value, list) and value and all(v == value[0] for v in value) and not isinstance(value[0], str):
        value = value[0]
    return _short(value) if isinstance(value, float) else value


def _short(value: float) -> float:
    """The shortest number that is the same in float32: 1e-06, not 9.999999974752427e-07."""
    if not abs(value) < 3.4e38:
        return value
    packed = struct.pack("<f", value)
    for digits in range(1, 10):
        if struct.pack("<f", short := float(f"{value:.{digits}g}")) == packed:
            return short
    return value
