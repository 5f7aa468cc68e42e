"""How to train, and what trained state is called."""

from __future__ import annotations

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
