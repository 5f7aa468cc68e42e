"""A reward model whose base is trained, too: all of it, or low-rank adapters that are merged in the end."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.atomic import remove, replacing, write
from ..base.events import Chose, Events, Finished, Started
from ..models.device import pick_device, pick_threads
from ..models.nets.generic import complete_model
from ..models.reward_heads import RewardHead
from .lora import adapters, merged
from .options import Feed, TrainOptions, trained_state
from .precision import training_dtype
from .ranks import first, rank
from .reward_data import PairSet, TrainPair
from .reward_head import fresh_head, head_of, pair_loss
from .run_folder import RunFolder
from .train import history, train

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .reward_train import RewardTraining

BEST, STATE = "best.json", "best.safetensors"


def pair_model(model: nn.Module, head: nn.Module, center: float) -> nn.Module:
    """What the Trainer trains: padded pairs, the chosen first, -> their loss; `rewards` of texts."""
    import torch
    from torch import nn

    class PairModel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.head, self.config = model, head, model.config

        def rewards(self, input_ids: Tensor, attention_mask: Tensor, last: Tensor) -> Tensor:
            """(n, T) ids, their mask, and the place that is read -> (n,) float32."""
            hidden = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
            at = hidden[torch.arange(len(last), device=hidden.device), last].float()
            return self.head(at)[:, 0]

        def forward(self, input_ids: Tensor, attention_mask: Tensor, last: Tensor, margin: Tensor) -> dict[str, Tensor]:
            r = self.rewards(input_ids, attention_mask, last)
            return {"loss": pair_loss(r[: len(margin)], r[len(margin) :], margin, center)}

    return PairModel()


def collated(pairs: Sequence[TrainPair]) -> dict[str, Tensor]:
    """Chosen texts, then rejected ones, padded on the right."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    rows = [torch.tensor(t.ids) for side in ("chosen", "rejected") for t in (getattr(p, side) for p in pairs)]
    lengths = torch.tensor([len(r) for r in rows])
    ids = pad_sequence(rows, batch_first=True)
    return {
        "input_ids": ids,
        "attention_mask": (torch.arange(ids.shape[1])[None] < lengths[:, None]).long(),
        "last": lengths - 1,
        "margin": torch.tensor([p.margin for p in pairs]),
    }


def pair_rewards(module: Any, pairs: Sequence[TrainPair], batch: int) -> Tensor:
    """Rewards of every pair, (n, 2) chosen and rejected, float32 on the CPU."""
    import torch

    found, device = [], next(module.head.parameters()).device
    module.eval()
    with torch.no_grad():
        for at in range(0, len(pairs), batch):
            some = pairs[at : at + batch]
            inputs = {k: v.to(device) for k, v in collated(some).items() if k != "margin"}
            r = module.rewards(**inputs).float().cpu()
            found.append(torch.stack((r[: len(some)], r[len(some) :]), 1))
    return torch.cat(found)


def train_whole(run: RewardTraining, pairs: PairSet, begun: float) -> Events:
    """Train, keep the best epoch, merge, measure, save; see `RewardTraining.run`.

    Raises:
        QwenchError: see `train`; peft is not installed.
    """
    import torch

    o = run.o
    folder = RunFolder(run.out, o.force, o.resume)
    asked = {k: v for k, v in asdict(o).items() if k not in ("out", "resume", "force")}
    folder.open([asked, run.base.checkpoint.revision, pairs.digest], {k: v for k, v in asked.items() if k != "runtime"})
    try:
        yield from folder.told()
        threads = pick_threads(o.runtime.threads)
        torch.set_num_threads(threads.value)
        device = pick_device(o.runtime.device)
        numbers = training_dtype(o.runtime.dtype, device.value, "float32")
        for name, choice in (("device", device), ("dtype", numbers), ("threads", threads)):
            yield Chose(name, choice.value, choice.reason)
        yield Started("load", None, "")
        module = _module(run, numbers.value, device.value)
        tell = _Best(module, pairs.validation, o.value("batch"), folder.path)
        options = _options(run, len(pairs.train), device.value, numbers.value, threads.value)
        length = sum(len(t.ids) for p in pairs.train for t in (p.chosen, p.rejected)) / len(pairs.train)
        feed = Feed(pairs.train, length, collated)
        yield from train(module, feed, tell, options, folder.path, o.method)
        tell()
        epoch = tell.load(options.steps) if o.keep == "best" else o.value("epochs")
        rewards = pair_rewards(module, pairs.validation, o.value("batch"))
        rows = [{k: v for k, v in r.items() if k != "run"} for r in history(folder.path)]
        report = run.report(pairs, rewards, epoch, rows)
        head, tensors = _parts(module)
        if rank() == 0:
            yield from run.save(head, tensors, report)
        # A process that ends before the others have may end them.
        first(lambda: remove(folder.path))
        yield Finished(report | {"seconds": round(time.monotonic() - begun, 3)})
    finally:
        folder.close()


