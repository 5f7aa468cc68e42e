"""`qwench merge`: several checkpoints become one, tensor by tensor."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..ops.base.errors import QwenchError
from .errors import ExitCode
from .options import DryRun, Talk, fill, refuse, runtime
from .out import Out, clock, size
from .screen import one_line

EPILOG = """\b
examples:
  qwench merge sft-a sft-b --out merged --t 0.4
  qwench merge --trajectory run --last 5 --out merged
  qwench merge a b --sweep t=0:1:0.1 --eval retrieval:pairs.jsonl --plot curve.png
"""


def merge(
    ctx: typer.Context,
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
    plot: Annotated[
        str | None, typer.Option(help="Draw cosine and norm by layer, or the sweep, into this .png.")
    ] = None,
    sweep: Annotated[str | None, typer.Option(help="Measure at many values: t=0:1:0.1 or t=0.2,0.5.")] = None,
    evaluate: Annotated[
        str | None, typer.Option("--eval", help="With --sweep: retrieval:PAIRS.jsonl or ppl:TEXT.")
    ] = None,
    best: Annotated[bool, typer.Option("--best", help="With --sweep: write the best one.")] = False,
    allow_mismatch: Annotated[
        bool, typer.Option("--allow-mismatch", help="Copy what one model has alone, drop the rest.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="With --force: still go on with a killed run.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    dry_run: DryRun = False,
    *,
    runtime: runtime("revision", "offline", "threads"),
    streams: Talk,
) -> None:
    """Merge checkpoints by slerp, linear, ties and the rest.

    Every tensor is merged, copied or named as dropped; an input is never written into.
    """
    from ..ops import merge as op

    if not trajectory:
        refuse(ctx, "there is no --trajectory", "last")
    if dry_run:
        refuse(ctx, "--dry-run writes nothing", "resume", "force", *(() if sweep else ("plot",)))
    if sweep and not best:
        refuse(ctx, "--sweep writes no model without --best", "out", "resume", "force", "max_shard_size", "out_dtype")
    options = fill(op.MergeOptions, ctx.params, runtime=runtime)
    where = Path(plot) if plot else None
    if sweep or evaluate or best:
        _sweep(streams, options, sweep, evaluate, best, where, dry_run)
        return
    if dry_run:
        plan = streams.run(op.dry_run(options))
        streams.document(plan) if streams.json else streams.data(_planned(plan))
        return
    result = streams.run(op.merge(options, where))
    if streams.json:
        streams.document(result | {"warnings": streams.warnings})
    streams.talk(_done(result))


def _sweep(
    streams: Out, options: Any, sweep: str | None, evaluate: str | None, best: bool, plot: Path | None, dry_run: bool
) -> None:
    from ..ops import merge as op

    if not sweep or not evaluate:
        flag = "--sweep" if sweep else "--eval" if evaluate else "--best"
        raise QwenchError(f"{flag} is not all of a sweep", "give --sweep t=0:1:0.1 and --eval ppl:TEXT", code=2)
    if dry_run:
        raise QwenchError("--dry-run shows a plan, and a sweep has many", "leave out --sweep and --eval", code=2)
    result = streams.run(op.sweep(options, sweep, evaluate, best, plot))
    streams.document(result | {"warnings": streams.warnings}) if streams.json else streams.data(_points(result))
    streams.talk(_verdict(result))
    if result["merged"]:
        streams.talk(_done(result["merged"]))
    elif best:
        streams.talk("nothing is written")
        raise typer.Exit(ExitCode.NO)


def _points(result: dict[str, Any]) -> str:
    name, rows = result["parameter"], [*result["inputs"], *result["points"]]
    heads = [name, *(k for k in rows[0] if k != "model")]
    labels = [f"{r['model']} alone" if "model" in r else str(r[name]) for r in rows]
    wide = max(map(len, [name, *labels]))
    lines = [heads[0].ljust(wide) + "".join(f"  {h:>14}" for h in heads[1:])]
    for row, label in zip(rows, labels, strict=True):
        mark = "  best" if row is result["best"] else ""
        lines.append(label.ljust(wide) + "".join(f"  {row[h]:>14.4f}" for h in heads[1:]) + mark)
    return "\n".join(lines)


def _verdict(result: dict[str, Any]) -> str:
    name, metric, best, other = (result[k] for k in ("parameter", "metric", "best", "best_input"))
    words = f"best at {name} {best[name]}: {metric} {best[metric]:.4f}"
    if result["gain"] > 0:
        return f"{words}, better by {result['gain']:.4f} than `{other['model']}` alone ({other[metric]:.4f})"
    return f"no gain: {words}, and `{other['model']}` alone has {other[metric]:.4f}"


def _planned(plan: dict[str, Any]) -> str:
    lines = [f"{t['name']}  {t['shape']}  {t['dtype']}  {t['action']}" for t in plan["tensors"]]
    lines += [f"{d['name']}  dropped: {d['reason']}" for d in plan["dropped"]]
    lines += [f"{name}  side file" for name in plan["side_files"]]
    lines += [f"note: {note}" for note in plan["notes"]]
    count = f"{plan['shards']} files" if plan["shards"] > 1 else "1 file"
    lines = [one_line(line) for line in lines]
    return "\n".join([*lines, f"{size(plan['bytes'])} in {count}; free: {size(plan['free'])}"])


def _done(result: dict[str, Any]) -> str:
    line = f"{result['out']}: {result['merged']} tensors merged by {result['method']}"
    line += f", {result['copied']} copied" if result["copied"] else ""
    line += f", {size(result['bytes'])}, {clock(result['seconds'])}"
    if result["least_cosine"] is not None:
        line += f"; least cosine to the first model {result['least_cosine']:.4f}"
    if dropped := result["dropped"]:
        line += "".join("\n" + one_line(f"dropped `{d['name']}`: {d['reason']}") for d in dropped[:10])
        line += f"\nand {len(dropped) - 10} more dropped; --json names them" if len(dropped) > 10 else ""
    return line
