"""A checkpoint's prefill and decode step, whole and split by kernel."""

from __future__ import annotations

import time
from bisect import bisect
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from operator import itemgetter
from typing import Any

from ..base.errors import QwenchError
from ..base.events import Advanced, Chose, Events, Finished, Started
from ..base.runtime import Runtime
from ..kernels.choose import prepared
from ..models.device import pick_threads
from ..models.hub import resolve
from ..models.nets import step as passes
from ..models.nets.causal import CausalDecoder
from ..writing.load import load_causal
from .environment import environment

#: steps of which the least time counts
STEPS = 8


def bench_model(model: str, runtime: Runtime, seq: int, batch: tuple[int, ...]) -> Events:
    """Time a prefill of `seq` tokens and decode steps after it, for every batch.

    The split is of a run that goes kernel by kernel, with a clock around each; on CUDA it is the time that the GPU
    works for each, in one run under PyTorch's profiler. `seconds` is of the run as it is.

    Raises:
        QwenchError: see load_causal; the model has no room for `seq` tokens.
    """
    import torch

    count = pick_threads(runtime.threads)
    torch.set_num_threads(count.value)
    yield Started("load")
    checkpoint = resolve(model)
    yield from prepared(runtime)
    loaded = load_causal(checkpoint, replace(runtime, engine="torch"), slots=max(batch))
    for name in ("device", "dtype", "kernels"):
        choice = getattr(loaded, name)
        yield Chose(name, choice.value, choice.reason)
    engine = loaded.engine
    assert isinstance(engine, CausalDecoder)
    if seq + STEPS > engine.context:
        raise QwenchError(f"{seq} tokens and {STEPS} steps do not fit into {engine.context}", "give a smaller --seq")
    steps: list[dict[str, Any]] = []
    yield Started("steps", 2 * len(batch), "steps")
    for rows in batch:
        for step in ("prefill", "decode"):
            steps.append(_measured(engine, step, rows, seq))
            yield Advanced("steps", 1, detail=f"{step} batch {rows}")
    weights = engine.parameters + (0 if engine.tied else engine.head.parameters)
    result = {"schema": 1, "model": checkpoint.name, "environment": environment(loaded.device.value)}
    yield Finished(result | {"parameters": weights, "steps": steps})


def _measured(engine: CausalDecoder, step: str, rows: int, seq: int) -> dict[str, Any]:
    whole = _seconds(engine, step, rows, seq)
    split, parts = (_device_parts if engine.device.startswith("cuda") else _parts)(engine, step, rows, seq)
    tokens = seq if step == "prefill" else 1
    parts["the rest"] = max(0.0, split - sum(parts.values()))
    ordered = dict(sorted(parts.items(), key=lambda p: -p[1]))
    told = {"step": step, "batch": rows, "tokens": tokens, "seconds": whole, "split_seconds": split, "parts": ordered}
    return told | {"tokens_per_second": rows * tokens / whole}


def _parts(engine: CausalDecoder, step: str, rows: int, seq: int) -> tuple[float, dict[str, float]]:
    """Seconds of a step, and those inside each kernel."""
    parts: dict[str, float] = defaultdict(float)

    def clocked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            begun = time.perf_counter()
            result = function(*args, **options)
            parts[name] += time.perf_counter() - begun
            return result

        return call

    native, engine._native = engine._native, None
    try:
        with _around_kernels(engine, clocked):
            return _seconds(engine, step, rows, seq, parts), parts
    finally:
        engine._native = native


