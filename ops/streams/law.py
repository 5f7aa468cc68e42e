"""The parallel scaling law L = E + (A / (N (k ln P + 1)))^alpha: constants, published points, predictions.

Source: arXiv 2505.10475, equation 5 and the authors' `parametric_fit.py`. N counts all parameters but embeddings,
with those of the streams. The constants hold for models trained from scratch on 42 B tokens of their corpus.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log

from ..base.errors import QwenchError
from .size import Shape, added_of, base_parameters

STREAMS = (1, 2, 4, 8)
#: (hidden, intermediate) of the published sizes: 36 layers, 16 query and 2 key-value heads, Qwen2's biases
SIZES = {
    "0.5B": (896, 4864),
    "0.7B": (1024, 5504),
    "1.1B": (1280, 6912),
    "1.6B": (1536, 8320),
    "2.8B": (2048, 11008),
    "4.4B": (2560, 13824),
}
#: corpus -> one row for each of STREAMS, one loss for each of SIZES
LOSSES = {
    "stack": (
        (1.1722, 1.1496, 1.1131, 1.0817, 1.0451, 1.0213),
        (1.1507, 1.1262, 1.0940, 1.0623, 1.0244, 1.0025),
        (1.1354, 1.1124, 1.0808, 1.0490, 1.0126, 0.9906),
        (1.1231, 1.0997, 1.0688, 1.0383, 1.0016, 0.9794),
    ),
    "pile": (
        (2.1113, 2.0671, 2.0027, 1.9539, 1.8876, 1.8451),
        (2.0772, 2.0363, 1.9730, 1.9266, 1.8610, 1.8137),
        (2.0544, 2.0128, 1.9509, 1.9040, 1.8394, 1.7938),
        (2.0364, 1.9933, 1.9318, 1.8856, 1.8218, 1.7772),
    ),
}
CORPORA = {"stack": "Stack-V2-Python", "pile": "Pile"}


@dataclass(frozen=True, slots=True)
class Point:
    """A trained model: N without embeddings and with what the streams add, its streams, its loss."""

    parameters: float
    streams: int
    loss: float


@dataclass(frozen=True, slots=True)
class Law:
    """The four constants; the loss is in nats a token."""

    E: float
    A: float
    k: float
    alpha: float

    def multiplier(self, streams: int) -> float:
        """What P streams are worth: N parameters act as N (k ln P + 1)."""
        return self.k * log(streams) + 1

    def loss(self, parameters: float, streams: int) -> float:
        """Predicted loss of N parameters, those of the streams included."""
        return self.E + (self.A / (parameters * self.multiplier(streams))) ** self.alpha

    def equivalent(self, parameters: float, streams: int) -> float:
        """Parameters of the model with one stream that reaches the same loss."""
        return parameters * self.multiplier(streams)

    def parameters_for(self, loss: float, streams: int = 1) -> float:
        """Parameters that reach a loss.

        Raises:
            QwenchError: the loss is not above E, which no size reaches.
        """
        if loss <= self.E:
            raise QwenchError(f"no size reaches a loss of {loss:g}: the law ends at {self.E:g}")
        return self.A / (loss - self.E) ** (1 / self.alpha) / self.multiplier(streams)


#: the authors' fit of each corpus
PUBLISHED = {
    "stack": Law(0.6912, 1.131e7, 0.3935, 0.1894),
    "pile": Law(1.2888, 1.974e8, 0.3345, 0.1963),
}


def published_shape(hidden: float, intermediate: float) -> Shape:
    """A model of the family that the law was fitted on."""
    return Shape(36, hidden, intermediate, 16, 2, hidden / 16, 151936, qkv_bias=True)


def published_points(corpus: str) -> list[Point]:
    """The 24 points of a corpus (`stack` or `pile`), N counted from the shapes.

    Raises:
        QwenchError: another corpus.
    """
    if corpus not in LOSSES:
        raise QwenchError(f"no points are known of this corpus: `{corpus}`", f"use {', '.join(LOSSES)}", code=2)
    found = []
    for streams, row in zip(STREAMS, LOSSES[corpus], strict=True):
        for size, loss in zip(SIZES.values(), row, strict=True):
            shape = published_shape(*size)
            found.append(Point(base_parameters(shape).body + added_of(shape, streams), streams, loss))
    return found


def shape_for(parameters: float, like: Shape | None = None) -> Shape:
    """A shape of so many parameters without embeddings: `like` (or the published 1.6B) made wider or narrower."""
    like = like or published_shape(*SIZES["1.6B"])
    low, high = 1e-4, 1e4
    for _ in range(100):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if base_parameters(like.scaled(middle)).body < parameters else (low, middle)
    return like.scaled(high)
