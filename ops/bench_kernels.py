"""Kernels measured: right first, then timed beside the roofs of the machine, and against an earlier run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from .base.atomic import write
from .base.errors import QwenchError
from .base.events import Chose, Events, Finished, Started, Warned
from .base.paths import check_output, local
from .base.plots import check_plot
from .bench.baseline import compare, repeated
from .bench.cases import KERNELS
from .bench.environment import clocks, environment, trouble
from .bench.providers import providers
from .bench.roofs import measured, sheet
from .bench.run import BenchOptions, Run, settle
from .bench.shapes import SHAPES
from .bench.verdict import Rows, key_of
from .models.device import DTYPES, pick_device, pick_threads

SCHEMA = 2


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
    _check_names(options)
    if options.save:
        check_output(options.save, "the result")
    if options.plot:
        check_plot(options.plot, folder=True)
    where, threads = pick_device(options.runtime.device), pick_threads(options.runtime.threads)
    settle(threads.value)
    yield Chose("device", where.value, where.reason)
    yield Chose("threads", threads.value, threads.reason)
    if not options.dtypes:
        usual = "bfloat16" if where.value.startswith("cuda") else "float32"
        options = replace(options, dtypes=(usual,))
        yield Chose("dtype", usual, "what kernels mostly compute in on this device")
    before = clocks(where.value)
    yield Started("roofs")
    with torch.inference_mode():
        roofs = {"measured": measured(where.value, list(options.dtypes)), "sheet": sheet(where.value)}
        for name, roof in roofs.items():
            yield Chose(f"roof_{name}", roof.bandwidth, roof.source)
        rows = yield from Run(options, where.value, roofs).all()
        result = {"schema": SCHEMA, "environment": environment(where.value)}
        result |= {"roofs": {n: r.told() for n, r in roofs.items()}, "rows": rows}
        if old is not None:
            result["comparison"] = yield from compare(options, old, rows)
        if options.save:
            yield from repeated(options, rows)
    result["clocks"] = {"before": before, "after": clocks(where.value)}
    result["trouble"] = trouble(before, result["clocks"]["after"], where.value)
    for text in result["trouble"]:
        yield Warned("noise", text)
    if options.save:
        _save(result, options.save)
    if options.plot:
        from .base.plots import latency_by_streams, roofline

        options.plot.mkdir(exist_ok=True)
        for ending in (".png", ".svg"):
            roofline(rows, roofs["measured"].told(), options.plot / f"roofline{ending}")
            latency_by_streams(rows, options.plot / f"streams{ending}")
        result["plots"] = [str(options.plot / f"{n}{e}") for n in ("roofline", "streams") for e in (".png", ".svg")]
    yield Finished(result)


def _check_names(options: BenchOptions) -> None:
    for what, given, known in (
        ("kernel", options.kernels, KERNELS),
        ("shape", (options.shape,), SHAPES),
        ("dtype", options.dtypes, DTYPES),
    ):
        if unknown := [n for n in given if n not in known]:
            raise QwenchError(f"unknown {what}: `{unknown[0]}`", f"use {', '.join(known)}", code=2)


def _baseline(path: Path | None) -> Rows | None:
    if path is None:
        return None
    local(path, "the baseline")
    try:
        found = json.loads(path.read_text("utf-8"))
        if found["schema"] != SCHEMA:
            raise ValueError(f"schema {found['schema']} instead of {SCHEMA}")
        return {key_of(row): row for row in found["rows"] if row["status"] == "ok"}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise QwenchError(f"the baseline cannot be read ({error}): `{path}`", "make one with --save") from error


def _save(result: dict[str, Any], path: Path) -> None:
    write(path, json.dumps(result, allow_nan=False), "the result")
