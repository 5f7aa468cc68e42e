"""Two checkpoints, tensor by tensor: the work behind `qwench diff`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .checkpoint.cast import PIECE, same_bits
from .checkpoint.layout import layout_of, renamed
from .checkpoint.reader import Source
from .events import Advanced, Chose, Events, Finished, Produced, Started
from .models.hub import open_source

if TYPE_CHECKING:
    from torch import Tensor


def diff(a: str, b: str, tolerance: float = 0.0, offline: bool = False) -> Events:
    """Compare names, shapes, dtypes and values.

    Where one layout is flat and the other prefixed, names are compared without the prefix. Yields Produced for every
    difference (name, kind: only_a | only_b | shape | dtype | values, and for values largest absolute and relative
    difference), then Finished with counts and `same`. Values differ when their relative difference
    |a - b|_max / |a|_max is above `tolerance`; dtypes alone are no difference when a tolerance is given.

    Raises:
        QwenchError: one of them is no checkpoint, or damaged.
    """
    one, two = open_source(a, None, offline), open_source(b, None, offline)
    layouts = layout_of(one.infos), layout_of(two.infos)
    bare = None not in layouts and layouts[0] != layouts[1]
    if bare:
        yield Chose("names", "bare", f"`{a}` is {layouts[0]} and `{b}` {layouts[1]}")
    left, right = ({renamed(n, "flat") if bare else n: n for n in s.infos} for s in (one, two))
    shared = [n for n in left if n in right]
    counts = {"equal": 0, "only_a": 0, "only_b": 0, "shape": 0, "dtype": 0, "values": 0}
    for kind, names in (
        ("only_a", [n for n in left if n not in right]),
        ("only_b", [n for n in right if n not in left]),
    ):
        for name in names:
            counts[kind] += 1
            yield Produced({"name": name, "kind": kind})
    yield Started("compare", sum(one.infos[left[n]].nbytes for n in shared), "B")
    for name in shared:
        found = _compare(one, left[name], two, right[name], tolerance)
        counts[found["kind"]] += 1
        if found["kind"] != "equal":
            yield Produced({"name": name, **found})
        yield Advanced("compare", one.infos[left[name]].nbytes)
    same = sum(counts.values()) == counts["equal"]
    yield Finished({"schema": 1, "a": a, "b": b, "tolerance": tolerance, **counts, "same": same})


def _compare(one: Source, a: str, two: Source, b: str, tolerance: float) -> dict[str, Any]:
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
