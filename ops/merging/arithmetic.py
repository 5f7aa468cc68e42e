"""The arithmetic of one tensor, piece by piece: what can stream streams, the rest is mergekit's own function.

Inputs are flat views of mapped files in their stored dtype; arithmetic is float32, float64 where an input is.
"""

from __future__ import annotations

import math
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..base.errors import QwenchError
from .methods import ELEMENTWISE, RANDOM
from .ties import ties

if TYPE_CHECKING:
    import torch
    from mergekit.merge_methods.base import MergeMethod
    from torch import Tensor

#: elements of a piece: copies of it stay in the cache, and its operations outlast a wait for the interpreter's lock
STEP = 1 << 17
_random = threading.Lock()


@dataclass(frozen=True, slots=True)
class Job:
    """One tensor to be merged.

    Attributes:
        name: as the output calls it.
        models: names of the inputs, in order.
        base: number of the base among them, None for none.
        parameters: as `methods.bind` gives them.
        dtype: of the arithmetic.
        seed: of the random numbers, with the name.
        fold: sequential or tree for methods of two models, None for none.
    """

    method: MergeMethod
    name: str
    models: tuple[str, ...]
    base: int | None
    parameters: dict[str, Any]
    dtype: torch.dtype
    seed: int = 0
    fold: str | None = None

    @property
    def streams(self) -> bool:
        """No whole tensor is held in the dtype of the arithmetic."""
        kind = self.method.spec.name
        return kind in ELEMENTWISE or (kind == "slerp" and not self.fold) or _fast_ties(self)

    def run(self, tensors: list[Tensor]) -> Iterator[Tensor]:
        """Pieces of the result in `dtype`, in order, flat; `tensors` share a shape."""
        flat = [t.reshape(-1) for t in tensors]
        kind = self.method.spec.name
        if kind == "slerp" and self.fold:
            yield from _folded(self, flat)
        elif kind == "slerp":
            base = self.base or 0
            yield from slerp(flat[base], flat[1 - base], self.parameters["t"], self.dtype)
        elif _fast_ties(self):
            yield from _ties(self, flat)
        elif kind == "linear":
            yield from linear(self, flat)
        elif kind in ELEMENTWISE:
            for at in range(0, flat[0].numel(), STEP):
                yield self._mergekit([t[at : at + STEP] for t in flat])
        else:
            yield self._mergekit(tensors).reshape(-1)

    def _mergekit(self, tensors: list[Tensor]) -> Tensor:
        import torch
        from mergekit.merge_methods.api import merge_tensors

        def merge() -> Tensor:
            try:
                return merge_tensors(
                    tensors,
                    self.method,
                    parameters=self.parameters,
                    ids=self.models,
                    base_index=self.base,
                    name=self.name,
                    dtype=self.dtype,
                )
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, ValueError) as error:
                # Ranges of parameters, such as a density of 2, are the method's own business.
                line = " ".join(str(error).split())[:200]
                kind = self.method.spec.name
                raise QwenchError(f"`{kind}` cannot merge `{self.name}` with these parameters: {line}") from error

        with torch.inference_mode():
            if self.method.spec.name not in RANDOM:
                return merge()
            # Seeded by the name, so that neither order nor threads nor a resumed run change the result.
            with _random:
                torch.manual_seed(self.seed ^ zlib.crc32(self.name.encode()))
                return merge()


def linear(job: Job, flat: list[Tensor]) -> Iterator[Tensor]:
    """Weighted sum, over the sum of weights when normalised (arXiv 2203.05482); mergekit's operations in its order."""
    import torch

    weights = torch.tensor([job.parameters["weight"][m] for m in job.models], dtype=job.dtype)
    for at in range(0, flat[0].numel(), STEP):
        first = flat[0][at : at + STEP]
        result = torch.zeros(first.shape, dtype=job.dtype)
        for tensor, weight in zip(flat, weights, strict=True):
            result.addcmul_(tensor[at : at + STEP].to(job.dtype), weight)
        yield result.div_(weights.sum()) if job.parameters["normalize"] else result


