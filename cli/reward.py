"""`qwench reward`: answers get a number, pairs a report, samples a winner."""

import sys
from typing import Annotated, Any

import typer

from . import out as out_
from .errors import ExitCode
from .options import (
    RUNTIME,
    TALK,
    Bundle,
    DryRun,
    Force,
    KeepGoing,
    Limit,
    Talk,
    choices,
    complete_model,
    fill,
    refuse,
    runtime,
    served,
)

SCORE_EPILOG = """\b
examples:
  qwench reward score answers.jsonl --model Qwen/WorldPM-72B --out scored.jsonl
  qwench reward score steps.jsonl --model Qwen/Qwen2.5-Math-PRM-7B --aggregate min
  cat pairs.jsonl | qwench reward score - --engine http://127.0.0.1:8000/v1 --tokenizer ./model
"""
EVAL_EPILOG = """\b
examples:
  qwench reward eval scored.jsonl --by category --plot accuracy.png
  qwench reward eval rewardbench.jsonl --model ./reward-model --benchmark rewardbench
  qwench reward eval scored.jsonl --against other.jsonl --min-accuracy 0.8
"""
BEST_EPILOG = """\b
examples:
  qwench reward best-of scored.jsonl --answer-field answer
  qwench reward best-of samples.jsonl --model ./reward-model --sizes 1,4,16 --by reward,oracle
  qwench reward best-of scored.jsonl --emit > winners.jsonl
"""

Rows = Annotated[str, typer.Argument(help="Rows of prompts and answers; - for standard input.", show_default=False)]
RewardName = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Folder or hub id of a reward model.", autocompletion=complete_model),
]
WHERE = ("revision", "offline", "device", "dtype", "quantize", "kernels", "threads", "engine", "tokenizer")
WHERE += ("api_key_env", "concurrency")
Where = runtime(*WHERE)
Bootstrap = Annotated[int, typer.Option(min=0, help="Rounds of the intervals, 0 for none.")]
Seed = Annotated[int, typer.Option(help="Of folds, intervals and coins.")]
IdField = Annotated[str | None, typer.Option(help="Column that names a row; id, where it is there.")]


def _one_of(help: str, *names: str) -> Any:
    return Annotated[str, typer.Option(help=help, autocompletion=choices(*names))]


#: how answers are read, filled from click's parameters
READ: dict[str, tuple[Any, Any]] = {
    "head": (_one_of("auto, mlp, linear or process.", "auto", "mlp", "linear", "process"), "auto"),
    "pool": (_one_of("The token that is read: last, or before-pad.", "last", "before-pad"), "last"),
    "system": (
        Annotated[str | None, typer.Option(help="System message of rows without one; default by model.")],
        None,
    ),
    "max_tokens_in": (Annotated[int, typer.Option(min=0, help="Longest text, 0 for the model's.")], 0),
    "long": (
        _one_of("Longer texts: error, skip, or cut-prompt (oldest turns).", "error", "skip", "cut-prompt"),
        "error",
    ),
    "aggregate": (_one_of("Of steps: last, min, prod or mean.", "last", "min", "prod", "mean"), "last"),
    "step_separator": (
        Annotated[str, typer.Option(help="Between the steps of an answer without marks.", show_default="empty line")],
        "\n\n",
    ),
    "batch_tokens": (Annotated[int, typer.Option(min=0, help="Tokens per batch, 0 for auto.")], 0),
    "api": (_one_of("Of a server: auto, pooling or classify.", "auto", "pooling", "classify"), "auto"),
}
Read = Annotated[dict[str, Any], Bundle(READ, dict)]
#: what --selftest listens to
SELFTEST = ("model", "selftest", "head", "pool", "system", "aggregate", "api", *RUNTIME, *TALK.flags)


