"""`qwench wav score`: what a judge says of spoken dialogues, and what that is worth."""

import sys
from typing import Annotated, Any

import typer

from . import out as out_
from .errors import ExitCode
from .options import DryRun, Force, KeepGoing, Limit, Talk, choices, complete_model, fill, refuse, runtime, served

EPILOG = """\b
examples:
  qwench wav score waves/manifest.jsonl --model Qwen/Qwen2.5-Omni-7B --out scores.jsonl
  qwench wav score waves/manifest.jsonl --engine http://localhost:8000/v1 --controls order,silence
  qwench wav score waves/manifest.jsonl --model acoustic --fit labelled/manifest.jsonl --json
"""
CONTROLS = ("order", "silence", "text", "loudness")
#: flags that only a judge that writes has a use for
WRITTEN = ("prompt", "prompt_file", "max_tokens", "temperature", "audio_part")
LOADED = ("head", "revision", "offline", "device", "dtype", "threads")


def score(
    ctx: typer.Context,
    manifest: Annotated[
        str, typer.Argument(help="Rows of audio, or of question and answer; a folder; -.", show_default=False)
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="Folder, hub id; random or acoustic to compare with.", autocompletion=complete_model
        ),
    ] = None,
    out: Annotated[str, typer.Option(help=".jsonl or .parquet; - for rows as they are done.")] = "-",
    prompt: Annotated[
        str, typer.Option(help="published, or think (our own).", autocompletion=choices("published", "think"))
    ] = "published",
    prompt_file: Annotated[str | None, typer.Option(help="Text in the prompt's place.")] = None,
    scale: Annotated[str, typer.Option(help="Scores that count, such as 1,3,5.")] = "1,2,3,4,5",
    samples: Annotated[int, typer.Option(min=1, help="Draws of every dialogue.")] = 1,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of an answer, thoughts included.")] = 1024,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
    head: Annotated[
        str,
        typer.Option(help="text, or scalar: a linear score_head.", autocompletion=choices("auto", "text", "scalar")),
    ] = "auto",
    controls: Annotated[
        str, typer.Option(help="Of order,silence,text,loudness.", autocompletion=choices(*CONTROLS), show_default=False)
    ] = "",
    fit: Annotated[str | None, typer.Option(help="Labelled manifest for --model acoustic.")] = None,
    gap: Annotated[float, typer.Option(help="Seconds between parts that are not merged yet.")] = 1.0,
    batch: Annotated[int, typer.Option(min=1, help="Dialogues at a time.")] = 4,
    audio_part: Annotated[
        str,
        typer.Option(help="Of a server: input_audio or audio_url.", autocompletion=choices("input_audio", "audio_url")),
    ] = "input_audio",
    fail_under: Annotated[
        float | None, typer.Option(min=0, max=1, help="Exit 3 below this accuracy; of a scalar head its ranking.")
    ] = None,
    *,
    id_field: Annotated[str | None, typer.Option(help="Column that names a row; id, where it is there.")] = None,
    limit: Limit = 0,
    dry_run: DryRun = False,
    keep_going: KeepGoing = False,
    force: Force = False,
    runtime: runtime(*LOADED[1:], "engine", "api_key_env", "concurrency"),
    shown: Talk,
) -> None:
    """Have spoken dialogues scored 1 to 5, and measure the judge by their labels and by controls.

    Judges are audio language models (Qwen2.5-Omni, Qwen3-Omni, Qwen2-Audio), servers that take sounds, and two
    witnesses. What has no score is null, never a default. No WavReward weights or data are public. With --out the same
    command goes on after a kill. Exit 3 when nothing has a score.
    """
    from ..ops import wav as op
    from ..ops.base.errors import QwenchError

    if not runtime.server and runtime.engine not in ("auto", "torch"):
        raise QwenchError(f"no engine for sounds: `{runtime.engine}`", "leave it out, or give http://HOST:PORT/v1", 2)
    if out == "-":
        refuse(ctx, "standard output is no file to write over", "force")
    _fitting(ctx, runtime, model)
    job = fill(op.JobOptions, ctx.params, rows=manifest, at_once=runtime.concurrency)
    own = {"scale": _scale(scale), "controls": tuple(dict.fromkeys(n for n in controls.replace(",", " ").split()))}
    name = served(ctx, runtime, model or "") or ""
    options = fill(op.ScoreOptions, ctx.params, runtime=runtime, job=job, model=name, **own)
    result = shown.run(op.score(options, sys.stdin.buffer), shown.document if out == "-" else None)
    _show(shown, result, out, dry_run)
    lost = result["bad"] + result.get("failed", 0)
    if lost and (not keep_going or lost == result["rows"]):
        raise typer.Exit(ExitCode.FAILED)
    if not dry_run:
        _judged(shown, result, fail_under)


def _fitting(ctx: typer.Context, runtime: Any, model: str | None) -> None:
    """Refuse flags that the judge has no use for."""
    if runtime.server:
        refuse(ctx, "the engine is a server", "head", "batch", "fit")
        return
    refuse(ctx, "the model is no server", "audio_part")
    if model != "acoustic":
        refuse(ctx, "--fit is for --model acoustic", "fit")
    if model in ("random", "acoustic"):
        refuse(ctx, f"--model {model} is no audio language model", *WRITTEN, *LOADED)
    if model == "acoustic":
        refuse(ctx, "the acoustic judge draws nothing, and has the labels of --fit", "samples", "seed", "scale")


def _scale(text: str) -> tuple[int, ...]:
    from ..ops.base.errors import QwenchError

    try:
        return tuple(sorted({int(part) for part in text.split(",") if part.strip()}))
    except ValueError:
        raise QwenchError(f"no scores: `{text}`", "write --scale 1,3,5", 2) from None


def _show(streams: out_.Out, result: dict[str, Any], out: str, dry_run: bool) -> None:
    if dry_run:
        if streams.json:
            streams.document(result | {"choices": streams.choices, "warnings": streams.warnings})
            return
        streams.data(f"rows      {result['rows'] - result['bad']:,}")
        streams.data(f"labelled  {result['gold']:,}")
        streams.data(f"draws     {result['samples'] + len(result['controls'])} of each")
        return
    if streams.json and out != "-":
        streams.document(result | {"choices": streams.choices, "warnings": streams.warnings})
        return
    from .wav_tables import report

    rows = result["rows"] - result["bad"] - result["failed"]
    told = f"{result['scored']:,} of {rows:,} dialogues have a score; {out_.clock(result['sound_seconds'])} of sound"
    if result["done"]:
        told += f"; {result['done']:,} were done before"
    for name, what in (("failed", "failed"), ("bad", "left out"), ("warned", "with remarks on their sound")):
        if result[name]:
            told += f"; {result[name]:,} {what}"
    streams.talk(told)
    say = streams.talk if out == "-" else streams.data
    for line in report(result):
        say(line)


def _judged(streams: out_.Out, result: dict[str, Any], least: float | None) -> None:
    from ..ops.base.errors import QwenchError

    if not result["scored"]:
        streams.talk("no dialogue has a score")
        raise typer.Exit(ExitCode.NO)
    if least is None:
        return
    scalar = result["head"] == "scalar"
    found = (result["ranking"] or {}).get("share") if scalar else (result["agreement"] or {}).get("accuracy")
    if found is None:
        raise QwenchError("--fail-under needs rows with gold", "label them, or leave it out")
    if found < least:
        streams.talk(f"{'ranking' if scalar else 'accuracy'} {found:.4f} is below {least:g}")
        raise typer.Exit(ExitCode.NO)
