"""What is measured: for every kernel its inputs, and how many operations and bytes it cannot do without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .shapes import Shape

if TYPE_CHECKING:
    from torch import Generator, dtype

#: tokens of a ParScale prefix, as published
PREFIX = 48
EPS, SMOOTH = 1e-6, 0.1


@dataclass(frozen=True, slots=True)
class Size:
    """One point of the sweeps: sequences, tokens of each (or of its cache), ParScale streams."""

    batch: int
    seq: int
    streams: int


@dataclass(frozen=True, slots=True)
class Case:
    """A kernel at one size.

    Attributes:
        function: its name in eager.py and its sisters.
        make: (random tensor maker) -> arguments.
        flops, bytes: the least work; `model` says how they were counted.
    """

    kernel: str
    function: str
    size: Size
    make: Callable[[Make], tuple[Any, ...]]
    flops: int
    bytes: int
    model: str


class Make:
    """Random tensors of one dtype on one device."""

    def __init__(self, kind: dtype, device: str, seed: int) -> None:
        import torch

        self.kind, self.device = kind, device
        self._made: Generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, scale: float = 1.0) -> Any:
        """Normal values times a scale."""
        import torch

        return (torch.randn(shape, generator=self._made) * scale).to(self.device, self.kind)


def _rms(s: Shape, z: Size, b: int) -> Case:
    t, h = z.batch * z.seq, s.hidden
    return Case(
        "rms_norm", "rms_norm", z, lambda m: (m(t, h), m(h), EPS), 4 * t * h, 2 * t * h * b + h * b,
        "4 T H FLOP; x read, y written, weight read: (2 T H + H) b",
    )  # fmt: skip


def _add_rms(s: Shape, z: Size, b: int) -> Case:
    t, h = z.batch * z.seq, s.hidden
    return Case(
        "add_rms_norm", "add_rms_norm", z, lambda m: (m(t, h), m(t, h), m(h), EPS), 5 * t * h, 4 * t * h * b + h * b,
        "5 T H FLOP; x and residual read, sum and norm written: (4 T H + H) b",
    )  # fmt: skip


def _rope(s: Shape, z: Size, b: int) -> Case:
    t, heads, d = z.batch * z.seq, s.heads + s.kv_heads, s.width

    def make(m: Make) -> tuple[Any, ...]:
        import torch

        half = m(t, 1, d // 2)
        cos, sin = half.cos(), half.sin()
        return m(t, heads, d), m(heads, d), EPS, torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)

    return Case(
        "qk_norm_rope", "norm_rotate", z, make, 7 * t * heads * d, (2 * t * heads * d + 2 * t * d + heads * d) * b,
        "7 T (nq + K) D FLOP; q and k read and written, cos and sin read: (2 T (nq + K) D + 2 T D + weights) b",
    )  # fmt: skip


def _swiglu(s: Shape, z: Size, b: int) -> Case:
    t, i = z.batch * z.seq, s.inner
    return Case(
        "swiglu", "silu_mul", z, lambda m: (m(t, 2 * i),), 5 * t * i, 3 * t * i * b,
        "5 T I FLOP; gate and up read, product written: 3 T I b",
    )  # fmt: skip


def _gate(s: Shape, z: Size, b: int, elementwise: bool) -> Case:
    t, n = z.batch * z.seq, s.heads * s.width
    gates = n if elementwise else s.heads
    return Case(
        "gate_elementwise" if elementwise else "gate_headwise", "gated", z,
        lambda m: (m(t, n), m(t, gates), s.heads), (5 if elementwise else 1) * t * n, (2 * t * n + t * gates) * b,
        f"{'5' if elementwise else '1'} T nq D FLOP; y read and written, gates read: (2 T nq D + T gates) b",
    )  # fmt: skip


def _attention(s: Shape, z: Size, b: int) -> Case:
    n, d = z.seq, s.width
    pairs = z.batch * s.heads * n * (n + 1) // 2
    moved = z.batch * n * d * (3 * s.heads + 2 * s.kv_heads)
    return Case(
        "gated_attention", "gated_attention", z,
        lambda m: (m(z.batch, s.heads, n, d), m(z.batch, s.kv_heads, n, d), m(z.batch, s.kv_heads, n, d),
                   m(z.batch * n, s.heads * d)),
        4 * pairs * d, moved * b,
        "4 D FLOP a pair of a query and a key it sees; q, gate, k, v read, y written: B S D (3 nq + 2 K) b",
    )  # fmt: skip


def _decode(s: Shape, z: Size, b: int) -> Case:
    rows, n, d = z.batch, z.seq, s.width
    return Case(
        "decode_attention", "decode_attention", z,
        lambda m: (m(rows, s.heads, d), m(rows, s.kv_heads, n, d), m(rows, s.kv_heads, n, d), [n] * rows),
        4 * rows * s.heads * n * d, (2 * rows * n * s.kv_heads * d + 2 * rows * s.heads * d) * b,
        "4 B nq n D FLOP; keys and values read once a group, q read, y written: (2 B n K D + 2 B nq D) b",
    )  # fmt: skip


def _prefix(s: Shape, z: Size, b: int) -> Case:
    rows, n, d = z.batch * z.streams, z.seq, s.width
    shared = 2 * z.streams * s.kv_heads * PREFIX * d
    return Case(
        "prefix_attention", "prefix_attention", z,
        lambda m: (m(rows, s.heads, d), m(rows, s.kv_heads, n, d), m(rows, s.kv_heads, n, d), [n] * rows,
                   m(z.streams, s.kv_heads, PREFIX, d), m(z.streams, s.kv_heads, PREFIX, d)),
        4 * rows * s.heads * (n + PREFIX) * d,
        (2 * rows * n * s.kv_heads * d + shared + 2 * rows * s.heads * d) * b,
        "4 P B nq (T + n) D FLOP; own keys and values, the prefix once a stream: "
        "(2 P B n K D + 2 P T K D + 2 P B nq D) b",
    )  # fmt: skip


def _aggregate(s: Shape, z: Size, b: int) -> Case:
    p, t, h = z.streams, z.batch, s.hidden
    return Case(
        "parscale_aggregate", "aggregate", z,
        lambda m: (m(t, p, h), m(h, p * h, scale=(p * h) ** -0.5), m(h), m(p, h, scale=h**-0.5), m(p), SMOOTH),
        2 * t * p * h * h + 4 * t * p * h, (p * h * h + p * h + p * t * h + t * h) * b,
        "2 T P H H + 4 T P H FLOP; weights read once, streams read once, sum written: (P H H + P H + P T H + T H) b",
    )  # fmt: skip


def _head(s: Shape, z: Size, b: int) -> Case:
    n, h = z.batch, s.hidden
    return Case(
        "rerank_head", "two_rows", z, lambda m: (m(n, h), m(2, h, scale=h**-0.5)), 4 * n * h, (n * h + 2 * h + n) * b,
        "4 n H FLOP; hidden states and two rows read: (n H + 2 H + n) b",
    )  # fmt: skip


def _linear(s: Shape, z: Size, b: int) -> Case:
    rows, k, n = z.batch * z.streams, s.hidden, 2 * s.inner
    return Case(
        "decode_product", "linear", z, lambda m: (m(rows, k), m(n, k, scale=k**-0.5)),
        2 * rows * k * n, (n * k + rows * k + rows * n) * b,
        "the largest product of a decode step, P B rows: 2 P B H 2I FLOP; weights read once: (2 I H + P B (H + 2 I)) b",
    )  # fmt: skip


#: kernel -> (maker, the sweeps it depends on)
KERNELS: dict[str, tuple[Callable[[Shape, Size, int], Case], str]] = {
    "rms_norm": (_rms, "batch seq"),
    "add_rms_norm": (_add_rms, "batch seq"),
    "qk_norm_rope": (_rope, "batch seq"),
    "swiglu": (_swiglu, "batch seq"),
    "gate_elementwise": (lambda s, z, b: _gate(s, z, b, True), "batch seq"),
    "gate_headwise": (lambda s, z, b: _gate(s, z, b, False), "batch seq"),
    "gated_attention": (_attention, "batch seq"),
    "decode_attention": (_decode, "batch seq"),
    "prefix_attention": (_prefix, "batch seq streams"),
    "parscale_aggregate": (_aggregate, "batch streams"),
    "rerank_head": (_head, "batch"),
    "decode_product": (_linear, "batch streams"),
}


def cases(names: list[str], shape: Shape, itemsize: int, sweeps: dict[str, list[int]]) -> list[Case]:
    """Every kernel at every size it depends on; what it does not depend on stays at its first value."""
    found = []
    for name in names:
        maker, axes = KERNELS[name]
        values = {a: v if a in axes else ([1] if a == "streams" else v[:1]) for a, v in sweeps.items()}
        found += [
            maker(shape, Size(batch, seq, streams), itemsize)
            for batch in values["batch"]
            for seq in values["seq"]
            for streams in values["streams"]
        ]
    return found
