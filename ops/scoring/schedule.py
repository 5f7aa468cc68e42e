"""Sends batches through a model: token budget, side-by-side workers on the CPU, halving when memory runs out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from ..base.errors import QwenchError
from ..models.device import Choice
from ..text.batches import plan_batches

if TYPE_CHECKING:
    import numpy as np

#: below this many matmul parameters one thread keeps a whole batch in its cache, and batches run side by side
SIDE_BY_SIDE = 100_000_000


class Schedule:
    """How many tokens go through the model at once, and in how many threads.

    Args:
        device: as from `pick_device`.
        threads: CPU threads of the process.
        parameters: parameters that every token is multiplied with, None where the model does its own threading.
        batch_tokens: the user's budget, 0 for a choice by device and size.

    Attributes:
        workers: batches in flight.
        batch_tokens: the budget; smaller after memory has run out.
        choice: the budget with its reason.
    """

    def __init__(self, device: str, threads: int, parameters: int | None, batch_tokens: int = 0) -> None:
        self.device = device
        small = device == "cpu" and parameters is not None and parameters < SIDE_BY_SIDE
        self.workers = threads if small else 1
        if batch_tokens:
            self.choice = Choice(batch_tokens, "as asked")
        elif device != "cpu":
            self.choice = Choice(32_768, "fills a GPU")
        elif small:
            self.choice = Choice(1_024, "activations stay in the cache")
        else:
            self.choice = Choice(4_096, "large enough to read the weights rarely")
        self.batch_tokens: int = self.choice.value
        self._smaller = threading.Lock()

    def run(
        self, lengths: Sequence[int], forward: Callable[[list[int]], np.ndarray]
    ) -> Iterator[tuple[list[int], np.ndarray]]:
        """Results batch by batch as they are ready.

        Args:
            lengths: tokens per text.
            forward: indices into `lengths` -> one row per index; runs in inference mode, maybe in another thread.

        Raises:
            QwenchError: a single text does not fit into the device's memory.
        """
        plan = plan_batches(lengths, self.batch_tokens)
        if self.workers == 1 or len(plan) < 2:
            for batch in plan:
                yield batch, self._guarded(lengths, forward, batch)
            return
        pool = ThreadPoolExecutor(self.workers, initializer=_one_thread)
        try:
            yield from zip(plan, pool.map(lambda batch: self._guarded(lengths, forward, batch), plan), strict=True)
        finally:
            # An interrupt must not wait for batches that have not begun.
            pool.shutdown(wait=True, cancel_futures=True)

    def _guarded(
        self, lengths: Sequence[int], forward: Callable[[list[int]], np.ndarray], batch: list[int]
    ) -> np.ndarray:
        import numpy as np
        import torch

        try:
            with torch.inference_mode():
                return forward(batch)
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            if len(batch) == 1:
                raise QwenchError(
                    f"a single text of {lengths[batch[0]]} tokens does not fit into the memory of `{self.device}`",
                    "give shorter texts (embed has --chunk-tokens), or --device cpu",
                ) from error
        with self._smaller:
            self.batch_tokens = max(1, self.batch_tokens // 2)
        half = len(batch) // 2
        return np.concatenate([self._guarded(lengths, forward, part) for part in (batch[:half], batch[half:])])


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
