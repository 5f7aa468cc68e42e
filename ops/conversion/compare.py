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
        scale = max(scale, _scale(p))
    one.reader.release(a)
    two.reader.release(b)
    relative = most / scale if scale else most
    if most > 0 and relative > tolerance:
        return {"kind": "values", "largest": most, "relative": relative, "a": first.dtype, "b": second.dtype}
    if first.dtype != second.dtype and tolerance == 0:
        return {"kind": "dtype", "a": first.dtype, "b": second.dtype, "largest": most}
    return {"kind": "equal"}


def _scale(p: Tensor) -> float:
    """Largest finite magnitude."""
    import torch

    wide = _wide(p).abs()
    return wide[torch.isfinite(wide)].max().item() if torch.isfinite(wide).any() else 0.0


def _wide(p: Tensor) -> Tensor:
    """float64, of complex numbers both parts."""
    import torch

    return (torch.view_as_real(p).reshape(-1) if p.is_complex() else p).double()


def _largest(p: Tensor, q: Tensor) -> float:
    """Largest absolute difference; NaN and infinities on one side alone are infinitely far.

    Whole numbers of one dtype are told apart to the last, which float64 would not do above 2**53.
    """
    import torch

    x, y = _wide(p), _wide(q)
    if x.shape != y.shape:
        return float("inf")
    equal = (x == y) | (torch.isnan(x) & torch.isnan(y))
    gap = torch.where(equal, torch.zeros_like(x), (x - y).abs())
    most = torch.nan_to_num(gap, nan=float("inf"), posinf=float("inf")).max().item()
    if most == 0 and p.dtype == q.dtype and not (p.is_floating_point() or p.is_complex()):
        # Their bits differ, and the difference is too small beside them for float64.
        return 1.0
    return most
