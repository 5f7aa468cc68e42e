"""`qwench convert`: one checkpoint in, another out."""

from typing import Annotated, Any

import typer

from .options import Checkpoint, DryRun, Talk, fill, refuse, runtime
from .out import clock, size
from .screen import one_line

EPILOG = """\b
examples:
  qwench convert Qwen/Qwen3-0.6B half --dtype float16 --verify bits
  qwench convert Qwen/Qwen3-0.6B qwen3.gguf --dtype q8_0
  qwench convert Qwen/Qwen3-Reranker-0.6B classifier --head reranker --dry-run
"""


def convert(
    ctx: typer.Context,
    src: Checkpoint,
    out: Annotated[str, typer.Argument(help="Folder to make, or FILE.gguf.", show_default=False)],
    to: Annotated[
        str | None, typer.Option(help="safetensors, bin or gguf (OUT.gguf says so); the input's own by default.")
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(
            help="auto keeps each tensor's; float32, bfloat16, float16, float64; GGUF: q8_0, q4_0, q4_1, q5_0, q5_1."
        ),
    ] = "auto",
    max_shard_size: Annotated[str, typer.Option(help="Most bytes per file; GGUF is always one.")] = "5GB",
    layout: Annotated[str | None, typer.Option(help="prefixed (model.layers...) or flat (layers...) names.")] = None,
    head: Annotated[str | None, typer.Option(help="lm, embedding, reranker (a classifier) or reward.")] = None,
    labels: Annotated[int, typer.Option(help="Labels of --head reranker: 1 or 2.")] = 1,
    lora: Annotated[list[str] | None, typer.Option(help="Adapter folder to merge; repeatable, in order.")] = None,
    gate: Annotated[str | None, typer.Option(help="Insert attention gates: headwise or elementwise.")] = None,
    gate_layout: Annotated[str | None, typer.Option(help="stock (Qwen3-Next) or fork (as published).")] = None,
    untie: Annotated[bool, typer.Option("--untie", help="Write a tied head as a tensor of its own.")] = False,
    verify: Annotated[str, typer.Option(help="bits compares every byte; logits asks both models the same.")] = "none",
    allow_nan: Annotated[bool, typer.Option("--allow-nan", help="Convert although a tensor holds NaN.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="With --force: still go on with a killed run.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    dry_run: DryRun = False,
    *,
    runtime: runtime("revision", "offline", "threads"),
    streams: Talk,
) -> None:
    """Change a checkpoint's format, dtype, shards, names.

    The input is never changed. The output appears whole, or as OUT.part that the same command goes on with.
    """
    from ..ops import convert as op

    if head != "reranker":
        refuse(ctx, "there is no --head reranker", "labels")
    if dry_run:
        refuse(ctx, "--dry-run writes nothing", "verify", "resume", "force")
    options = fill(op.ConvertOptions, ctx.params, runtime=runtime)
    if dry_run:
        plan = streams.run(op.dry_run(options))
        streams.document(plan) if streams.json else streams.data(_planned(plan))
        return
    result = streams.run(op.convert(options))
    if streams.json:
        streams.document(result | {"warnings": streams.warnings})
    streams.talk(_done(result))


def _planned(plan: dict[str, Any]) -> str:
    lines = [f"{t['name']}  {t['shape']}  {t['dtype']}  {t['action']}" for t in plan["tensors"]]
    lines += [f"{d['name']}  dropped: {d['reason']}" for d in plan["dropped"]]
    lines += [f"{name}  side file" for name in plan["side_files"]]
    lines += [f"{name}  left out" for name in plan["left_out"]]
    lines += [f"note: {note}" for note in plan["notes"]]
    count = f"{plan['shards']} files" if plan["shards"] > 1 else "1 file"
    lines = [one_line(line) for line in lines]
    return "\n".join([*lines, f"{size(plan['bytes'])} in {count}; free: {size(plan['free'])}"])


def _done(result: dict[str, Any]) -> str:
    files = f"{result['shards']} files" if result["shards"] > 1 else "1 file"
    line = (
        f"{result['out']}: {result['tensors']} tensors, {size(result['bytes'])} in {files}, {clock(result['seconds'])}"
    )
    line += ", verified to the bit" if result["verified"] else ""
    if logits := result["logits"]:
        line += (
            f"\nsame {logits['tokens']} tokens asked: largest difference of a logit {logits['max_difference']:.2g}, "
        )
        line += f"KL {logits['kl']:.2g} nats, same first choice {logits['same_top']:.0%}"
    for dropped in result["dropped"]:
        line += "\n" + one_line(f"dropped `{dropped['name']}`: {dropped['reason']}")
    if result["left_out"]:
        line += "\nleft out: " + ", ".join(f"`{n}`" for n in result["left_out"])
    if losses := result["losses"]:
        line += f"\nlargest error of the cast {losses['largest_error']:.2g}"
        line += f", {losses['underflow']} values became zero" if losses["underflow"] else ""
    return line