def _device_parts(engine: CausalDecoder, step: str, rows: int, seq: int) -> tuple[float, dict[str, float]]:
    """The same in time of the GPU, where a clock would tell how long the processor takes to ask for each kernel.

    Raises:
        QwenchError: the profiler sees nothing.
    """
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile, record_function

    names = set()

    def marked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        names.add(name)

        def call(*args: Any, **options: Any) -> Any:
            with record_function(name):
                return function(*args, **options)

        return call

    if engine._graph:
        engine._graph.replays = False
    try:
        with _around_kernels(engine, marked):
            _prepare(engine, step, rows, seq)
            with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], acc_events=True) as found:
                _step(engine, step, rows, seq)
    finally:
        if engine._graph:
            engine._graph.replays = True
    events = found.events()
    asked = [e for e in events if e.device_type == DeviceType.CPU]
    marks = sorted((e.time_range.start, e.time_range.end, e.name) for e in asked if e.name in names)
    # The profiler ties PyTorch's own kernels to what asked for them, but not Triton's: their launches tell when it was.
    launched = {e.id: e.time_range.start for e in asked if e.name.startswith("cu")}
    whole, parts = 0.0, defaultdict(float)
    for event in events:
        if event.device_type == DeviceType.CPU or event.name in names:
            continue
        seconds = event.time_range.elapsed_us() / 1e6
        whole += seconds
        begun = launched.get(event.id, 0.0)
        at = bisect(marks, begun, key=itemgetter(0)) - 1
        if at >= 0 and begun <= marks[at][1]:
            parts[marks[at][2]] += seconds
    if not whole:
        raise QwenchError("PyTorch's profiler saw no work of the GPU", "another profiler may have it: leave that off")
    return whole, parts


def _seconds(engine: CausalDecoder, step: str, rows: int, seq: int, parts: dict[str, float] | None = None) -> float:
    """Least seconds of one step; `parts` become those of the same one."""
    best = float("inf")
    kept: dict[str, float] = {}
    for at in range(2 if step == "prefill" else STEPS):
        if step == "prefill" or at == 0:
            _prepare(engine, step, rows, seq)
        if parts is not None:
            parts.clear()
        begun = time.perf_counter()
        _step(engine, step, rows, seq)
        spent = time.perf_counter() - begun
        if spent < best:
            best, kept = spent, dict(parts or {})
    if parts is not None:
        parts.clear()
        parts.update(kept)
    return best


def _prepare(engine: CausalDecoder, step: str, rows: int, seq: int) -> None:
    """Empty the caches; before decoding, fill them with `seq` tokens."""
    for slot in range(rows):
        engine.keep(slot, 0)
    if step == "decode":
        engine.feed({slot: _ids(seq, slot) for slot in range(rows)})


def _step(engine: CausalDecoder, step: str, rows: int, seq: int) -> None:
    import torch

    engine.feed({slot: _ids(seq if step == "prefill" else 1, slot) for slot in range(rows)})
    if engine.device.startswith("cuda"):
        torch.cuda.synchronize()


def _ids(count: int, seed: int) -> list[int]:
    return [(17 * i + 31 * seed) % 97 + 3 for i in range(count)]


@contextmanager
def _around_kernels(
    engine: CausalDecoder, wrapped: Callable[[str, Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Every kernel of the engine is `wrapped`, by its name, while the block runs."""
    spots = [(kind, "_attended", "attention") for kind in (passes.Step, *passes.Step.__subclasses__())]
    spots += [(passes.Step, "_at_once", "attention"), (engine, "head", "product head")]
    if engine.streams > 1:
        spots.append((engine, "_summed", "aggregate"))
    if engine._graph:
        from ..kernels.triton import elementwise as triton_kernels

        spots += [(triton_kernels, name, "rms_norm") for name in ("rms_norm", "add_rms_norm")]
        spots += [(triton_kernels, "rotate_and_keep", "norm_rotate"), (triton_kernels, "prefix_attention", "attention")]
    before = [getattr(place, name) for place, name, _ in spots]
    layers, kernels = [dict(layer) for layer in engine.layers], engine.kernels
    steps = {name: wrapped(name, getattr(kernels, name)) for name in ("rms_norm", "norm_rotate", "silu_mul", "gated")}
    engine.kernels = replace(kernels, **steps)
    try:
        for (place, name, told), function in zip(spots, before, strict=True):
            setattr(place, name, wrapped(told, function))
        for layer in engine.layers:
            for name in ("qkv", "out", "gate_up", "down", "experts"):
                if name in layer:
                    layer[name] = wrapped(f"product {name}", layer[name])
        yield
    finally:
        engine.kernels = kernels
        for (place, name, _), function in zip(spots, before, strict=True):
            setattr(place, name, function)
        for layer, old in zip(engine.layers, layers, strict=True):
            layer.update(old)
