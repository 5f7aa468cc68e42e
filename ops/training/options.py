"""How to train, and what trained state is called."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

SCHEDULES = ("wsd", "cosine")
#: the aggregator's rate over the prefixes': at the same rate it settles on one stream before the others have learnt
AGGREGATOR = 0.01
HISTORY, WHOLE = "history.jsonl", ".complete"


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """How to train; names equal the flags.

    Attributes:
        steps: of the optimiser, each over batch * grad_accum sequences a process.
        lr: peak learning rate, of fresh aggregators AGGREGATOR of it.
        schedule: wsd (warm up, stay, come down), cosine, or constant.
        warmup: steps. clip: largest norm of the gradient.
        save_every, eval_every, log_every: steps; 0 never.
        autocast: compute in bfloat16 over float32 weights.
        frozen: the decoder is; what is trained is fresh. weight_decay: where it is not.
    """

    steps: int
    batch: int = 4
    grad_accum: int = 1
    lr: float = 1e-3
    schedule: str = "wsd"
    warmup: int = 0
    clip: float = 1.0
    save_every: int = 0
    eval_every: int = 0
    log_every: int = 1
    autocast: bool = False
    checkpointing: bool = False
    frozen: bool = True
    seed: int = 0
    device: str = "cpu"
    threads: int = 0
    weight_decay: float = 0.0

    @classmethod
    def of_epochs(cls, chosen: Any, count: int, *, epochs: int, batch: int, lr: float, **where: Any) -> TrainOptions:
        """For `count` rows `epochs` times over; the least steps that see them all.

        Args:
            chosen: what the verb was told: grad_accum, schedule, warmup (a share), seed and the like.
            where: device, autocast, threads.
        """
        an_epoch = math.ceil(count / (batch * chosen.grad_accum * int(os.environ.get("WORLD_SIZE", "1"))))
        steps = max(an_epoch * epochs, 1)
        return cls(
            steps=steps,
            batch=batch,
            grad_accum=chosen.grad_accum,
            lr=lr,
            schedule=chosen.schedule,
            warmup=round(steps * chosen.warmup),
            save_every=max(steps // 10, 1),
            eval_every=max(an_epoch // 2, 1),
            log_every=max(steps // 100, 1),
            checkpointing=chosen.gradient_checkpointing,
            frozen=False,
            seed=chosen.seed,
            weight_decay=chosen.weight_decay,
            **where,
        )


@dataclass(frozen=True, slots=True)
class Feed:
    """What is trained on.

    Attributes:
        rows: what one step takes some of. length: tokens of a row, on average.
        collate: rows -> arguments of the module; None where rows are dicts of tensors of one shape.
    """

    rows: Sequence[Any]
    length: float
    collate: Callable[[list[Any]], dict[str, Tensor]] | None = None

    @classmethod
    def of_blocks(cls, blocks: Tensor) -> Feed:
        """Blocks of ids, (n, S)."""
        return cls([{"input_ids": row} for row in blocks], blocks.shape[1])


def trained_state(module: nn.Module) -> dict[str, Tensor]:
    """Name -> tensor of everything that is trained."""
    return {n: p.detach() for n, p in module.named_parameters() if p.requires_grad}
