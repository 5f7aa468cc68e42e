"""Kernels measured: right first, then timed beside the roofs of the machine, and against an earlier run."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import QwenchError
from .events import Advanced, Chose, Event, Events, Finished, Produced, Started, Warned
from .kernels.cases import KERNELS, Case, cases
from .kernels.compare import drift_of, judge, key_of
from .kernels.environment import clocks, environment, trouble
from .kernels.measure import Rule, Sampler, fault, inputs, pulse, summary, truth
from .kernels.providers import Provider, providers
from .kernels.roofs import Roof, measured, sheet
from .kernels.shapes import SHAPES
from .models.device import DTYPES, pick_device, pick_threads

SCHEMA = 1
#: times a suspect is measured again; it must be slower each time
ROUNDS = 3


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """What to measure.

    Attributes:
        kernels, provider_names: all where empty.
        batch, seq, streams: sweeps.
        threshold: with a baseline, the slow-down that counts, 0.05 for 5 %.
    """

    kernels: tuple[str, ...] = ()
    shape: str = "qwen3-0.6b"
    dtypes: tuple[str, ...] = ("float32",)
    provider_names: tuple[str, ...] = ()
    batch: tuple[int, ...] = (1,)
    seq: tuple[int, ...] = (256,)
    streams: tuple[int, ...] = (1, 2, 4, 8)
    device: str = "auto"
    threads: int = 0
    rule: Rule = field(default_factory=Rule)
    save: Path | None = None
    baseline: Path | None = None
    threshold: float = 0.05
    plot: Path | None = None


def listing() -> dict[str, Any]:
    """Kernels with their sweeps, shapes and providers."""
    return {
        "kernels": {name: sweeps.split() for name, (_, sweeps) in KERNELS.items()},
        "shapes": {s.name: [s.hidden, s.layers, s.heads, s.kv_heads, s.width, s.inner] for s in SHAPES.values()},
        "providers": [p.name for p in providers([])],
    }


def bench(options: BenchOptions) -> Events:
    """Measure; yields a Produced row for each kernel, size and provider, and Finished with all of them.

    Raises:
        QwenchError: unknown names, or a baseline that cannot be read.
    """
    import torch

    old = _baseline(options.baseline)
    names = _names(options)
    where, threads = pick_device(options.device), pick_threads(options.threads)
    torch.set_num_threads(threads.value)
    yield Chose("device", where.value, where.reason)
    yield Chose("threads", threads.value, threads.reason)
    before = clocks(where.value)
    yield Started("roofs")
    with torch.inference_mode():
        roofs = {"measured": measured(where.value, list(options.dtypes)), "sheet": sheet(where.value)}
        for name, roof in roofs.items():
            yield Chose(f"roof_{name}", roof.bandwidth, roof.source)
        run = _Run(options, where.value, roofs)
        rows = yield from run.all(names)
        result = {"schema": SCHEMA, "environment": environment(where.value)}
        result |= {"roofs": {n: r.told() for n, r in roofs.items()}, "rows": rows}
        if old is not None:
            result["comparison"] = yield from run.compare(old, rows)
    result["clocks"] = {"before": before, "after": clocks(where.value)}
    result["trouble"] = trouble(before, result["clocks"]["after"], where.value)
    for text in result["trouble"]:
        yield Warned("noise", text)
    if options.save:
        _save(result, options.save)
    if options.plot:
        from .plots import latency_by_streams, roofline

        for ending in (".png", ".svg"):
            roofline(rows, roofs["measured"].told(), options.plot / f"roofline{ending}")
            latency_by_streams(rows, options.plot / f"streams{ending}")
        result["plots"] = [str(options.plot / f"{n}{e}") for n in ("roofline", "streams") for e in (".png", ".svg")]
    yield Finished(result)


def _names(options: BenchOptions) -> list[str]:
    for what, given, known in (
        ("kernel", options.kernels, KERNELS),
        ("shape", (options.shape,), SHAPES),
        ("dtype", options.dtypes, DTYPES),
    ):
        if unknown := [n for n in given if n not in known]:
            raise QwenchError(f"unknown {what}: `{unknown[0]}`", f"use {', '.join(known)}", code=2)
    return list(options.kernels or KERNELS)


def _baseline(path: Path | None) -> dict[tuple[Any, ...], dict[str, Any]] | None:
    if path is None:
        return None
    try:
        found = json.loads(path.read_text("utf-8"))
        if found["schema"] != SCHEMA:
            raise ValueError(f"schema {found['schema']} instead of {SCHEMA}")
        return {key_of(row): row for row in found["rows"] if row["status"] == "ok"}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise QwenchError(f"the baseline cannot be read ({error}): `{path}`", "make one with --save") from error


def _save(result: dict[str, Any], path: Path) -> None:
    beside = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps(result, allow_nan=False), "utf-8")
        beside.replace(path)
    except OSError as error:
        raise QwenchError(f"the result cannot be written ({error.strerror}): `{path}`") from error


class _Run:
    """One run: its device, roofs and machine pulse."""

    def __init__(self, options: BenchOptions, device: str, roofs: dict[str, Roof]) -> None:
        import torch

        self.options, self.device, self.roofs = options, device, roofs
        self.who = providers(list(options.provider_names))
        self.shape = SHAPES[options.shape]
        self.pulse = pulse(device)
        self.cases: dict[tuple[Any, ...], tuple[Case, str, Provider]] = {}
        self.kinds = {name: getattr(torch, name) for name in DTYPES}

    def all(self, names: list[str]) -> Generator[Event, None, list[dict[str, Any]]]:
        """A row for each kernel, size, dtype and provider."""
        o, rows = self.options, []
        sweeps = {"batch": list(o.batch), "seq": list(o.seq), "streams": list(o.streams)}
        work = [
            (kind, case) for kind in o.dtypes for case in cases(names, self.shape, self.kinds[kind].itemsize, sweeps)
        ]
        yield Started("kernels", len(work) * len(self.who), "rows")
        for kind, case in work:
            eager = None
            for row in self._case(case, kind):
                if row["provider"] == "eager" and row["status"] == "ok":
                    eager = row["median"]
                row["speedup"] = eager / row["median"] if eager and row["status"] == "ok" else None
                rows.append(row)
                yield Produced(row)
                yield Advanced("kernels", 1, detail=f"{row['kernel']} {row['provider']}")
        return rows

    def _case(self, case: Case, kind: str) -> Iterator[dict[str, Any]]:
        sets = inputs(case, self.kinds[kind], self.device, cold=True)
        expected = truth(case, sets[0])
        for provider in self.who:
            row = self._row(case, kind, provider)
            self.cases[key_of(row)] = (case, kind, provider)
            function = provider.find(case.function, self.kinds[kind], self.device)
            if isinstance(function, str):
                yield row | {"status": "unavailable", "reason": function}
                continue
            try:
                wrong, error = fault(function, sets[0], expected)
            except Exception as problem:  # whatever another package raises is its row's reason, and the run goes on
                first = (str(problem).strip() or type(problem).__name__).splitlines()[0]
                yield row | {"status": "failed", "reason": first[:200]}
                continue
            row["error"] = error if error == error else None
            if wrong:
                yield row | {"status": "wrong", "reason": wrong}
                continue
            yield row | self._timed(row, function, sets)

    def _row(self, case: Case, kind: str, provider: Provider) -> dict[str, Any]:
        z = case.size
        row = {"kernel": case.kernel, "provider": provider.name, "shape": self.shape.name, "dtype": kind}
        row |= {"device": self.device, "batch": z.batch, "seq": z.seq, "streams": z.streams}
        row |= {"flops": case.flops, "bytes": case.bytes, "model": case.model, "error": None, "reason": None}
        for name, roof in self.roofs.items():
            floor, bound = roof.floor(case.flops, case.bytes, kind)
            row |= {f"floor_{name}": floor, f"of_roof_{name}": None, f"bound_{name}": bound}
        return row | {"median": None, "p10": None, "p90": None, "warm": None, "speedup": None, "samples": []}

    def _timed(self, row: dict[str, Any], function: Any, sets: list[tuple[Any, ...]]) -> dict[str, Any]:
        rule = self.options.rule
        self.pulse.samples = []
        found: dict[str, Any] = {
            "status": "ok",
            **summary(Sampler(function, sets, self.device).run(rule, [self.pulse])),
        }
        found["pulse"] = self.pulse.samples
        if rule.warm:
            short = Rule(rule.seconds / 4, rule.least, rule.narrow)
            found["warm"] = summary(Sampler(function, sets[:1], self.device).run(short))["median"]
        for name in self.roofs:
            floor = row[f"floor_{name}"]
            found[f"of_roof_{name}"] = floor / found["median"] if floor else None
        return found

    def compare(
        self, old: dict[tuple[Any, ...], dict[str, Any]], rows: list[dict[str, Any]]
    ) -> Generator[Event, None, dict[str, Any]]:
        """Against a baseline: suspects are measured again, and are slower only when they are each time."""
        found: dict[str, Any] = {"threshold": self.options.threshold, "slower": [], "faster": [], "noise": []}
        timed = {key_of(row): row for row in rows if row["status"] == "ok"}
        known = {key_of(row) for row in rows}
        found["broken"] = [_name(key) for key in old if key in known - timed.keys()]
        found["only_old"] = [_name(key) for key in old.keys() - known]
        found["only_new"] = [_name(key) for key in timed.keys() - old.keys()]
        suspects = []
        for key, row in timed.items():
            if key not in old:
                continue
            verdict = judge(old[key]["samples"], row["samples"], self.options.threshold, self._drift(old, timed, key))
            if verdict.slower:
                suspects.append(key)
            elif verdict.faster:
                found["faster"].append({"what": _name(key), "ratio": verdict.ratio})
        found["compared"] = len(timed.keys() & old.keys())
        yield Started("suspects", len(suspects) * ROUNDS, "rounds")
        left = dict.fromkeys(suspects, 0.0)
        for _ in range(ROUNDS):
            for key in list(left):
                ratio = self._again(old, key)
                if ratio is None:
                    found["noise"].append(_name(key))
                    del left[key]
                else:
                    left[key] = ratio
                yield Advanced("suspects", 1, detail=_name(key))
        found["slower"] = [{"what": _name(key), "ratio": ratio} for key, ratio in left.items()]
        return found

    def _drift(self, old: Any, new: Any, key: tuple[Any, ...]) -> float:
        pairs = [(old[key]["pulse"], new[key]["pulse"])]
        eager = (key[0], "eager", *key[2:])
        if key != eager and eager in old and eager in new:
            pairs.append((old[eager]["samples"], new[eager]["samples"]))
        return drift_of(pairs)

    def _again(self, old: dict[tuple[Any, ...], dict[str, Any]], key: tuple[Any, ...]) -> float | None:
        """Ratio of a suspect that is slower in a measurement of its own, with pulse and eager samples between."""
        case, kind, provider = self.cases[key]
        function = provider.find(case.function, self.kinds[kind], self.device)
        assert not isinstance(function, str)
        sets = inputs(case, self.kinds[kind], self.device, cold=True)
        suspect = Sampler(function, sets, self.device)
        beside, pairs = [self.pulse], [(old[key]["pulse"], self.pulse.samples)]
        eager = (key[0], "eager", *key[2:])
        if key != eager and eager in old and eager in self.cases:
            plain = self.cases[eager][2].find(case.function, self.kinds[kind], self.device)
            if not isinstance(plain, str):
                beside.append(Sampler(plain, sets, self.device))
                pairs.append((old[eager]["samples"], beside[-1].samples))
        self.pulse.samples.clear()
        samples = suspect.run(self.options.rule, beside)
        verdict = judge(old[key]["samples"], samples, self.options.threshold, drift_of(pairs))
        return verdict.ratio / verdict.drift if verdict.slower else None


def _name(key: tuple[Any, ...]) -> str:
    kernel, provider, shape, kind, _, batch, seq, streams = key
    return f"{kernel} {provider} {shape} {kind} batch {batch} seq {seq} streams {streams}"
