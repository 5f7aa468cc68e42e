"""`qwench gates`: attention sinks, massive activations and gate scores of a model, measured on texts."""

import sys
from typing import Annotated, Any

import typer

from .options import Checkpoint, Talk, runtime

EPILOG = """\b
examples:
  qwench gates Qwen/Qwen3-0.6B "The quick brown fox jumps over the lazy dog."
  qwench gates ./gated notes.txt README.md --plot sinks.png
  cat corpus.txt | qwench gates smollm2 - --json | jq '.layers[0].first_token'
"""


def gates(
    model: Checkpoint,
    texts: Annotated[
        list[str], typer.Argument(help="Files, - for standard input, or words to read.", show_default=False)
    ],
    plot: Annotated[str | None, typer.Option(help="PNG or SVG to draw.")] = None,
    max_tokens: Annotated[int, typer.Option(min=2, help="Longest text; all attention weights are held.")] = 512,
    *,
    runtime: runtime("revision", "offline"),
    streams: Talk,
) -> None:
    """Measure attention sinks and gates of a model on texts.

    The share of attention that the first token gets, the largest activation, and the mean gate score, layer by layer.
    """
    from ..ops import gates as op

    found = streams.run(op.gates(model, texts, plot, runtime, sys.stdin.buffer, max_tokens))
    if streams.json:
        streams.document(found | {"warnings": streams.warnings})
    else:
        streams.data(_table(found))
        streams.talk(f"{found['tokens']:,} tokens of {found['texts']} texts" + (f"; drawn: {plot}" if plot else ""))


def _table(found: dict[str, Any]) -> str:
    lines = ["layer  first token  largest activation   gate  closed"]
    for row in found["layers"]:
        gate = "    -       -" if row["gate"] is None else f"{row['gate']:5.3f}  {row['closed']:6.1%}"
        lines.append(f"{row['layer']:5}  {row['first_token']:11.3f}  {row['largest']:18.1f}  {gate}")
    return "\n".join(lines)
