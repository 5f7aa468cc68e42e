"""`qwench wav`: spoken dialogues, and what a judge of them is worth."""

import sys
from typing import Annotated

import typer

from . import out as out_
from .errors import ExitCode
from .options import DryRun, KeepGoing, Talk, choices, fill, given_flags

BUILD_EPILOG = """\b
examples:
  qwench wav build dialogues.jsonl --out waves
  qwench wav build recordings --out waves --level-rms -26
  qwench wav build dialogues.jsonl --out swapped --order aq --dry-run
"""
REWARD_EPILOG = """\b
examples:
  qwench wav reward samples.jsonl > rewarded.jsonl
  qwench wav reward samples.jsonl --shape exact --group question_id --out rewarded.jsonl
  qwench wav reward - --prompt think --sigma 0.5 --no-format-in-advantage < samples.jsonl
"""

Rows = Annotated[str, typer.Argument(help="Rows of completion and gold; - for standard input.", show_default=False)]
Out = Annotated[str, typer.Option(help=".jsonl or .parquet; - for standard output.")]


def build(
    ctx: typer.Context,
    manifest: Annotated[
        str, typer.Argument(help="Rows of question and answer, or a folder of NAME.q.wav, NAME.a*.wav.")
    ],
    out: Annotated[str, typer.Option(help="Folder of waves and manifest.jsonl.")],
    gap: Annotated[float, typer.Option(help="Seconds of silence between the parts.")] = 1.0,
    rate: Annotated[int, typer.Option(help="Of the merged waves, in Hz.")] = 16_000,
    level_rms: Annotated[float | None, typer.Option(help="Bring both parts to this RMS, in dB of full scale.")] = None,
    order: Annotated[str, typer.Option(help="qa, or aq: the answer first.", autocompletion=choices("qa", "aq"))] = "qa",
    dry_run: DryRun = False,
    keep_going: KeepGoing = False,
    *,
    streams: Talk,
) -> None:
    """Merge questions and answers into the waves that judges of spoken dialogue hear.

    Mono, 16-bit PCM: the question, one second of silence, the answer. The same command goes on after a kill.
    """
    from ..ops import wav as op

    result = streams.run(op.build(fill(op.BuildOptions, ctx.params), sys.stdin.buffer))
    if streams.json:
        streams.document(result | {"choices": streams.choices, "warnings": streams.warnings})
    else:
        told = f"{result['made']:,} dialogues {'to be made' if dry_run else 'made'}, {result['kept']:,} there already"
        lost = f", {result['failed']:,} failed" if result["failed"] else ""
        odd = f", {result['warned']:,} with warnings" if result["warned"] else ""
        streams.talk(f"{told}{lost}{odd}; {out_.clock(result['seconds'])} of sound")
    if any(w["kind"] in ("failed", "rows") for w in streams.warnings) and not keep_going:
        raise typer.Exit(ExitCode.FAILED)


def reward(
    ctx: typer.Context,
    rows: Rows = "-",
    out: Out = "-",
    sigma: Annotated[float, typer.Option(help="Width of the Gaussian; the paper names none, 1 is assumed.")] = 1.0,
    shape: Annotated[
        str, typer.Option(help="gauss, or exact: 5 for the very score.", autocompletion=choices("gauss", "exact"))
    ] = "gauss",
    form: Annotated[float, typer.Option("--format", help="Reward of the form that was asked for.")] = 5.0,
    prompt: Annotated[
        str,
        typer.Option(
            help="published, or think: a closed thought is part of the form.",
            autocompletion=choices("published", "think"),
        ),
    ] = "published",
    group: Annotated[str, typer.Option(help="Column that names the input of which rows are samples.")] = "question_id",
    format_in_advantage: Annotated[
        bool, typer.Option("--format-in-advantage/--no-format-in-advantage", help="The paper leaves it open.")
    ] = True,
    keep_going: KeepGoing = False,
    *,
    streams: Talk,
) -> None:
    """Give what a judge of spoken dialogue has said WavReward's reward, without a model.

    Rows gain parsed, reason, accuracy_reward, format_reward, reward and advantage. No WavReward weights or data are
    public; the reward is the paper's, and what the paper leaves open is told as assumed. Exit 3
    when nothing has a score.
    """
    from ..ops import wav as op

    options = fill(op.RewardOptions, ctx.params, sigma_given=bool(given_flags(ctx, "sigma")))
    result = streams.run(op.reward(options, sys.stdin.buffer), streams.document if out == "-" else None)
    if streams.json and out != "-":
        streams.document(result | {"choices": streams.choices, "warnings": streams.warnings})
    else:
        streams.talk(_rewarded(result))
    if result["bad"] and not keep_going:
        raise typer.Exit(ExitCode.FAILED)
    if not result["parsed"]:
        streams.talk("no completion has a score")
        raise typer.Exit(ExitCode.NO)


def _rewarded(result: dict) -> str:
    rows = result["rows"]
    told = f"{rows:,} rows, {result['parsed']:,} with a score, {result['right_form']:,} in the right form"
    if rows:
        told += f"; mean reward {result['mean_reward']:.4f}"
    assumed = "; ".join(f"{name.replace('_', ' ')} {value}" for name, value in result["assumed"].items())
    return f"{told}; {result['groups']:,} groups; assumed: {assumed}"
