"""What ParScale adds to a decoder, and what it costs: parameters, training, decode and prefill, by arithmetic alone.

ParScale (arXiv 2505.10475) runs P streams over one backbone: a learned prefix of keys and values for each stream in
each layer, and an aggregator before the language head. Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..base.errors import QwenchError

#: prefix tokens of every released checkpoint (`parscale_n_tokens`)
PREFIX_TOKENS = 48
FAMILIES = ("qwen2", "qwen2_parscale", "qwen3", "qwen3_moe", "llama")
#: bytes of a trained parameter, its gradient and AdamW's two moments, all in float32
TRAINED, GRADIENT, MOMENTS = 4, 4, 8


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a decoder that its counts follow from; widths may be fractions, see `scaled`.

    Attributes:
        layers: dense and sparse ones.
        intermediate: width of a dense MLP.
        experts, active, expert_width: of a sparse layer; `sparse` of the layers have experts.
        gate_rows: rows that an attention gate adds to q_proj (arXiv 2505.06708).
        qkv_bias, out_bias, mlp_bias, qk_norm: what the family has besides matrices and two norms.
        vocab: rows of the embedding.
        tied: whether the language head is the embedding.
    """

    layers: int
    hidden: float
    intermediate: float
    heads: int
    kv_heads: int
    head_dim: float
    vocab: int
    tied: bool = True
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    gate_rows: float = 0
    experts: int = 0
    active: int = 0
    expert_width: float = 0
    sparse: int = 0

    def scaled(self, factor: float) -> Shape:
        """All widths times `factor`, with the same depth and heads: how the paper's six sizes differ."""
        values = {n: getattr(self, n) for n in self.__slots__}
        for name in ("hidden", "intermediate", "head_dim", "gate_rows", "expert_width"):
            values[name] *= factor
        return Shape(**values)


@dataclass(frozen=True, slots=True)
class Counts:
    """Parameters of a decoder.

    Attributes:
        body: all but embedding and head; the N of the scaling law.
        active: of `body`, what one token goes through (fewer than `body` with experts).
        embedding: the table of words.
        head: the language head, 0 where it is tied to the embedding.
    """

    body: int
    active: int
    embedding: int
    head: int

    @property
    def total(self) -> int:
        """Everything that is stored."""
        return self.body + self.embedding + self.head


