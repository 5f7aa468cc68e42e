"""`qwench explore train`: DPO or MARGE's loss on rows of a run."""

import sys
from typing import Annotated, Any

import typer

from .options import KeepGoing, Talk, choices, complete_model, fill, refuse, runtime
from .out import Out, clock, start

EPILOG = """\b
examples:
  qwench explore train dpo.jsonl --model ./model --out next
  qwench explore train pairs.jsonl --loss pairs --method full --lr 1e-6 --model ./model --out next
  qwench explore train dpo.jsonl --model ./next --ref ./model --beta 0.05 --out after
"""


def train(
    ctx: typer.Context,
    rows: Annotated[str, typer.Argument(help="Output of explore rows; - for standard input.", show_default=False)],
    model: Annotated[
        str,
        typer.Option("--model", "-m", help="Folder or hub id.", autocompletion=complete_model, show_default=False),
    ],
    out: Annotated[str, typer.Option(help="Folder to make.", show_default=False)],
    loss: Annotated[str, typer.Option(help="dpo, or pairs: MARGE's.", autocompletion=choices("dpo", "pairs"))] = "dpo",
    method: Annotated[
        str, typer.Option(help="lora (merged in the end) or full.", autocompletion=choices("lora", "full"))
    ] = "lora",
    ref: Annotated[
        str, typer.Option(help="The reference: current, or a model, such as the first episode's.")
    ] = "current",
    beta: Annotated[
        float | None,
        typer.Option(
            help="Default dpo 0.1, pairs 0.01; there it is no pull to the reference, it is added to every advantage.",
            show_default=False,
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Times over the rows.")] = 2,
    lr: Annotated[float | None, typer.Option(help="Peak; default lora 1e-5, full 1e-6.", show_default=False)] = None,
    batch: Annotated[int, typer.Option(min=1, help="Pairs.")] = 8,
    grad_accum: Annotated[int, typer.Option(min=1, help="Batches of a step.")] = 1,
    weight_decay: Annotated[float, typer.Option(min=0, help="Of AdamW.")] = 0.0,
    warmup: Annotated[float, typer.Option(min=0, help="Share of the steps.")] = 0.1,
    schedule: Annotated[
        str, typer.Option(help="cosine or constant, after the warm-up.", autocompletion=choices("cosine", "constant"))
    ] = "cosine",
    lora_rank: Annotated[int, typer.Option(min=1, help="Of --method lora.")] = 16,
    seq_len: Annotated[int, typer.Option(min=0, help="Longest row in tokens; 0 for the model's limit.")] = 0,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, more time.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of order and adapters.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="With --force: still go on with a killed run.")] = False,
    keep_going: KeepGoing = False,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    *,
    runtime: runtime("revision", "offline", "device", "dtype", "threads"),
    talk: Talk,
) -> None:
    """Train a model on rows of its run.

    What comes out loads in `chat` and in the next `explore run`; the same command goes on after a kill.
    """
    from ..ops import explore as op

    if method != "lora":
        refuse(ctx, f"--method {method} has no adapters", "lora_rank")
    shown = talk if op.rank() == 0 else start(quiet=True)
    options = fill(op.PreferenceOptions, ctx.params, runtime=runtime)
    show = (lambda row: _step(shown, row)) if op.rank() == 0 else None
    result = shown.run(op.train(options, sys.stdin.buffer), show)
    if op.rank():
        return
    if shown.json:
        shown.document(result | {"choices": shown.choices, "warnings": shown.warnings})
        return
    for line in _report(result):
        shown.data(line)
    shown.talk(f"{out}: {clock(result['seconds'])}")


def _step(shown: Out, row: dict[str, Any]) -> None:
    if shown.json:
        shown.document(row)
    elif shown.verbose and row["event"] == "step":
        shown.talk(f"step {row['step']}: loss {row['loss']:.4f}")


def _report(result: dict[str, Any]) -> list[str]:
    before, after = result["before"], result["after"]
    lines = [
        f"pairs    {result['pairs']:,} of {result['completion_tokens']:,} tokens, {result['epochs']} epochs, "
        f"{result['steps']} steps",
        f"loss     {before['loss']:.4f} before, {after['loss']:.4f} after, on these pairs",
        f"ordered  {after['ordered']:.4f} of the pairs: the better completion has gained more",
        f"drift    {after['drift']:+.5f} nats a token below the reference, on its own completions",
    ]
    lost = [f"{result[n]:,} rows {w}" for n, w in (("long", "too long"), ("bad", "that are none")) if result[n]]
    return lines + ([f"not used {', '.join(lost)}"] if lost else [])
