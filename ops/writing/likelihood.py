"""How likely given tokens are to a model: of a whole text in few passes, or of continuations of one prompt."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..models.nets.causal import CausalDecoder, Engine

if TYPE_CHECKING:
    from torch import Tensor

#: rows of logits at a time: with a vocabulary of 152 thousand, 78 MB
ROWS = 128


def of_text(engine: Engine, ids: list[int], window: int = 0) -> Iterator[list[float]]:
    """Log-probabilities of every token but the first, each given what is before it in its window; a list a window.

    Windows share a token: the last of one is the first that the next is told.

    Args:
        window: tokens of a window, 0 for the context.
    """
    width = min(window or engine.context, engine.context)
    # One pass over a window is all that a decoder of one stream needs; the others tell the logits of last tokens alone.
    whole = isinstance(engine, CausalDecoder) and engine.streams == 1
    for at in range(0, len(ids) - 1, max(width - 1, 1)):
        piece = ids[at : at + width]
        yield _at_once(engine, piece) if whole else of_continuations(engine, piece[:1], [piece[1:]])[0]


def _at_once(engine: Engine, ids: list[int]) -> list[float]:
    import torch

    assert isinstance(engine, CausalDecoder)
    found: list[float] = []
    with torch.inference_mode():
        piece = torch.tensor(ids, device=engine.device)
        hidden = engine.hidden(piece[:-1], [len(piece) - 1])
        for first in range(0, len(hidden), ROWS):
            logits = engine.head(hidden[first : first + ROWS]).float()
            found += _taken(logits, piece[1 + first : 1 + first + len(logits)])
    return found


def of_continuations(engine: Engine, prompt: list[int], ends: list[list[int]]) -> list[list[float]]:
    """Log-probabilities of the tokens of each continuation of a prompt, which is computed once.

    Continuations go side by side, one token a pass: as many as the engine has slots, whose sequences are lost.
    """
    import torch

    # Longest first: those that are still going on stay side by side.
    order = sorted((n for n in range(len(ends)) if ends[n]), key=lambda n: -len(ends[n]))
    found: list[list[float]] = [[] for _ in ends]
    if not order:
        return found
    slots = min(engine.slots, len(order))
    engine.keep(0, 0)
    first = engine.feed({0: prompt})
    if not engine.forks and slots > 1:
        for slot in range(1, slots):
            engine.keep(slot, 0)
        engine.feed(dict.fromkeys(range(1, slots), prompt))
    for at in range(0, len(order), slots):
        running = order[at : at + slots]
        for slot in range(len(running)):
            if slot and engine.forks and not at:
                engine.fork(0, slot, len(prompt))
            engine.keep(slot, len(prompt))
        logits = first.expand(len(running), -1)
        step = 0
        while running:
            told = [ends[n][step] for n in running]
            for n, value in zip(running, _taken(logits, torch.tensor(told, device=logits.device)), strict=True):
                found[n].append(value)
            step += 1
            running = [n for n in running if len(ends[n]) > step]
            if running:
                logits = engine.feed({slot: [ends[n][step - 1]] for slot, n in enumerate(running)})
    return found


def _taken(logits: Tensor, ids: Tensor) -> list[float]:
    """Log-probabilities of ids (n,) by logits (n, vocab) float32."""
    return logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0].tolist()