def slerp(a: Tensor, b: Tensor, t: float, dtype: torch.dtype) -> Iterator[Tensor]:
    """Spherical interpolation of the un-normalised vectors; linear where they are nearly parallel (|cos| > 0.9995).

    All of it is float64, so that nothing is rounded before the cast.
    t = 0 and t = 1 are a and b to the bit.
    """
    import torch

    if t in (0, 1):
        source = b if t else a
        for at in range(0, source.numel(), STEP):
            yield source[at : at + STEP].to(dtype)
        return
    aa = bb = ab = 0.0
    for at in range(0, a.numel(), STEP):
        # Copies: the sums of a product depend on how its operands lie in memory, and files place tensors differently.
        x, y = (v[at : at + STEP].to(torch.float64, copy=True) for v in (a, b))
        aa, bb, ab = aa + float(x.dot(x)), bb + float(y.dot(y)), ab + float(x.dot(y))
    ca, cb = coefficients(aa, bb, ab, t)
    for at in range(0, a.numel(), STEP):
        # Not in place: where no cast is needed the piece is the mapped file itself.
        yield torch.mul(a[at : at + STEP].double(), ca).add_(b[at : at + STEP].double(), alpha=cb)


def coefficients(aa: float, bb: float, ab: float, t: float) -> tuple[float, float]:
    """Factors of a and b, from their squared norms and product."""
    norms = [math.sqrt(s) if math.sqrt(s) > 1e-8 else 1.0 for s in (aa, bb)]
    cosine = max(-1.0, min(1.0, ab / norms[0] / norms[1])) if math.isfinite(aa + bb) else math.nan
    if not abs(cosine) <= 0.9995:
        return 1 - t, t
    theta = math.acos(cosine)
    if not math.isfinite((1 - t) * theta):
        return math.nan, math.nan
    return math.sin((1 - t) * theta) / math.sin(theta), math.sin(t * theta) / math.sin(theta)


def _folded(job: Job, flat: list[Tensor]) -> Iterator[Tensor]:
    """More than two models, pair by pair: each result counts with the weight of all that went into it."""
    import torch

    weights = job.parameters.get("weight") or {}
    parts = [(t, float(weights.get(m, 1.0))) for m, t in zip(job.models, flat, strict=True)]

    def pair(left: tuple[Tensor, float], right: tuple[Tensor, float]) -> tuple[Tensor, float]:
        total = left[1] + right[1]
        merged = torch.empty(flat[0].shape, dtype=job.dtype)
        at = 0
        for piece in slerp(left[0], right[0], right[1] / total if total else 0.5, job.dtype):
            merged[at : at + len(piece)] = piece
            at += len(piece)
        return merged, total

    while len(parts) > 1:
        if job.fold == "sequential":
            parts = [pair(parts[0], parts[1]), *parts[2:]]
        else:
            pairs = [pair(*parts[i : i + 2]) for i in range(0, len(parts) - 1, 2)]
            parts = pairs + parts[len(parts) - len(parts) % 2 :]
    yield parts[0][0].to(job.dtype)


def _fast_ties(job: Job) -> bool:
    import torch

    return job.method.spec.name == "ties" and not job.parameters["rescale"] and job.dtype == torch.float32


def _ties(job: Job, flat: list[Tensor]) -> Iterator[Tensor]:
    assert job.base is not None
    base, p = flat[job.base], job.parameters
    others = [(m, t) for i, (m, t) in enumerate(zip(job.models, flat, strict=True)) if i != job.base]
    if not others:
        for at in range(0, base.numel(), STEP):
            yield base[at : at + STEP].to(job.dtype)
        return
    names = [m for m, _ in others]
    weight, density = ([p[key][m] for m in names] for key in ("weight", "density"))
    yield from ties(base, [t for _, t in others], weight, density, p)
