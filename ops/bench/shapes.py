"""Sizes of models, for benchmarks without a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Shape:
    """hidden size, layers, query heads, key heads, head width, inner size of the MLP."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    width: int
    inner: int

    @classmethod
    def of(cls, name: str, config: dict[str, Any]) -> Shape:
        """The sizes of a checkpoint's config."""
        heads = config["num_attention_heads"]
        return cls(
            name,
            config["hidden_size"],
            config["num_hidden_layers"],
            heads,
            config.get("num_key_value_heads") or heads,
            config.get("head_dim") or config["hidden_size"] // heads,
            config["intermediate_size"],
        )


#: from the published configs
SHAPES = {
    s.name: s
    for s in (
        Shape("smollm2-135m", 576, 30, 9, 3, 64, 1536),
        Shape("qwen3-0.6b", 1024, 28, 16, 8, 128, 3072),
        Shape("qwen3-1.7b", 2048, 28, 16, 8, 128, 6144),
        Shape("qwen3-4b", 2560, 36, 32, 8, 128, 9728),
        Shape("qwen3-8b", 4096, 36, 32, 8, 128, 12288),
        Shape("qwen3-14b", 5120, 40, 40, 8, 128, 17408),
        Shape("qwen3-32b", 5120, 64, 64, 8, 128, 25600),
        Shape("parscale-1.8b", 1536, 36, 16, 2, 96, 8320),
        Shape("parscale-3b", 2048, 36, 16, 2, 128, 11008),
    )
}
