"""`qwench reward train`: pairs and a base become a reward model."""

import sys
from typing import Annotated, Any

import typer

from .options import Bundle, KeepGoing, Talk, complete_model, fill, refuse, runtime
from .out import Out, clock, start
from .reward import READ

EPILOG = """\b
examples:
  qwench reward train pairs.jsonl --model smollm2 --out reward
  qwench reward train pairs.jsonl --model Qwen/Qwen2.5-0.5B-Instruct --method lora --epochs 1 --out reward
  qwench reward train posts.jsonl --from-votes score --min-gap 3 --model smollm2 --out reward
"""

#: how texts are read, as far as training has a use for it
Texts = Annotated[
    dict[str, Any], Bundle({n: READ[n] for n in ("pool", "system", "max_tokens_in", "long", "batch_tokens")}, dict)
]


def train(
    ctx: typer.Context,
    pairs: Annotated[
        str, typer.Argument(help="Rows of chosen and rejected; - for standard input.", show_default=False)
    ],
    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", help="Base: folder, .gguf, hub id.", autocompletion=complete_model, show_default=False
        ),
    ],
    out: Annotated[str, typer.Option(help="Folder to make.", show_default=False)],
    method: Annotated[str, typer.Option(help="head (frozen base), lora or full.")] = "head",
    head: Annotated[str, typer.Option(help="auto, mlp or linear.")] = "auto",
    width: Annotated[int, typer.Option(min=0, help="Of the MLP, 0 for the hidden states'.")] = 0,
    init_from: Annotated[str | None, typer.Option(help="A reward model whose head is begun with.")] = None,
    epochs: Annotated[
        int | None, typer.Option(min=0, help="Default 40 for a head, else 2.", show_default=False)
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Peak; default head 1e-3, lora 1e-5, full 3e-6.", show_default=False)
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Pairs; default 32, else 8.", show_default=False)] = None,
    grad_accum: Annotated[int, typer.Option(min=1, help="Batches of a step, for lora and full.")] = 1,
    weight_decay: Annotated[float, typer.Option(min=0, help="Of AdamW.")] = 0.1,
    warmup: Annotated[float, typer.Option(min=0, help="Share of the steps.")] = 0.1,
    schedule: Annotated[str, typer.Option(help="constant or cosine, after the warm-up.")] = "constant",
    margin_field: Annotated[str | None, typer.Option(help="Column with the margin D must have.")] = None,
    center: Annotated[float, typer.Option(min=0, help="Weight of mean (r_w + r_l)^2, such as 0.01.")] = 0.0,
    validation: Annotated[str | None, typer.Option(help="Rows to validate with.")] = None,
    validation_share: Annotated[float, typer.Option(help="Else this share of the groups.")] = 0.1,
    group_by: Annotated[str, typer.Option(help="Rows of one value are never parted.")] = "prompt",
    keep: Annotated[str, typer.Option(help="The best epoch by validation loss, or the last.")] = "best",
    from_votes: Annotated[str | None, typer.Option(help="Rows of answers, scored by this field.")] = None,
    min_gap: Annotated[float, typer.Option(help="Least difference of votes.")] = 1.0,
    pairs_per_prompt: Annotated[int, typer.Option(min=1, help="Pairs drawn of a row of votes.")] = 1,
    limit: Annotated[int, typer.Option(min=0, help="Training pairs at most, drawn by the seed; 0 for all.")] = 0,
    lora_rank: Annotated[int, typer.Option(min=1, help="Of --method lora.")] = 16,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, more time.")
    ] = False,
    swap_check: Annotated[bool, typer.Option("--swap-check", help="Train on exchanged answers, too.")] = False,
    export: Annotated[str | None, typer.Option(help="trl: write the pairs as text, train nothing.")] = None,
    seed: Annotated[int, typer.Option(help="Of head, order and split.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="With --force: still go on with a killed run.")] = False,
    keep_going: KeepGoing = False,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    *,
    texts: Texts,
    runtime: runtime("revision", "offline", "device", "dtype", "kernels", "quantize", "threads"),
    talk: Talk,
) -> None:
    """Train a reward model on pairs of answers.

    What comes out loads in `reward score`; the same command goes on after a kill.
    """
    from ..ops import reward as op

    if method == "head":
        refuse(ctx, "--method head trains no base", "lora_rank", "gradient_checkpointing", "grad_accum", "resume")
    else:
        refuse(ctx, f"--method {method} trains the base itself", "quantize", "kernels", "batch_tokens")
    if from_votes is None:
        refuse(ctx, "rows are pairs without --from-votes", "min_gap", "pairs_per_prompt")
    if validation is not None:
        refuse(ctx, "--validation has its own rows", "validation_share")
    shown = talk if op.rank() == 0 else start(quiet=True)
    options = fill(op.RewardTrainOptions, ctx.params, runtime=runtime)
    show = (lambda row: _talk(shown, row)) if op.rank() == 0 else None
    result = shown.run(op.train(options, sys.stdin.buffer), show)
    if op.rank():
        return
    if shown.json:
        shown.document(result | {"choices": shown.choices, "warnings": shown.warnings})
    elif "export" in result:
        shown.talk(f"{out}: {result['pairs']:,} and {result['validation_pairs']:,} pairs as text")
    else:
        for line in _report(result):
            shown.data(line)
        shown.talk(f"{out}: {result['saved']}, {clock(result['seconds'])}")


def _talk(shown: Out, row: dict[str, Any]) -> None:
    if shown.json:
        shown.document(row)
    elif shown.verbose and row["event"] == "epoch":
        shown.talk(
            f"epoch {row['epoch']}: loss {row['loss']:.4f}, validation loss {row['validation_loss']:.4f}, "
            f"accuracy {row['accuracy']:.4f}"
        )


def _report(result: dict[str, Any]) -> list[str]:
    from .reward_tables import share

    lines = [
        f"pairs       {result['pairs']:,} to train on, {result['validation_pairs']:,} of other prompts to validate",
        f"accuracy    {share(result)}",
        f"BT loss     {result['validation_loss']:.4f} (0.6931 knows nothing), epoch {result['epoch']} of "
        f"{result['epochs']}",
    ]
    lines += [f"ruler       {name:9}{share(row)}" for name, row in result["rulers"].items()]
    if "swapped_accuracy" in result:
        lines.append(f"swapped     {result['swapped_accuracy']:.4f} after training on exchanged answers")
    lost = [f"{result[n]:,} {w}" for n, w in (("skipped", "pairs too long"), ("bad", "rows left out")) if result[n]]
    return lines + ([f"not used    {', '.join(lost)}"] if lost else [])
