"""`qwench mtr`: forty games of many turns, after MTR-Bench."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from . import out as out_
from .errors import ExitCode
from .options import WRITING, DryRun, Force, KeepGoing, Model, Talk, Writing, choices, fill, refuse, runtime, served

LIST_EPILOG = """\b
examples:
  qwench mtr list
  qwench mtr list --class da
  qwench mtr list --json | jq '.tasks[] | select(.luck) | .name'
"""
MAKE_EPILOG = """\b
examples:
  qwench mtr make --out rows.jsonl
  qwench mtr make --task Wordle --level easy --per 5 --seed 1 > wordle.jsonl
  qwench mtr make --class sg --winnable --out games.jsonl
"""
RUN_EPILOG = """\b
examples:
  qwench mtr run rows.jsonl --player solver --out solver.jsonl
  qwench mtr run rows.jsonl --model smollm2 --max-tokens 64 --parallel 8 --out smollm2.jsonl
  qwench mtr run --reference ./mtr_bench --rules reference --engine http://127.0.0.1:8000/v1 --out served.jsonl
"""
SCORE_EPILOG = """\b
examples:
  qwench mtr score smollm2.jsonl --baselines --plot scores.png
  qwench mtr score solver.jsonl --verify
  qwench mtr score a.jsonl --against b.jsonl --by class
"""
LINT_EPILOG = """\b
examples:
  qwench mtr lint rows.jsonl
  qwench mtr lint --reference ./mtr_bench --json
  qwench mtr make --per 5 | qwench mtr lint -
