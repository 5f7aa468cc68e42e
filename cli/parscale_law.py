"""`qwench parscale-law`: what P streams are worth in parameters, and what they cost."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .options import Talk, fill, refuse
from .out import size

#: what only a prediction has a use for
COSTS = (
    *("streams", "device", "bandwidth", "flops", "batch", "prompt_tokens", "answer_tokens"),
    *("weight_bytes", "cache_bytes", "prefix_tokens"),
)

EPILOG = """\b
examples:
  qwench parscale-law --corpus pile --plot pile.svg
  qwench parscale-law --predict 1.7B --streams 1,2,4,8 --device h100
  qwench parscale-law --points runs.csv --predict ./my-model --device cpu --json
"""


def _devices(incomplete: str) -> list[str]:
    from ..ops.streams.roofline import TABLE

    return [name for name in [*TABLE, "cpu", "cuda", "mps"] if name.startswith(incomplete)]


def parscale_law(
    ctx: typer.Context,
    points: Annotated[str, typer.Option(help=".csv, .json or .jsonl with n, p, loss.")] = "",
    corpus: Annotated[str, typer.Option(help="Without --points, the published ones of: stack, pile.")] = "stack",
    predict: Annotated[str, typer.Option(help="Parameters (1.7B), a model folder, a config.json.")] = "",
    streams: Annotated[str, typer.Option(help="With --predict: numbers of streams.")] = "1,2,4,8",
    device: Annotated[
        str,
        typer.Option(
            help="h100, h200, a100, ... from a table; cpu, cuda or mps are measured now.", autocompletion=_devices
        ),
    ] = "",
    bandwidth: Annotated[float | None, typer.Option(help="GB/s that the device reaches.")] = None,
    flops: Annotated[float | None, typer.Option(help="TFLOP/s that the device reaches.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Sequences at once.")] = 1,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens read.")] = 512,
    answer_tokens: Annotated[int, typer.Option(min=0, help="Tokens written.")] = 128,
    weight_bytes: Annotated[float, typer.Option(help="Of a parameter: 2 for bf16, 0.5 for int4.")] = 2,
    cache_bytes: Annotated[float, typer.Option(help="Of a number in the cache.")] = 2,
    prefix_tokens: Annotated[int, typer.Option(min=0, help="Of each stream and layer.")] = 48,
    plot: Annotated[str, typer.Option(help="Draw points and curves into this .png or .svg.")] = "",
    *,
    out: Talk,
) -> None:
    """Weigh parallel streams against parameters.

    Fits the parallel scaling law and predicts with it. Memory and latency are modelled from bandwidth and throughput,
    never measured.
    """
    from ..ops import parscale_law as op

    if points:
        refuse(ctx, "--points are the points", "corpus")
    if not predict:
        refuse(ctx, "there is no --predict", *COSTS)
    options = fill(op.LawOptions, ctx.params, streams=_streams(streams), prompt=prompt_tokens, answer=answer_tokens)
    result = out.run(op.parscale_law(options, Path(plot) if plot else None))
    if out.json:
        out.document(result | {"choices": out.choices, "warnings": out.warnings})
        return
    out.data(_law(result))
    if result["predictions"]:
        out.data("")
        out.data(_predictions(result))
        out.talk(f"\n{result['note']}" + (f"; {result['device']['source']}" if result["device"] else ""))


def _streams(text: str) -> tuple[int, ...]:
    from ..ops.base.errors import QwenchError

    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise QwenchError(f"these are no numbers of streams: `{text}`", "for example 1,2,4,8", 2) from None


def _law(r: dict[str, Any]) -> str:
    fit, confidence, published = r["fit"], r["confidence"], r["published"]
    lines = [f"{r['source']}", "L = E + (A / (N (k ln P + 1)))^alpha", ""]
    head = ["", "fitted", "+-", "without one point"] + (["published"] if published else [])
    rows = [head]
    for name in ("E", "A", "k", "alpha"):
        row = [name, _short(r["law"][name])]
        if confidence["constants"]:
            c = confidence["constants"][name]
            row += [f"{c['standard_error']:.2g}", f"{_short(c['low'])} to {_short(c['high'])}"]
        else:
            row += ["-", "-"]
        rows.append(row + ([_short(published[name])] if published else []))
    lines += _table(rows)
    r2 = "-" if fit["r2"] is None else f"{fit['r2']:.4f}"
    lines += ["", f"R^2 {r2}, error mean {fit['mean_error']:.4f}, max {fit['max_error']:.4f} nats"]
    if held := confidence["held_out_error"]:
        lines[-1] += f"; on a point left out mean {held['mean']:.4f}, max {held['max']:.4f}"
    return "\n".join(lines)


def _predictions(r: dict[str, Any]) -> str:
    rows = [
        ["P", "loss", "worth", "added", "memory", "prefill", "a token", "same loss", "memory", "prefill", "a token"]
    ]
    for p in r["predictions"]:
        wider = p["wider"]
        rows.append(
            [
                str(p["streams"]),
                f"{p['loss']:.4f}",
                f"x{p['multiplier']:.3f}",
                f"{p['added'] / 1e6:.1f}M",
                *_costs(p),
                f"{p['equivalent_parameters'] / 1e9:.3f}B",
                *_costs(wider),
            ]
        )
    lines = [f"{r['model']['name']}: {r['model']['parameters']:,.0f} parameters without embeddings", *_table(rows)]
    for p in r["predictions"]:
        if p["fits"] is False:
            lines.append(f"P={p['streams']}: {size(p['memory'])} do not fit into {size(r['device']['memory'])}")
        if p["memory_ratio"]:
            line = f"P={p['streams']}: the wider model of the same loss adds {p['memory_ratio']:.1f} times the memory"
            lines.append(line + (f", {p['seconds_ratio']:.1f} times the time" if p["seconds_ratio"] else ""))
    return "\n".join(lines)


def _costs(p: dict[str, Any]) -> list[str]:
    return [size(p["memory"]), _time(p["prefill_seconds"]), _time(p["decode_seconds"])]


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1e3:.2f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _short(value: float) -> str:
    return f"{value:.4g}" if value >= 1e4 or value < 1e-3 else f"{value:.4f}"


def _table(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
