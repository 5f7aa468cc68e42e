"""What the law says of a model with P streams, and what they would cost on a device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base.errors import QwenchError
from ..base.events import Chose, Event, Started, Warned
from ..base.paths import local
from ..models.hub import PACKAGED, resolve
from .law import LOSSES, STREAMS, Law, Point, published_points, shape_for
from .points import number
from .roofline import TABLE, Roof, given, known, measure
from .size import (
    PREFIX_TOKENS,
    Shape,
    added_of,
    base_parameters,
    decode_cost,
    inference_memory,
    prefill_cost,
    shape_of,
)


@dataclass(frozen=True, slots=True)
class LawOptions:
    """What `qwench parscale-law` was asked for.

    Attributes:
        points: file of points; empty takes the published ones of `corpus`.
        predict: a number of parameters without embeddings, a model folder, a config.json, a .gguf or a packaged name;
            empty for none.
        streams: the P to predict.
        device: a name of the table, a torch device to measure, or empty.
        bandwidth, flops: GB/s and TFLOP/s that stand in for a device's; None for the device's own.
        batch, prompt, answer: sequences, and tokens of each to read and to write.
        weight_bytes, cache_bytes: of a stored parameter, and of a number in the cache.
    """

    points: str = ""
    corpus: str = "stack"
    predict: str = ""
    streams: tuple[int, ...] = STREAMS
    device: str = ""
    bandwidth: float | None = None
    flops: float | None = None
    batch: int = 1
    prompt: int = 512
    answer: int = 128
    weight_bytes: float = 2
    cache_bytes: float = 2
    prefix_tokens: int = PREFIX_TOKENS


def checked(options: LawOptions) -> None:
    """Refuse what no prediction can be made of."""
    if not options.points and options.corpus not in LOSSES:
        published_points(options.corpus)
    if not options.streams or min(options.streams) < 1:
        raise QwenchError(f"streams must be 1 or more: `{','.join(map(str, options.streams))}`", "for example 1,2,4", 2)
    for name in ("bandwidth", "flops", "weight_bytes", "cache_bytes"):
        value = getattr(options, name)
        if value is not None and not 0 < value < float("inf"):
            raise QwenchError(f"--{name.replace('_', '-')} must be positive: `{value:g}`", code=2)
    if not options.predict and (options.bandwidth or options.flops):
        raise QwenchError("a bandwidth changes nothing without --predict", "add --predict 1.7B, or a folder", code=2)


def target_of(predict: str) -> tuple[Shape | None, float | None, str]:
    """(shape where a model is named, parameters without embeddings, name)."""
    if not predict:
        return None, None, ""
    path = Path(local(predict, "the model")).expanduser()
    if predict in PACKAGED and not path.exists():
        path = resolve(predict).path
    if not path.exists():
        try:
            count = number(predict)
        except ValueError:
            raise QwenchError(
                f"neither a number of parameters nor a model on this disk: `{predict}`",
                "give for example 1.7B, a folder or a config.json",
                code=2,
            ) from None
        if not 1 <= count < float("inf"):
            raise QwenchError(f"a model has one parameter or more: `{predict}`", "for example 0.6B", code=2)
        return None, count, predict
    shape = shape_of(_config(path))
    if shape.sparse:
        raise QwenchError(
            f"the law was fitted on dense models and says nothing of experts: `{predict}`", "give a number instead"
        )
    return shape, float(base_parameters(shape).body), predict


def _config(path: Path) -> dict[str, Any]:
    """The config of a folder, a config.json or a .gguf."""
    from ..checkpoint.reader import Source
    from ..checkpoint.sidecars import read_json

    if path.suffix == ".gguf":
        return Source(path).config()
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise QwenchError(f"there is no config.json: `{path}`", "name the folder of a checkpoint")
    found = read_json(file, {})
    if not isinstance(found, dict):
        raise QwenchError(f"this is no config: `{file}`")
    return found


def roof_of(options: LawOptions) -> Iterator[Event]:
    """Choose the device's figures. Returns a Roof, None where nothing is said of a device."""
    if not options.device:
        if not (options.bandwidth or options.flops):
            return None
        roof = given(options.bandwidth, options.flops)
    else:
        if options.device.lower() in TABLE or options.device.split(":")[0] not in ("auto", "cpu", "cuda", "mps"):
            roof = known(options.device)
        else:
            from ..models.device import pick_device, pick_dtype

            device = pick_device(options.device).value
            yield Started("measuring")
            roof = measure(device, pick_dtype("auto", device, "bfloat16").value)
        if options.bandwidth or options.flops:
            own = given(options.bandwidth, options.flops)
            source = f"{own.source}; the rest: {roof.source}"
            roof = Roof(roof.name, own.bandwidth or roof.bandwidth, own.flops or roof.flops, roof.memory, source)
    yield Chose("device", roof.name, roof.source)
    return roof


