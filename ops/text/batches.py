"""Which texts go through the model together."""

from __future__ import annotations

from collections.abc import Sequence


def plan_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Group texts by true length, filled to a token budget.

    Longest first, so that the largest batch shows at the start whether it fits into memory, and
    equal lengths stand together, which packed attention takes in one call.

    Args:
        lengths: tokens per text.
        batch_tokens: most tokens per batch; a longer text is a batch of its own.

    Returns:
        Index lists that cover every text once.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batches: list[list[int]] = []
    room = 0
    for i in order:
        if not batches or lengths[i] > room:
            batches.append([])
            room = batch_tokens
        batches[-1].append(i)
        room -= lengths[i]
    return batches
