"""One tensor of two checkpoints, value by value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..checkpoint.cast import PIECE, same_bits
from ..checkpoint.reader import Source

if TYPE_CHECKING:
    from torch import Tensor


def compare_tensor(one: Source, a: str, two: Source, b: str, tolerance: float) -> dict[str, Any]:
    """How a tensor of one checkpoint differs from one of another: kind and what goes with it, see `qwench diff`."""
    first, second = one.infos[a], two.infos[b]
    if first.shape != second.shape:
        return {"kind": "shape", "a": list(first.shape), "b": list(second.shape)}
    x, y = one.reader.load(a).reshape(-1), two.reader.load(b).reshape(-1)
    most, scale = 0.0, 0.0
    for at in range(0, x.numel(), PIECE):
        p, q = x[at : at + PIECE], y[at : at + PIECE]
        if not same_bits(p, q):
            most = max(most, _largest(p, q))
        scale = max(scale, p.double().abs().max().item() if p.numel() else 0.0)
    one.reader.release(a)
    two.reader.release(b)
    relative = most / scale if scale else most
    if most > 0 and relative > tolerance:
        return {"kind": "values", "largest": most, "relative": relative, "a": first.dtype, "b": second.dtype}
    if first.dtype != second.dtype and tolerance == 0:
        return {"kind": "dtype", "a": first.dtype, "b": second.dtype, "largest": most}
    return {"kind": "equal"}


def _largest(p: Tensor, q: Tensor) -> float:
    """Largest absolute difference; NaN and infinities on one side alone are infinitely far."""
    import torch

    p, q = p.double(), q.double()
    equal = (p == q) | (torch.isnan(p) & torch.isnan(q))
    gap = torch.where(equal, torch.zeros_like(p), (p - q).abs())
    return torch.nan_to_num(gap, nan=float("inf")).max().item()
