"""Process reward models: an answer in steps, a mark after each, and a probability at each mark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..base.errors import QwenchError
from .reward_rows import Conversation

if TYPE_CHECKING:
    from torch import Tensor

#: what Qwen2.5-Math-PRM reads a step's reward at
MARK = "<extra_0>"
AGGREGATES: dict[str, Callable[[Sequence[float]], float]] = {
    "last": lambda p: p[-1],
    "min": min,
    "prod": math.prod,
    "mean": lambda p: sum(p) / len(p),
}


def aggregate(steps: Sequence[float], how: str) -> float:
    """One number of the rewards of steps, by a name of AGGREGATES."""
    return AGGREGATES[how](steps)


def step_rewards(logits: Tensor) -> Tensor:
    """softmax(logits)[1], the probability that a step is right: (n, 2) -> (n,)."""
    return logits.float().softmax(-1)[:, 1]


def marked(conversation: Conversation, separator: str) -> tuple[str, int]:
    """(the answer with a mark after each step, how many steps)

    Args:
        separator: between the steps of an answer that has no marks and whose row has no steps.

    Raises:
        QwenchError: a mark elsewhere than after a step, which would be read as one.
    """
    for message in conversation.messages[:-1]:
        if MARK in message["content"]:
            raise QwenchError(
                f"the step mark `{MARK}` is in a message of `{message['role']}`, and would be read as a step",
                "take it out",
            )
    steps = conversation.steps
    if steps is None:
        steps = tuple(conversation.answer.split(MARK if MARK in conversation.answer else separator))
    elif any(MARK in step for step in steps):
        raise QwenchError(f"the step mark `{MARK}` is inside a step, and would be read as another", "take it out")
    kept = [step.strip() for step in steps if step.strip()]
    if not kept:
        raise QwenchError("the answer is empty between its step marks", "an answer without text has no reward")
    return "".join(step + MARK for step in kept), len(kept)
