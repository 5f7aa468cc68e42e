"""An off-the-shelf decoder becomes a parallel one by short post-training: the work behind `qwench parscale-recycle`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from .base.atomic import remove
from .base.errors import QwenchError
from .base.events import Advanced, Chose, Event, Events, Finished, Produced, Started, Warned
from .checkpoint.cast import Losses
from .checkpoint.staging import Staging
from .checkpoint.writer import check_room, write_sides, write_tensors
from .models.device import pick_threads
from .models.pretrained import silence_transformers
from .streams.options import RecycleOptions, tokens_of
from .streams.report import estimate, result_of
from .streams.work import Work
from .training.ranks import first, rank

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["RecycleOptions", "dry_run", "rank", "recycle"]


def recycle(options: RecycleOptions) -> Events:
    """Train parallel streams over a decoder and write the result.

    Yields Chose, Warned, Advanced, and Produced rows with `event`: estimate, measured, step, held_out; Finished has the
    losses, the verdict and `helped`.

    Raises:
        QwenchError: see `Work`, `read_blocks`, `train`; disk too small.
    """
    work = Work(options)
    work.open_folder()
    try:
        yield from work.run_folder.told()
        yield from _recycled(work)
    finally:
        work.run_folder.close()
        _leave_group()


def _recycled(work: Work) -> Events:
    begun, options = time.monotonic(), work.o
    yield from _begin(work)
    work.build()
    yield Chose("one stream", "equals the base", "the logits are the same to the bit on held-out text")
    yield Produced({"event": "estimate"} | estimate(work))
    yield from work.measured("base")
    if options.baseline:
        yield from work.run(1, "baseline")
        if options.train == "all":
            work.build()
    kept: dict[int, dict[str, Tensor]] = {}
    for streams in options.streams:
        yield from work.run(streams, f"p{streams}")
        kept[streams] = work.added()
    result = result_of(work) | {"seconds": round(time.monotonic() - begun, 3)}
    if rank() == 0:
        yield from _write(work, kept, result)
    # A process that ends before the others have may end them.
    first(lambda: None)
    yield Finished(result)


def dry_run(options: RecycleOptions) -> Events:
    """What would be done: parameters, cost and time, one step measured; nothing is written."""
    work = Work(options)
    yield from _begin(work)
    work.build()
    yield Finished({"schema": 1, "model": options.model, "out": options.out} | estimate(work))


def _begin(work: Work) -> Iterator[Event]:
    import torch

    threads = pick_threads(work.o.runtime.threads)
    torch.set_num_threads(threads.value)
    for name, choice in (("device", work.device), ("dtype", work.dtype), ("threads", threads)):
        yield Chose(name, choice.value, choice.reason)
    _quiet()
    for note in work.plan.notes:
        yield Warned("note", note)
    if find_spec("matplotlib") is None:
        yield Warned("plot", "matplotlib is not installed, so the curves will not be drawn: pip install 'qwench[plot]'")
    yield from work.read()
    wanted, there = tokens_of(work.o), work.blocks.train.numel()
    if wanted > there:
        yield Warned(
            "data", f"{there:,} tokens of data for {wanted:,} of training: each is seen {wanted / there:.1f} times"
        )


def _leave_group() -> None:
    """Part from the other processes of torchrun, which says so on stderr if it is left to the exit."""
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _quiet() -> None:
    import logging
    import warnings

    silence_transformers()
    for name in ("accelerate", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(transformers|accelerate|torch)\b")


def _write(work: Work, kept: dict[int, dict[str, Tensor]], result: dict[str, Any]) -> Iterator[Event]:
    from .base.plots import recycle_curves
    from .checkpoint.sidecars import as_json
    from .streams.save import adapter_bytes, adapter_name, finish_plan, model_card
    from .training.train import history

    o, plan = work.o, work.plan
    said = {"parscale_n_tokens": o.prefix_tokens, "parscale_attn_smooth": o.smooth}
    best = result["streams"]
    finish_plan(plan, work.config, {"parscale_n": best} | said, kept[best], work.decoder())
    for streams, tensors in kept.items() if o.train == "added" else ():
        plan.side[adapter_name(streams)] = adapter_bytes(tensors, {"parscale_n": streams} | said)
    runs = {f.name: history(f) for f in sorted(work.folder.iterdir()) if f.is_dir()}
    plan.side["README.md"] = model_card(result).encode()
    plan.side["recycle.json"] = as_json(result | {"history": runs})
    picture = work.folder / "loss.png"
    try:
        recycle_curves(runs, {r["name"]: r["loss"] for r in result["losses"]}, o.model, picture)
        plan.side["loss.png"] = picture.read_bytes()
    except QwenchError as error:
        yield Warned("plot", f"the curves are not drawn: {error.message}")
    plan.copies = [n for n in plan.copies if n not in plan.side]
    if work.out.exists() and not o.force:
        raise QwenchError(
            f"the output appeared in the meantime: `{work.out}`", "move it away; the same command then only writes it"
        )
    # The state of the run is in its folder: a part there is of an earlier end of this very run goes on.
    mark = f"{work.mark} {best}"
    staging = Staging(work.out, mark, resume=True, force=o.force, files=plan.files)
    check_room(plan, staging.out.parent, staging.held())
    with staging:
        yield Started("write", plan.nbytes, "B")
        threads = pick_threads(o.runtime.threads).value
        for count in write_tensors(plan, staging, Losses(), threads, work.source.reader.release):
            yield Advanced("write", count)
        write_sides(plan, staging.part, work.source.folder)
        staging.commit()
    remove(work.folder)