"""

Rows = Annotated[str | None, typer.Argument(help="Rows of `mtr make`; - for standard input.", show_default=False)]
Reference = Annotated[Path | None, typer.Option(help="A clone of the reference, in place of rows.")]
Tasks = Annotated[list[str] | None, typer.Option("--task", help="A task; repeatable.")]
Classes = Annotated[
    list[str] | None,
    typer.Option("--class", help="ip, da, so or sg; repeatable.", autocompletion=choices("ip", "da", "so", "sg")),
]
Levels = Annotated[
    list[str] | None,
    typer.Option("--level", help="easy, medium or hard; repeatable.", autocompletion=choices("easy", "medium", "hard")),
]
MaxRound = Annotated[int, typer.Option(min=1, help="Messages at most; games of class sg have their own number.")]
#: flags that only a player with a model has a use for
MODEL_FLAGS = (
    *("model", "parallel", *WRITING),
    *("revision", "offline", "device", "dtype", "quantize", "engine", "kernels", "threads"),
    *("api", "tokenizer", "api_key_env"),
)
PLAYERS = ("write", "choose", "random", "solver", "spam")


def list_tasks(classes: Classes = None, *, shown: Talk) -> None:
    """List the forty tasks: class, luck, opponents and how a message looks."""
    from ..ops import mtr as op

    found = op.tasks(tuple(classes or ()))
    if shown.json:
        shown.document({"schema": 1, "tasks": found})
        return
    shown.data(f"{'task':21} class  luck  opponents           messages")
    for task in found:
        against = " ".join(task["opponents"]) or "-"
        forms = "   ".join(task["forms"])
        shown.data(f"{task['name']:21} {task['class']:5}  {'luck' if task['luck'] else '-':4}  {against:18}  {forms}")


def make(
    ctx: typer.Context,
    out: Annotated[str, typer.Option(help="A .jsonl file; - for standard output.")] = "-",
    tasks: Tasks = None,
    classes: Classes = None,
    levels: Levels = None,
    per: Annotated[int, typer.Option(min=1, max=10000, help="Rows of every task and level.")] = 30,
    seed: Annotated[int, typer.Option(help="Another one makes other rows.")] = 0,
    winnable: Annotated[bool, typer.Option("--winnable", help="Only rows that the solver wins in time.")] = False,
    max_round: MaxRound = 15,
    dry_run: DryRun = False,
    *,
    shown: Talk,
) -> None:
    """Make rows: all that is hidden, and a prompt, by seed.

    The same seed makes the same bytes, on any machine.
    """
    from ..ops import mtr as op

    if not winnable:
        refuse(ctx, "all rows are kept without --winnable", "max_round")
    rules = op.Rules(max_round=max_round)
    options = fill(op.MakeOptions, ctx.params, rules=rules)
    events = op.make(options)
    if dry_run or out == "-":
        result = shown.run(events, None if dry_run else shown.document)
    else:
        collected: list[dict[str, Any]] = []
        result = shown.run(events, collected.append)
        op.write_rows(Path(out).expanduser(), iter(collected))
    if dry_run:
        if shown.json:
            shown.document(result)
        else:
            shown.data(f"{result['rows']:,} rows of {len(result['tasks'])} tasks")
    elif out != "-" and shown.json:
        shown.document(result | {"out": out, "warnings": shown.warnings})
    else:
        shown.talk(f"{result['rows']:,} rows")


def run(
    ctx: typer.Context,
    rows: Rows = None,
    player: Annotated[str, typer.Option(help=", ".join(PLAYERS) + ".", autocompletion=choices(*PLAYERS))] = "write",
    model: Model = "Qwen/Qwen3-0.6B",
    out: Annotated[str, typer.Option(help=".jsonl or .parquet; - for games as they end.")] = "-",
    reference: Reference = None,
    tasks: Tasks = None,
    classes: Classes = None,
    levels: Levels = None,
    *,
    rules: Annotated[str, typer.Option(help="fixed, or reference (defects included).")] = "fixed",
    max_round: MaxRound = 15,
    invalid: Annotated[str, typer.Option(help="A refused message: end, retry or ignore:N (N are free).")] = "end",
    answers: Annotated[str, typer.Option(help="many, or once: a wrong answer ends the game.")] = "many",
    opponent: Annotated[str, typer.Option(help="Of class sg: random, greedy or best.")] = "random",
    parallel: Annotated[int, typer.Option(min=1, help="Games at a time, with a model.")] = 8,
    seed: Annotated[int, typer.Option(help="Another one plays otherwise.")] = 0,
    writing: Writing,
    split: Annotated[
        Path | None, typer.Option(help="Folder for files as the reference's evaluator reads them.")
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="Games at most, 0 for all.")] = 0,
    dry_run: DryRun = False,
    keep_going: KeepGoing = False,
    force: Force = False,
    runtime: runtime(
        *("revision", "offline", "device", "dtype", "quantize", "engine", "kernels", "threads"),
        *("api", "tokenizer", "api_key_env"),
    ),
    shown: Talk,
) -> None:
    """Play rows by a model, or by a player without one.

    With --out the same command goes on after a kill, in the middle of a game.
    """
    from dataclasses import replace

    from ..ops import mtr as op

    if out == "-":
        refuse(ctx, "standard output is no file to write over", "force")
    if player in ("random", "solver", "spam"):
        refuse(ctx, f"the player {player} has no model", *MODEL_FLAGS)
    elif player == "choose":
        refuse(
            ctx, "a player that chooses writes nothing", "max_tokens", "stop", "think_budget", "force_think", "logprobs"
        )
    if runtime.server:
        runtime = replace(runtime, concurrency=parallel)
    name = served(ctx, runtime, model)
    which = fill(op.Which, ctx.params, rows=rows, seed=seed, limit=limit)
    how = op.Rules(rules=rules, invalid=invalid, answers=answers, opponent=opponent, max_round=max_round)
    chat = fill(op.ChatOptions, ctx.params, runtime=runtime, slots=parallel, model=name, seed=seed, **writing)
    job = fill(op.JobOptions, ctx.params, rows="-", limit=0)
    options = op.RunOptions(player, seed, split, how, which, chat, job)
    show = shown.document if out == "-" else None
    result = shown.run(op.run(options, sys.stdin.buffer), show)
    if dry_run:
        _plan(shown, result)
        return
    if out != "-" and shown.json:
        shown.document(result | {"choices": shown.choices, "warnings": shown.warnings})
    elif not shown.json:
        say = shown.data if out != "-" else shown.talk
        for line in _table(result["summary"], "task"):
            say(line)
        shown.talk(out_.rows_done(result))
    if result["failed"] and not keep_going:
        raise typer.Exit(ExitCode.FAILED)


def _plan(shown: out_.Out, result: dict[str, Any]) -> None:
    if shown.json:
        shown.document(result)
        return
    tokens = result["prompt_tokens"]
    shown.data(f"games          {result['rows']:,}")
    if tokens:
        shown.data(f"prompt tokens  {tokens:,}")
    if result["first_prompt"] is not None:
        shown.data("first prompt")
        shown.raw(result["first_prompt"])


def score(
    ctx: typer.Context,
    transcripts: Annotated[list[str], typer.Argument(help="Files of `mtr run --out`.", show_default=False)],
    rows: Annotated[str | None, typer.Option(help="Rows, for transcripts that do not hold theirs.")] = None,
    reference: Reference = None,
    rules: Annotated[str | None, typer.Option(help="fixed or reference; those of each game where not told.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Exit 3 at the first reply that differs.")] = False,
    trust: Annotated[bool, typer.Option("--trust", help="Take recorded replies, and play nothing again.")] = False,
    against: Annotated[str | None, typer.Option(help="Transcripts of another run, for rounds side by side.")] = None,
    baselines: Annotated[bool, typer.Option("--baselines", help="Play random, solver and spam beside it.")] = False,
    by: Annotated[str, typer.Option(help="task, class, level or none.")] = "task",
    fail_under: Annotated[float | None, typer.Option(help="Exit 3 when the mean is below this percentage.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Bar chart: .png, .svg or .pdf.")] = None,
    *,
    shown: Talk,
) -> None:
    """Play transcripts again and sum them up.

    Exit code 3: a reply differs (--verify), or too few games are won (--fail-under).
    """
    from ..ops import mtr as op

    which = op.Which(rows, reference)
    options = fill(op.ScoreOptions, ctx.params, which=which)
    differences: list[str] = []
    result = shown.run(op.score(options, sys.stdin.buffer), lambda row: differences.append(row["text"]))
    low = fail_under is not None and 100 * (result["summary"]["mean"] or 0) < fail_under
    if shown.json:
        shown.document(result | {"told": differences, "warnings": shown.warnings})
    else:
        _scored(shown, result, by, differences)
    if (verify and result["differences"]) or low:
        raise typer.Exit(ExitCode.NO)


def _scored(shown: out_.Out, result: dict[str, Any], by: str, differences: list[str]) -> None:
    for line in _table(result["summary"], by, result.get("baselines")):
        shown.data(line)
    if found := result.get("against"):
        shown.data(_against(found))
    for text in differences:
        shown.warn(text)
    count = result["differences"]
    shown.talk(f"{result['games']:,} games played again, {count or 'no'} difference{'s' * (count != 1)}")
    if result.get("plot"):
        shown.talk(f"drawn: {result['plot']}")


def _against(found: dict[str, Any]) -> str:
    if not found["common"]:
        return f"no game was won in both this run and {found['file']}"
    low, high = found["interval"]
    shares = ", ".join(
        f"{found[n]:.0%} {word}" for n, word in (("fewer", "fewer"), ("same", "as many"), ("more", "more"))
    )
    return (
        f"against {found['file']}: {found['common']} games won by both, {found['difference']:+.2f} rounds "
        f"({low:+.2f} to {high:+.2f}); {shares}"
    )


def _table(summary: dict[str, Any], by: str, near: list[dict[str, Any]] | None = None) -> list[str]:
    levels = list(dict.fromkeys(level for row in summary["rows"] for level in row["levels"]))
    beside = {row["name"]: row for row in near or ()}
    head = f"{by if by != 'none' else '':22}" + "".join(f"{level:>9}" for level in levels)
    head += "      won     95 %      refused  rounds"
    lines = [head + ("   random  solver   spam  normalised" if near else "")]
    for row in summary["rows"]:
        cells = ""
        for level in levels:
            found = row["levels"].get(level)
            text = f"{found['solved']}/{found['games']}" if found else "-"
            cells += f"{text:>9}"
        low, high = (100 * v for v in row["interval"])
        rounds = f"{row['rounds']:.1f}" if row["rounds"] is not None else "-"
        line = f"{row['name']:22}{cells}   {row['accuracy']:6.1%}  {low:3.0f}-{high:3.0f}      "
        line += f"{row['invalid_games']:6.1%}  {rounds:>6}"
        if other := beside.get(row["name"]):
            scaled = other["normalised"]
            shares = (other[player] for player in ("random", "solver", "spam"))
            line += "".join(f"  {'-' if share is None else format(share, '.1%'):>6}" for share in shares)
            line += f"  {'-' if scaled is None else format(scaled, '.2f'):>10}"
        lines.append(line)
    if summary["mean"] is not None:
        low, high = (100 * v for v in summary["interval"])
        whole = summary["all"]
        reasons = ", ".join(f"{name} {count}" for name, count in whole["reasons"].items() if count) or "none"
        lines.append(f"mean over tasks {summary['mean']:.1%} ({low:.1f} to {high:.1f}); refused messages: {reasons}")
    return lines


def lint(
    ctx: typer.Context,
    rows: Rows = None,
    reference: Reference = None,
    tasks: Tasks = None,
    classes: Classes = None,
    levels: Levels = None,
    *,
    shown: Talk,
) -> None:
    """Look rows over: ids, labels, copies, fields, whether they can be won, what prompts teach.

    Exit code 3 when anything is found.
    """
    from ..ops import mtr as op

    if rows is not None and rows != "-":
        refuse(ctx, "rows of a file are all looked over", "tasks", "classes", "levels")
    findings: list[dict[str, Any]] = []
    which = fill(op.Which, ctx.params)
    result = shown.run(op.lint(which, sys.stdin.buffer), findings.append)
    if shown.json:
        shown.document(result | {"told": findings})
    else:
        for found in result["checks"]:
            first = next(f for f in findings if all(f[n] == found[n] for n in ("check", "task", "level")))
            where = f"{found['task']}, {found['level']}" if found["task"] else "-"
            shown.data(f"{found['check']:24} {where:28} {found['rows']:5}  {first['place']}: {first['text']}")
        count = result["findings"]
        shown.talk(f"{result['rows']:,} rows, {count or 'no'} finding{'s' * (count != 1)}")
    if result["findings"]:
        raise typer.Exit(ExitCode.NO)
