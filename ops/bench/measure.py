"""Right first, then fast: a provider's result against float64, and times until they are narrow or the time is up."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..kernels import reference
from .cases import Case, Make

if TYPE_CHECKING:
    from torch import Tensor, dtype
    from torch.cuda import CUDAGraph

#: largest error a provider may have, as a share of the largest value of the result
TOLERANCE = {"float32": 1e-4, "float16": 4e-3, "bfloat16": 3e-2}
#: bytes of inputs that are gone through before the first ones come again, so that no cache still holds them
COLD_BYTES = 256 << 20
LEAST_SAMPLE = 50e-6


@dataclass(frozen=True, slots=True)
class Rule:
    """When to stop: seconds for one provider of a case, least samples, and the half-width of the median's interval."""

    seconds: float = 1.0
    least: int = 10
    narrow: float = 0.01
    warm: bool = True


def arguments(case: Case, kind: dtype, device: str, seed: int) -> tuple[Any, ...]:
    """One argument set."""
    return case.make(Make(kind, device, seed))


def inputs(case: Case, kind: dtype, device: str) -> list[tuple[Any, ...]]:
    """Argument sets, enough to leave the caches between two uses of one."""
    import torch

    first = arguments(case, kind, device, 0)
    each = sum(t.nbytes for t in first if isinstance(t, torch.Tensor))
    count = min(512 if device.startswith("cuda") else 64, math.ceil(COLD_BYTES / max(each, 1)) + 1)
    return [first, *(tuple(t.clone() if isinstance(t, torch.Tensor) else t for t in first) for _ in range(count - 1))]


def truth(case: Case, args: tuple[Any, ...]) -> list[Tensor]:
    """The results in float64."""
    return _listed(getattr(reference, case.function)(*args))


def fault(function: Callable[..., Any], args: tuple[Any, ...], expected: list[Tensor]) -> tuple[str | None, float]:
    """(what is wrong with a provider or None, its largest error as a share of the largest value).

    The memory its outputs will lie in is filled with NaN first, and its inputs must stay as they are.
    """
    import torch

    before = [t.clone() for t in args if isinstance(t, torch.Tensor)]
    poison = [torch.full(t.shape, float("nan"), dtype=before[0].dtype, device=t.device) for t in expected * 3]
    del poison
    found = _listed(function(*args))
    if any(
        not torch.equal(a, b) for a, b in zip((t for t in args if isinstance(t, torch.Tensor)), before, strict=True)
    ):
        return "it changes its inputs", math.nan
    worst = 0.0
    if len(found) != len(expected):
        return f"{len(found)} results instead of {len(expected)}", math.nan
    for ours, right in zip(found, expected, strict=True):
        if ours.shape != right.shape:
            return f"shape {tuple(ours.shape)} instead of {tuple(right.shape)}", math.nan
        worst = max(worst, float((ours.double() - right).abs().max() / right.abs().max().clamp_min(1e-30)))
        if not bool(ours.isfinite().all()):
            return "the result is not finite", math.nan
    limit = TOLERANCE[str(before[0].dtype)[6:]]
    return (f"error {worst:.1e} of the largest value, {limit:.0e} is allowed" if worst > limit else None), worst


def _listed(result: Any) -> list[Tensor]:
    return list(result) if isinstance(result, tuple) else [result]


class Sampler:
    """Times of one call, in seconds; short calls are timed several at a time.

    On CUDA a round of calls is captured as a graph and replayed, so that it is the kernels that are timed and not
    Python's launching of them. What cannot be captured is called one by one.

    Attributes:
        timed: graph or calls.
    """

    def __init__(self, function: Callable[..., Any], sets: list[tuple[Any, ...]], device: str) -> None:
        self.function, self.sets, self.cuda, self.at = function, sets, device.startswith("cuda"), 0
        self.samples: list[float] = []
        # Results live until their arguments come again, so that they do not lie in memory that a cache still holds.
        self.kept: list[Any] = [None] * len(sets)
        self._graph: CUDAGraph | None = None
        begun = time.perf_counter()
        self._calls(3)
        each = (time.perf_counter() - begun) / 3
        self.calls = max(1, min(200, math.ceil(LEAST_SAMPLE / max(each, 1e-9))))
        # Once round, so that the memory of every result is there.
        self._calls(len(sets))
        self._graph = self._captured() if self.cuda else None
        self.timed = "calls" if self._graph is None else "graph"

    def _captured(self) -> CUDAGraph | None:
        import torch

        graph, self.calls = torch.cuda.CUDAGraph(), max(self.calls, len(self.sets))
        torch.cuda.synchronize()
        try:
            with torch.cuda.graph(graph):
                self._round(self.calls)
        except RuntimeError:
            return None
        graph.replay()
        return graph

    def _round(self, count: int) -> None:
        function, sets, kept, at, whole = self.function, self.sets, self.kept, self.at, len(self.sets)
        self.at = (at + count) % whole
        for i in range(count):
            kept[(at + i) % whole] = function(*sets[(at + i) % whole])

    def _calls(self, count: int) -> float:
        import torch

        if self.cuda:
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            self._graph.replay() if self._graph else self._round(count)
            last.record()
            torch.cuda.synchronize()
            return first.elapsed_time(last) / 1e3
        begun = time.perf_counter()
        self._round(count)
        return time.perf_counter() - begun

    def sample(self) -> None:
        """One more."""
        self.samples.append(self._calls(self.calls) / self.calls)

    def run(self, rule: Rule, beside: list[Sampler] | None = None) -> list[float]:
        """Samples until the rule says stop; every fifth time also one of those beside."""
        begun = time.perf_counter()
        while True:
            self.sample()
            done = len(self.samples)
            if done % 5 == 1:
                for other in beside or ():
                    other.sample()
            if done >= rule.least and done % 10 == 0 and interval(self.samples) <= rule.narrow:
                break
            if time.perf_counter() - begun > rule.seconds and done >= 3:
                break
        return self.samples


def pulses(device: str) -> dict[str, Sampler]:
    """Work that no version of this package changes, which tells how the machine is: its memory, and its arithmetic."""
    import torch

    pieces, square = torch.ones(8, 1 << 23, device=device), torch.ones(384, 384, device=device)
    return {
        "memory": Sampler(torch.sum, [(piece,) for piece in pieces], device),
        "arithmetic": Sampler(lambda: square @ square, [()], device),
    }


def quantile(values: list[float], at: float) -> float:
    """Linear between neighbours."""
    ordered = sorted(values)
    place = at * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def interval(values: list[float]) -> float:
    """Half-width of the 95 % interval of the median as a share of it, from order statistics."""
    half = 0.98 / math.sqrt(len(values))
    low, high = quantile(values, max(0.0, 0.5 - half)), quantile(values, min(1.0, 0.5 + half))
    return (high - low) / 2 / quantile(values, 0.5)


def summary(samples: list[float]) -> dict[str, Any]:
    """What a row says of its samples, in seconds."""
    return {
        "median": quantile(samples, 0.5),
        "p10": quantile(samples, 0.1),
        "p90": quantile(samples, 0.9),
        "interval": interval(samples),
        "samples": samples,
    }
