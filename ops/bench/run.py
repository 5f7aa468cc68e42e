"""The rows of one run: each provider checked, then timed, the whole table once or several times."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..base.events import Advanced, Event, Produced, Started
from ..base.runtime import Runtime
from ..models.device import DTYPES, steady_heap
from .cases import KERNELS, Case, cases
from .measure import Rule, Sampler, arguments, fault, inputs, pulses, summary, truth
from .providers import Provider, providers
from .roofs import Roof
from .shapes import SHAPES
from .verdict import Rows, key_of


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """What to measure.

    Attributes:
        kernels, provider_names: all where empty.
        dtypes: where empty the one models mostly have there, bfloat16 on CUDA and float32 elsewhere.
        batch, seq, streams: sweeps.
        threshold: with a baseline, the slow-down that counts, 0.05 for 5 %.
    """

    kernels: tuple[str, ...] = ()
    shape: str = "qwen3-0.6b"
    dtypes: tuple[str, ...] = ()
    provider_names: tuple[str, ...] = ()
    batch: tuple[int, ...] = (1,)
    seq: tuple[int, ...] = (256,)
    streams: tuple[int, ...] = (1, 2, 4, 8)
    runtime: Runtime = field(default_factory=Runtime)
    rule: Rule = field(default_factory=Rule)
    save: Path | None = None
    baseline: Path | None = None
    threshold: float = 0.05
    plot: Path | None = None


def settle(threads: int) -> None:
    """Threads and heap as the models set them."""
    import torch

    torch.set_num_threads(threads)
    # Without it chance decides whether glibc maps results anew at each call, up to three times slower.
    steady_heap()


class Run:
    """One run: its device, roofs and the pulses of the machine. Use it under `torch.inference_mode()`."""

    def __init__(self, options: BenchOptions, device: str, roofs: dict[str, Roof]) -> None:
        import torch

        self.options, self.device, self.roofs = options, device, roofs
        self.who = providers(list(options.provider_names))
        self.shape = SHAPES[options.shape]
        self.pulses = pulses(device)
        self.kinds = {name: getattr(torch, name) for name in DTYPES}

    def all(self) -> Generator[Event, None, list[dict[str, Any]]]:
        """A row for each kernel, size, dtype and provider; a Produced event when it is complete."""
        o, names = self.options, list(self.options.kernels or KERNELS)
        sweeps = {"batch": list(o.batch), "seq": list(o.seq), "streams": list(o.streams)}
        work = [
            (kind, case) for kind in o.dtypes for case in cases(names, self.shape, self.kinds[kind].itemsize, sweeps)
        ]
        rows: Rows = {}
        yield Started("kernels", len(work) * len(self.who), "rows")
        for kind, case in work:
            sets = inputs(case, self.kinds[kind], self.device)
            for seed, provider in enumerate(self.who, 1):
                row = self._row(case, kind, provider)
                function = provider.find(case.function, self.kinds[kind], self.device)
                self._check(row, function, case, seed)
                if row["status"] == "ok":
                    self._time(row, function, sets)
                    eager = row if provider.name == "eager" else rows.get(key_of(row | {"provider": "eager"}))
                    row["speedup"] = eager["median"] / row["median"] if eager and eager["median"] else None
                rows[key_of(row)] = row
                yield Produced(row)
                yield Advanced("kernels", 1, detail=f"{row['kernel']} {row['provider']}")
        return list(rows.values())

    def _row(self, case: Case, kind: str, provider: Provider) -> dict[str, Any]:
        z = case.size
        row = {"kernel": case.kernel, "provider": provider.name, "shape": self.shape.name, "dtype": kind}
        row |= {"device": self.device, "batch": z.batch, "seq": z.seq, "streams": z.streams}
        row |= {"flops": case.flops, "bytes": case.bytes, "model": case.model, "error": None, "reason": None}
        for name, roof in self.roofs.items():
            floor, bound = roof.floor(case.flops, case.bytes, kind)
            row |= {f"floor_{name}": floor, f"of_roof_{name}": None, f"bound_{name}": bound}
        row |= dict.fromkeys(("median", "p10", "p90", "warm", "speedup", "timed"))
        return row | {"samples": [], "pulses": {}}

    def _check(self, row: dict[str, Any], function: Callable[..., Any] | str, case: Case, seed: int) -> None:
        """Whether it is there and right."""
        if isinstance(function, str):
            row |= {"status": "unavailable", "reason": function}
            return
        try:
            # Inputs of its own, so that what another provider left in memory is not its result.
            args = arguments(case, self.kinds[row["dtype"]], self.device, seed)
            wrong, error = fault(function, args, truth(case, args))
        except Exception as problem:  # whatever another package raises is its row's reason, and the run goes on
            first = (str(problem).strip() or type(problem).__name__).splitlines()[0]
            row |= {"status": "failed", "reason": first[:200]}
            return
        row |= {"status": "wrong" if wrong else "ok", "reason": wrong, "error": None if math.isnan(error) else error}

    def _time(self, row: dict[str, Any], function: Callable[..., Any], sets: list[tuple[Any, ...]]) -> None:
        """Samples, and what follows from them."""
        rule = self.options.rule
        for pulse in self.pulses.values():
            pulse.samples = []
        sampler = Sampler(function, sets, self.device)
        row |= summary(sampler.run(rule, list(self.pulses.values()))) | {"timed": sampler.timed}
        row["pulses"] = {name: pulse.samples for name, pulse in self.pulses.items()}
        if rule.warm:
            short = replace(rule, seconds=rule.seconds / 4)
            row["warm"] = summary(Sampler(function, sets[:1], self.device).run(short))["median"]
        for name in self.roofs:
            floor = row[f"floor_{name}"]
            row[f"of_roof_{name}"] = floor / row["median"] if floor else None
