"""Several checkpoints in, one out."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from ..base.errors import QwenchError
from ..base.events import Advanced, Events, Finished, Started, Warned
from ..base.paths import check_output, local
from ..base.plots import check_plot
from ..checkpoint.cast import Losses
from ..checkpoint.reader import apart
from ..checkpoint.staging import Staging, job_of, state_of
from ..checkpoint.writer import check_room, write_sides, write_tensors
from ..models.device import pick_threads
from .inputs import layer_of
from .options import MergeOptions, recipe_of
from .plan import MergePlan, plan_merge
from .recipe import Recipe


def merge(options: MergeOptions, plot: Path | None = None, recipe: Recipe | None = None) -> Events:
    """Merge checkpoints.

    Yields Warned for differences that do not stop it, Advanced in bytes, and Finished with sizes, what was copied and
    dropped, and cosine and norm ratio of every tensor to the first model's.

    Args:
        plot: picture of cosine and norm ratio by layer.
        recipe: in place of what the options ask for.

    Raises:
        QwenchError: models or options that do not fit, output there already, disk too small, a result not finite.
    """
    begun = time.monotonic()
    if options.out:
        check_output(options.out, folder=True)
    if plot:
        check_plot(plot)
    made = plan_merge(recipe or recipe_of(options), options)
    plan = made.plan
    for note in plan.notes:
        yield Warned("note", note)
    staging = staging_of(made, options)
    check_room(plan, staging.out.parent, staging.held())
    first = next(iter(made.inputs.values()))
    with staging:
        yield from staging.told()
        resumed = sum(o.nbytes for s in plan.shards for o in s.outputs if o.name in staging.done)
        yield Started("merge", plan.nbytes, "B")
        for count in write_tensors(plan, staging, Losses(), pick_threads(options.runtime.threads).value, made.release):
            yield Advanced("merge", count)
        write_sides(plan, staging.part, first.source.folder)
        staging.commit()
    rows = made.ledger.rows
    drawn = {}
    if plot:
        from ..base.plots import merge_by_layer

        merge_by_layer([(layer_of(n), r["cosine"], r["norm_ratio"]) for n, r in rows.items()], options.out, plot)
        drawn = {"plot": str(plot)}
    merged = [o for o in plan.outputs if o.action.startswith("merged")]
    yield Finished(
        {
            "schema": 1,
            "out": options.out,
            "method": made.recipe.method,
            "models": made.recipe.models,
            "tensors": len(plan.outputs),
            "merged": len(merged),
            "copied": len(plan.outputs) - len(merged),
            "dropped": plan.to_dict()["dropped"],
            "bytes": plan.nbytes,
            "shards": len(plan.shards),
            "resumed_bytes": resumed,
            "notes": plan.notes,
            "least_cosine": min((r["cosine"] for r in rows.values()), default=None),
            "by_tensor": rows,
            "recipe": made.yaml,
            "seconds": round(time.monotonic() - begun, 3),
        }
        | drawn
    )


def dry_run(options: MergeOptions) -> Events:
    """The plan: Finished has it tensor by tensor, with the disk it needs and has."""
    local(options.out, "the output")
    made = plan_merge(recipe_of(options), options)
    out = output_of(made, options)
    free = shutil.disk_usage(out.parent).free if out.parent.is_dir() else None
    said = {"schema": 1, "out": options.out, "models": made.recipe.models, "recipe": made.yaml, "free": free}
    yield Finished(said | {"shards": len(made.plan.shards)} | made.plan.to_dict())


def staging_of(made: MergePlan, options: MergeOptions, among: Iterable[MergePlan] = ()) -> Staging:
    """Where the result of a merge is written.

    Args:
        among: merges one of which will be made: a part of any of them may be there.

    Raises:
        QwenchError: see `output_of` and `Staging`.
    """
    out, plan = output_of(made, options), made.plan
    state = state_of(f for i in made.inputs.values() for f in i.files)
    marks = [_mark(m, options, state) for m in (made, *among)]
    job = job_of(options, ("models", "out", "memory", "config", "trajectory"), state)
    how = {"resume": options.resume, "force": options.force, "files": plan.files, "job": job}
    return Staging(out, marks[0], also=marks[1:], **how)


def _mark(made: MergePlan, options: MergeOptions, state: dict[str, list[int]]) -> str:
    said = [sorted(state.items()), made.yaml, options.seed, options.dtype]
    return made.plan.fingerprint(str(said))


def output_of(made: MergePlan, options: MergeOptions) -> Path:
    """The output, which may be neither an input nor inside one.

    Raises:
        QwenchError: it is, or there is no name for it.
    """
    if not options.out:
        raise QwenchError("there is no name for the result", "add --out FOLDER", code=2)
    out = Path(os.path.abspath(options.out))
    for model in made.inputs.values():
        apart(model.source, out)
    return out
