"""Tiny random audio language models as whole checkpoints, and sounds for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

SPECIALS = ("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>", "<|im_start|>", "<|im_end|>", "<|IMAGE|>", "<|VIDEO|>")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for p in m.content %}{% if p.type == 'audio' %}"
    "<|audio_bos|><|AUDIO|><|audio_eos|>{% else %}{{ p.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT |= {"num_key_value_heads": 2, "vocab_size": 280, "max_position_embeddings": 4096}
ROPE = {"rope_type": "default", "mrope_section": [2, 2, 2], "rope_theta": 10_000.0}


def tokenizer(folder: Path) -> dict[str, int]:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({c: n for n, c in enumerate(letters)}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens(list(SPECIALS))
    made.save(str(folder / "tokenizer.json"))
    return {name: made.token_to_id(name) for name in SPECIALS}


def config(kind: str, ids: dict[str, int]) -> Any:
    import transformers as t

    sound = {
        "d_model": 32,
        "encoder_layers": 2,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "num_mel_bins": 128,
    }
    audio, start, end = (ids[n] for n in SPECIALS[:3])
    if kind == "qwen2_audio":
        text = {"model_type": "qwen2", **TEXT}
        return t.Qwen2AudioConfig(audio_config=sound, text_config=text, audio_token_index=audio)
    named = {"audio_token_id": audio, "audio_start_token_id": start, "audio_end_token_id": end}
    named |= {"image_token_id": ids["<|IMAGE|>"], "video_token_id": ids["<|VIDEO|>"]}
    # Real checkpoints have these too, and the package reads them without a default.
    named |= {"vision_start_token_id": ids["<|IMAGE|>"], "vision_end_token_id": ids["<|VIDEO|>"]}
    sound["output_dim"] = 48
    vision = {"depth": 1, "hidden_size": 32, "num_heads": 4, "intermediate_size": 32, "out_hidden_size": 48}
    if kind == "qwen2_5_omni_thinker":
        indices = {f"{what}_token_index": named.pop(f"{what}_token_id") for what in ("audio", "image", "video")}
        return t.Qwen2_5OmniThinkerConfig(
            audio_config=sound | {"n_window": 100},
            vision_config=vision,
            text_config=TEXT | {"rope_scaling": ROPE, "rope_parameters": ROPE},
            **indices,
            **named,
        )
    from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import Qwen3OmniMoeThinkerConfig

    moe = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 12}
    return Qwen3OmniMoeThinkerConfig(
        audio_config=sound | {"n_window": 50, "n_window_infer": 400, "downsample_hidden_size": 32},
        vision_config=vision,
        text_config=TEXT | moe | {"rope_scaling": ROPE, "rope_parameters": ROPE},
        **named,
    )


def checkpoint(folder: Path, kind: str) -> Path:
    import transformers as t

    folder.mkdir()
    ids = tokenizer(folder)
    classes = {
        "qwen2_audio": t.Qwen2AudioForConditionalGeneration,
        "qwen2_5_omni_thinker": t.Qwen2_5OmniThinkerForConditionalGeneration,
        "qwen3_omni_moe_thinker": t.Qwen3OmniMoeThinkerForConditionalGeneration,
    }
    torch.manual_seed(0)
    made = classes[kind](config(kind, ids)).float()
    with torch.no_grad():
        for weight in made.parameters():
            # As they are drawn, a sound hardly reaches the logits.
            weight.mul_(4 if weight.dim() > 1 else 1)
    made.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids["<|im_end|>"]}))
    chunk = 30 if kind == "qwen2_audio" else 40
    (folder / "preprocessor_config.json").write_text(json.dumps({"feature_size": 128, "chunk_length": chunk}))
    return folder


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * 16_000))
