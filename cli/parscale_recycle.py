"""`qwench parscale-recycle`: a decoder becomes several parallel streams by short post-training."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from .errors import ExitCode
from .options import TALK, DryRun, Talk, complete_model, fill, runtime
from .out import Out, clock, size, start

EPILOG = """\b
examples:
  qwench parscale-recycle Qwen/Qwen3-0.6B wide --data docs --tokens 2M --dry-run
  qwench parscale-recycle smollm2 wide --streams 2,4 --data src --include '*.py' --tokens 200k --baseline
  qwench parscale-recycle smollm2 wide --config recycle.toml --tokens 200k
"""


def parscale_recycle(
    ctx: typer.Context,
    model: Annotated[
        str, typer.Argument(help="Folder, .gguf, hub id.", show_default=False, autocompletion=complete_model)
    ],
    out: Annotated[str, typer.Argument(help="Folder to make.", show_default=False)],
    data: Annotated[list[str] | None, typer.Option(help="Files, folders, or a hub data set; repeatable.")] = None,
    eval_data: Annotated[list[str] | None, typer.Option(help="Held-out data; default: one document in 20.")] = None,
    text_field: Annotated[str | None, typer.Option(help="Field with the text of rows; default text.")] = None,
    include: Annotated[list[str] | None, typer.Option(help="Only files that match; repeatable.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Not files that match; repeatable.")] = None,
    streams: Annotated[str, typer.Option(help="How many: 4, or several over one decoder: 2,4,8.")] = "4",
    train: Annotated[str, typer.Option(help="added: prefixes and aggregator; all: the decoder too.")] = "added",
    prefix_tokens: Annotated[int, typer.Option(min=1, help="Prefix tokens of a stream in each layer.")] = 48,
    smooth: Annotated[float, typer.Option(help="Share of the weights spread evenly over streams.")] = 0.1,
    init: Annotated[
        str, typer.Option(help="prompts (from the data), random, or reparam (random through an MLP).")
    ] = "prompts",
    tokens: Annotated[str | None, typer.Option(help="Training for each number of streams: 200k, 20M.")] = None,
    steps: Annotated[int, typer.Option(min=0, help="Steps in place of --tokens.")] = 0,
    seq_len: Annotated[int, typer.Option(min=2, help="Tokens of a packed sequence.")] = 512,
    batch: Annotated[int, typer.Option(min=1, help="Sequences at a time.")] = 4,
    grad_accum: Annotated[int, typer.Option(min=1, help="Batches of a step.")] = 1,
    lr: Annotated[float | None, typer.Option(help="Peak rate; default 1e-2, for --train all 1e-5.")] = None,
    schedule: Annotated[str, typer.Option(help="wsd (up, stay, down) or cosine.")] = "wsd",
    warmup: Annotated[int | None, typer.Option(min=0, help="Steps; default a twentieth.")] = None,
    clip: Annotated[float, typer.Option(help="Largest norm of the gradient.")] = 1.0,
    save_every: Annotated[int | None, typer.Option(min=0, help="Steps; default a tenth, 0 never.")] = None,
    eval_every: Annotated[int | None, typer.Option(min=0, help="Steps; default a fifth, 0 never.")] = None,
    log_every: Annotated[int, typer.Option(min=0, help="Steps; default a hundredth.")] = 0,
    eval_tokens: Annotated[int, typer.Option(min=1, help="Most tokens held out.")] = 32768,
    end_token: Annotated[str | None, typer.Option(help="Token between documents; default the model's.")] = None,
    baseline: Annotated[bool, typer.Option("--baseline", help="Train one stream on the same tokens too.")] = False,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, more time.")
    ] = False,
    config: Annotated[str | None, typer.Option(help="TOML file with these options; flags win.")] = None,
    seed: Annotated[int, typer.Option(help="Of data order, prompts, fresh tensors.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="With --force: still go on with a killed run.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    dry_run: DryRun = False,
    *,
    runtime: runtime("revision", "offline", "device", "dtype", "threads"),
    talk: Talk,
) -> None:
    """Train parallel streams over a decoder (ParScale).

    Exit 3 when the held-out loss did not fall.
    """
    from ..ops import parscale_recycle as op

    # Under torchrun the first process speaks for all.
    talks = op.rank() == 0
    shown = talk if talks else start(quiet=True)
    given = {k: v for k, v in ctx.params.items() if k not in ("config", "dry_run", *TALK.flags)}
    if config:
        given |= _from_file(ctx, Path(config), given)
        runtime = replace(runtime, **{f.name: given[f.name] for f in fields(runtime) if f.name in given})
    own = {"streams": _numbers(given["streams"]), "tokens": _count(given["tokens"]), "runtime": runtime}
    options = fill(op.RecycleOptions, given, **own)
    json = shown.json
    if dry_run:
        plan = shown.run(op.dry_run(options))
        shown.document(plan) if json else shown.data(_planned(plan))
        return
    show = (lambda row: shown.document(row) if json else _talk(shown, row)) if talks else None
    result = shown.run(op.recycle(options), show)
    if talks:
        if json:
            shown.document(result | {"choices": shown.choices, "warnings": shown.warnings})
        else:
            shown.data(_losses(result["losses"]))
            shown.data(result["verdict"])
        shown.talk(f"{out}: {result['streams']} streams, {clock(result['seconds'])}")
    if talks and not result["helped"]:
        raise typer.Exit(ExitCode.NO)


def _from_file(ctx: typer.Context, path: Path, known: dict[str, Any]) -> dict[str, Any]:
    """Options of a TOML file that no flag gives."""
    from ..ops.base.errors import QwenchError
    from ..ops.base.parse import parse_toml
    from ..ops.base.paths import local

    local(path, "the file of options")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise QwenchError(f"the file of options cannot be read ({error.strerror}): `{path}`") from error
    found = {k.replace("-", "_"): v for k, v in parse_toml(data, str(path), "write TOML: lr = 0.001").items()}
    if unknown := sorted(set(found) - set(known)):
        raise QwenchError(f"no such option: `{unknown[0]}` in `{path}`", f"known: {', '.join(sorted(known))}", 2)
    for name in ("data", "eval_data", "include", "exclude"):
        if isinstance(found.get(name), str):
            found[name] = [found[name]]
    if isinstance(found.get("streams"), list | int):
        found["streams"] = ",".join(
            map(str, found["streams"] if isinstance(found["streams"], list) else [found["streams"]])
        )
    parameters = {p.name: p for p in ctx.command.params}
    checked = {}
    for name, value in found.items():
        if str(ctx.get_parameter_source(name)).endswith("COMMANDLINE"):
            continue
        try:
            checked[name] = parameters[name].process_value(ctx, value)
        except typer.BadParameter as error:
            raise QwenchError(f"`{name}` in `{path}`: {error.message}", "write TOML: lr = 0.001", 2) from error
    return checked


def _numbers(text: str) -> tuple[int, ...]:
    from ..ops.base.errors import QwenchError

    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise QwenchError(f"not a number of streams: `{text}`", "write 4, or 2,4,8", 2) from None


def _count(text: str | int | None) -> int:
    """200k, 20M, 1B or a plain number; 0 for None."""
    from ..ops.base.errors import QwenchError

    if text is None:
        return 0
    written = str(text).strip().lower().replace("_", "")
    factor = {"k": 10**3, "m": 10**6, "b": 10**9}.get(written[-1:], 1)
    try:
        number = round(float(written.rstrip("kmb")) * factor)
    except ValueError:
        number = 0
    if number < 1:
        raise QwenchError(f"not a number of tokens: `{text}`", "write 200k, 20M or 1B", 2)
    return number


def _talk(shown: Out, row: dict[str, Any]) -> None:
    if row["event"] == "estimate":
        shown.talk(_planned(row))
    elif row["event"] == "measured":
        shown.talk(f"{row['name']}: held-out loss {row['loss']:.4f}{_apart(row)}")
    elif row["event"] == "held_out":
        shown.talk(f"{row['run']}, step {row['step']}: held-out loss {row['loss']:.4f} on a quarter")


def _apart(row: dict[str, Any]) -> str:
    if "single" not in row:
        return ""
    single = "/".join(f"{x:.3f}" for x in row["single"])
    mix = f"evenly {row['uniform']:.4f}, entropy {row['entropy']:.3f}, cosine {row['cosine']:.3f}"
    return f"; streams alone {single}, {mix}"


def _planned(plan: dict[str, Any]) -> str:
    lines = [
        f"{plan['parameters'] / 1e6:,.1f} M parameters without embeddings; {plan['steps']:,} steps, "
        f"{plan['tokens']:,} tokens; {plan['train_blocks']:,} sequences to train on, {plan['held_out_blocks']} held out"
    ]
    for run in plan["runs"]:
        law = ", ".join(f"{name} {gain:.3f}" for name, gain in run["predicted_gain"].items())
        lines.append(
            f"{run['streams']} streams: {run['added'] / 1e6:.2f} M added, {run['trained'] / 1e6:.2f} M trained, "
            f"{run['flops']:.2g} FLOP, about {size(run['memory'])}, training about {clock(run['seconds'])}; law: {law}"
        )
    baseline = plan["baseline_seconds"]
    trained = "" if baseline is None else f"the baseline about {clock(baseline)}, "
    lines.append(f"{trained}all of it, with its held-out losses, about {clock(plan['seconds'])}")
    return "\n".join([*lines, plan["note"]])


def _losses(rows: list[dict[str, Any]]) -> str:
    width = max(len(r["name"]) for r in rows)
    lines = [f"{'model':{width}}  loss    gain over the base"]
    for r in rows:
        gain = "" if r["gain"] is None else f"{r['gain']:+.4f} ± {r['error']:.4f}"
        lines.append(f"{r['name']:{width}}  {r['loss']:.4f}  {gain}".rstrip())
    return "\n".join(lines)
