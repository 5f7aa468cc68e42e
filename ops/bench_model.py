"""A checkpoint's prefill and decode step, whole and split by kernel."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .errors import QwenchError
from .events import Advanced, Chose, Events, Finished, Started
from .kernels.environment import environment
from .models import causal, decoder
from .models.causal import CausalDecoder
from .models.device import pick_threads
from .models.hub import resolve
from .models.load_causal import load_causal

#: steps that are timed, after as many that are not
STEPS = 8


def bench_model(
    model: str, dtype: str, seq: int, batch: tuple[int, ...], device: str, threads: int, kernels: str = "auto"
) -> Events:
    """Time a prefill of `seq` tokens and decode steps after it, for every batch.

    The split is of a run that goes kernel by kernel with a clock around each; `seconds` is of the run as it is.

    Raises:
        QwenchError: see load_causal; the model has no room for `seq` tokens.
    """
    import torch

    count = pick_threads(threads)
    torch.set_num_threads(count.value)
    yield Started("load")
    checkpoint = resolve(model)
    loaded = load_causal(checkpoint, device=device, dtype=dtype, slots=max(batch), engine="torch", kernels=kernels)
    for name in ("device", "dtype", "kernels"):
        choice = getattr(loaded, name)
        yield Chose(name, choice.value, choice.reason)
    engine = loaded.engine
    assert isinstance(engine, CausalDecoder)
    if seq + 2 * STEPS > engine.context:
        raise QwenchError(
            f"{seq} tokens and {2 * STEPS} steps do not fit into {engine.context}", "give a smaller --seq"
        )
    steps: list[dict[str, Any]] = []
    yield Started("steps", 2 * len(batch), "steps")
    for rows in batch:
        for step in ("prefill", "decode"):
            steps.append(_measured(engine, step, rows, seq))
            yield Advanced("steps", 1, detail=f"{step} batch {rows}")
    weights = engine.parameters + (0 if engine.head.parameters == engine.words.numel() else engine.head.parameters)
    result = {"schema": 1, "model": checkpoint.name, "environment": environment(loaded.device.value)}
    yield Finished(result | {"parameters": weights, "steps": steps})


def _measured(engine: CausalDecoder, step: str, rows: int, seq: int) -> dict[str, Any]:
    whole = _seconds(engine, step, rows, seq)
    parts: dict[str, float] = defaultdict(float)
    one_call = engine._native, engine._graph
    engine._native = engine._graph = None
    try:
        with _clocks(engine, parts):
            split = _seconds(engine, step, rows, seq, parts)
    finally:
        engine._native, engine._graph = one_call
    tokens = seq if step == "prefill" else 1
    parts["the rest"] = max(0.0, split - sum(parts.values()))
    ordered = dict(sorted(parts.items(), key=lambda p: -p[1]))
    told = {"step": step, "batch": rows, "tokens": tokens, "seconds": whole, "split_seconds": split, "parts": ordered}
    return told | {"tokens_per_second": rows * tokens / whole}


def _seconds(engine: CausalDecoder, step: str, rows: int, seq: int, parts: dict[str, float] | None = None) -> float:
    """Least seconds of one step; `parts` become those of the same one."""
    import torch

    best = float("inf")
    kept: dict[str, float] = {}
    for at in range(2 if step == "prefill" else STEPS):
        if step == "prefill" or at == 0:
            for slot in range(rows):
                engine.keep(slot, 0)
            if step == "decode":
                engine.feed({slot: _ids(seq, slot) for slot in range(rows)})
        if parts is not None:
            parts.clear()
        begun = time.perf_counter()
        engine.feed({slot: _ids(seq if step == "prefill" else 1, slot) for slot in range(rows)})
        if engine.device.startswith("cuda"):
            torch.cuda.synchronize()
        spent = time.perf_counter() - begun
        if spent < best:
            best, kept = spent, dict(parts or {})
    if parts is not None:
        parts.clear()
        parts.update(kept)
    return best


def _ids(count: int, seed: int) -> list[int]:
    return [(17 * i + 31 * seed) % 97 + 3 for i in range(count)]


@contextmanager
def _clocks(engine: CausalDecoder, parts: dict[str, float]) -> Iterator[None]:
    """A clock around every kernel of the engine, while the block runs."""
    import torch

    cuda = engine.device.startswith("cuda")

    def clocked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            begun = time.perf_counter()
            result = function(*args, **options)
            if cuda:
                torch.cuda.synchronize()
            parts[name] += time.perf_counter() - begun
            return result

        return call

    modules = {"rms_norm": decoder, "norm_rotate": decoder, "silu_mul": decoder, "gated": decoder}
    before = {name: getattr(module, name) for name, module in modules.items()}
    attend, layers, head = causal.Step.attend, [dict(layer) for layer in engine.layers], engine.head
    try:
        for name, module in modules.items():
            setattr(module, name, clocked(name, before[name]))
        causal.Step.attend = clocked("attention", attend)
        engine.head = clocked("product head", head)
        for layer in engine.layers:
            for name in ("qkv", "out", "gate_up", "down", "experts"):
                if name in layer:
                    layer[name] = clocked(f"product {name}", layer[name])
        yield
    finally:
        for name, module in modules.items():
            setattr(module, name, before[name])
        causal.Step.attend, engine.head = attend, head
        for layer, old in zip(engine.layers, layers, strict=True):
            layer.update(old)
