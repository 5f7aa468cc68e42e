"""Post-training by the transformers Trainer, told as events."""

from __future__ import annotations

import json
import queue
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.atomic import write
from ..base.errors import QwenchError
from ..base.events import Advanced, Event, Started
from ..text.rows import Malformed, json_lines
from .loss import head_loss
from .options import HISTORY, WHOLE, Feed, TrainOptions
from .ranks import first

if TYPE_CHECKING:
    from torch import Tensor, nn

NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")
LESS = "use a smaller --batch with more --grad-accum, a smaller --seq-len, or --gradient-checkpointing"


def trainee(model: nn.Module, maker: nn.Module | None) -> nn.Module:
    """What the Trainer trains: ids (B, S) -> mean loss of the next token; `maker` makes the prefixes anew each pass."""
    from torch import nn

    class Trainee(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.maker, self.config = model, maker, model.config

        def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
            if self.maker is not None:
                self.maker.live()
            ids = input_ids.long()
            hidden = self.model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
            head = self.model.lm_head.weight.to(hidden.dtype)
            return {"loss": head_loss(hidden.flatten(0, 1), head, ids[:, 1:].flatten())}

    return Trainee()


def train(
    module: nn.Module,
    feed: Feed,
    evaluate: Callable[[], dict[str, float]],
    options: TrainOptions,
    folder: Path,
    name: str,
) -> Iterator[Event]:
    """Train `module` on what `feed` has, or go on where `folder` has a checkpoint.

    Yields Advanced in steps and a Produced row for every report: run, step, tokens, loss, lr, grad_norm,
    tokens_per_second; and held_out rows from `evaluate`.

    Raises:
        QwenchError: loss or gradients that are not finite (names the layer); out of memory.
    """
    import torch

    # Imports transformers at its top.
    from .trainer import Run, trainer

    told: queue.SimpleQueue[Event | BaseException | None] = queue.SimpleQueue()
    stop = threading.Event()
    begun = first(lambda: _tidy(folder))
    last = folder / f"checkpoint-{begun}" if begun else None

    def work() -> None:
        try:
            torch.set_num_threads(options.threads or torch.get_num_threads())
            run = Run(module, feed, evaluate, options, folder, name, told.put, stop)
            trainer(run).train(resume_from_checkpoint=str(last) if last else None)
            told.put(None)
        except BaseException as error:
            told.put(_sentence(error))

    yield Started(f"train {name}", options.steps, "steps")
    yield Advanced(f"train {name}", begun)
    thread = threading.Thread(target=work, name="qwench-trainer", daemon=True)
    thread.start()
    try:
        while (item := told.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        # After an interrupt the step in hand ends, and is saved.
        stop.set()
        thread.join()


def _tidy(folder: Path) -> int:
    """Remove what a kill cut short; returns the step to go on from, 0 for the beginning."""
    last = newest(folder)
    begun = int(last.name.rpartition("-")[2]) if last else 0
    _forget(folder / HISTORY, begun)
    return begun


def newest(folder: Path) -> Path | None:
    """The last checkpoint that was written to its end; half-written ones are removed."""
    found = []
    for path in folder.glob("checkpoint-*"):
        if (path / WHOLE).is_file():
            found.append((int(path.name.rpartition("-")[2]), path))
        else:
            shutil.rmtree(path)
    return max(found)[1] if found else None


def history(folder: Path) -> list[dict[str, Any]]:
    """The reports of a run so far."""
    try:
        with (folder / HISTORY).open("rb") as file:
            rows = [row for _, row in json_lines(file)]
    except FileNotFoundError:
        return []
    # Where a kill struck, a line may be half written.
    return [row for row in rows if not isinstance(row, Malformed)]


def _forget(path: Path, step: int) -> None:
    """Reports of steps that will be made again."""
    rows = [r for r in history(path.parent) if r["step"] <= step]
    if path.exists():
        write(path, "".join(json.dumps(r) + "\n" for r in rows), "the history of the run")


def _sentence(error: BaseException) -> BaseException:
    text = str(error).lower()
    if isinstance(error, MemoryError) or any(w in text for w in NO_MEMORY):
        return QwenchError("out of memory in training", LESS)
    return error
