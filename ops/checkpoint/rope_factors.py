"""Llama 3's rotary scaling as GGUF has it: a tensor of divisors of the inverse frequencies, and nothing else."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.errors import QwenchError

if TYPE_CHECKING:
    from torch import Tensor

NAME = "rope_freqs.weight"
#: what all published models of the family have beside their factor
USUAL = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def factors(rope: dict[str, Any], head_dim: int, base: float) -> Tensor:
    """Divisors of the inverse frequencies (head_dim / 2,) float32, of `rope_type: llama3`.

    Long waves are stretched by `factor`, short ones kept, those between by a share of both.
    """
    import torch

    wave = 2 * math.pi * base ** (torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    share = ((rope["original_max_position_embeddings"] / wave - low) / (high - low)).clamp(0, 1)
    return (1 / ((1 - share) / rope["factor"] + share)).float()


def scaling_of(stored: Tensor, base: float, path: Path) -> dict[str, Any]:
    """The `rope_scaling` of a config that the divisors say.

    Raises:
        QwenchError: they are not those of Llama 3's usual settings.
    """
    import torch

    factor = round(stored.max().item(), 6) if stored.numel() else 0.0
    rope = {"rope_type": "llama3", "factor": factor, **USUAL}
    if stored.dim() != 1 or not 1 <= factor < 1e6:
        raise _unknown(stored, path)
    if not torch.allclose(stored.float(), factors(rope, 2 * len(stored), base), rtol=1e-5, atol=0):
        raise _unknown(stored, path)
    return rope


def _unknown(stored: Tensor, path: Path) -> QwenchError:
    some = ", ".join(f"{value:.6g}" for value in stored.flatten()[:4].tolist())
    return QwenchError(
        f"the GGUF file's rotary divisors ({some}, ...) are not Llama 3's, and config.json cannot say them: `{path}`",
        "get the model in safetensors",
    )
