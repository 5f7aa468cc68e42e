"""One checkpoint in, another out: the work behind `qwench convert`.

A plan names every tensor before the first byte is read; tensors then stream from mapped files to where they belong,
and the output appears in one step.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from pathlib import Path

from .base.errors import QwenchError
from .base.events import Advanced, Events, Finished, Started, Warned
from .base.paths import check_output, local
from .checkpoint.adapter import adapter_files
from .checkpoint.cast import Losses
from .checkpoint.reader import Source, apart
from .checkpoint.staging import Staging, job_of, state_of
from .checkpoint.writer import check_room, verify_bits, write_sides, write_tensors
from .conversion.plan import ConvertOptions as ConvertOptions
from .conversion.plan import plan_conversion as plan_conversion
from .conversion.plan import target_format
from .models.device import pick_threads
from .models.hub import adapter_folder, open_source


def convert(options: ConvertOptions) -> Events:
    """Convert a checkpoint.

    Yields Warned for what the user should know, Advanced in bytes, and Finished with sizes, losses of casts, what was
    dropped, and the outcome of the verification.

    Raises:
        QwenchError: unreadable input, options that do not fit, output there already, disk too small, NaN.
    """
    from .conversion.stock import alike, check_options, compare_logits

    begun = time.monotonic()
    check_output(options.out, folder=None)
    source = _opened(options)
    out = Path(os.path.abspath(options.out))
    apart(source, out)
    plan = plan_conversion(source, options)
    if options.verify == "logits":
        check_options(options)
    for note in plan.notes:
        yield Warned("note", note)
    offline = options.runtime.offline
    adapters = [file for name in options.lora for file in adapter_files(adapter_folder(name, offline))]
    state = state_of((*source.files, *adapters))
    losses, threads = Losses(), pick_threads(options.runtime.threads).value
    single = plan.shards[0].file if plan.shards[0].said else None
    staging = Staging(
        out,
        plan.fingerprint(str(state)),
        resume=options.resume,
        force=options.force,
        file=single,
        files=plan.files,
        job=job_of(options, ("src", "out", "verify", "allow_nan"), state),
    )
    check_room(plan, staging.out.parent, staging.held())
    with staging:
        yield from staging.told()
        resumed = sum(o.nbytes for s in plan.shards for o in s.outputs if {o.name, s.file} & staging.done)
        yield Started("write", plan.nbytes, "B")
        for count in write_tensors(plan, staging, losses, threads, source.reader.release):
            yield Advanced("write", count)
        if losses.nan and not options.allow_nan:
            raise QwenchError(
                f"a tensor holds NaN: `{sorted(losses.nan)[0]}`", "the model is damaged; --allow-nan converts it anyway"
            )
        write_sides(plan, staging.part, source.folder)
        if options.verify == "bits":
            yield Started("verify", plan.nbytes, "B")
            for name, count, same in verify_bits(plan, staging.part):
                if not same:
                    raise QwenchError(f"what was written differs from the input: `{name}`", "check the disk", code=3)
                yield Advanced("verify", count)
        logits = None
        if options.verify == "logits":
            yield Started("logits")
            logits = compare_logits(source, Source(staging.part / single if single else staging.part), out.parent)
            if not alike(logits, options.dtype):
                raise QwenchError(
                    f"the converted model answers differently (KL {logits['kl']:.2g} nats, largest difference "
                    f"{logits['max_difference']:.2g}): `{options.src}`",
                    f"what was written is in `{staging.part}`",
                    code=3,
                )
        staging.commit()
    kinds = {o.name: o.dtype for o in plan.outputs} | {n: o.dtype for o in plan.outputs for n in o.sources}
    for name, count in losses.overflow.items():
        yield Warned(
            "overflow", f"{count} values of `{name}` became infinite in {kinds.get(name, options.dtype)}", name
        )
    yield Finished(
        {
            "schema": 1,
            "out": options.out,
            "tensors": len(plan.outputs),
            "bytes": plan.nbytes,
            "shards": len(plan.shards),
            "resumed_bytes": resumed,
            "dropped": plan.to_dict()["dropped"],
            "left_out": plan.left,
            "notes": plan.notes,
            "losses": losses.report() if options.dtype != "auto" or losses else None,
            "verified": options.verify == "bits",
            "logits": logits,
            "seconds": round(time.monotonic() - begun, 3),
        }
    )


def _opened(options: ConvertOptions) -> Source:
    """The input; quantised tensors as they lie in its files where nothing is asked that needs their values."""
    source = open_source(options.src, options.runtime.revision, options.runtime.offline)
    values = options.head or options.lora or options.gate or options.gate_layout or options.untie
    values = values or options.dtype != "auto" or target_format(source, options) != source.reader.format
    return source if values or not source.quantised else Source(source.path, as_stored=True)


def dry_run(options: ConvertOptions) -> Events:
    """The plan: Finished has it tensor by tensor, with the disk it needs and has."""
    import shutil

    local(options.out, "the output")
    source = _opened(options)
    out = Path(os.path.abspath(options.out))
    apart(source, out)
    plan = plan_conversion(source, options)
    free = shutil.disk_usage(out.parent).free if out.parent.is_dir() else None
    chosen = {k: v for k, v in asdict(options).items() if k not in ("src", "out", "runtime")}
    chosen |= {k: getattr(options.runtime, k) for k in ("threads", "revision", "offline")}
    result = {"schema": 1, "out": options.out, "format": source.reader.format, "options": chosen, "free": free}
    yield Finished(result | {"shards": len(plan.shards)} | plan.to_dict())