def score(
    ctx: typer.Context,
    rows: Rows = "-",
    model: RewardName = None,
    out: Annotated[str, typer.Option(help=".jsonl or .parquet; - for rows as they are done.")] = "-",
    *,
    read: Read,
    id_field: IdField = None,
    limit: Limit = 0,
    explain: Annotated[bool, typer.Option("--explain", help="Rows also tell the text; compare with float32.")] = False,
    selftest: Annotated[bool, typer.Option("--selftest", help="Score the two published answers.")] = False,
    dry_run: DryRun = False,
    keep_going: KeepGoing = False,
    force: Force = False,
    runtime: Where,
    shown: Talk,
) -> None:
    """Give every answer of rows a number.

    Rows keep their fields and gain reward, or reward_chosen and reward_rejected. With --out the same command goes on
    after a kill. Exit 3 when nothing was scored.
    """
    from ..ops import reward as op

    if selftest:
        refuse(ctx, "--selftest scores the published answers", *(n for n in ctx.params if n not in SELFTEST))
    if out == "-":
        refuse(ctx, "standard output is no file to write over", "force")
    options = _options(ctx, op, runtime, model)
    if selftest:
        _selftest(shown, shown.run(op.selftest(options)))
        return
    result = shown.run(op.score(options, sys.stdin.buffer), shown.document if out == "-" else None)
    if dry_run:
        _plan(shown, result)
    elif out != "-" and shown.json:
        shown.document(result | {"choices": shown.choices, "warnings": shown.warnings})
    else:
        shown.talk(_done(result))
        if "float32" in shown.choices:
            chosen = shown.choices["float32"]
            shown.talk(f"{chosen['value']}: {chosen['reason']}")
    lost = result["bad"] + result.get("failed", 0)
    if lost and (not keep_going or lost == result["rows"]):
        raise typer.Exit(ExitCode.FAILED)
    if not dry_run and not result.get("scored"):
        shown.talk("nothing was scored")
        raise typer.Exit(ExitCode.NO)


def _options(ctx: typer.Context, op: Any, runtime: Any, model: str | None, **own: Any) -> Any:
    """RewardOptions of the flags of a verb."""
    from ..ops.base.errors import QwenchError

    if runtime.engine == "llama.cpp":
        raise QwenchError("llama.cpp has no reward heads", "leave --engine out", ExitCode.USAGE)
    if not runtime.server and runtime.engine not in ("auto", "torch", "local"):
        raise QwenchError(f"unknown --engine: `{runtime.engine}`", "leave it out, or give http://HOST:PORT/v1", 2)
    name = served(ctx, runtime, model or "")
    job = fill(op.JobOptions, ctx.params, at_once=runtime.concurrency, **own)
    return fill(op.RewardOptions, ctx.params, runtime=runtime, model=name or "", job=job)


def _plan(streams: out_.Out, result: dict[str, Any]) -> None:
    if streams.json:
        streams.document(result | {"choices": streams.choices, "warnings": streams.warnings})
        return
    streams.data(f"rows     {result['rows'] - result['bad']:,}")
    streams.data(f"answers  {result['answers']:,}")
    streams.data(f"tokens   {result['tokens']:,}")
    streams.data(f"longest  {result['longest']:,}")
    if result["skipped"]:
        streams.data(f"skipped  {result['skipped']:,}")
    streams.data(f"memory   {'of the server' if result['memory'] is None else out_.size(result['memory'])}")


def _done(result: dict[str, Any]) -> str:
    count, seconds = result.get("scored", 0), result["seconds"]
    parts = [f"{count:,} answers of {result['rows']:,} rows scored in {out_.clock(seconds)}"]
    if result["done"]:
        parts.append(f"{result['done']:,} rows were done before")
    elif seconds:
        parts.append(f"{count / seconds:.1f} answers/s")
    for name, what in (("skipped", "too long and skipped"), ("truncated", "with a cut prompt"),
                       ("identical", "pairs of equal answers"), ("failed", "rows failed")):  # fmt: skip
        if result.get(name):
            parts.append(f"{result[name]:,} {what}")
    return "; ".join(parts)


def _selftest(streams: out_.Out, result: dict[str, Any]) -> None:
    if streams.json:
        streams.document(result)
    else:
        for row in result["rows"]:
            line = f"{row['reward']:+.4f}\t{row['answer'].splitlines()[0]}"
            if row["published"] is not None:
                line += f"\tpublished {row['published']:+.4f}, difference {row['difference']:+.4f}"
            streams.data(line)
    if not result["right"]:
        streams.talk(
            f"`{result['model']}` prefers the careless answer: a wrong template or token, a damaged head, or not a "
            "reward model for chat"
        )
        raise typer.Exit(ExitCode.NO)


