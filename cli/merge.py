"""`qwench merge`: several checkpoints become one, tensor by tensor."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .options import DryRun, Json, Offline, Quiet, Revision, Threads, Verbose
from .out import clock, size, start

EPILOG = """\b
examples:
  qwench merge sft-a sft-b --out merged --t 0.4
  qwench merge tuned-1 tuned-2 --base original --method ties --param density=0.5 --out merged
  qwench merge --trajectory run --last 5 --out merged --dry-run
"""


def merge(
    models: Annotated[list[str] | None, typer.Argument(help="Folders, hub ids, .gguf; MODEL+ADAPTER for LoRA.")] = None,
    out: Annotated[str, typer.Option(help="Folder to make.", show_default=False)] = "",
    method: Annotated[str, typer.Option(help="A method of mergekit: slerp, linear, ties, dare_ties, ...")] = "slerp",
    t: Annotated[str | None, typer.Option(help="0.5, a gradient 0,0.5,1 or attn=0.3,mlp=0.7.")] = None,
    weight: Annotated[str | None, typer.Option(help="One for each model: 1,1,2.")] = None,
    param: Annotated[list[str] | None, typer.Option(help="name=value of the method; repeatable.")] = None,
    base: Annotated[str | None, typer.Option(help="The model that differences are taken from.")] = None,
    fold: Annotated[str | None, typer.Option(help="More than two by slerp: sequential or tree.")] = None,
    config: Annotated[str | None, typer.Option(help="A recipe in mergekit's YAML.")] = None,
    trajectory: Annotated[str | None, typer.Option(help="Folder with checkpoint-* of a training run.")] = None,
    last: Annotated[int, typer.Option(min=0, help="With --trajectory: how many, 0 for all.")] = 0,
    dtype: Annotated[str, typer.Option(help="Of the arithmetic: auto (float32), float32, float64.")] = "auto",
    out_dtype: Annotated[str, typer.Option(help="Of the result; auto is as the first model's.")] = "auto",
    max_shard_size: Annotated[str, typer.Option(help="Most bytes per file.")] = "5GB",
    memory: Annotated[str, typer.Option(help="Bytes for tensors that cannot be merged piece by piece.")] = "2GB",
    seed: Annotated[int, typer.Option(help="For dare and della, which drop at random.")] = 0,
    plot: Annotated[str | None, typer.Option(help="Draw cosine and norm by layer into this .png.")] = None,
    allow_mismatch: Annotated[
        bool, typer.Option("--allow-mismatch", help="Copy what one model has alone, drop the rest.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what an interrupted run left.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    dry_run: DryRun = False,
    threads: Threads = 0,
    revision: Revision = None,
    offline: Offline = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Merge checkpoints by slerp, linear, ties and the rest.

    Every tensor is merged, copied or named as dropped; an input is never written into.
    """
    from ..ops import merge as op

    streams = start(json, quiet, verbose)
    options = op.MergeOptions(
        models=tuple(models or ()),
        out=out,
        method=method,
        t=t,
        weight=weight,
        param=tuple(param or ()),
        base=base,
        fold=fold,
        config=config,
        trajectory=trajectory,
        last=last,
        dtype=dtype,
        out_dtype=out_dtype,
        max_shard_size=max_shard_size,
        memory=memory,
        seed=seed,
        allow_mismatch=allow_mismatch,
        resume=resume,
        force=force,
        threads=threads,
        revision=revision,
        offline=offline,
    )
    if dry_run:
        plan = streams.run(op.dry_run(options))
        streams.document(plan) if json else streams.data(_planned(plan))
        return
    result = streams.run(op.merge(options, Path(plot) if plot else None))
    if json:
        streams.document(result | {"warnings": streams.warnings})
    streams.talk(_done(result))


def _planned(plan: dict[str, Any]) -> str:
    lines = [f"{t['name']}  {t['shape']}  {t['dtype']}  {t['action']}" for t in plan["tensors"]]
    lines += [f"{d['name']}  dropped: {d['reason']}" for d in plan["dropped"]]
    lines += [f"{name}  side file" for name in plan["side_files"]]
    lines += [f"note: {note}" for note in plan["notes"]]
    count = f"{plan['shards']} files" if plan["shards"] > 1 else "1 file"
    return "\n".join([*lines, f"{size(plan['bytes'])} in {count}; free: {size(plan['free'])}"])


def _done(result: dict[str, Any]) -> str:
    line = f"{result['out']}: {result['merged']} tensors merged by {result['method']}"
    line += f", {result['copied']} copied" if result["copied"] else ""
    line += f", {size(result['bytes'])}, {clock(result['seconds'])}"
    if result["least_cosine"] is not None:
        line += f"; least cosine to the first model {result['least_cosine']:.4f}"
    if dropped := result["dropped"]:
        line += "".join(f"\ndropped `{d['name']}`: {d['reason']}" for d in dropped[:10])
        line += f"\nand {len(dropped) - 10} more dropped; --json names them" if len(dropped) > 10 else ""
    return line
