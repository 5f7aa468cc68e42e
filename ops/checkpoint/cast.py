"""Casts piece by piece, with an account of what they lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .tensors import torch_dtype

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from .plan import Output

#: elements in a piece: small enough that all passes over it stay in the cache
PIECE = 1 << 20
#: casts that lose nothing
EXACT = {("bfloat16", "float32"), ("float16", "float32")} | {
    (name, "float64") for name in ("bfloat16", "float16", "float32")
}


@dataclass(slots=True)
class Losses:
    """What casts did to values, added up over pieces; safe to share between threads.

    Attributes:
        overflow: finite values that became infinite or NaN, by tensor.
        underflow: values that became zero, by tensor.
        largest: largest absolute error, and the tensor it is in.
        nan: tensors that hold NaN.
    """

    overflow: dict[str, int] = field(default_factory=dict)
    underflow: dict[str, int] = field(default_factory=dict)
    largest: tuple[float, str] = (0.0, "")
    nan: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def seen(self, name: str, before: Tensor, after: Tensor | None) -> None:
        """Look at a piece before and after its cast (None: none was made)."""
        import torch

        if not torch.isfinite(before.sum(dtype=torch.float32)) and torch.isnan(before).any():
            with self._lock:
                self.nan.add(name)
        if after is None:
            return
        error = (before.float() - after.float()).abs_().max().item()
        lost = int(torch.count_nonzero(before) - torch.count_nonzero(after))
        over = 0
        if not error < float("inf"):
            over = int((~torch.isfinite(after) & torch.isfinite(before)).sum())
            finite = torch.isfinite(after) & torch.isfinite(before)
            error = (before.float() - after.float())[finite].abs().max().item() if finite.any() else 0.0
        with self._lock:
            if over:
                self.overflow[name] = self.overflow.get(name, 0) + over
            if lost > 0:
                self.underflow[name] = self.underflow.get(name, 0) + lost
            if error > self.largest[0]:
                self.largest = (error, name)

    def whole(self, output: Output) -> bool:
        """No NaN was seen in it; one with NaN is not journalled, so that a resumed run meets it again."""
        return self.nan.isdisjoint((output.name, *output.sources))

    def __bool__(self) -> bool:
        """Something was lost."""
        return bool(self.overflow or self.underflow or self.largest[0])

    def report(self) -> dict[str, object]:
        """JSON-able."""
        return {
            "overflow": sum(self.overflow.values()),
            "underflow": sum(self.underflow.values()),
            "largest_error": self.largest[0],
            "largest_error_tensor": self.largest[1] or None,
        }


def pieces(name: str, tensor: Tensor, dtype: str, losses: Losses | None = None) -> Iterator[Tensor]:
    """The flattened tensor in `dtype`, piece by piece; `losses` is told of each."""
    flat, target = tensor.reshape(-1), torch_dtype(dtype)
    own = str(tensor.dtype).removeprefix("torch.")
    for at in range(0, flat.numel(), PIECE):
        piece = flat[at : at + PIECE]
        cast = piece.to(target)
        if losses is not None and piece.is_floating_point() and piece.element_size() > 1:
            losses.seen(name, piece, None if own == dtype or (own, dtype) in EXACT else cast)
        yield cast


def as_bytes(piece: Tensor) -> memoryview:
    """A contiguous piece's bytes, not copied."""
    import torch

    return memoryview(piece.contiguous().view(torch.uint8).numpy())


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal to the bit, NaN included."""
    import torch

    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return bool(torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8)))
