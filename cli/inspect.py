"""`qwench inspect`: what is in a checkpoint, without loading it."""

from typing import Annotated, Any

import typer

from .options import Checkpoint, Talk, runtime
from .out import size
from .screen import one_line

EPILOG = """\b
examples:
  qwench inspect Qwen/Qwen3-0.6B
  qwench inspect ./merged --tensors
  qwench inspect minilm --json | jq .parameters
"""


def inspect(
    path: Checkpoint,
    tensors: Annotated[bool, typer.Option("--tensors", help="Every tensor too.")] = False,
    *,
    runtime: runtime("revision", "offline"),
    streams: Talk,
) -> None:
    """Say what is in a checkpoint, without loading it."""
    from ..ops import inspect as op

    report = streams.run(op.inspect(path, runtime, tensors))
    streams.document(report) if streams.json else streams.data(_text(report))


def _text(r: dict[str, Any]) -> str:
    names = ", ".join(r["architectures"] or ["no architecture named"])
    total = max(r["parameters"], 1)
    lines = [
        f"{r['path']}: {names}",
        f"format      {r['format']}, {len(r['files'])} file{'s' * (len(r['files']) > 1)}, {size(r['bytes'])}",
        f"parameters  {r['parameters']:,} in {r['tensors']} tensors",
        "dtypes      " + ", ".join(f"{name} {count / total:.1%}" for name, count in r["dtypes"].items()),
        f"head        {r['head']}",
    ]
    for q in r["quantised"]:
        share = q["parameters"] / total
        lines.append(f"quantised   {q['scheme']}: {q['matrices']} matrices, {share:.0%} of the parameters")
    if a := r.get("adapter"):
        lines.append(f"adapter     {a['type']}, r {a['r']}, alpha {a['alpha']}, of {a['base']}")
        lines.append("modules     " + ", ".join([*a["modules"], *a["extras"]]))
    if r["layout"]:
        lines.append(f"names       {r['layout']}")
    if v := r["vocabulary"]:
        tokens = (
            "no tokenizer" if v["tokenizer"] is None else f"{v['tokenizer']:,} tokens, {v['padding']:,} rows padding"
        )
        lines.append(f"vocabulary  {v['rows']:,} rows, {tokens}")
    for name in ("gates", "streams"):
        if r[name]:
            lines.append(f"{name:11} {r[name]}")
    lines += [f"left out    {name}" for name in r["left_out"]]
    lines += [f"problem     {text}" for text in r["problems"]]
    lines += [f"{t['name']}  {t['shape']}  {t['dtype']}  {t['file']}" for t in r.get("tensor_list", [])]
    return "\n".join(map(one_line, lines))