def doubts(law: Law, points: list[Point], confidence: dict[str, Any]) -> Iterator[Event]:
    """Say where the constants are not to be believed."""
    lowest = min(p.loss for p in points)
    for name, value, limit in (("E", law.E, 1e-3 * lowest), ("k", law.k, 1e-3), ("alpha", law.alpha, 1e-3)):
        if value < limit:
            yield Warned("undetermined", f"{name} has gone to zero: the points do not determine it", name)
    constants = confidence["constants"]
    if constants is None:
        yield Warned("undetermined", "no point can be left out: how sure the constants are is unknown")
        return
    for name, spread in constants.items():
        value = getattr(law, name)
        if value and spread["standard_error"] > 0.5 * value:
            yield Warned(
                "undetermined", f"{name} is known to no better than {spread['standard_error'] / value:.0%}", name
            )


def outside(points: list[Point], parameters: float, options: LawOptions) -> Iterator[Event]:
    """Warn of predictions beyond the points."""
    sizes, streams = [p.parameters for p in points], [p.streams for p in points]
    if not min(sizes) * 0.95 <= parameters <= max(sizes) * 1.05:
        span = f"{min(sizes) / 1e9:.2f}B to {max(sizes) / 1e9:.2f}B"
        yield Warned("extrapolated", f"{parameters / 1e9:.2f}B lies outside the points, which go from {span}")
    if max(options.streams) > max(streams):
        yield Warned("extrapolated", f"{max(options.streams)} streams are more than the points have, {max(streams)}")


def predict(law: Law, shape: Shape, options: LawOptions, roof: Roof | None) -> Iterator[dict[str, Any]]:
    """One row for each number of streams, beside the model with one stream that is wide enough for the same loss.

    `more_memory` and `more_seconds` are what it takes beyond the base with one stream; the ratio of those of the wider
    model to those of the streams is the paper's comparison (figure 4).
    """
    base = base_parameters(shape).body
    alone = _run(shape, 1, options, roof)
    for streams in options.streams:
        parameters = base + added_of(shape, streams, options.prefix_tokens)
        equal = law.equivalent(parameters, streams)
        mine = _run(shape, streams, options, roof)
        wider = _run(shape_for(equal, shape), 1, options, roof)
        memory = (mine["memory"] - alone["memory"], wider["memory"] - alone["memory"])
        seconds = (None, None)
        if alone["seconds"] is not None:
            seconds = (mine["seconds"] - alone["seconds"], wider["seconds"] - alone["seconds"])
        yield {
            "streams": streams,
            "parameters": parameters,
            "added": parameters - base,
            "loss": law.loss(parameters, streams),
            "multiplier": law.multiplier(streams),
            "equivalent_parameters": equal,
            **mine,
            "more_memory": memory[0],
            "more_seconds": seconds[0],
            "wider": wider | {"more_memory": memory[1], "more_seconds": seconds[1]},
            "memory_ratio": _ratio(memory[1], memory[0]),
            "seconds_ratio": _ratio(seconds[1], seconds[0]),
        }


def _ratio(above: float | None, below: float | None) -> float | None:
    """above / below; None where it means nothing."""
    return above / below if above and below and below > 0 else None


def _run(shape: Shape, streams: int, o: LawOptions, roof: Roof | None) -> dict[str, Any]:
    """Memory and seconds of reading a prompt and writing an answer."""
    sizes = (o.weight_bytes, o.cache_bytes, o.prefix_tokens)
    memory = inference_memory(shape, streams, o.batch, o.prompt, o.prompt + o.answer, *sizes)
    prefill = decode = None
    if roof:
        prefill = prefill_cost(shape, streams, o.batch, o.prompt, *sizes).seconds(roof.bandwidth, roof.flops)
        # Costs grow evenly with the context: the step in the middle is the mean step.
        middle = o.prompt + o.answer / 2
        decode = decode_cost(shape, streams, o.batch, middle, *sizes).seconds(roof.bandwidth, roof.flops)
    total = None if prefill is None or decode is None else prefill + o.answer * decode
    fits = None if not roof or roof.memory is None else sum(memory.values()) <= roof.memory
    return {
        "memory": sum(memory.values()),
        "memory_parts": memory,
        "fits": fits,
        "prefill_seconds": prefill,
        "decode_seconds": decode,
        "seconds": total,
    }
