"""`qwench reliability measure|fit|rationales`: how far the confidence of sampled answers can be believed."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from . import out as out_
from .errors import ExitCode
from .options import DryRun, Force, KeepGoing, Limit, Model, Talk, Writer, Writing, choices, fill, refuse, served
from .polymath_table import table

MEASURE_EPILOG = """\b
examples:
  qwench sample questions.jsonl --model smollm2 --n 10 | qwench reliability measure -
  qwench reliability measure direct=a.jsonl steps=b.jsonl --plot diagram.png
  qwench reliability measure samples.jsonl --extract number --max-ece 0.1 --json
"""
FIT_EPILOG = """\b
examples:
  qwench reliability fit measured.json --plot line.png
  qwench reliability fit tasks.csv --without-group maths
  qwench reliability measure a.jsonl b.jsonl --json | qwench reliability fit -
"""
RATIONALES_EPILOG = """\b
examples:
  qwench reliability rationales gsm8k.jsonl --model smollm2 --instruction math --out solved.jsonl
  qwench reliability rationales arc.jsonl --engine http://localhost:8080/v1 --rows both --out train.jsonl
  qwench reliability rationales q.jsonl --instruction "Answer." --prompts eval.jsonl --keep-failed --out all.jsonl
"""
BOOT = Annotated[int, typer.Option(min=0, help="Resamples of an interval, 0 for none.")]
SEED = Annotated[int, typer.Option(help="Of the resamples.")]


def measure(
    samples: Annotated[
        list[str], typer.Argument(help="Rows of label and samples: NAME=FILE, or - .", show_default=False)
    ],
    format: Annotated[
        str, typer.Option("--from", help="auto, rows or lm-eval.", autocompletion=choices("auto", "rows", "lm-eval"))
    ] = "auto",
    extract: Annotated[
        str | None,
        typer.Option(help="cue, boxed, number, choice, last-line, regex:RE, whole.", show_default=False),
    ] = None,
    cue: Annotated[str, typer.Option(help="What comes before the answer.")] = "The answer is",
    cue_line: Annotated[str, typer.Option(help="any, or last: only in the last line.")] = "any",
    compare: Annotated[
        str | None, typer.Option(help="number, exact or casefold; by the label.", show_default=False)
    ] = None,
    tolerance: Annotated[float, typer.Option(help="Difference up to which numbers are one.")] = 1e-4,
    task_field: Annotated[str | None, typer.Option(help="Column with the task; task, where it is there.")] = None,
    first: Annotated[int, typer.Option(min=0, help="Only the first so many samples, 0 for all.")] = 0,
    bins: Annotated[str, typer.Option(help="exact, equal:N or mass:N.")] = "exact",
    bootstrap: BOOT = 2000,
    seed: SEED = 0,
    max_ece: Annotated[float | None, typer.Option(help="Exit 3 where an ECE is above.")] = None,
    min_accuracy: Annotated[float | None, typer.Option(help="Exit 3 where an accuracy is below.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Reliability diagram and curve over k: .png, .svg.")] = None,
    rows: Annotated[bool, typer.Option("--rows", help="Vote and confidence of every question, as JSON lines.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Compare conditions of other numbers of options.")] = False,
    dry_run: DryRun = False,
    keep_going: KeepGoing = False,
    *,
    streams: Talk,
) -> None:
    """Measure accuracy and calibration of k samples a question.

    Confidence is the share of samples that agree with the commonest answer.
    """
    from ..ops import reliability as op

    how = op.Extraction(extract, cue, cue_line, compare, tolerance)
    reading = op.Reading(format, task_field, first, keep_going, how)
    options = op.MeasureOptions(tuple(samples), bins, bootstrap, seed, plot, rows, dry_run, force, reading)
    result = streams.run(op.measure(options, sys.stdin.buffer), streams.document if rows else None)
    if streams.json:
        streams.document(result | {"choices": streams.choices, "warnings": streams.warnings})
    elif dry_run:
        for cell in result["cells"]:
            told = " ".join(filter(None, (cell["task"], cell["condition"])))
            streams.data(f"{told or 'questions':24}{cell['n']:8,} of {result['k']} samples")
    else:
        (_talked if rows else _measured)(streams, result)
    if dry_run:
        return
    if any(w["kind"] == "rows" for w in streams.warnings) and not keep_going:
        raise typer.Exit(ExitCode.FAILED)
    _judge(streams, result, max_ece, min_accuracy)


def _judge(streams: out_.Out, result: dict[str, Any], most: float | None, least: float | None) -> None:
    missed = [] if result["parsed"] else ["no sample can be read; see --extract"]
    for cell in result["cells"]:
        name = " ".join(filter(None, (cell["task"], cell["condition"]))) or "the samples"
        if most is not None and cell["ece"] > most:
            missed.append(f"`{name}`: ECE {cell['ece']:.3f} is above {most:g}")
        if least is not None and cell["accuracy"] < least:
            missed.append(f"`{name}`: accuracy {cell['accuracy']:.3f} is below {least:g}")
    for text in missed:
        streams.talk(text)
    if missed:
        raise typer.Exit(ExitCode.NO)


def _talked(streams: out_.Out, result: dict[str, Any]) -> None:
    """The table beside rows: on stderr."""
    for cell in result["cells"]:
        name = " ".join(filter(None, (cell["task"], cell["condition"]))) or "all"
        streams.talk(
            f"{name}: accuracy {cell['accuracy']:.3f}, confidence {cell['confidence']:.3f}, ECE {cell['ece']:.3f}"
        )


def _measured(streams: out_.Out, result: dict[str, Any]) -> None:
    cells = result["cells"]
    named = any(c["task"] or c["condition"] for c in cells)
    heads = [*(["task, condition"] if named else []), "n", "k", "acc", "95 %", "conf", "ECE", "95 %", "calibrated"]
    heads += ["guesser", "Brier", "gap", "unread", "cut", "tied"]
    lines = [heads]
    for cell in cells:
        name = [" ".join(filter(None, (cell["task"], cell["condition"]))) or "-"] if named else []
        first = [str(cell["n"]), str(cell["k"]), _shown(cell["accuracy"]), _ends(cell["accuracy_interval"])]
        first += [_shown(cell["confidence"]), _shown(cell["ece"]), _ends(cell["ece_interval"])]
        rest = [_shown(cell[c]) for c in ("calibrated_ece", "floor", "brier")] + [f"{cell['gap']:+.3f}"]
        lines.append([*name, *first, *rest, *(_share(cell[c]) for c in ("unparsed", "truncated", "tied"))])
    table(streams, lines)
    for pair in result["pairs"]:
        _pair(streams, pair)
    if result["incomplete"]:
        streams.talk(f"{result['incomplete']} questions have no answers, and are left out")


def _pair(streams: out_.Out, pair: dict[str, Any]) -> None:
    task = f"{pair['task']}: " if pair["task"] else ""
    told = [
        f"{name} {pair[name]:+.3f} {_ends(pair[f'{name}_interval'])}".rstrip() for name in ("d_acc", "d_rel", "d_conf")
    ]
    p = f", McNemar p {pair['p']:.3g}" if pair["p"] is not None else ""
    streams.data(f"{task}{pair['b']} over {pair['a']}: {', '.join(told)}{p}")


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def _ends(ends: list[float] | None) -> str:
    return "" if ends is None else f"[{ends[0]:.3f}, {ends[1]:.3f}]"


def fit(
    ctx: typer.Context,
    table: Annotated[
        str, typer.Argument(help="JSON of measure, or rows of task, d_acc, d_rel; - .", show_default=False)
    ],
    without_group: Annotated[
        list[str] | None, typer.Option(help="Leave tasks of this group out; repeatable.", show_default=False)
    ] = None,
    difficulty: Annotated[
        str | None, typer.Option(help="Column to fit both improvements on.", show_default=False)
    ] = None,
    bootstrap: BOOT = 2000,
    seed: SEED = 0,
    plot: Annotated[Path | None, typer.Option(help="The tasks and both lines: .png, .svg.")] = None,
    *,
    streams: Talk,
) -> None:
    """Fit improvements of reliability over improvements of accuracy.

    A slope of 1 means only that confidence did not change.
    """
    from ..ops import reliability as op

    result = streams.run(op.fit(fill(op.FitOptions, ctx.params), sys.stdin.buffer))
    if streams.json:
        streams.document(result | {"choices": streams.choices, "warnings": streams.warnings})
        return
    ols, sen, left = result["ols"], result["theil_sen"], result["leave_one_out"]
    streams.data(f"{result['n']} tasks")
    streams.data(f"least squares  d_rel = {ols['slope']:.3f} d_acc {ols['intercept']:+.3f}")
    streams.data(f"               slope {_ends(ols['slope_interval'])} over tasks".rstrip())
    streams.data(f"Theil-Sen      slope {sen['slope']:.3f} {_ends(sen['slope_interval'])}".rstrip())
    streams.data(f"correlation    {_shown(result['pearson'])}, of ranks {_shown(result['spearman'])}")
    if left["task"] is not None:
        told = f"{left['low']:.3f} to {left['high']:.3f}; most by {left['task']}"
        streams.data(f"without one    slope {told}")
    confidence = result["confidence"]
    how = "as d_acc - d_rel" if confidence["assumed"] else f"1 - slope would be {confidence['expected_slope']:.3f}"
    streams.data(f"d_conf         slope {confidence['slope']:.3f}, {how}")
    streams.data(f"mechanical     {_mechanical(result)}")
    for name, found in (result["difficulty"] or {}).items():
        streams.data(f"{name} on difficulty  slope {_shown(found['slope'])}, correlation {_shown(found['pearson'])}")


def _mechanical(result: dict[str, Any]) -> str:
    if result["mechanical"]:
        return "yes: 1, the slope of unchanged confidence, is inside the interval"
    return f"no: the slope is {result['from_one']:+.3f} from 1, that of unchanged confidence"


def rationales(
    ctx: typer.Context,
    questions: Annotated[
        str, typer.Argument(help="Rows of question and label; - for standard input.", show_default=False)
    ],
    model: Model = "Qwen/Qwen3-0.6B",
    out: Annotated[str, typer.Option(help=".jsonl or .parquet.", show_default=False)] = "-",
    *,
    tries: Annotated[int, typer.Option(min=1, help="Answers of a question, until one is right.")] = 10,
    instruction: Annotated[
        str | None, typer.Option(help="A key such as math or arc, or a text; by the row's task.", show_default=False)
    ] = None,
    style: Annotated[
        str, typer.Option(help="reference or template.", autocompletion=choices("reference", "template"))
    ] = "reference",
    keep_failed: Annotated[bool, typer.Option("--keep-failed", help="Unsolved questions too, with all tries.")] = False,
    rows: Annotated[
        str,
        typer.Option(
            help="solutions; or to train on: with, without or both.",
            autocompletion=choices("solutions", "with", "without", "both"),
        ),
    ] = "solutions",
    unsolved: Annotated[bool, typer.Option("--unsolved", help="Rows without a rationale for all questions.")] = False,
    prompts: Annotated[
        str | None, typer.Option(help="Also the questions as they are evaluated, for `sample`.", show_default=False)
    ] = None,
    compare: Annotated[
        str | None, typer.Option(help="number, exact or casefold; by the label.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Another one draws other answers.")] = 0,
    id_field: Annotated[str | None, typer.Option(help="Column that names a row; id, where it is there.")] = None,
    writing: Writing,
    batch: Annotated[int, typer.Option(min=1, help="Answers at a time.")] = 8,
    limit: Limit = 0,
    dry_run: DryRun = False,
    keep_going: KeepGoing = False,
    force: Force = False,
    runtime: Writer,
    shown: Talk,
) -> None:
    """Let a model explain answers that are known.

    Every question is tried until the answer is its label. The same command goes on after a kill.
    """
    from ..ops import reliability as op

    refuse(ctx, "rows have no place for them", "logprobs")
    own = {"slots": batch, "model": served(ctx, runtime, model), "extraction": op.Extraction(compare=compare)}
    # The job's rows are the questions; what comes out of them is asked by --rows.
    options = fill(op.RationaleOptions, ctx.params, runtime=runtime, **own, **writing)
    options = op.reading(options, questions)
    result = shown.run(op.rationales(options, sys.stdin.buffer))
    if shown.json:
        shown.document(result | {"choices": shown.choices, "warnings": shown.warnings})
    elif dry_run:
        shown.data(f"rows           {result['rows'] - result['bad']:,}")
        if result["first_prompt"] is not None:
            shown.data("first prompt")
            shown.raw(result["first_prompt"])
    else:
        _solved(shown, result)
    lost = result["bad"] + result.get("failed", 0)
    if lost and not keep_going:
        raise typer.Exit(ExitCode.FAILED)


def _solved(streams: out_.Out, result: dict[str, Any]) -> None:
    streams.talk(out_.rows_done(result))
    if not result["questions"]:
        return
    told = f"{result['solved']} of {result['questions']} questions are solved, in {result['tries']} tries"
    if result["guessed"] is not None:
        told += f"; {100 * result['guessed']:.0f} % of the rationales state the answer in their first sentence"
    streams.talk(told)
    for row in result["labels"] if len(result["labels"]) <= 12 else ():
        streams.talk(f"  {row['label']}: {100 * row['solved']:.0f} % of {row['questions']} solved")
