"""`qwench explore run|rows`: hit-guided exploration after MARGE, and rows to train on."""

import sys
from typing import Annotated, Any

import typer

from . import out as out_
from .errors import ExitCode
from .options import DryRun, KeepGoing, Model, Talk, Writing, choices, fill, refuse, runtime, served
from .polymath_table import table

RUN_EPILOG = """\b
examples:
  qwench explore run questions.jsonl --model smollm2 --out run.jsonl
  qwench explore run questions.jsonl --model smollm2 --shots shots.jsonl --baseline root --out run.jsonl
  qwench explore run q.jsonl --engine http://localhost:8080/v1 --previous run.jsonl --out next.jsonl
"""
ROWS_EPILOG = """\b
examples:
  qwench explore rows run.jsonl --form dpo --out dpo.jsonl
  qwench explore rows run.jsonl --form pairs --keep 0.1,1.1 --balance --out pairs.parquet
  qwench explore rows run.jsonl --form stepwise | head -3
"""
STYLES = ("template", "bare", "qwen", "qwenmath", "acemath", "llama3", "mistral", "metamath")


def run(
    ctx: typer.Context,
    questions: Annotated[
        str, typer.Argument(help="Rows of question and answer; - for standard input.", show_default=False)
    ],
    model: Model = "Qwen/Qwen3-0.6B",
    out: Annotated[str, typer.Option(help=".jsonl or .parquet, a row a state.", show_default=False)] = "-",
    *,
    root_n: Annotated[int, typer.Option(help="Completions of a question.")] = 16,
    n: Annotated[int, typer.Option("--n", "-n", help="Completions of each later state.")] = 8,
    split: Annotated[
        str, typer.Option(help="tokens, steps or lines.", autocompletion=choices("tokens", "steps", "lines"))
    ] = "tokens",
    states: Annotated[int, typer.Option(help="Of --split tokens, the question among them.")] = 5,
    step_skip: Annotated[int, typer.Option(help="Of steps or lines, every so many.")] = 1,
    hit: Annotated[
        str,
        typer.Option(
            help="guided, right, wrong, random, likeliest, given.",
            autocompletion=choices("guided", "right", "wrong", "random", "likeliest", "given"),
        ),
    ] = "guided",
    threshold: Annotated[
        float, typer.Option(help="Above it a question is easy; the paper's repository has 0.55, then 0.51.")
    ] = 0.5,
    solved: Annotated[float, typer.Option(help="From it on a question is dropped.")] = 0.99,
    prompt_style: Annotated[
        str,
        typer.Option(
            help="template, bare (nothing after the question), or a model of the paper's.",
            autocompletion=choices(*STYLES),
        ),
    ] = "template",
    verifier: Annotated[
        str,
        typer.Option(
            help="number, boxed, choice, exact, math-verify, command:PROG.",
            autocompletion=choices("number", "boxed", "choice", "exact", "math-verify", "command:"),
        ),
    ] = "number",
    percent_equal: Annotated[
        bool, typer.Option("--percent-equal", help="50 equals 0.5, as in the paper's verifier.")
    ] = False,
    grade_timeout: Annotated[float, typer.Option(help="Seconds of a comparison.")] = 5.0,
    previous: Annotated[
        str | None, typer.Option(help="Output of the episode before; its hits stand in.", show_default=False)
    ] = None,
    baseline: Annotated[
        str,
        typer.Option(help="none, or root: as many tokens of bare questions.", autocompletion=choices("none", "root")),
    ] = "none",
    shots: Annotated[str | None, typer.Option(help="Rows of examples: prompt and answer, or messages.")] = None,
    seed: Annotated[int, typer.Option(help="Another one draws other completions.")] = 0,
    id_field: Annotated[str | None, typer.Option(help="Column that names a row; id, where it is there.")] = None,
    writing: Writing,
    batch: Annotated[int, typer.Option(min=1, help="Completions at a time.")] = 8,
    limit: Annotated[int, typer.Option(min=0, help="Questions at most, 0 for all.")] = 0,
    dry_run: DryRun = False,
    keep_going: KeepGoing = False,
    force: Annotated[bool, typer.Option("--force", help="Begin anew over what is there.")] = False,
    runtime: runtime(
        *("revision", "offline", "device", "dtype", "quantize", "engine", "kernels", "threads"),
        *("api", "tokenizer", "api_key_env", "concurrency"),
    ),
    shown: Talk,
) -> None:
    """Go on from states of a hit: a wrong solution of an easy question, a right one of a hard one.

    Temperature 0.8, top-p 0.95 and no top-k, unless asked otherwise. The same command goes on after a kill.
    """
    from ..ops import explore as op

    refuse(ctx, "rows have no place for them", "logprobs")
    refuse(ctx, f"--split {split} has no such parts", *(["step_skip"] if split == "tokens" else ["states"]))
    own = {"slots": batch, "model": served(ctx, runtime, model), "rows": questions}
    options = fill(op.ExploreOptions, ctx.params, runtime=runtime, **own, **writing)
    result = shown.run(op.run(options, sys.stdin.buffer))
    if shown.json:
        shown.document(result | {"choices": shown.choices, "warnings": shown.warnings})
    elif dry_run:
        shown.data(f"questions      {result['rows'] - result['bad']:,}")
        tokens = result["prompt_tokens"]
        shown.data(f"prompt tokens  {'unknown' if tokens is None else format(tokens, ',')}")
        if result["first_prompt"] is not None:
            shown.data("first prompt")
            shown.raw(result["first_prompt"])
    else:
        _explored(shown, result)
    if dry_run:
        return
    if result["bad"] + result["failed"] and not keep_going:
        raise typer.Exit(ExitCode.FAILED)
    _judge(shown, result)


