"""Attention sinks and gates of a model, measured on texts: the work behind `qwench gates`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from .base.errors import QwenchError
from .base.events import Event, Events, Finished, Started, Warned
from .base.plots import check_plot
from .base.runtime import Runtime
from .conversion.gates_report import draw, measure_gates
from .models.hub import open_source
from .models.load_decoder import texts_of
from .text.documents import ReadOptions, find_files, read_documents
from .text.types import Document


def gates(
    model: str,
    texts: Sequence[str],
    plot: str | None = None,
    runtime: Runtime | None = None,
    stdin: BinaryIO | None = None,
    max_tokens: int = 512,
) -> Events:
    """Measure what a language model does with its first token and its gates.

    Finished has texts, tokens, and a row per layer: `first_token`, the mean over heads and positions after the first
    of the attention the first token gets; `largest`, the largest magnitude in the residual stream after the layer;
    `gate`, the mean gate score, and `closed`, the share of scores below 0.1, None without gates.

    Args:
        model: folder, weight file, hub id or packaged name.
        texts: files and folders, `-` for `stdin`, or words to read.
        plot: PNG or SVG file to draw.
        max_tokens: longer texts are cut to this, and it is said.

    Raises:
        QwenchError: no language model, no tokenizer, a text of one token, nothing to read, see `check_plot`.
    """
    asked = runtime or Runtime()
    if plot:
        check_plot(Path(plot))
    source = open_source(model, asked.revision, asked.offline)
    yield Started("load")
    tokenizer, _ = texts_of(source)
    rows = []
    for name, text in (yield from _texts(texts, stdin)):
        ids = tokenizer.ids([text])[0]
        if len(ids) < 2:
            yield Warned("short", f"{name} is one token, and attention to the first needs others", name)
            continue
        if len(ids) > max_tokens:
            yield Warned("truncated", f"{name} is cut from {len(ids)} to {max_tokens} tokens", name)
        rows.append(ids[:max_tokens])
    if not rows:
        raise QwenchError("no text has more than one token", "give a sentence")
    account = yield from measure_gates(source, rows, Path.cwd())
    if plot:
        draw(account, Path(plot))
    yield Finished(
        {
            "schema": 1,
            "model": model,
            "texts": len(rows),
            "tokens": sum(map(len, rows)),
            "plot": plot,
            "layers": account.rows(),
        }
    )


def _texts(texts: Sequence[str], stdin: BinaryIO | None) -> Iterator[Event]:
    """(name, text) of everything that is to be read, returned; words stand for themselves."""
    found: list[tuple[str, str]] = []
    for given in texts:
        if given != "-" and not Path(given).exists():
            if not given.split()[1:]:
                raise QwenchError(f"no such file: `{given}`", "name a file, or give a sentence in quotes")
            found.append((f"`{given[:40]}`", given))
            continue
        for item in read_documents(find_files([given], ReadOptions()), ReadOptions(), stdin):
            if isinstance(item, Document):
                found.append((f"`{item.path}`", "".join(s.text for s in item.segments())))
            else:
                yield item
    if not found:
        raise QwenchError("there is no text to read", "name files, or give a sentence in quotes")
    return found
