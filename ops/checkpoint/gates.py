"""Attention output gates (Gated Attention, arXiv 2505.06708): inserted without changing a logit, and moved between
the published fork's layout of q_proj and the one stock transformers classes read.

q_proj holds query and gate rows. The fork (model_type qwen3) orders them by key-value group: the queries of its heads,
then their gates, one row per head (head-wise) or head_dim rows (element-wise). Qwen3-Next orders them by head: its
queries, then head_dim gates; its norms are stored less one. Inserted gates are rows of zeros, and o_proj is doubled:
sigmoid(0) = 1/2 exactly, so every output stays as it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

from ..base.errors import QwenchError
from .cast import PIECE, Losses, pieces
from .plan import Output, Plan
from .reader import Source

if TYPE_CHECKING:
    from torch import Tensor

GATES = ("headwise", "elementwise")
LAYOUTS = ("stock", "fork")
STOCK = "qwen3_next"
#: a row that no source row stands for
ZERO = -1
NORMS = ("input_layernorm.weight", "post_attention_layernorm.weight", "q_norm.weight", "k_norm.weight", "norm.weight")


@dataclass(frozen=True, slots=True)
class Heads:
    """The shape of an attention layer."""

    count: int
    groups: int
    width: int

    @classmethod
    def of(cls, config: dict[str, Any]) -> Heads:
        """From config.json.

        Raises:
            QwenchError: its numbers do not fit each other.
        """
        count = config["num_attention_heads"]
        width = config.get("head_dim") or config["hidden_size"] // count
        groups = config.get("num_key_value_heads") or count
        if count % groups:
            raise QwenchError(f"config.json has {count} attention heads, which {groups} key-value heads cannot share")
        return cls(count, groups, width)

    @property
    def per_group(self) -> int:
        """Query heads that share a key-value head."""
        return self.count // self.groups


def gate_kind(rows: int, heads: Heads) -> str | None:
    """headwise, elementwise or None, by the rows of q_proj.

    Raises:
        QwenchError: any other number of rows.
    """
    plain = heads.count * heads.width
    kinds = {plain: None, plain + heads.count: "headwise", 2 * plain: "elementwise"}
    if rows not in kinds:
        raise QwenchError(f"q_proj has {rows} rows, which fits no kind of gate of {heads.count} heads")
    return kinds[rows]


def read_rows(kind: str | None, layout: str, heads: Heads) -> list[tuple[list[int], list[int]]]:
    """Per head: which rows of q_proj are its queries, and which its gates (head_dim of them, ZERO for none)."""
    d, g = heads.width, heads.per_group
    found = []
    for i in range(heads.count):
        group, inner = divmod(i, g)
        if kind is None:
            start, gates = i * d, [ZERO] * d
        elif layout == "stock":
            start = i * 2 * d
            gates = list(range(start + d, start + 2 * d))
        else:
            block = g * d + (g if kind == "headwise" else g * d)
            start, after = group * block + inner * d, group * block + g * d
            gates = [after + inner] * d if kind == "headwise" else list(range(after + inner * d, after + inner * d + d))
        found.append((list(range(start, start + d)), gates))
    return found


def write_rows(per_head: list[tuple[list[int], list[int]]], kind: str, layout: str, heads: Heads) -> list[int]:
    """Rows of the new q_proj, as rows of the old one."""
    if layout == "stock":
        return [row for queries, gates in per_head for row in (*queries, *gates)]
    rows: list[int] = []
    for at in range(0, heads.count, heads.per_group):
        group = per_head[at : at + heads.per_group]
        rows += [row for queries, _ in group for row in queries]
        rows += [row for _, gates in group for row in (gates if kind == "elementwise" else gates[:1])]
    return rows


def apply_gates(source: Source, config: dict[str, Any], plan: Plan, gate: str | None, layout: str) -> dict[str, Any]:
    """Change a plan's q_proj, o_proj and norms, and the config.

    Args:
        source: Qwen3, its gated fork, or dense Qwen3-Next.
        config: of the source.
        plan: its outputs are replaced.
        gate: kind to have; None keeps the source's.
        layout: stock or fork.

    Raises:
        QwenchError: no Qwen3 attention, or an element-wise gate asked to be head-wise.
    """
    was = "stock" if config.get("model_type") == STOCK else "fork"
    if config.get("model_type") not in ("qwen3", STOCK):
        raise QwenchError(f"gates are for Qwen3 checkpoints, and this is `{config.get('model_type')}`: `{source.path}`")
    heads = Heads.of(config)
    queries = [o for o in plan.outputs if o.name.endswith("self_attn.q_proj.weight")]
    if not queries:
        raise QwenchError(f"no attention that gates fit into, with a q_proj in every layer: `{source.path}`")
    if layout == "stock" and config.get("use_qk_norm") is False:
        raise QwenchError(
            f"stock classes norm queries and keys, and this model does not (`use_qk_norm`): `{source.path}`",
            "--gate-layout fork keeps it as it is",
        )
    biases = [o for o in plan.outputs if o.name.endswith("self_attn.q_proj.bias")]
    if odd := [o for o in biases if o.shape != queries[0].shape[:1]]:
        raise QwenchError(f"`{odd[0].name}` has the shape {list(odd[0].shape)}, and is no bias of its projection")
    if odd := [o for o in queries if len(o.shape) != 2 or o.shape != queries[0].shape]:
        raise QwenchError(f"`{odd[0].name}` has the shape {list(odd[0].shape)}, and is no projection of its layer")
    had = gate_kind(queries[0].shape[0], heads)
    if had is None and gate is None:
        raise QwenchError(f"the checkpoint has no gates to move: `{source.path}`", "add --gate to insert them", code=2)
    kind = "elementwise" if layout == "stock" else (gate or had)
    if had == "elementwise" and (gate or kind) == "headwise":
        raise QwenchError(f"the gates are element-wise, and head-wise ones cannot say the same: `{source.path}`")
    if layout == "stock" and (gate or had) == "headwise":
        plan.notes.append("stock classes have element-wise gates alone: each head-wise gate is repeated for its head")
    rows = write_rows(read_rows(had, was, heads), kind, layout, heads)
    shift = (was == "stock") - (layout == "stock")
    for at, output in enumerate(plan.outputs):
        if output in queries or output in biases:
            plan.outputs[at] = _rearranged(source, output, rows, had)
        elif had is None and output.name.endswith("self_attn.o_proj.weight"):
            plan.outputs[at] = _changed(source, output, "doubled for gates of 1/2", lambda x: x * 2)
        elif shift and output.name.endswith(NORMS):
            _check_shift(source, output, shift, plan)
            words = f"stored {'less' if shift < 0 else 'plus'} one"
            plan.outputs[at] = _changed(source, output, words, lambda x: (x.float() + shift).to(x.dtype))
    return _config(config, kind, layout, bool(biases))


def _rearranged(source: Source, output: Output, rows: list[int], had: str | None) -> Output:
    def make(losses: Losses | None) -> Iterator[Tensor]:
        import torch

        weight = source.reader.load(output.sources[0])
        where = torch.tensor(rows)
        step = max(PIECE // prod(weight.shape[1:]), 1)
        for first in range(0, len(rows), step):
            index = where[first : first + step]
            part = weight[index.clamp_min(0)]
            part[index == ZERO] = 0
            yield from pieces(output.name, part, output.dtype, losses)

    words = "gates of zero inserted" if had is None else "query and gate rows put in another order"
    return replace(output, shape=(len(rows), *output.shape[1:]), action=words, pieces=make)


def _changed(source: Source, output: Output, words: str, change: Any) -> Output:
    def make(losses: Losses | None) -> Iterator[Tensor]:
        weight = source.reader.load(output.sources[0]).reshape(-1)
        for first in range(0, len(weight), PIECE):
            yield from pieces(output.name, change(weight[first : first + PIECE]), output.dtype, losses)

    return replace(output, action=words, pieces=make)


def _check_shift(source: Source, output: Output, shift: int, plan: Plan) -> None:
    """Say when a norm cannot be stored shifted without rounding."""
    import torch

    weight = source.reader.load(output.sources[0])
    there = (weight.float() + shift).to(weight.dtype)
    if not torch.equal((there.float() - shift).to(weight.dtype), weight):
        plan.notes.append(f"`{output.name}` is rounded by storing it {'less' if shift < 0 else 'plus'} one")


def _config(config: dict[str, Any], kind: str, layout: str, biased: bool) -> dict[str, Any]:
    ours = ("headwise_attn_output_gate", "elementwise_attn_output_gate", "qkv_bias", "use_qk_norm")
    next_ = ("num_experts", "mlp_only_layers", "layer_types", "decoder_sparse_step", "num_experts_per_tok")
    kept = {k: v for k, v in config.items() if k not in (*ours, *next_, "auto_map")}
    rope = dict(kept.pop("rope_parameters", None) or {"rope_type": "default"})
    rope.setdefault("rope_theta", kept.get("rope_theta", 10_000.0))
    rope.pop("partial_rotary_factor", None)
    if layout == "stock":
        full = ["full_attention"] * config["num_hidden_layers"]
        return kept | {
            "model_type": STOCK,
            "architectures": ["Qwen3NextForCausalLM"],
            "num_experts": 0,
            "mlp_only_layers": [],
            "layer_types": full,
            "partial_rotary_factor": 1.0,
            "rope_parameters": rope | {"partial_rotary_factor": 1.0},
            "head_dim": Heads.of(config).width,
            "attention_bias": biased,
        }
    kept.pop("partial_rotary_factor", None)
    for name in [n for n in kept if n.startswith("linear_") or n in ("full_attention_interval",)]:
        kept.pop(name)
    return kept | {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "headwise_attn_output_gate": kind == "headwise",
        "elementwise_attn_output_gate": kind == "elementwise",
        "qkv_bias": biased,
        "use_qk_norm": config.get("use_qk_norm", True),
        "rope_theta": rope["rope_theta"],
        "rope_parameters": rope,
    }
