"""Fit the parallel scaling law, predict with it, and weigh streams against parameters: `qwench parscale-law`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from .base.events import Advanced, Chose, Events, Finished, Started
from .base.plots import check_plot
from .streams.fit import fit, leave_one_out
from .streams.law import CORPORA, PUBLISHED, published_points, shape_for
from .streams.points import read_points
from .streams.predict import LawOptions, checked, doubts, outside, predict, roof_of, target_of

NOTE = "memory and latency are modelled by a roofline, not measured"


def parscale_law(options: LawOptions, plot: Path | None = None) -> Events:
    """Fit, and predict where asked to.

    Finished has points, law, fit, confidence, published (of shipped points), device, predictions, note.

    Raises:
        QwenchError: points that determine nothing, an unknown corpus, device or family, a size that is not positive.
    """
    checked(options)
    if plot:
        check_plot(plot)
    points = read_points(Path(options.points)) if options.points else published_points(options.corpus)
    shape, parameters, name = target_of(options.predict)
    yield Started("fitting")
    found = fit(points)
    yield Advanced("fitting", 1, detail="leaving out one point after another")
    confidence = leave_one_out(points, found.law)
    yield from doubts(found.law, points, confidence)
    corpus = None if options.points else CORPORA[options.corpus]
    result: dict[str, Any] = {
        "schema": 1,
        "source": options.points or f"{corpus}, {len(points)} published points",
        "points": [asdict(p) for p in points],
        "law": asdict(found.law),
        "fit": {k: v for k, v in asdict(found).items() if k != "law"},
        "confidence": confidence,
        "published": asdict(PUBLISHED[options.corpus]) if corpus else None,
        "device": None,
        "model": None,
        "predictions": [],
        "note": None,
    }
    if parameters is not None:
        roof = yield from roof_of(options)
        result["device"] = asdict(roof) | {"ridge": roof.ridge} if roof else None
        result["model"] = {"name": name, "parameters": parameters, "shape": asdict(shape) if shape else None}
        if shape is None:
            shape = shape_for(parameters)
            reason = "no config is given: the paper's 1.6B, made wider or narrower"
            yield Chose("shape", f"{shape.layers} layers of {shape.hidden:.0f}", reason)
            result["model"]["shape"] = asdict(shape)
        yield from outside(points, parameters, options)
        result["predictions"] = list(predict(found.law, shape, options, roof))
        result["note"] = NOTE
    elif options.device:
        yield Chose("device", None, f"`{options.device}` is not needed without --predict")
    if plot:
        from .base.plots import scaling_curves

        title = f"{corpus or Path(options.points).name}: L = E + (A / (N (k ln P + 1)))^alpha"
        marks = [(row["parameters"], row["streams"], row["loss"]) for row in result["predictions"]]
        scaling_curves([(p.parameters, p.streams, p.loss) for p in points], marks, found.law.loss, title, plot)
        result["plot"] = str(plot)
    yield Finished(result)
