"""`qwench sample`: rows of prompts in, the rows with several samples of each out."""

import sys
from typing import Annotated, Any

import typer

from . import out as out_
from .errors import ExitCode
from .options import DryRun, Force, KeepGoing, Limit, Model, Talk, Writer, Writing, fill, refuse, served

EPILOG = """\b
examples:
  qwench sample questions.jsonl --model smollm2 --n 8 --out samples.jsonl
  qwench sample questions.jsonl --n 4 --think-budget low --out samples.parquet --limit 20
  cat questions.csv | qwench sample - --temperature 0 --stop "Question:" > answers.jsonl
"""

Prompts = Annotated[
    str, typer.Argument(help="Rows of prompt, question or messages; - for standard input.", show_default=False)
]


def sample(
    ctx: typer.Context,
    prompts: Prompts,
    model: Model = "Qwen/Qwen3-0.6B",
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="Samples of every prompt.")] = 1,
    out: Annotated[str, typer.Option(help=".jsonl or .parquet; - for rows as they are done.")] = "-",
    *,
    seed: Annotated[int, typer.Option(help="Another one draws other samples.")] = 0,
    shots: Annotated[str | None, typer.Option(help="Rows of examples: prompt and answer, or messages.")] = None,
    prefix_field: Annotated[str | None, typer.Option(help="Column with the beginning of the answer.")] = None,
    id_field: Annotated[str | None, typer.Option(help="Column that names a row; id, where it is there.")] = None,
    writing: Writing,
    batch: Annotated[int, typer.Option(min=1, help="Samples at a time.")] = 8,
    limit: Limit = 0,
    dry_run: DryRun = False,
    keep_going: KeepGoing = False,
    force: Force = False,
    runtime: Writer,
    shown: Talk,
) -> None:
    """Draw samples of many prompts.

    Every row keeps its fields and gains `samples`. With --out the same command goes on after a kill.
    """
    from ..ops import sample as op

    if out == "-":
        refuse(ctx, "standard output is no file to write over", "force")
    own = {"rows": prompts, "slots": batch, "model": served(ctx, runtime, model)}
    options = fill(op.SampleOptions, ctx.params, runtime=runtime, **own, **writing)
    show = shown.document if out == "-" else None
    result = shown.run(op.sample(options, sys.stdin.buffer), show)
    if dry_run:
        _plan(shown, result)
    elif out != "-" and shown.json:
        shown.document(result | {"choices": shown.choices, "warnings": shown.warnings})
    else:
        shown.talk(out_.rows_done(result))
    lost = result["bad"] + result.get("failed", 0)
    if lost and not keep_going:
        raise typer.Exit(ExitCode.FAILED)


def _plan(streams: out_.Out, result: dict[str, Any]) -> None:
    if streams.json:
        streams.document(result | {"choices": streams.choices, "warnings": streams.warnings})
        return
    tokens = result["prompt_tokens"]
    streams.data(f"rows           {result['rows'] - result['bad']:,}")
    streams.data(f"prompt tokens  {'unknown' if tokens is None else format(tokens, ',')}")
    if result["first_prompt"] is not None:
        streams.data("first prompt")
        streams.raw(result["first_prompt"])