def _module(run: RewardTraining, numbers: str, device: str) -> Any:
    """The base with its head in float32, and what of it is trained."""
    import torch

    o, whole = run.o, run.o.method == "full"
    kind = torch.float32 if whole else getattr(torch, numbers)
    model, _ = complete_model("AutoModel", run.base.checkpoint.path, kind)
    torch.manual_seed(o.seed)
    if not whole:
        adapters(model, o.lora_rank)
    size = model.config.hidden_size
    head = fresh_head(run.o.head_options(run.kind), size, run.start, torch.zeros(size), torch.ones(size))
    return pair_model(model, head, o.center).to(device)


def _options(run: RewardTraining, count: int, device: str, numbers: str, threads: int) -> TrainOptions:
    o = run.o
    where = {"device": device.partition(":")[0], "autocast": numbers == "bfloat16", "threads": threads}
    epochs, batch, lr = (o.value(name) for name in ("epochs", "batch", "lr"))
    return TrainOptions.of_epochs(o, count, epochs=epochs, batch=batch, lr=lr, **where)


class _Best:
    """Validation loss, and the state that had the least of it so far, which a resumed run still knows."""

    def __init__(self, module: Any, pairs: list[TrainPair], batch: int, folder: Path) -> None:
        self._module, self._pairs, self._batch, self._folder = module, pairs, batch, folder

    def __call__(self) -> dict[str, float]:
        from safetensors.torch import save_file

        from ..scoring.preference import bt_losses

        rewards = pair_rewards(self._module, self._pairs, self._batch)
        loss = float(bt_losses((rewards[:, 0] - rewards[:, 1]).numpy()).mean())
        if rank() == 0 and loss < self._known():
            with replacing(self._folder / STATE, what="the best state") as (part,):
                save_file({n: t.cpu().contiguous() for n, t in trained_state(self._module).items()}, part)
            write(self._folder / BEST, json.dumps({"loss": loss}))
        return {"loss": loss}

    def _known(self) -> float:
        try:
            return float(json.loads((self._folder / BEST).read_text("utf-8"))["loss"])
        except (OSError, ValueError, KeyError):
            return math.inf

    def load(self, steps: int) -> int:
        """Bring the best state back; the step it is of, as the history tells."""
        import torch
        from safetensors.torch import load_file

        first(lambda: None)
        if (self._folder / STATE).is_file():
            state = load_file(self._folder / STATE)
            with torch.no_grad():
                for name, tensor in trained_state(self._module).items():
                    tensor.copy_(state[name])
        held = [r for r in history(self._folder) if r.get("event") == "held_out"]
        return next((r["step"] for r in held if abs(r["loss"] - self._known()) < 1e-9), steps)


def _parts(module: Any) -> tuple[RewardHead, dict[str, Tensor]]:
    """(the head, the decoder's tensors by the names of a checkpoint)."""
    return head_of(module.head), {f"model.{name}": tensor for name, tensor in merged(module.model).items()}