def evaluate(
    ctx: typer.Context,
    rows: Rows = "-",
    model: RewardName = None,
    by: Annotated[str | None, typer.Option(help="Column that parts the pairs; category, then subset.")] = None,
    benchmark: Annotated[str | None, typer.Option(help="Its table: rewardbench or rewardbench2.")] = None,
    against: Annotated[str | None, typer.Option(help="The same pairs, scored by another model.")] = None,
    scaling: Annotated[str | None, typer.Option(help="Column of sizes: loss = a N^-b + c.")] = None,
    logprob_model: Annotated[str | None, typer.Option(help="One more ruler: this model's log-probability.")] = None,
    min_accuracy: Annotated[float | None, typer.Option(min=0, max=1, help="Exit 3 below it.")] = None,
    plot: Annotated[str | None, typer.Option(help=".png, .svg or .pdf of accuracy, or of loss by size.")] = None,
    folds: Annotated[int, typer.Option(min=2, help="Of the style fits, by prompt.")] = 5,
    bootstrap: Bootstrap = 1000,
    seed: Seed = 0,
    *,
    read: Read,
    limit: Limit = 0,
    keep_going: KeepGoing = False,
    runtime: Where,
    shown: Talk,
) -> None:
    """Measure preferences on pairs of a chosen and a rejected answer.

    Rows with rewards are read as they are; others are scored by --model.
    """
    from ..ops import reward as op

    _reads_only(ctx, model, runtime)
    rewards = _options(ctx, op, runtime, model)
    options = fill(op.EvalOptions, ctx.params, rewards=rewards)
    result = shown.run(op.evaluate(options, sys.stdin.buffer))
    if shown.json:
        shown.document(result | {"choices": shown.choices, "warnings": shown.warnings})
    else:
        from .reward_tables import report

        for line in report(result):
            shown.data(line)
    if result["failed"] and not keep_going:
        shown.talk(f"{result['failed']} rows have failed and are not among the pairs")
        raise typer.Exit(ExitCode.FAILED)
    if not result["n"]:
        shown.talk("there are no scored pairs")
        raise typer.Exit(ExitCode.NO)
    if min_accuracy is not None and result["accuracy"] < min_accuracy:
        shown.talk(f"accuracy {result['accuracy']:.4f} is below {min_accuracy:g}")
        raise typer.Exit(ExitCode.NO)


def _reads_only(ctx: typer.Context, model: str | None, runtime: Any) -> None:
    """Refuse what only scoring has a use for, where rows are read as they are."""
    if model is None and not runtime.server:
        refuse(ctx, "rows are read with the rewards they have, without --model", *READ, "revision", "dtype", "quantize")


def best_of(
    ctx: typer.Context,
    rows: Rows = "-",
    model: RewardName = None,
    sizes: Annotated[str | None, typer.Option(help="n: 1,2,4; default powers of two.", show_default=False)] = None,
    by: Annotated[
        str | None, typer.Option(help="Of reward, majority, weighted, oracle; default all.", show_default=False)
    ] = None,
    answer_field: Annotated[str, typer.Option(help="Column with the right answer.")] = "answer",
    emit: Annotated[bool, typer.Option("--emit", help="Every row's winner in place of the table.")] = False,
    bootstrap: Bootstrap = 1000,
    seed: Seed = 0,
    *,
    read: Read,
    limit: Limit = 0,
    keep_going: KeepGoing = False,
    runtime: Where,
    shown: Talk,
) -> None:
    """What the best of n samples is worth.

    Rows have responses (or samples) with a reward of each, and `correct` of each or the right answer.
    """
    from ..ops import reward as op

    _reads_only(ctx, model, runtime)
    if emit:
        refuse(ctx, "--emit prints winners", "sizes", "bootstrap", "seed")
    rewards = _options(ctx, op, runtime, model)
    own = {"sizes": _numbers(sizes), "by": tuple(by.split(",")) if by else ()}
    options = fill(op.BestOptions, ctx.params, rewards=rewards, **own)
    result = shown.run(op.best_of(options, sys.stdin.buffer), shown.document)
    if emit:
        shown.talk(f"{result['rows']:,} winners")
    elif shown.json:
        for row in result["sizes"]:
            shown.document(row | {k: result[k] for k in ("schema", "model", "weights")})
    elif result["rows"]:
        from .reward_tables import sizes as table

        for line in table(result):
            shown.data(line)
    if result["failed"] and not keep_going:
        shown.talk(f"{result['failed']} rows have failed and are not counted")
        raise typer.Exit(ExitCode.FAILED)
    if not result["rows"]:
        shown.talk("nothing was scored")
        raise typer.Exit(ExitCode.NO)


def _numbers(text: str | None) -> tuple[int, ...]:
    from ..ops.base.errors import QwenchError

    try:
        found = tuple(sorted({int(part) for part in (text or "").split(",") if part.strip()}))
    except ValueError:
        raise QwenchError(f"not numbers of samples: `{text}`", "write --sizes 1,2,4", 2) from None
    if found and found[0] < 1:
        raise QwenchError("--sizes takes numbers from 1 up", "write --sizes 1,2,4", 2)
    return found
