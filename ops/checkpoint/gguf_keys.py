"""Which settings change what a model computes, on both sides of GGUF; all others may be left behind with a word."""

from __future__ import annotations

from typing import Any

from .account import Neutral, one_of


def _full(value: Any) -> bool:
    return isinstance(value, list) and all(kind == "full_attention" for kind in value)


def _none(value: Any) -> bool:
    return not value


#: keys of config.json that GGUF has no place for in the architectures known here
CONFIG: dict[str, Neutral] = {
    "hidden_act": one_of("silu", "swish"),
    "hidden_activation": one_of("silu", "swish"),
    "layer_types": _full,
    "partial_rotary_factor": one_of(1, 1.0),
    "quantization_config": _none,
    "compression_config": _none,
    "parscale_n": one_of(1),
    "attn_output_gate": _none,
    "is_causal": one_of(True),
    "num_nextn_predict_layers": _none,
    "n_shared_experts": _none,
    "shared_expert_intermediate_size": _none,
}
#: keys of rope_scaling and rope_parameters
ROPE: dict[str, Neutral] = {
    "beta_fast": one_of(32),
    "beta_slow": one_of(1),
    "truncate": one_of(True),
    "partial_rotary_factor": one_of(1, 1.0),
    "mrope_section": _none,
    "short_factor": _none,
    "long_factor": _none,
}
#: keys of config.json about its making, its training, its running and its labels
# fmt: off
SILENT = frozenset((
    "architectures", "attention_dropout", "auto_map", "bos_token_id", "chunk_size_feed_forward", "dtype",
    "eos_token_id", "finetuning_task", "id2label", "initializer_range", "is_decoder", "label2id",
    "max_window_layers", "model_type", "num_labels", "output_attentions", "output_hidden_states",
    "output_router_logits", "pad_token_id", "pretraining_tp", "problem_type", "return_dict", "rms_norm_type",
    "router_aux_loss_coef", "sliding_window", "tie_word_embeddings", "tokenizer_class", "torch_dtype",
    "transformers_version", "unk_token_id", "unsloth_fixed", "unsloth_version", "use_cache", "use_sliding_window",
    "mlp_bias", "attention_bias", "head_dim", "mlp_only_layers", "decoder_sparse_step", "norm_topk_prob",
    "num_experts", "moe_intermediate_size", "num_experts_per_tok", "vocab_size",
))
# fmt: on


def silent_in_config(key: str) -> bool:
    """It says nothing that a GGUF file should say, or the tensors say it."""
    return key in SILENT or key.startswith("_")


#: `{arch}.` keys that llama.cpp may obey and that config.json has no place for
GGUF: dict[str, Neutral] = {
    "expert_count": _none,
    "expert_used_count": _none,
    "expert_shared_count": _none,
    "expert_shared_feed_forward_length": _none,
    "expert_weights_scale": one_of(0.0, 1.0),
    "expert_weights_norm": one_of(True),
    "expert_gating_func": one_of(0, 1),
    "leading_dense_block_count": _none,
    "interleave_moe_layer_step": one_of(0, 1),
    "nextn_predict_layers": _none,
    "logit_scale": one_of(0.0, 1.0),
    "embedding_scale": one_of(0.0, 1.0),
    "residual_scale": one_of(0.0, 1.0),
    "attention.scale": one_of(0.0),
    "attention.clamp_kqv": one_of(0.0),
    "attention.max_alibi_bias": one_of(0.0),
    "attention.causal": one_of(True),
    "attention.temperature_length": _none,
    "attention.temperature_scale": one_of(0.0),
    "attn_logit_softcapping": one_of(0.0),
    "final_logit_softcapping": one_of(0.0),
    "use_parallel_residual": _none,
    "rope.scaling.alpha": one_of(0.0),
    "rope.scaling.yarn_ext_factor": one_of(-1.0, 1.0),
    "rope.scaling.yarn_attn_factor": one_of(1.0),
    "rope.scaling.yarn_beta_fast": one_of(32.0),
    "rope.scaling.yarn_beta_slow": one_of(1.0),
    "rope.scaling.yarn_log_multiplier": one_of(0.0),
    "rope.dimension_sections": _none,
}
#: `{arch}.` keys that say nothing of the model, or that the tensors say
SILENT_GGUF = frozenset(
    ("vocab_size", "rope.scaling.finetuned", "pooling_type", "classifier.output_labels", "tensor_data_layout")
)
#: metadata about the file itself
STRUCTURE = frozenset(
    ("general.architecture", "general.type", "general.file_type", "general.quantization_version", "general.alignment")
)
#: keys of other kinds of tokenizers, which byte-level BPE does not look at
SILENT_TEXTS = frozenset(
    f"tokenizer.ggml.{k}"
    for k in ("scores", "add_space_prefix", "remove_extra_whitespaces", "token_type_count", "add_sep_token")
)
