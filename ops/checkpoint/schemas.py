"""What the fields of a model's files must be: one table a file, keys that some command reads."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from ..base.fields import AGAIN, FLAG, TEXT, Kind, either, fielded, listed, mapped, number, table, unfit, whole

WIDTH = whole(1)
#: a token; some configs say -1 for none
TOKEN = whole(-1)
TOKENS = either(TOKEN, listed(TOKEN))
#: layers and experts: loops run over them
COUNT = whole(1, 100_000)
WORD = either(TEXT, table({"content": TEXT}))
TEMPLATES = either(TEXT, listed(table({"name": TEXT, "template": TEXT})))

ROPE = {
    "rope_type": TEXT,
    "type": TEXT,
    "rope_theta": number(above=1),
    "factor": number(above=0),
    "original_max_position_embeddings": WIDTH,
    "attention_factor": number(above=0),
    "mscale": number(0),
    "mscale_all_dim": number(0),
    "beta_fast": number(above=0),
    "beta_slow": number(above=0),
    "low_freq_factor": number(above=0),
    "high_freq_factor": number(above=0),
    "partial_rotary_factor": number(above=0),
    "truncate": FLAG,
}
#: config.json, of a decoder or encoder, and of the modules of sentence-transformers
CONFIG = {
    "architectures": listed(TEXT),
    "model_type": TEXT,
    **dict.fromkeys(("dtype", "torch_dtype", "hidden_act", "activation_function", "position_embedding_type"), TEXT),
    **dict.fromkeys(("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size"), WIDTH),
    **dict.fromkeys(("intermediate_size", "max_position_embeddings", "n_positions"), WIDTH),
    **dict.fromkeys(("in_features", "out_features", "word_embedding_dimension"), WIDTH),
    **dict.fromkeys(("num_hidden_layers", "num_experts_per_tok", "parscale_n", "decoder_sparse_step"), COUNT),
    # Qwen3-Next says 0 experts, and 0 for a width nobody uses.
    **dict.fromkeys(("num_experts", "num_local_experts"), whole(0, 100_000)),
    "moe_intermediate_size": whole(0),
    "type_vocab_size": whole(0),
    "parscale_n_tokens": whole(0),
    "num_labels": COUNT,
    "parscale_attn_smooth": number(0),
    "rms_norm_eps": number(0),
    "layer_norm_eps": number(0),
    "rope_theta": number(above=1),
    "rope_parameters": table(ROPE),
    "rope_scaling": table(ROPE),
    "partial_rotary_factor": number(above=0),
    "sliding_window": whole(0),
    "mlp_only_layers": listed(whole(0)),
    "layer_types": listed(TEXT),
    "id2label": table(),
    **dict.fromkeys(("tie_word_embeddings", "use_sliding_window", "attention_bias", "norm_topk_prob"), FLAG),
    **dict.fromkeys(("use_qk_norm", "qkv_bias", "headwise_attn_output_gate", "elementwise_attn_output_gate"), FLAG),
    **dict.fromkeys(("is_decoder", "bias", "include_prompt", "parscale_prefix_only"), FLAG),
    **dict.fromkeys(("bos_token_id", "pad_token_id", "unk_token_id", "eos_token_id"), TOKENS),
    **dict.fromkeys(("true_token_id", "false_token_id"), whole(0)),
    "sentence_transformers": table({"activation_fn": TEXT}),
    "sbert_ce_default_activation_function": TEXT,
    "pooling_mode": either(TEXT, listed(TEXT)),
    **{
        f"pooling_mode_{mode}": FLAG
        for mode in (
            "cls_token",
            "mean_tokens",
            "max_tokens",
            "mean_sqrt_len_tokens",
            "weightedmean_tokens",
            "lasttoken",
        )
    },
}
ADDED = {"id": whole(0), "content": TEXT, "special": FLAG}
POST = {"type": TEXT, "single": listed(table({"SpecialToken": table({"id": TEXT})}))}
UNIGRAM = Kind(
    "a list of [text, number]",
    lambda v: isinstance(v, list) and all(isinstance(e, list) and len(e) == 2 and isinstance(e[0], str) for e in v),
)
TOKENIZER = {
    "added_tokens": listed(table(ADDED)),
    "model": table(
        {
            "type": TEXT,
            "vocab": either(mapped(whole(0)), UNIGRAM),
            "merges": listed(either(TEXT, listed(TEXT))),
            "byte_fallback": FLAG,
        }
    ),
    "pre_tokenizer": table(),
    "normalizer": table(),
    "post_processor": table({**POST, "processors": listed(table(POST))}),
}
TOKENIZER_CONFIG = {
    **dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), WORD),
    "add_bos_token": FLAG,
    "add_eos_token": FLAG,
    "chat_template": TEMPLATES,
    # 1e30 stands for no limit.
    "model_max_length": number(above=0),
}
ADAPTER = {
    "peft_type": TEXT,
    "r": whole(0),
    "lora_alpha": number(),
    "alpha_pattern": mapped(number()),
    "rank_pattern": mapped(whole(1)),
    "use_rslora": FLAG,
    "use_dora": FLAG,
    "fan_in_fan_out": FLAG,
    "init_lora_weights": either(FLAG, TEXT),
    "modules_to_save": listed(TEXT),
    "target_modules": either(TEXT, listed(TEXT)),
    "base_model_name_or_path": TEXT,
    "trainable_token_indices": either(listed(whole(0)), mapped(listed(whole(0)))),
}
INDEX = {"weight_map": mapped(TEXT)}
MODULES = {"type": TEXT, "path": TEXT, "name": TEXT}
#: name of a file -> (what it is as a whole, its fields)
FILES: dict[str, tuple[Kind, dict[str, Kind]]] = {
    "config.json": (table(), CONFIG),
    "generation_config.json": (table(), dict.fromkeys(("eos_token_id", "bos_token_id", "pad_token_id"), TOKENS)),
    "tokenizer.json": (table(), TOKENIZER),
    "tokenizer_config.json": (table(), TOKENIZER_CONFIG),
    "modules.json": (listed(table()), MODULES),
    "sentence_bert_config.json": (table(), {"max_seq_length": WIDTH, "do_lower_case": FLAG}),
    "config_sentence_transformers.json": (
        table(),
        {"prompts": mapped(either(TEXT, Kind("null", lambda v: v is None))), "default_prompt_name": TEXT},
    ),
    "chat_template.json": (table(), {"chat_template": TEXT}),
    "adapter_config.json": (table(), ADAPTER),
    "model.safetensors.index.json": (table(), INDEX),
    "pytorch_model.bin.index.json": (table(), INDEX),
}
#: metadata of a GGUF file (docs/gguf.md of ggml); `*` is the architecture
GGUF = {
    "general.architecture": TEXT,
    "general.name": TEXT,
    "general.alignment": WIDTH,
    **dict.fromkeys(("split.count", "split.no"), whole(0, 65535)),
    "split.tensors.count": whole(),
    **dict.fromkeys(("*.block_count", "*.expert_count", "*.expert_used_count"), COUNT),
    **dict.fromkeys(("*.context_length", "*.embedding_length", "*.vocab_size"), WIDTH),
    # Some files give these by layer.
    **dict.fromkeys(("*.attention.head_count", "*.attention.head_count_kv"), either(WIDTH, listed(WIDTH))),
    **dict.fromkeys(("*.feed_forward_length", "*.attention.key_length"), either(WIDTH, listed(WIDTH))),
    **dict.fromkeys(("*.attention.value_length", "*.expert_feed_forward_length", "*.rope.dimension_count"), WIDTH),
    "*.attention.layer_norm_rms_epsilon": number(0),
    "*.rope.freq_base": number(above=0),
    "*.rope.scaling.type": TEXT,
    **dict.fromkeys(("*.rope.scaling.factor", "*.rope.scaling.attn_factor", "*.rope.scale_linear"), number(above=0)),
    "*.rope.scaling.original_context_length": WIDTH,
    "*.pooling_type": whole(0),
    "tokenizer.ggml.model": TEXT,
    "tokenizer.ggml.pre": TEXT,
    "tokenizer.ggml.tokens": listed(TEXT),
    "tokenizer.ggml.token_type": listed(whole(0)),
    "tokenizer.ggml.merges": listed(TEXT),
    **{f"tokenizer.ggml.{k}_token_id": whole(0, None) for k in ("bos", "eos", "eot", "eom", "padding", "unknown")},
    "tokenizer.ggml.add_bos_token": FLAG,
    "tokenizer.ggml.add_eos_token": FLAG,
    "tokenizer.chat_template": TEXT,
    "tokenizer.chat_templates": listed(TEXT),
}


def fields_of(value: Any, file: PurePath | str, hint: str | None = AGAIN) -> Any:
    """A file's JSON with its known fields checked as they are read; a file of another name as it is.

    Raises:
        QwenchError: it is a list and should be an object, or the other way round.
    """
    kind, inner = FILES.get(PurePath(file).name, (None, {}))
    if kind is None:
        return value
    if not kind.fits(value):
        raise unfit(str(file), "the whole", kind, value, hint)
    return fielded(value, str(file), inner, "", hint)
