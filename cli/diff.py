"""`qwench diff`: where two checkpoints differ."""

from typing import Annotated, Any

import typer

from .errors import ExitCode
from .options import Checkpoint, Talk, runtime
from .screen import one_line

EPILOG = """\b
examples:
  qwench diff before after
  qwench diff original.safetensors half --tolerance 1e-3
  qwench diff a b --json | jq -r 'select(.kind == "values") | .name'
"""


def diff(
    a: Checkpoint,
    b: Checkpoint,
    tolerance: Annotated[float, typer.Option(min=0, help="Relative difference that counts as equal.")] = 0.0,
    *,
    runtime: runtime("offline"),
    streams: Talk,
) -> None:
    """Compare two checkpoints; exit code 3 when they differ."""
    from ..ops import diff as op

    result = streams.run(
        op.diff(a, b, tolerance, runtime),
        lambda row: streams.document({"schema": 1} | row) if streams.json else streams.data(_line(row)),
    )
    if streams.json:
        streams.document(result)
    if result["same"]:
        streams.talk(f"equal: {result['equal']} tensors")
        return
    words = {"only_a": "only in the first", "only_b": "only in the second", "shape": "of other shape"}
    words |= {"dtype": "of other dtype", "values": "of other values"}
    streams.talk(f"{result['equal']} equal, " + ", ".join(f"{result[k]} {w}" for k, w in words.items() if result[k]))
    raise typer.Exit(ExitCode.NO)


def _line(row: dict[str, Any]) -> str:
    if row["kind"] in ("only_a", "only_b"):
        return f"{'-' if row['kind'] == 'only_a' else '+'} {one_line(row['name'])}"
    change = f"{row['a']} -> {row['b']}" if row["a"] != row["b"] else str(row["a"])
    if row["kind"] == "values":
        change += f"  largest difference {row['largest']:.3g}, relative {row['relative']:.3g}"
    return f"~ {one_line(row['name'])}  {change}"
