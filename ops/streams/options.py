"""What `qwench parscale-recycle` can be told, and what follows from it by arithmetic."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from ..base.errors import QwenchError
from ..base.runtime import Runtime
from ..text.inputs import ReadOptions
from ..training.options import SCHEDULES

INITS = ("prompts", "random", "reparam")
TRAINS = ("added", "all")
#: peak learning rates that went well: fresh tensors bear far more than a trained decoder
RATES = {"added": 1e-2, "all": 1e-5}


@dataclass(frozen=True, slots=True)
class RecycleOptions:
    """Everything `qwench parscale-recycle` can be told; names equal the flags.

    Attributes:
        streams: numbers of streams, each trained over the same decoder.
        tokens: of training for each; steps in its place. warmup: steps, None for a twentieth of them.
        lr: None for RATES. save_every, eval_every: steps; None for a tenth and a fifth of them.
        baseline: train one stream on the same tokens too: a prefix alone, or with train=all the whole decoder.
    """

    model: str
    out: str
    data: tuple[str, ...] = ()
    eval_data: tuple[str, ...] = ()
    read: ReadOptions = field(default_factory=ReadOptions)
    streams: tuple[int, ...] = (4,)
    train: str = "added"
    prefix_tokens: int = 48
    smooth: float = 0.1
    init: str = "prompts"
    tokens: int = 0
    steps: int = 0
    seq_len: int = 512
    batch: int = 4
    grad_accum: int = 1
    lr: float | None = None
    schedule: str = "wsd"
    warmup: int | None = None
    clip: float = 1.0
    save_every: int | None = None
    eval_every: int | None = None
    log_every: int = 0
    eval_tokens: int = 32768
    end_token: str | None = None
    baseline: bool = False
    gradient_checkpointing: bool = False
    seed: int = 0
    resume: bool = False
    force: bool = False
    runtime: Runtime = field(default_factory=Runtime)


def check(o: RecycleOptions) -> None:
    """Options that contradict one another, before anything is read.

    Raises:
        QwenchError: code 2.
    """
    for flag, value, known in (
        ("--train", o.train, TRAINS),
        ("--init", o.init, INITS),
        ("--schedule", o.schedule, SCHEDULES),
    ):
        if value not in known:
            raise QwenchError(f"unknown {flag}: `{value}`", f"use {', '.join(known)}", code=2)
    if not o.streams or min(o.streams) < 2 or len(set(o.streams)) < len(o.streams):
        raise QwenchError("--streams takes numbers from 2 up, each once", "write --streams 4 or --streams 2,4,8", 2)
    if o.train == "all" and len(o.streams) > 1:
        raise QwenchError("--train all makes a decoder of its own for each number of streams", "give one --streams", 2)
    if bool(o.tokens) == bool(o.steps):
        raise QwenchError("say how long to train, once", "add --tokens 20M or --steps 1000", code=2)
    if o.lr is not None and not o.lr > 0:
        raise QwenchError(f"--lr must be above 0, not {o.lr:g}", "leave it out for the default", code=2)
    if not 0 <= o.smooth < 1:
        raise QwenchError(f"--smooth is a share from 0 to below 1, not {o.smooth:g}", code=2)
    if o.prefix_tokens < 1 or o.prefix_tokens > o.seq_len:
        raise QwenchError("--prefix-tokens is at least 1 and at most --seq-len", code=2)


def steps_of(o: RecycleOptions) -> int:
    """Steps of the optimiser that the token budget is worth, over all processes."""
    return o.steps or max(round(o.tokens / _tokens_a_step(o)), 1)


def tokens_of(o: RecycleOptions) -> int:
    """Tokens that are trained on."""
    return steps_of(o) * _tokens_a_step(o)


def _tokens_a_step(o: RecycleOptions) -> int:
    return o.batch * o.grad_accum * o.seq_len * int(os.environ.get("WORLD_SIZE", "1"))
