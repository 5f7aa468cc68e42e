"""Checkpoints of a few kilobytes, made without transformers, and their tokenizers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

#: how Llama 3 and Qwen 2 split texts, as their tokenizer.json have it
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
LLAMA3, QWEN2 = (
    {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": _WORDS + n + _REST}, "behavior": "Isolated", "invert": False},
            BYTES,
        ],
    }
    for n in (r"\p{N}{1,3}|", r"\p{N}|")
)


def tokenizer(
    folder: Path,
    specials: tuple[str, ...] = ("<|endoftext|>",),
    pre: dict[str, Any] | None = QWEN2,
    around: tuple[str | None, str | None] = (None, None),
    **own: Any,
) -> None:
    """One token a byte, special ones after them; `around` every text by a template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(specials))
    data = json.loads(made.to_str())
    if pre is not None:
        data["pre_tokenizer"] = pre
    if any(around):
        first, last = ([{"SpecialToken": {"id": t, "type_id": 0}}] if t else [] for t in around)
        a, b = ({"Sequence": {"id": n, "type_id": 0}} for n in "AB")
        names = {t: {"id": t, "ids": [256 + specials.index(t)], "tokens": [t]} for t in around if t}
        single, pair = [*first, a, *last], [*first, a, *first, b, *last]
        data["post_processor"] = {
            "type": "Sequence",
            "processors": [
                BYTES,
                {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": names},
            ],
        }
    (folder / "tokenizer.json").write_text(json.dumps(data))
    said = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": specials[-1]} | own
    (folder / "tokenizer_config.json").write_text(json.dumps(said))


def decoder(
    folder: Path,
    kind: str = "qwen3",
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.bfloat16,
    tied: bool | None = None,
    pre: dict[str, Any] | None = None,
    layers: int = 2,
    **extra: Any,
) -> dict[str, torch.Tensor]:
    """A random llama, qwen2 or qwen3 of width 32 with 272 tokens: its tensors. A None drops a key of its config."""
    folder.mkdir(parents=True, exist_ok=True)
    random = torch.Generator().manual_seed(seed)
    tied = kind != "llama" if tied is None else tied
    head = 16 if kind == "qwen3" else 8

    def matrix(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=random) * 0.15).to(dtype)

    made = {"model.embed_tokens.weight": matrix(272, 32), "model.norm.weight": 1 + matrix(32)}
    for n in range(layers):
        own = {"q_proj": (4 * head, 32), "k_proj": (2 * head, 32), "v_proj": (2 * head, 32), "o_proj": (32, 4 * head)}
        parts = {f"self_attn.{p}.weight": matrix(*s) for p, s in own.items()}
        if kind == "qwen2":
            parts |= {f"self_attn.{p}.bias": matrix(own[p][0]) for p in ("q_proj", "k_proj", "v_proj")}
        if kind == "qwen3":
            parts |= {f"self_attn.{p}.weight": 1 + matrix(head) for p in ("q_norm", "k_norm")}
        parts |= {f"mlp.{p}_proj.weight": matrix(64, 32) for p in ("gate", "up")}
        parts |= {"mlp.down_proj.weight": matrix(32, 64)}
        parts |= {f"{p}_layernorm.weight": 1 + matrix(32) for p in ("input", "post_attention")}
        made |= {f"model.layers.{n}.{p}": t for p, t in parts.items()}
    if not tied:
        made["lm_head.weight"] = matrix(272, 32)
    names = {"qwen3": "Qwen3", "qwen2": "Qwen2", "llama": "Llama"}
    config: dict[str, Any] = {"architectures": [names[kind] + "ForCausalLM"], "model_type": kind, "hidden_act": "silu"}
    config |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": layers, "num_attention_heads": 4}
    config |= {"num_key_value_heads": 2, "head_dim": head, "max_position_embeddings": 256, "rms_norm_eps": 1e-6}
    config |= {"rope_theta": 10000.0, "vocab_size": 272, "tie_word_embeddings": tied, "eos_token_id": 256}
    config |= {"torch_dtype": str(dtype).removeprefix("torch.")} | extra
    kept = {k: v for k, v in config.items() if v is not None}
    (folder / "config.json").write_text(json.dumps(kept))
    save_file(made, folder / "model.safetensors", {"format": "pt"})
    tokenizer(folder, pre=pre or (LLAMA3 if kind == "llama" else QWEN2))
    return made


def held(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file or folder."""
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    return {n: t for f in files for n, t in load_file(f).items()}


def adapter(folder: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Path:
    """An adapter folder of the peft layout with alpha / r = 2."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "r": 4, "lora_alpha": 8} | config
    (folder / "adapter_config.json").write_text(json.dumps(said))
    return folder
