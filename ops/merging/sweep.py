"""A merge at many values of a parameter, each measured in memory: the work behind `qwench merge --sweep`."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..base.errors import QwenchError
from ..base.events import Advanced, Events, Finished, Started, Warned
from ..base.paths import check_output
from ..base.plots import check_plot
from ..checkpoint.plan import Plan
from ..checkpoint.writer import check_room, write_sides
from ..models.hub import Checkpoint
from .evaluate import Measure, parse_eval
from .inputs import Input
from .methods import find_method
from .options import MergeOptions, recipe_of
from .plan import plan_merge
from .recipe import Recipe, Slice
from .run import merge, staging_of
from .settings import scalar
from .view import PlannedReader

MOST = 1000


@dataclass(frozen=True, slots=True)
class Sweep:
    """A parameter and the values it takes."""

    name: str
    values: list[Any]


def parse_sweep(text: str) -> Sweep:
    """`t=0:1:0.1` (both ends are in) or `density=0.2,0.5,0.8`.

    Raises:
        QwenchError: neither (code 2).
    """
    name, _, said = text.partition("=")
    parts = [scalar(v) for v in said.split(":" if ":" in said else ",")]
    hint = "write t=0:1:0.1 or t=0.2,0.5"
    if not name.strip() or any(p == "" for p in parts):
        raise QwenchError(f"not a sweep: `{text}`", hint, code=2)
    if ":" not in said:
        return Sweep(name.strip(), parts)
    if len(parts) != 3 or any(isinstance(p, (bool, str)) for p in parts):
        raise QwenchError(f"not a sweep: `{text}`", hint, code=2)
    first, last, step = parts
    if not (step > 0 and last >= first and (last - first) / step <= MOST):
        raise QwenchError(f"a sweep goes upward, in {MOST} steps at the most: `{text}`", hint, code=2)
    count = math.floor((last - first) / step + 1e-9) + 1
    # Ten digits: 3 * 0.1 is to be 0.3.
    return Sweep(name.strip(), [round(first + i * step, 10) for i in range(count)])


def sweep(options: MergeOptions, wanted: str, measure: str, best: bool = False, plot: Path | None = None) -> Events:
    """Measure a merge at each value of a parameter, and each model alone; nothing is written but what is asked for.

    Finished has `points` and `inputs` with all metrics, `best` (the best point), `gain` (how much better than the best
    of the models it is, negative where it is worse), and `merged`, the result of the merge where one was made.

    Args:
        wanted: see `parse_sweep`.
        measure: see `parse_eval`.
        best: merge the best point into `options.out` where it is better than each of the models.
        plot: picture of the curve.

    Raises:
        QwenchError: see `plan_merge`, `parse_sweep` and `parse_eval`; a parameter that is given twice.
    """
    begun = time.monotonic()
    asked, how = parse_sweep(wanted), parse_eval(measure)
    if best and not options.out:
        raise QwenchError("--best writes the winner, and there is no name for it", "add --out FOLDER", code=2)
    if options.out:
        check_output(options.out, folder=True)
    if plot:
        check_plot(plot)
    recipe = _free(recipe_of(options), options, asked.name)
    plans = [plan_merge(_at(recipe, asked.name, asked.values[0]), options)]
    opened = plans[0].inputs
    plans += [plan_merge(_at(recipe, asked.name, value), options, opened) for value in asked.values[1:]]
    if best:
        # What would stop the merge in the end is told before the work.
        staging = staging_of(plans[0], options, plans[1:])
        check_room(plans[0].plan, staging.out.parent, staging.held())
    for note in plans[0].plan.notes:
        yield Warned("note", note)
    lead = next(iter(opened.values()))
    yield Started("sweep", len(opened) + len(plans))
    inputs, points = [], []
    for model in opened.values():
        inputs.append({"model": model.model} | _measured(how, model.plan, model, model.model, options.runtime.threads))
        yield Advanced("sweep", 1, detail=f"{how.metric} {inputs[-1][how.metric]:.4f}")
    for value, made in zip(asked.values, plans, strict=True):
        found = _measured(how, made.plan, lead, f"{asked.name}={value}", options.runtime.threads)
        points.append({asked.name: value} | found)
        yield Advanced("sweep", 1, detail=f"{asked.name} {value}: {how.metric} {points[-1][how.metric]:.4f}")
    top, of = _best(how, points), _best(how, inputs)
    gain = (of[how.metric] - top[how.metric]) * (1 if how.lower else -1)
    said: dict[str, Any] = {"schema": 1, "parameter": asked.name, "eval": measure, "metric": how.metric}
    said |= {"lower_is_better": how.lower, "method": recipe.method, "models": recipe.models}
    said |= {"inputs": inputs, "points": points, "best": top, "best_input": of, "gain": gain, "merged": None}
    if plot:
        from ..base.plots import sweep_curve

        sweep_curve(points, inputs, asked.name, how.metric, recipe.method, plot)
        said["plot"] = str(plot)
    if best and gain > 0:
        for event in merge(options, recipe=_at(recipe, asked.name, top[asked.name])):
            if isinstance(event, Finished):
                said["merged"] = event.result
            elif not isinstance(event, Warned):
                yield event
    yield Finished(said | {"seconds": round(time.monotonic() - begun, 3)})


def _best(how: Measure, rows: list[dict[str, Any]]) -> dict[str, Any]:
    found = rows[0]
    for row in rows[1:]:
        found = row if how.better(row[how.metric], found[how.metric]) else found
    return found


def _free(recipe: Recipe, options: MergeOptions, name: str) -> Recipe:
    """The recipe without a value for the parameter that the sweep gives values to.

    Raises:
        QwenchError: it has one that was asked for, or its method has no such parameter.
    """
    given = (
        (name == "t" and options.t is not None)
        or (name == "weight" and options.weight is not None)
        or any(p.partition("=")[0].strip() == name for p in options.param)
        or (options.config and name in recipe.parameters)
        or any(name in s.parameters for s in recipe.slices)
        or (options.config and any(name in p.parameters for s in recipe.slices for p in s.parts))
    )
    if given:
        raise QwenchError(f"`{name}` has a value, and --sweep gives it others", "leave one out", code=2)
    if recipe.fold:
        raise QwenchError("--sweep is for merges without a fold, and these are more than two models by slerp", code=2)
    known = {p.name for p in find_method(recipe.method).spec.parameters}
    if name not in known:
        hint = f"it has: {', '.join(sorted(known)) or 'none'}"
        raise QwenchError(f"`{recipe.method}` has no parameter `{name}`", hint, code=2)

    def stripped(part: Slice) -> Slice:
        own = (replace(p, parameters={k: v for k, v in p.parameters.items() if k != name}) for p in part.parts)
        return replace(part, parts=tuple(own))

    return replace(recipe, slices=tuple(map(stripped, recipe.slices)))


def _at(recipe: Recipe, name: str, value: Any) -> Recipe:
    return replace(recipe, parameters=recipe.parameters | {name: value})


def _measured(how: Measure, plan: Plan, lead: Input, name: str, threads: int) -> dict[str, float]:
    """Metrics of what a plan would write."""
    with _sides(plan, lead) as folder:
        return how.of(Checkpoint(name, folder, "folder", "", PlannedReader(plan)), threads)


@contextmanager
def _sides(plan: Plan, lead: Input) -> Iterator[Path]:
    """A folder with everything but the weights, for as long as it is looked at."""
    with tempfile.TemporaryDirectory(prefix="qwench-") as name:
        write_sides(plan, Path(name), lead.source.folder)
        yield Path(name)
