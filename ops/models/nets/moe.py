"""Sparse experts of Qwen3-MoE: every token goes through the few its router picks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...kernels.choose import EAGER, Kernels
from .linear import Maker
from .weights import Weights

if TYPE_CHECKING:
    from torch import Tensor, dtype


def experts_of(config: dict[str, Any]) -> int:
    """Experts of a layer, by either name of transformers 5."""
    return config["num_local_experts"] if "num_local_experts" in config else config["num_experts"]


class Experts:
    """Router and experts of one layer (Qwen3 technical report, section 2): softmax over all, the top k, renormalised.

    Args:
        at: prefix of the layer's MLP, such as `layers.0.mlp.`.
    """

    def __init__(
        self,
        config: dict[str, Any],
        weights: Weights,
        at: str,
        dtype: dtype,
        device: str,
        linear: Maker,
        kernels: Kernels = EAGER,
    ) -> None:
        h, ff, count = config["hidden_size"], config["moe_intermediate_size"], experts_of(config)
        self.silu_mul = kernels.silu_mul
        self.top: int = config["num_experts_per_tok"]
        self.renormalise: bool = config.get("norm_topk_prob", False)
        self.router = weights.take(f"{at}gate.weight", dtype, (count, h), device)
        self.experts = []
        for i in range(count):
            parts = {f"{at}experts.{i}.{n}_proj.weight": (ff, h) for n in ("gate", "up")}
            down = {f"{at}experts.{i}.down_proj.weight": (h, ff)}
            self.experts.append(tuple(linear(weights.matrix(p, dtype, device), None) for p in (parts, down)))
        self.parameters = self.router.numel() + sum(a.parameters + b.parameters for a, b in self.experts)

    def __call__(self, x: Tensor) -> Tensor:
        """x (T, h) -> (T, h)."""
        import torch

        shares = (x @ self.router.t()).float().softmax(-1)
        share, chosen = shares.topk(self.top, -1)
        if self.renormalise:
            share = share / share.sum(-1, keepdim=True)
        share = share.to(x.dtype)
        out = torch.zeros_like(x)
        for i in chosen.unique().tolist():
            token, place = (chosen == i).nonzero(as_tuple=True)
            gate_up, down = self.experts[i]
            out.index_add_(0, token, down(self.silu_mul(gate_up(x[token]))) * share[token, place].unsqueeze(-1))
        return out
