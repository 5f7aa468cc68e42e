"""Rotary frequencies of every kind that Qwen and Llama checkpoints name."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ...base.fields import Fields
from ...checkpoint.schemas import ROPE, fields_of

if TYPE_CHECKING:
    from torch import Tensor

KINDS = ("default", "linear", "llama3", "yarn")


def rope_parameters(config: dict[str, Any]) -> dict[str, Any]:
    """Rotary settings of either spelling: `rope_parameters` (transformers 5) or rope_theta and rope_scaling (4)."""
    config = fields_of(config, "config.json")
    rope = (config.get("rope_parameters") or Fields({}, "config.json", ROPE)).copy()
    # Beside one another, the older key is what a reader added: Qwen's recipe for long texts on a newer checkpoint.
    for added in (rope, config.get("rope_scaling") or {}):
        if "type" in added:
            rope["rope_type"] = added.get("rope_type") or added["type"]
        rope.update({k: v for k, v in added.items() if k != "type"})
    rope.pop("type", None)
    rope.setdefault("rope_theta", config.get("rope_theta", 10_000.0))
    return rope


def frequencies(config: dict[str, Any], head_dim: int, device: str = "cpu") -> tuple[Tensor, float]:
    """(inverse frequencies (head_dim / 2,) float32, factor on cos and sin).

    YaRN: arXiv 2309.00071, section 3. llama3: long waves stretched, short ones kept.
    """
    import torch

    rope = rope_parameters(config)
    kind, theta = rope.get("rope_type", "default"), rope["rope_theta"]
    inv = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim)
    if kind == "default":
        return inv, 1.0
    original = rope.get("original_max_position_embeddings") or config["max_position_embeddings"]
    factor = rope.get("factor") or config["max_position_embeddings"] / original
    if kind == "linear":
        return inv / factor, 1.0
    if kind == "llama3":
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        wave = 2 * math.pi / inv
        share = ((original / wave - low) / (high - low)).clamp(0, 1)
        return inv / factor * (1 - share) + inv * share, 1.0

    def turns(count: float) -> float:
        return head_dim * math.log(original / (count * 2 * math.pi)) / (2 * math.log(theta))

    low, high = turns(rope.get("beta_fast") or 32), turns(rope.get("beta_slow") or 1)
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = (torch.arange(head_dim // 2, dtype=torch.float32, device=device) - low) / max(high - low, 0.001)
    stretched = ramp.clamp(0, 1)
    scale = rope.get("attention_factor")
    if not scale:
        pair = rope.get("mscale"), rope.get("mscale_all_dim")
        scale = _sharper(factor, pair[0]) / _sharper(factor, pair[1]) if all(pair) else _sharper(factor)
    return inv / factor * stretched + inv * (1 - stretched), scale


def _sharper(factor: float, share: float = 1.0) -> float:
    """Factor on cos and sin of YaRN (arXiv 2309.00071, equation 22); `share` is DeepSeek's mscale."""
    return 0.1 * share * math.log(factor) + 1.0 if factor > 1 else 1.0


def stretched(config: dict[str, Any], context: int) -> dict[str, Any]:
    """The config with static YaRN for `context` tokens (Qwen3: factor = context / native length)."""
    rope = rope_parameters(config)
    native = min(config["max_position_embeddings"], 32768 if config["max_position_embeddings"] == 40960 else 1 << 62)
    rope |= {"rope_type": "yarn", "factor": context / native, "original_max_position_embeddings": native}
    rest = {k: v for k, v in config.items() if k != "rope_scaling"}
    return rest | {"rope_parameters": rope, "max_position_embeddings": context}
