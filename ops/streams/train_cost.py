"""What training a ParScale model costs: operations, bytes and time, by arithmetic alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..base.errors import QwenchError
from .size import (
    GRADIENT,
    MOMENTS,
    PREFIX_TOKENS,
    TRAINED,
    Shape,
    added_of,
    aggregate_flops,
    base_parameters,
    matmul_flops,
    shape_of,
)


@dataclass(frozen=True, slots=True)
class TrainingCost:
    """An estimate; the activations are those of eager PyTorch with fused attention.

    Attributes:
        flops: of the whole run.
        flops_base: of the same tokens through one stream, trained the same way (all parameters).
        trained, frozen: parameters.
        weights, gradients, optimizer, activations, logits: bytes held at the peak.
    """

    flops: float
    flops_base: float
    trained: int
    frozen: int
    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float

    @property
    def memory(self) -> float:
        """Bytes at the peak."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits

    def seconds(self, throughput: float | None) -> float | None:
        """Time at `throughput` FLOP/s, measured or given; None while it is unknown."""
        return self.flops / throughput if throughput else None


def training_cost(
    config: dict[str, Any] | Shape,
    streams: int,
    tokens: int,
    trained: str,
    seq_len: int,
    batch: int,
    dtype_bytes: float = 2,
    checkpointing: bool = False,
    prefix_tokens: int = PREFIX_TOKENS,
) -> TrainingCost:
    """Cost of training on `tokens` tokens in sequences of `seq_len`, `batch` of them in one pass.

    The layers run P times a token, the language head once. A backward pass through frozen weights computes gradients of
    activations alone, one more forward; trained weights take another. Products of attention have two activations as
    their factors, so that their backward is two forwards either way. Checkpointing adds one forward of the layers.
    Trained parameters are kept in float32 with their gradients and AdamW's moments, frozen ones in `dtype_bytes`.

    Args:
        trained: `added` (prefixes and aggregator) or `all`.
        batch: sequences in one pass, before the streams multiply them.

    Raises:
        QwenchError: another word for `trained`, or see `shape_of`.
    """
    if trained not in ("added", "all"):
        raise QwenchError(f"unknown choice of what is trained: `{trained}`", "use added or all", code=2)
    s = config if isinstance(config, Shape) else shape_of(config)
    counts, added = base_parameters(s), added_of(s, streams, prefix_tokens)
    learned = added if trained == "added" else added + counts.total
    frozen = counts.total + added - learned
    per_token = _flops(s, streams, seq_len, trained == "all", checkpointing, prefix_tokens)
    rows = batch * seq_len
    kept = _kept(s, trained == "all", dtype_bytes)
    layers = s.layers * s.hidden * dtype_bytes + kept if checkpointing else s.layers * kept
    # The aggregator keeps the streams' outputs, in their own dtype and for the weighted sum in float32.
    aggregator = rows * streams * s.hidden * (2 * dtype_bytes + 4) if streams > 1 else 0
    return TrainingCost(
        flops=tokens * per_token,
        flops_base=tokens * _flops(s, 1, seq_len, True, checkpointing, 0),
        trained=learned,
        frozen=frozen,
        weights=frozen * dtype_bytes + learned * TRAINED,
        gradients=learned * GRADIENT,
        optimizer=learned * MOMENTS,
        activations=rows * streams * layers + aggregator,
        # Logits in the model's dtype, in float32, and the gradient of these.
        logits=rows * s.vocab * (dtype_bytes + 8),
    )


def _flops(s: Shape, streams: int, seq_len: int, everything: bool, checkpointing: bool, prefix_tokens: int) -> float:
    """FLOPs of forward and backward for one token of text."""
    matrices = streams * matmul_flops(s)
    seen = (seq_len + 1) / 2 + (prefix_tokens if streams > 1 else 0)
    attention = streams * 4 * s.layers * s.heads * s.head_dim * seen
    head = 2 * s.vocab * s.hidden
    aggregator = aggregate_flops(s, streams)
    again = matrices + attention if checkpointing else 0
    return (3 if everything else 2) * (matrices + head) + 3 * (attention + aggregator) + again


def _kept(s: Shape, everything: bool, dtype_bytes: float) -> float:
    """Bytes one layer keeps for its backward pass, for one token of one stream.

    A frozen matrix needs no input for its backward pass, a trained one keeps it. Norms keep their inputs in float32,
    trained ones what they scale too; attention keeps queries, keys, values and output, the MLP the two factors of its
    product and the argument of its sigmoid.
    """
    q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
    inner = s.intermediate if not s.sparse else s.active * s.expert_width
    norms = 2 * s.hidden + (q + kv if s.qk_norm else 0)
    mine = 2 * q + 2 * kv + 3 * inner + (2 * s.hidden + inner + norms if everything else 0)
    return 4 * norms + dtype_bytes * mine