def shape_of(config: dict[str, Any]) -> Shape:
    """The sizes in a config.json of Qwen2, Qwen3 (gated too), Qwen3-MoE or Llama.

    Raises:
        QwenchError: another family, or a size is missing or not a number.
    """
    kind = config.get("model_type")
    if kind not in FAMILIES:
        raise QwenchError(f"parameters of this family cannot be counted: `{kind}`", f"use {', '.join(FAMILIES)}")
    needed = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")
    needed += ("moe_intermediate_size",) if kind == "qwen3_moe" else ("intermediate_size",)
    for name in needed:
        if not isinstance(config.get(name), int) or config[name] < 1:
            raise QwenchError(f"the config has no usable size: `{name}`", "use the config.json of the checkpoint")
    heads, layers = config["num_attention_heads"], config["num_hidden_layers"]
    # Without a head_dim transformers takes 128 for Qwen3, and what the hidden size leaves each head for the others.
    head_dim = config.get("head_dim") or (128 if kind == "qwen3" else config["hidden_size"] // heads)
    biased = bool(config.get("attention_bias", False))
    gate_rows = heads if config.get("headwise_attn_output_gate") else 0
    gate_rows = heads * head_dim if config.get("elementwise_attn_output_gate") else gate_rows
    experts = config.get("num_local_experts") or config.get("num_experts") or 0
    sparse = 0
    if kind == "qwen3_moe" and experts:
        step, dense = config.get("decoder_sparse_step", 1), config.get("mlp_only_layers") or ()
        sparse = sum(i not in dense and (i + 1) % step == 0 for i in range(layers))
    return Shape(
        layers=layers,
        hidden=config["hidden_size"],
        intermediate=config.get("intermediate_size") or 0,
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=head_dim,
        vocab=config["vocab_size"],
        tied=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=kind.startswith("qwen2") or biased,
        out_bias=biased and not kind.startswith("qwen2"),
        mlp_bias=kind == "llama" and bool(config.get("mlp_bias", False)),
        qk_norm=kind.startswith("qwen3"),
        gate_rows=gate_rows,
        experts=experts,
        active=config.get("num_experts_per_tok", 0) if sparse else 0,
        expert_width=config.get("moe_intermediate_size", 0) if sparse else 0,
        sparse=sparse,
    )


def _shape(config: dict[str, Any] | Shape) -> Shape:
    return config if isinstance(config, Shape) else shape_of(config)


def added_parameters(
    layers: int, kv_heads: int, head_dim: float, hidden: float, streams: int, prefix_tokens: int = PREFIX_TOKENS
) -> int:
    """Parameters that P streams add: 2 L P K T D of prefixes and (P H H + H) + (H P + P) of the aggregator.

    One stream adds nothing. Source: the tensors of the published modelling file; the formula gives all 18 differences
    between the counts that the authors fitted with.
    """
    if streams == 1:
        return 0
    prefixes = 2 * layers * streams * kv_heads * prefix_tokens * head_dim
    return round(prefixes + streams * hidden * hidden + hidden + hidden * streams + streams)


def added_of(config: dict[str, Any] | Shape, streams: int, prefix_tokens: int = PREFIX_TOKENS) -> int:
    """`added_parameters` of a config."""
    s = _shape(config)
    return added_parameters(s.layers, s.kv_heads, s.head_dim, s.hidden, streams, prefix_tokens)


def base_parameters(config: dict[str, Any] | Shape) -> Counts:
    """Parameters of the model with one stream, counted tensor by tensor as transformers lays the family out.

    Raises:
        QwenchError: see `shape_of`.
    """
    s = _shape(config)
    h, q, kv = s.hidden, s.heads * s.head_dim, s.kv_heads * s.head_dim
    attention = h * (q + s.gate_rows + 2 * kv) + q * h
    attention += (q + s.gate_rows + 2 * kv if s.qkv_bias else 0) + (h if s.out_bias else 0)
    attention += 2 * s.head_dim if s.qk_norm else 0
    dense = 3 * h * s.intermediate + (2 * s.intermediate + h if s.mlp_bias else 0)
    expert, router = 3 * h * s.expert_width, s.experts * h
    shared = s.layers * (attention + 2 * h) + (s.layers - s.sparse) * dense + s.sparse * router + h
    table = s.vocab * h
    return Counts(
        body=round(shared + s.sparse * s.experts * expert),
        active=round(shared + s.sparse * s.active * expert),
        embedding=round(table),
        head=0 if s.tied else round(table),
    )


@dataclass(frozen=True, slots=True)
class Cost:
    """A part of a pass, as the least work that any implementation must do.

    Attributes:
        flops: floating-point operations, a multiply-add counted as two.
        bytes: moved to and from memory: weights once, keys and values, activations between matrices.
    """

    flops: float
    bytes: float

    def seconds(self, bandwidth: float, throughput: float) -> float:
        """The roofline max(flops / throughput, bytes / bandwidth)."""
        return max(self.flops / throughput, self.bytes / bandwidth)


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass in parts that run one after the other, so that no part computes while another reads.

    Attributes:
        parts: `matrices` of the layers, `attention`, `aggregator` (with more than one stream), `head`.
    """

    parts: dict[str, Cost]

    @property
    def flops(self) -> float:
        """Of all parts."""
        return sum(part.flops for part in self.parts.values())

    @property
    def bytes(self) -> float:
        """Of all parts."""
        return sum(part.bytes for part in self.parts.values())

    def seconds(self, bandwidth: float | None, throughput: float | None) -> float | None:
        """Sum of the parts' rooflines; None while either figure is unknown."""
        if not bandwidth or not throughput:
            return None
        return sum(part.seconds(bandwidth, throughput) for part in self.parts.values())


def matmul_flops(s: Shape) -> float:
    """FLOPs of the matrices of all layers for one token of one stream."""
    return 2 * base_parameters(s).active


def aggregate_flops(s: Shape, streams: int) -> float:
    """FLOPs of the aggregator for one token: 2 P H H + 2 H P + 2 P H."""
    return 0 if streams == 1 else 2 * streams * s.hidden * s.hidden + 4 * streams * s.hidden


def _weights_read(s: Shape, rows: float) -> float:
    """Parameters of the layers that `rows` tokens read: with experts, E (1 - (1 - k/E)^rows) of E are met."""
    read: float = base_parameters(s).body
    if s.sparse:
        met = s.experts * (1 - (1 - s.active / s.experts) ** rows)
        read -= s.sparse * (s.experts - met) * 3 * s.hidden * s.expert_width
    return read


def _pass(
    s: Shape,
    streams: int,
    batch: int,
    tokens: float,
    pairs: float,
    keys: float,
    between: float,
    weight_bytes: float,
    cache_bytes: float,
) -> Pass:
    """`tokens` of all rows through the layers, `pairs` of query and key, `keys` moved; aggregator and head for the last
    token of each sequence. `between`: bytes of activations of one token."""
    wide, table = s.layers * s.head_dim, s.vocab * s.hidden
    parts = {
        "matrices": Cost(tokens * matmul_flops(s), _weights_read(s, tokens) * weight_bytes + tokens * between),
        "attention": Cost(4 * pairs * s.heads * wide, 2 * keys * s.kv_heads * wide * cache_bytes),
        "head": Cost(batch * 2 * table, (table + batch * s.hidden) * weight_bytes),
    }
    if streams > 1:
        # The prefixes are counted with the keys and values.
        weights = added_parameters(0, 0, 0, s.hidden, streams)
        parts["aggregator"] = Cost(batch * aggregate_flops(s, streams), weights * weight_bytes)
    return Pass(parts)


def decode_cost(
    config: dict[str, Any] | Shape,
    streams: int,
    batch: int = 1,
    context: float = 0,
    weight_bytes: float = 2,
    cache_bytes: float = 2,
    prefix_tokens: int = PREFIX_TOKENS,
) -> Pass:
    """One decode step of `batch` sequences that hold `context` tokens each.

    bytes = weights + aggregator + language head once, and 2 L P B (T + n + 1) K D of keys and values; the P B rows
    share one read of the weights, which is why streams are nearly free until P B nears the ridge of the roofline.
    flops = 2 N P B + 4 L P B nq D (T + n) + aggregator and head for B tokens. Source: the cost model of the paper
    (`cost_analysis.py`, which adds up the rooflines of modules), with the aggregator's exact size and the prefixes
    counted.
    """
    s = _shape(config)
    seen = context + 1 + (prefix_tokens if streams > 1 else 0)
    rows = streams * batch
    return _pass(s, streams, batch, rows, rows * seen, rows * seen, 0, weight_bytes, cache_bytes)


def prefill_cost(
    config: dict[str, Any] | Shape,
    streams: int,
    batch: int = 1,
    tokens: int = 1,
    weight_bytes: float = 2,
    cache_bytes: float = 2,
    prefix_tokens: int = PREFIX_TOKENS,
) -> Pass:
    """One pass over `batch` prompts of `tokens` tokens; aggregator and head see the last token of each alone.

    flops = 2 N P B S + 4 L P B nq D (S T + S (S + 1) / 2). bytes = weights once, keys and values written, and the
    activations between matrices in 16 bits. Attention is taken as fused: its scores are never in memory.
    """
    s = _shape(config)
    prefix = prefix_tokens if streams > 1 else 0
    rows = streams * batch
    pairs = tokens * prefix + tokens * (tokens + 1) / 2
    q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
    inner = s.intermediate if not s.sparse else s.active * s.expert_width
    between = s.layers * (4 * s.hidden + 2 * q + 2 * kv + 3 * inner) * 2
    keys = rows * (tokens + prefix)
    return _pass(s, streams, batch, rows * tokens, rows * pairs, keys, between, weight_bytes, cache_bytes)


def inference_memory(
    config: dict[str, Any] | Shape,
    streams: int,
    batch: int = 1,
    tokens: int = 1,
    context: int = 0,
    weight_bytes: float = 2,
    cache_bytes: float = 2,
    prefix_tokens: int = PREFIX_TOKENS,
    all_logits: bool = False,
) -> dict[str, float]:
    """Bytes held while a prompt of `tokens` grows to `context` tokens: weights, added, cache, activations.

    memory = weights + aggregator + kv_cache(B P) + prefill activations, as in the paper's `cost_analysis.py`; here the
    prefixes count too, and only the last token of a prompt has logits, in float32; `all_logits` gives every token of
    the prompt logits of 16 bits, as that file does.
    """
    s = _shape(config)
    rows = streams * batch
    layer = max((s.heads + 2 * s.kv_heads) * s.head_dim, 2 * max(s.intermediate, s.active * s.expert_width))
    logits = batch * s.vocab * (2 * tokens if all_logits else 4)
    return {
        "weights": base_parameters(s).total * weight_bytes,
        "added": added_of(s, streams, prefix_tokens) * weight_bytes,
        "cache": 2 * s.layers * rows * (context or tokens) * s.kv_heads * s.head_dim * cache_bytes,
        "activations": max(rows * tokens * (2 * s.hidden + layer) * 2, logits),
    }
