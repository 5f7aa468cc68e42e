"""`qwench polymath run|score|prompts`: maths in 18 languages, asked and scored."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from . import out as out_
from .errors import ExitCode
from .options import DryRun, Force, KeepGoing, Model, Talk, Writer, Writing, choices, fill, refuse, served

RUN_EPILOG = """\b
examples:
  qwench polymath run PolyMath/ --model smollm2 --langs en,de --levels low --out answers
  qwench polymath run Qwen/PolyMath --model Qwen/Qwen3-0.6B --control forcing_raw --out forced
  qwench polymath run rows.jsonl --engine http://localhost:8080/v1 --samples 4 --out answers
"""
SCORE_EPILOG = """\b
examples:
  qwench polymath score answers/smollm2
  qwench polymath score answers/smollm2 --compare answers/other --grader both
  qwench polymath score answers --json --fail-under 40
"""
PROMPTS_EPILOG = """\b
examples:
  qwench polymath prompts --lang sw
  qwench polymath prompts --control forcing_en --json
  qwench polymath prompts --check
"""
LEVELS = ("low", "medium", "high", "top")
CONTROLS = ("none", "forcing_raw", "forcing_en", "forcing_prefer")

Langs = Annotated[str, typer.Option(help="Languages, such as en,zh; all that are there.", show_default=False)]
Levels = Annotated[str, typer.Option(help="low,medium,high,top; all that are there.", autocompletion=choices(*LEVELS))]
Control = Annotated[
    str,
    typer.Option(help="Sentence that asks for a language: " + ", ".join(CONTROLS), autocompletion=choices(*CONTROLS)),
]


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.replace(",", " ").split())


def run(
    ctx: typer.Context,
    data: Annotated[str, typer.Argument(help="Folder of {lang}/{level}.parquet, rows, or hub id.", show_default=False)],
    model: Model = "Qwen/Qwen3-0.6B",
    out: Annotated[str, typer.Option(help="Folder; answers come to {model}/{level}/{lang}.jsonl in it.")] = "answers",
    *,
    name: Annotated[str | None, typer.Option(help="Of the model's folder, if not the model's own.")] = None,
    langs: Langs = "",
    levels: Levels = "",
    limit: Annotated[int, typer.Option(min=0, help="Questions of a language and level, 0 for all.")] = 0,
    control: Control = "none",
    joiner: Annotated[
        list[str] | None,
        typer.Option(help="What comes before note and sentence; given twice, before each.", show_default=False),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Of every question.")] = 1,
    seed: Annotated[int, typer.Option(help="Another one draws other answers.")] = 0,
    level_names: Annotated[str, typer.Option(help="middle: the name that the reference's scorer knows.")] = "medium",
    writing: Writing,
    batch: Annotated[int, typer.Option(min=1, help="Answers at a time.")] = 4,
    dry_run: DryRun = False,
    keep_going: KeepGoing = False,
    force: Force = False,
    runtime: Writer,
    shown: Talk,
) -> None:
    """Ask a model PolyMath's questions.

    Every question has the note of its language after it. The same command goes on after a kill.
    """
    from ..ops import polymath as op

    refuse(ctx, "the tree has no place for them", "logprobs")
    own = {"slots": batch, "model": served(ctx, runtime, model)}
    questions = op.QuestionOptions(data, _names(langs), _names(levels), limit, runtime.offline)
    # The job's own limit would count rows of all languages and levels together.
    given = {n: v for n, v in ctx.params.items() if n != "limit"}
    options = fill(op.RunOptions, given, runtime=runtime, questions=questions, **own, **writing)
    result = shown.run(op.run(options, sys.stdin.buffer))
    if shown.json:
        shown.document(result | {"choices": shown.choices, "warnings": shown.warnings})
    elif dry_run:
        _plan(shown, result)
    else:
        shown.talk(out_.rows_done(result))
        shown.talk(f"score them: qwench polymath score {result['out']}")
    lost = result["bad"] + result.get("failed", 0)
    if lost and not keep_going:
        raise typer.Exit(ExitCode.FAILED)


def _plan(streams: out_.Out, result: dict[str, Any]) -> None:
    counts = {(row["lang"], row["level"]): row["questions"] for row in result["questions"]}
    streams.data(f"{'':8}" + "".join(f"{level:>8}" for level in LEVELS))
    for language in dict.fromkeys(lang for lang, _ in counts):
        streams.data(f"{language:8}" + "".join(f"{counts.get((language, level), 0):8}" for level in LEVELS))
    tokens = result["prompt_tokens"]
    streams.data(f"prompts {result['rows'] - result['bad']:,}")
    streams.data(f"tokens  {'unknown' if tokens is None else format(tokens, ',')}")
    if result["first_prompt"] is not None:
        streams.data("first prompt")
        streams.raw(result["first_prompt"])


def score(
    ctx: typer.Context,
    dirs: Annotated[list[str], typer.Argument(help="Models' folders, or folders above them.", show_default=False)],
    grader: Annotated[
        str,
        typer.Option(help="compat, math-verify or both.", autocompletion=choices("compat", "math-verify", "both")),
    ] = "compat",
    detector: Annotated[
        str,
        typer.Option(
            help="Of languages: compat, lingua, both or none.",
            autocompletion=choices("compat", "lingua", "both", "none"),
        ),
    ] = "compat",
    box: Annotated[
        str | None, typer.Option(help="first or last; compat takes the first, math-verify the last.")
    ] = None,
    ratio_rule: Annotated[
        str, typer.Option(help="on, or off: 50 and 0.5 are two numbers.", autocompletion=choices("on", "off"))
    ] = "on",
    grade_timeout: Annotated[float, typer.Option(help="Seconds of a comparison.")] = 5.0,
    zh: Annotated[str, typer.Option(help="simplified, or any script.")] = "simplified",
    langs: Langs = "",
    levels: Levels = "",
    by: Annotated[
        str, typer.Option(help="lang, level or source.", autocompletion=choices("lang", "level", "source"))
    ] = "lang",
    compare: Annotated[str | None, typer.Option(help="Another model's folder: differences by question.")] = None,
    boot: Annotated[int, typer.Option(min=0, help="Resamples of an interval, 0 for none.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the resamples.")] = 0,
    plot: Annotated[Path | None, typer.Option(help="Picture, language by level: .png or .svg.")] = None,
    write_score: Annotated[
        bool, typer.Option("--write-score", help="The reference's score.json into each model's folder.")
    ] = False,
    fail_under: Annotated[float | None, typer.Option(help="Exit 3 below this mean DW-ACC.")] = None,
    keep_going: KeepGoing = False,
    *,
    streams: Talk,
) -> None:
    """Score answers to PolyMath, without a model.

    Takes anyone's tree of {level}/{lang}.jsonl with `answer` and `answer_pred`.
    """
    from ..ops import polymath as op
    from ..ops.base.errors import QwenchError

    if ratio_rule not in ("on", "off"):
        raise QwenchError(f"unknown --ratio-rule: `{ratio_rule}`", "use on or off", ExitCode.USAGE)
    if grader == "math-verify":
        refuse(ctx, "math-verify has no such rule", "ratio_rule")
    if detector in ("none", "lingua"):
        refuse(ctx, "only the compat detector tells scripts apart", "zh")
    if not boot:
        refuse(ctx, "--boot 0 draws nothing", "seed")
    grade = op.GradeOptions(grader, detector, box, ratio_rule == "on", grade_timeout, zh)
    own = {"langs": _names(langs), "levels": _names(levels)}
    result = streams.run(op.score(fill(op.ScoreOptions, ctx.params, grade=grade, **own)))
    if streams.json:
        streams.document(result | {"choices": streams.choices, "warnings": streams.warnings})
    else:
        from . import polymath_table

        polymath_table.show(streams, result, by)
    if any(w["kind"] == "rows" for w in streams.warnings) and not keep_going:
        raise typer.Exit(ExitCode.FAILED)
    if fail_under is not None:
        for model in result["models"]:
            _judge(streams, model, fail_under)


def _judge(streams: out_.Out, model: dict[str, Any], least: float) -> None:
    from ..ops.base.errors import QwenchError

    rows = [row["dw_acc"] for row in model["languages"].values() if row["dw_acc"] is not None]
    if not rows:
        raise QwenchError("--fail-under needs a language with all four levels", "score one, or leave it out")
    mean = sum(rows) / len(rows)
    if mean < least:
        streams.talk(f"`{model['model']}`: the mean DW-ACC of {len(rows)} languages is {mean:.1f}, below {least:g}")
        raise typer.Exit(ExitCode.NO)


def prompts(
    lang: Annotated[str, typer.Option(help="Languages, such as en,zh.", show_default=False)] = "",
    control: Annotated[
        str | None, typer.Option(help="Only notes and this sentence.", autocompletion=choices(*CONTROLS))
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Compare with the published hashes; exit 3.")] = False,
    *,
    streams: Talk,
) -> None:
    """Show the notes and sentences of PolyMath's prompts."""
    from ..ops import polymath as op

    rows: list[dict[str, Any]] = []
    result = streams.run(op.prompts(_names(lang), control), rows.append)
    if streams.json:
        streams.document(result | {"strings": rows})
    elif not check:
        for row in rows:
            streams.raw(f"{row['lang']}\t{row['kind']}\t{row['text']}")
    if check and not streams.json:
        for kind, digest in result["hashes"].items():
            streams.data(f"{kind:16}{digest}")
    if check and not result["right"]:
        streams.talk("the strings are not the published ones")
        raise typer.Exit(ExitCode.NO)
