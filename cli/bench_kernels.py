"""`qwench bench-kernels`: the kernels behind it all, against the roofline."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ..ops.base.runtime import Runtime
from .errors import ExitCode
from .options import TALK, Talk, choices, refuse, runtime
from .out import Out
from .screen import paint

EPILOG = """\b
examples:
  qwench bench-kernels --quick
  qwench bench-kernels decode_product parscale_aggregate --shape parscale-3b --streams 1,2,4,8 --plot pictures
  qwench bench-kernels --save today.json --baseline yesterday.json --fail-over 5%
"""

HEAD = f"{'kernel':20} {'size':>16} {'provider':14} {'time':>10} {'floor':>10} {'of roof':>8} {'eager':>7} {'noise':>6}"

#: what --model listens to
OF_MODEL = (*("model", "dtype", "seq", "batch", "device", "threads"), *TALK.flags)


def bench_kernels(
    ctx: typer.Context,
    names: Annotated[
        list[str] | None, typer.Argument(help="Kernels, all of them by default.", show_default=False)
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Kernels, shapes and providers; measure nothing.")] = False,
    shape: Annotated[
        str, typer.Option(help="Whose sizes: smollm2-135m, qwen3-0.6b to qwen3-32b, parscale-1.8b, parscale-3b.")
    ] = "qwen3-0.6b",
    model: Annotated[
        str | None, typer.Option(help="A checkpoint: its whole prefill and decode step, split by kernel.")
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(
            help="One or more of float32, bfloat16, float16; auto is bfloat16 on CUDA and float32 elsewhere.",
            autocompletion=choices("auto", "float32", "bfloat16", "float16"),
        ),
    ] = "auto",
    provider: Annotated[
        str | None,
        typer.Option("--providers", help="As eager,compile,native,triton,sdpa-flash,liger.", show_default=False),
    ] = None,
    batch: Annotated[str, typer.Option(help="Sequences, as 1,8.")] = "1",
    seq: Annotated[str, typer.Option(help="Tokens of each, or of its cache.")] = "256",
    streams: Annotated[str, typer.Option(help="ParScale's P.")] = "1,2,4,8",
    quick: Annotated[bool, typer.Option("--quick", help="A fifth of the time for each row, no warm column.")] = False,
    max_seconds: Annotated[float, typer.Option(min=0.01, help="Most seconds for a row.")] = 1.0,
    min_samples: Annotated[int, typer.Option(min=3, help="Fewest samples of a row.")] = 10,
    max_noise: Annotated[str, typer.Option(help="A row ends when its median is known this well.")] = "1%",
    save: Annotated[
        str | None, typer.Option(help="Write everything into this .json, measured in five processes.")
    ] = None,
    baseline: Annotated[str | None, typer.Option(help="A file of --save to compare with.")] = None,
    fail_over: Annotated[str, typer.Option(help="With --baseline: exit 3 on confirmed slow-downs over this.")] = "5%",
    plot: Annotated[str | None, typer.Option(help="Folder for roofline and streams, as PNG and SVG.")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Say how FLOP and bytes are counted.")] = False,
    *,
    runtime: runtime("device", "threads"),
    talk: Talk,
) -> None:
    """Time kernels beside the roof, once they are right.

    Exit code 3 when a provider is wrong, or with --baseline when a slow-down is confirmed by measuring again.
    """
    from ..ops import bench_kernels as op
    from ..ops.bench.measure import Rule

    if list_:
        refuse(ctx, "--list measures nothing", *(n for n in ctx.params if n not in ("list_", *TALK.flags)))
        found = op.listing()
        talk.document(found) if talk.json else talk.data(_listed(found))
        return
    if model is not None:
        refuse(ctx, "--model times a checkpoint as it is", *(n for n in ctx.params if n not in OF_MODEL))
        _model(talk, model, replace(runtime, dtype=dtype), _numbers(seq, "--seq")[0], _numbers(batch, "--batch"))
        return
    if baseline is None:
        refuse(ctx, "there is no --baseline", "fail_over")
    seconds = max_seconds / 5 if quick else max_seconds
    rule = Rule(seconds, min_samples, _share(max_noise, "--max-noise"), warm=not quick)
    options = op.BenchOptions(
        kernels=tuple(names or ()),
        shape=shape,
        dtypes=() if dtype == "auto" else tuple(_words(dtype)),
        provider_names=tuple(_words(provider or "")),
        batch=_numbers(batch, "--batch"),
        seq=_numbers(seq, "--seq"),
        streams=_numbers(streams, "--streams"),
        runtime=runtime,
        rule=rule,
        save=Path(save) if save else None,
        baseline=Path(baseline) if baseline else None,
        threshold=_share(fail_over, "--fail-over"),
        plot=Path(plot) if plot else None,
    )
    if not talk.json:
        talk.data(HEAD)
    told: set[str] = set()

    def show(row: dict[str, Any]) -> None:
        if explain and row["kernel"] not in told:
            told.add(row["kernel"])
            talk.data(f"{row['kernel']}: {row['model']}; {row['flops']:,} FLOP, {row['bytes']:,} bytes")
        talk.data(_row(row))

    result = talk.run(op.bench(options), None if talk.json else show)
    if talk.json:
        talk.document(result | {"choices": talk.choices, "warnings": talk.warnings})
    else:
        _talk(talk, result)
    wrong = [r for r in result["rows"] if r["status"] == "wrong"]
    compared = result.get("comparison", {})
    if wrong or compared.get("slower") or compared.get("broken"):
        raise typer.Exit(ExitCode.NO)


def _words(text: str) -> list[str]:
    return [w.strip() for w in text.split(",") if w.strip()]


def _numbers(text: str, flag: str) -> tuple[int, ...]:
    from ..ops.base.errors import QwenchError

    try:
        found = tuple(int(w) for w in _words(text))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise QwenchError(f"{flag} takes numbers from 1, as 1,2,4, not `{text}`", code=ExitCode.USAGE)
    return found


def _share(text: str, flag: str) -> float:
    from ..ops.base.errors import QwenchError

    try:
        found = float(text.rstrip("% ")) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        found = -1.0
    if not 0 <= found < 10:
        raise QwenchError(f"{flag} takes a share, as 5% or 0.05, not `{text}`", code=ExitCode.USAGE)
    return found


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1e6:.1f} us" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"


def _row(row: dict[str, Any]) -> str:
    size = f"{row['batch']}x{row['seq']} P{row['streams']}"
    start = f"{row['kernel']:20} {size:>16} {row['provider']:14}"
    if row["status"] != "ok":
        return f"{start} {row['status'].upper() if row['status'] == 'wrong' else row['status']}: {row['reason']}"
    share = "-" if row["of_roof_measured"] is None else f"{row['of_roof_measured']:.0%}"
    gain = "-" if row["speedup"] is None else f"{row['speedup']:.2f}x"
    times = f"{_time(row['median']):>10} {_time(row['floor_measured']):>10}"
    return f"{start} {times} {share:>8} {gain:>7} {row['interval']:>6.0%}"


def _talk(streams: Any, result: dict[str, Any]) -> None:
    for name, roof in result["roofs"].items():
        speed = "-" if roof["bandwidth"] is None else f"{roof['bandwidth'] / 1e9:,.1f} GB/s"
        peaks = ", ".join(f"{k} {v / 1e9:,.0f} GFLOP/s" for k, v in roof["peak"].items()) or "-"
        streams.talk(f"roof, {name}: {speed}, {peaks} ({roof['source']})")
    for row in (r for r in result["rows"] if r["status"] == "wrong"):
        streams.talk(f"{paint('wrong:', 'red')} {row['kernel']} {row['provider']}: {row['reason']}")
    if "comparison" in result:
        found = result["comparison"]
        for kind in ("slower", "faster"):
            for row in found[kind]:
                streams.talk(f"{kind}: {row['what']}, {row['ratio']:.2f} times the old time")
        for what in found["broken"]:
            streams.talk(f"not timed any more: {what}")
        streams.talk(
            f"{found['compared']} rows compared: {len(found['slower'])} slower, {len(found['faster'])} faster, "
            f"{len(found['noise'])} not confirmed"
        )
    for path in result.get("plots", []):
        streams.talk(f"drawn: {path}")


def _listed(found: dict[str, Any]) -> str:
    lines = [f"{name:20} sweeps {', '.join(sweeps)}" for name, sweeps in found["kernels"].items()]
    sizes = "hidden {}, layers {}, heads {}/{} of {}, inner {}"
    lines += [f"{name:20} {sizes.format(*values)}" for name, values in found["shapes"].items()]
    return "\n".join([*lines, "providers: " + ", ".join(found["providers"])])


def _model(streams: Out, model: str, runtime: Runtime, seq: int, batch: tuple[int, ...]) -> None:
    from ..ops.bench import checkpoint_steps as op

    result = streams.run(op.bench_model(model, runtime, seq, batch))
    if streams.json:
        streams.document(result | {"choices": streams.choices, "warnings": streams.warnings})
        return
    cuda = result["environment"]["device"].startswith("cuda")
    for step in result["steps"]:
        streams.data(f"{step['step']} of {step['tokens']} tokens, batch {step['batch']}: {_time(step['seconds'])}")
        if cuda:
            streams.data(f"  the GPU is at work for {_time(step['split_seconds'])}")
        for name, part in step["parts"].items():
            streams.data(f"  {name:12} {_time(part):>10} {part / step['split_seconds']:6.1%}")
