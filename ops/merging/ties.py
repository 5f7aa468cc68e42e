"""TIES (arXiv 2306.01708) without a sort and in bounded memory, with mergekit's result to the bit.

Among equal magnitudes at the threshold the first stay; mergekit leaves that to its sort, which is not stable.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

#: elements of a piece, as in kernels
STEP = 1 << 17
#: most values a threshold is guessed from, and the most that are kept to find it among
SAMPLE, KEPT = 1 << 16, 1 << 23


def ties(
    base: Tensor, others: list[Tensor], weight: list[float], density: list[float], shared: dict[str, Any]
) -> Iterator[Tensor]:
    """Trim, elect signs, mean of those that agree; float32 pieces of the flat result, in order.

    Args:
        base, others: flat, in their stored dtype.
        weight, density: of each of `others`.
        shared: normalize and lambda.
    """
    import torch

    cuts = [Cut.of(base, t, d) for t, d in zip(others, density, strict=True)]
    weights = torch.tensor(weight, dtype=torch.float32)
    for at in range(0, base.numel(), STEP):
        origin = base[at : at + STEP].float()
        deltas = [c.trim(t[at : at + STEP].float().sub(origin)) for t, c in zip(others, cuts, strict=True)]
        # A product with a tiny weight may vanish, and its sign with it.
        if len(deltas) == 1 and weights.abs().min() > 1e-3:
            mixed = deltas[0].mul(weights)
            mixed = mixed.div_(weights) if shared["normalize"] else mixed
        else:
            mixed = _elected(torch.stack(deltas), weights, shared["normalize"])
        if shared["lambda"] != 1:
            mixed *= shared["lambda"]
        yield mixed.add_(origin)


def _elected(deltas: Tensor, weights: Tensor, normalize: bool) -> Tensor:
    """Sum, or mean by weight, of the differences that have the sign of the weighted sum; `deltas` is overwritten."""
    import torch

    deltas.mul_(weights[:, None])
    positive = deltas.sum(dim=0) >= 0
    mask = torch.where(positive, deltas > 0, deltas < 0).to(deltas.dtype)
    # A product, not a choice: what is not finite must come through and be refused.
    mixed = deltas.mul_(mask).sum(dim=0)
    if normalize:
        divisor = mask.mul_(weights[:, None]).sum(dim=0)
        mixed /= divisor.masked_fill_(divisor == 0, 1)
    return mixed


@dataclass(slots=True)
class Cut:
    """Which values of a difference stay: all above a magnitude, and the first `equal` of the `total` that equal it."""

    least: float
    equal: int = 0
    total: int = 0
    every: bool = False
    none: bool = False

    @classmethod
    def of(cls, base: Tensor, tensor: Tensor, density: float) -> Cut:
        """The exact rank of the `density` largest magnitudes."""
        count = base.numel()
        if density >= 1:
            return cls(0.0, every=True)
        if density <= 0 or count == 0:
            return cls(0.0, none=True)
        wanted = max(1, int(density * count))
        return cls(*(_bracketed(base, tensor, wanted) or _counted(base, tensor, wanted)))

    def trim(self, row: Tensor) -> Tensor:
        """Zero where a value goes, NaN where it was; pieces of one tensor must come in order."""
        import numpy as np
        import torch
        from torch.nn.functional import hardshrink

        if self.every:
            return row
        if self.none:
            return row * 0
        if self.least and self.equal == self.total:
            return hardshrink(row, float(np.nextafter(np.float32(self.least), np.float32(0))))
        if not self.least or not self.equal:
            return hardshrink(row, self.least)
        same = np.flatnonzero(np.abs(row.numpy()) == self.least)[: self.equal]
        self.equal -= len(same)
        at = torch.from_numpy(same)
        return hardshrink(row, self.least).index_put_((at,), row[at])


def _sizes(base: Tensor, tensor: Tensor) -> np.ndarray:
    """Magnitudes of a difference; numpy compares and picks several times faster than torch."""
    import numpy as np

    sizes = tensor.float().sub(base.float()).numpy()
    return np.abs(sizes, out=sizes)


def _bracketed(base: Tensor, tensor: Tensor, wanted: int) -> tuple[float, int, int] | None:
    """(magnitude of rank `wanted`, how many that equal it stay, and are), in one pass; None where a guess fails.

    A sample tells between which two magnitudes the rank lies; those in between are kept, and ranked among themselves.
    """
    import numpy as np
    import torch

    count = base.numel()
    low, high = np.float32(0), np.float32("inf")
    if count > SAMPLE:
        size = min(SAMPLE, count >> 5)
        at = torch.randint(count, (size,), generator=torch.Generator().manual_seed(0))
        sample = np.sort(_sizes(base[at], tensor[at]))[::-1]
        share = wanted / count
        # Four standard deviations of a sampled rank.
        margin = 4 * (size * share * (1 - share)) ** 0.5 + 2
        first, last = int(size * share - margin), int(size * share + margin)
        high = sample[first] if first >= 0 else high
        low = sample[last] if last < size else low
    above, kept, held = 0, [], 0
    for at in range(0, count, STEP):
        sizes = _sizes(base[at : at + STEP], tensor[at : at + STEP])
        over = sizes > high
        above += int(np.count_nonzero(over))
        kept.append(sizes[(sizes >= low) ^ over])
        held += len(kept[-1])
        if held > KEPT:
            return None
    rank = wanted - above
    if not 1 <= rank <= held:
        return None
    inner = np.concatenate(kept)
    least = np.partition(inner, held - rank)[held - rank]
    return float(least), rank - int(np.count_nonzero(inner > least)), int(np.count_nonzero(inner == least))


def _counted(base: Tensor, tensor: Tensor, wanted: int) -> tuple[float, int, int]:
    """The same from two histograms over the bits of float32, whatever the values are."""
    import numpy as np

    high = _histogram(base, tensor, None)
    above = base.numel() - np.cumsum(high)
    bucket = int((above < wanted).argmax())
    wanted -= int(above[bucket])
    low = _histogram(base, tensor, bucket)
    above = low.sum() - np.cumsum(low)
    inner = int((above < wanted).argmax())
    least = np.array(bucket << 16 | inner, np.int32).view(np.float32)
    return float(least), wanted - int(above[inner]), int(low[inner])


def _histogram(base: Tensor, tensor: Tensor, bucket: int | None) -> np.ndarray:
    """How often each upper half of the bits of |tensor - base| occurs; with a bucket, each lower half in it."""
    import numpy as np

    counts = np.zeros(1 << 16 if bucket is not None else 1 << 15, np.int64)
    for at in range(0, base.numel(), STEP):
        bits = _sizes(base[at : at + STEP], tensor[at : at + STEP]).view(np.int32)
        keys = bits >> 16
        if bucket is not None:
            keys = (bits & 0xFFFF)[keys == bucket]
        counts += np.bincount(keys, minlength=len(counts))
    return counts