def _judge(shown: out_.Out, result: dict[str, Any]) -> None:
    """Exit 3 where nothing was found out."""
    verdicts = result["verdicts"]
    if verdicts and set(verdicts) <= {"unparsed", "truncated", "timeout"}:
        shown.talk("no completion has an answer that can be read; see --verifier and --max-tokens")
    elif not any(row["informative"] for row in result["depths"]):
        shown.talk("no group of completions says anything: all are alike, or there was no hit")
    else:
        return
    raise typer.Exit(ExitCode.NO)


def _explored(shown: out_.Out, result: dict[str, Any]) -> None:
    """The report on a terminal."""
    shown.talk(out_.rows_done(result))
    dropped = ", ".join(f"{count} {why}" for why, count in result["dropped"].items()) or "none dropped"
    shown.data(f"{result['questions']} questions: {dropped}")
    told = ", ".join(f"{count:,} {word}" for word, count in result["verdicts"].items())
    shown.data(f"completions: {told}")
    tokens = result["tokens"]
    shown.data("tokens: " + ", ".join(f"{tokens.get(word, 0):,} {word}" for word in ("root", "states", "baseline")))
    if result["depths"]:
        lines = [["hit", "state", "n", "depth", "value", "informative", "variance"]]
        for row in result["depths"]:
            cells = [_number(row[name]) for name in ("depth", "value", "informative", "variance")]
            lines.append([row["hit"], str(row["state"]), str(row["states"]), *cells])
        table(shown, lines)
    for word, change in result["change"].items():
        if change["hits"]:
            ends = _ends(change["interval"])
            shown.data(f"along {change['hits']} {word} hits the value changes by {change['mean']:+.3f} {ends}".rstrip())
    for word, share in result["informative"].items():
        if share["groups"]:
            ends = _ends(share["interval"])
            shown.data(f"informative: {word:9}{share['share']:.3f} {ends} of {share['groups']} groups")
    gap = result["difference"]
    if gap is not None and gap["mean"] is not None:
        ends = _ends(gap["interval"])
        shown.data(f"states less root at equal tokens: {gap['mean']:+.3f} {ends} over {gap['questions']} questions")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _ends(ends: Any) -> str:
    return "" if ends is None else f"[{ends[0]:.3f}, {ends[1]:.3f}]"


def rows(
    ctx: typer.Context,
    run: Annotated[str, typer.Argument(help="Output of explore run; - for standard input.", show_default=False)],
    out: Annotated[str, typer.Option(help=".jsonl or .parquet; - for standard output.")] = "-",
    *,
    form: Annotated[
        str,
        typer.Option(
            help="dpo, pairs, group, stepwise or sft.",
            autocompletion=choices("dpo", "pairs", "group", "stepwise", "sft"),
        ),
    ] = "dpo",
    keep: Annotated[str, typer.Option(help="States of a value strictly between.")] = "0.3,0.7",
    pairs_per_state: Annotated[int, typer.Option(min=1, help="Of --form dpo.")] = 1,
    balance: Annotated[bool, typer.Option("--balance", help="As many states of right hits as of wrong ones.")] = False,
    drop_truncated: Annotated[
        bool, typer.Option("--drop-truncated/--keep-truncated", help="Completions cut at their limit.")
    ] = True,
    min_margin: Annotated[float, typer.Option(help="Least difference of a pair's advantages.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Write over what is there.")] = False,
    streams: Talk,
) -> None:
    """Make rows to train on of a run's states.

    Prompts are rendered strings with the state at their end, for trl and others.
    """
    from ..ops import explore as op

    if form != "dpo":
        refuse(ctx, f"--form {form} draws no pairs", "pairs_per_state")
    if form not in ("dpo", "pairs"):
        refuse(ctx, f"--form {form} has no pairs", "min_margin")
    if form == "stepwise":
        refuse(ctx, "--form stepwise takes whole hits", "keep", "balance", "drop_truncated")
    if form != "dpo" and not balance:
        refuse(ctx, "nothing is drawn", "seed")
    if out == "-":
        refuse(ctx, "standard output is no file to write over", "force")
    options = fill(op.RowsOptions, ctx.params)
    result = streams.run(op.rows(options, sys.stdin.buffer), streams.document if out == "-" else None)
    if out != "-" and streams.json:
        streams.document(result | {"choices": streams.choices, "warnings": streams.warnings})
    else:
        _made(streams, result)
    if not result["rows"]:
        raise typer.Exit(ExitCode.NO)


WORDS = {
    "outside_keep": "outside --keep",
    "alike": "whose completions are all alike",
    "unbalanced": "left out to balance",
    "no_hit": "of questions without a hit",
}


def _made(streams: out_.Out, result: dict[str, Any]) -> None:
    told = [f"{result['rows']:,} rows of {result.get('states', 0):,} states"]
    told += [f"{result[name]:,} {said}" for name, said in WORDS.items() if result.get(name)]
    for name, said in (("dropped_truncated", "truncated"), ("duplicates", "repeated"), ("unpaired", "without a pair")):
        told += [f"{result[name]:,} completions {said}"] if result.get(name) else []
    told += [f"{result['below_margin']:,} pairs below --min-margin"] if result.get("below_margin") else []
    streams.talk("; ".join(told))
