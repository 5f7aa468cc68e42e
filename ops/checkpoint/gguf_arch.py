"""What llama.cpp's architectures call their tensors and settings, and what transformers calls them."""

from __future__ import annotations

import re
import struct
from typing import Any

from ..base.errors import QwenchError

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


def settings_of(config: dict[str, Any]) -> dict[str, Any]:
    """`general.*` and `{arch}.*` of a config; ints become uint32, floats float32.

    Raises:
        QwenchError: a model type, activation or rope scaling that cannot be said in GGUF.
    """
    kind = config.get("model_type")
    if kind not in ARCHS:
        raise QwenchError(
            f"no GGUF architecture is known here for model type `{kind}`", "known: " + ", ".join(sorted(ARCHS))
        )
    arch = ARCHS[kind]
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    scaling = rope.get("rope_type", rope.get("type", "default"))
    if scaling not in ("default", "yarn", "linear"):
        raise QwenchError(f"rope scaling `{scaling}` cannot be written to GGUF here", "keep it in safetensors")
    if config.get("use_sliding_window") and config.get("sliding_window"):
        raise QwenchError("sliding-window attention cannot be written to GGUF here", "keep it in safetensors")
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    head_dim = config.get("head_dim") or hidden // heads
    found: dict[str, Any] = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": hidden,
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": heads,
        "attention.head_count_kv": config.get("num_key_value_heads") or heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.freq_base": float(config.get("rope_theta") or rope.get("rope_theta") or 10000.0),
        "rope.dimension_count": head_dim,
        "vocab_size": config["vocab_size"],
    }
    if scaling != "default":
        found |= {"rope.scaling.type": scaling, "rope.scaling.factor": float(rope["factor"])}
        if original := rope.get("original_max_position_embeddings"):
            found["rope.scaling.original_context_length"] = original
    if arch == "qwen3moe":
        if config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1:
            raise QwenchError("dense layers among expert layers cannot be written to GGUF here")
        if not config.get("norm_topk_prob", True):
            raise QwenchError("llama.cpp normalises the weights of experts, and this model does not (norm_topk_prob)")
        found |= {
            "expert_count": config.get("num_experts") or config["num_local_experts"],
            "expert_used_count": config["num_experts_per_tok"],
            "expert_feed_forward_length": config["moe_intermediate_size"],
        }
    return {"general.architecture": arch} | {f"{arch}.{k}": v for k, v in found.items()}


def config_of(said: dict[str, Any], vocab: int, tied: bool, dtype: str, bias: bool, ranks: bool) -> dict[str, Any]:
    """config.json from a file's settings.

    Args:
        said: metadata of the file.
        vocab: rows of the embedding.
        tied: no head of its own.
        dtype: of the tensors.
        bias: the projections of attention have biases.
        ranks: it has a head that ranks.

    Raises:
        QwenchError: a setting is missing, or a rope scaling that cannot be rebuilt.
    """
    arch = said["general.architecture"]
    kind, prefix = TYPES[arch]

    def get(key: str, default: Any = None) -> Any:
        value = said.get(f"{arch}.{key}", default)
        if value is None:
            raise QwenchError(f"the GGUF file does not say `{arch}.{key}`", "get the model in another format")
        return _short(value) if isinstance(value, float) else value

    heads = get("attention.head_count")
    config: dict[str, Any] = {
        "architectures": [f"{prefix}For{'SequenceClassification' if ranks else 'CausalLM'}"],
        "model_type": kind,
        "hidden_act": "silu",
        "hidden_size": get("embedding_length"),
        "intermediate_size": get("feed_forward_length"),
        "num_hidden_layers": get("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": get("attention.head_count_kv", heads),
        "head_dim": get("attention.key_length", get("embedding_length") // heads),
        "max_position_embeddings": get("context_length"),
        "rms_norm_eps": get("attention.layer_norm_rms_epsilon"),
        "rope_theta": get("rope.freq_base", 10000.0),
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "attention_bias": bias,
        "dtype": dtype,
    }
    if arch == "qwen2":
        config.pop("attention_bias")
    scaling = get("rope.scaling.type", "none")
    if scaling in ("yarn", "linear"):
        config["rope_scaling"] = {"rope_type": scaling, "factor": get("rope.scaling.factor")}
        if original := said.get(f"{arch}.rope.scaling.original_context_length"):
            config["rope_scaling"]["original_max_position_embeddings"] = original
    elif scaling != "none":
        raise QwenchError(f"rope scaling `{scaling}` cannot be rebuilt from GGUF here", "get the model in safetensors")
    if arch == "qwen3moe":
        config |= {
            "num_experts": get("expert_count"),
            "num_experts_per_tok": get("expert_used_count"),
            "moe_intermediate_size": get("expert_feed_forward_length"),
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
    for key, name in (("bos", "bos"), ("eos", "eos"), ("padding", "pad")):
        # Some files say 2^32 - 1 for none.
        if (number := said.get(f"tokenizer.ggml.{key}_token_id")) is not None and number < vocab:
            config[f"{name}_token_id"] = number
    return config


def _short(value: float) -> float:
    """The shortest number that is the same in float32: 1e-06, not 9.999999974752427e-07."""
    packed = struct.pack("<f", value)
    for digits in range(1, 10):
        if struct.pack("<f", short := float(f"{value:.{digits}g}")) == packed:
            return short
    return value
