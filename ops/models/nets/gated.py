"""Attention output gates in a running decoder (Gated Attention, arXiv 2505.06708): rows of q_proj that scale heads."""

from __future__ import annotations

from typing import Any

from ...checkpoint.gates import STOCK, ZERO, Heads, gate_kind, read_rows


def gates_of(rows: int, config: dict[str, Any]) -> tuple[list[int], list[int]] | None:
    """(query rows, gate rows) of a q_proj of `rows` rows, head by head; None where there are no gates.

    Head-wise there is one gate row for each head, element-wise there are head_dim.

    Raises:
        QwenchError: a number of rows that fits no kind of gate.
    """
    heads = Heads.of(config)
    kind = gate_kind(rows, heads)
    if kind is None:
        return None
    per_head = read_rows(kind, "stock" if config["model_type"] == STOCK else "fork", heads)
    each = 1 if kind == "headwise" else heads.width
    queries = [row for found, _ in per_head for row in found]
    gates = [row for _, found in per_head for row in found[:each]]
    assert ZERO not in gates
    return queries, gates


def unknown_next(config: dict[str, Any]) -> str | None:
    """Why a Qwen3-Next config is more than Qwen3 with gates, None when it is not."""
    kinds = config.get("layer_types") or ["linear_attention"]
    if any(kind != "full_attention" for kind in kinds):
        return "linear attention"
    if config.get("num_experts", 512):
        return "the experts of Qwen3-Next"
    rope = config.get("rope_parameters") or {}
    if rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 0.25)) != 1:
        return "partial rotary positions"
    return None
