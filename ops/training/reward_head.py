"""A head over frozen hidden states: their cache, and the training that takes seconds."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.atomic import replacing
from ..base.errors import QwenchError
from ..base.events import Advanced, Event, Started
from ..models.reward_heads import RewardHead
from ..scoring.reward import RewardModel
from ..scoring.reward_texts import Ready

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

CACHE = "features.safetensors"
#: texts whose states are computed before they are kept, so that a kill costs no more
WINDOW = 64


@dataclass(frozen=True, slots=True)
class HeadOptions:
    """How a head is trained; names equal the flags.

    Attributes:
        kind: mlp or linear. width: of the MLP's inner layer, 0 for the hidden states'.
        batch: pairs. warmup: share of the steps. schedule: constant or cosine.
        center: weight of mean (r_chosen + r_rejected)^2.
        keep: best (by validation loss) or last.
        swap: chosen and rejected are exchanged.
    """

    kind: str = "mlp"
    width: int = 0
    epochs: int = 40
    lr: float = 1e-3
    batch: int = 32
    weight_decay: float = 0.1
    warmup: float = 0.1
    schedule: str = "constant"
    center: float = 0.0
    keep: str = "best"
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Sides:
    """Hidden states of pairs: chosen, rejected (n, H) float32, and margins (n,)."""

    chosen: Tensor
    rejected: Tensor
    margin: Tensor

    def swapped(self) -> Sides:
        """With chosen and rejected exchanged."""
        return Sides(self.rejected, self.chosen, self.margin)


@dataclass(slots=True)
class Trained:
    """A head and how it came about: an epoch a row, and the epoch that was kept."""

    head: RewardHead
    history: list[dict[str, Any]] = field(default_factory=list)
    epoch: int = 0


def pair_loss(chosen: Tensor, rejected: Tensor, margin: Tensor, center: float) -> Tensor:
    """mean softplus(-(D - margin)) + center * mean (r_chosen + r_rejected)^2 of (n,) rewards."""
    from torch.nn import functional as F

    loss = F.softplus(margin - (chosen - rejected)).mean()
    return loss + center * (chosen + rejected).square().mean() if center else loss


def cached_states(
    model: Callable[[], RewardModel], texts: Sequence[Ready], folder: Path, mark: str
) -> Iterator[Event | np.ndarray]:
    """Events, and the hidden states (n, H) of all texts last; those that the cache has are not computed again.

    Args:
        model: loads the base, called where something is missing.
        folder: of the cache. mark: what the base is, which the cache must be of.
    """
    import numpy as np

    names = [hashlib.blake2b(json.dumps(t.ids).encode(), digest_size=16).hexdigest() for t in texts]
    known = read_cache(folder, mark)
    missing: dict[str, Ready] = {n: t for n, t in zip(names, texts, strict=True) if n not in known}
    yield Started("hidden states", sum(len(t.ids) for t in missing.values()), "tokens")
    if missing:
        base = model()
        # Answers to one prompt stay together, so that what they share is computed once.
        order = list(missing)
        for at in range(0, len(order), WINDOW):
            some = order[at : at + WINDOW]
            states = base.features([missing[n] for n in some])
            known |= dict(zip(some, states, strict=True))
            if at + WINDOW >= len(order) or (at // WINDOW) % 8 == 7:
                write_cache(folder, mark, known)
            yield Advanced("hidden states", sum(len(missing[n].ids) for n in some), detail=f"{at + len(some)} texts")
    yield np.stack([known[n] for n in names])


def read_cache(folder: Path, mark: str) -> dict[str, np.ndarray]:
    """Text -> hidden state of what is kept; empty where it is of another base, or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / CACHE, "np") as file:
            said = file.metadata() or {}
            if said.get("base") != mark:
                return {}
            return dict(zip(json.loads(said["texts"]), file.get_tensor("states"), strict=True))
    except (FileNotFoundError, SafetensorError, ValueError, KeyError, OSError):
        return {}


def write_cache(folder: Path, mark: str, states: dict[str, np.ndarray]) -> None:
    """Keep hidden states, all of one base."""
    import numpy as np
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / CACHE, what="the hidden states") as (part,):
        told = {"base": mark, "texts": json.dumps(list(states))}
        save_file({"states": np.stack(list(states.values()))}, part, told)


def train_head(
    train: Sides, validation: Sides, options: HeadOptions, start: RewardHead | None = None
) -> Iterator[Event | Trained]:
    """Events, and the head last, for raw hidden states: mean and deviation of training are folded in.

    Args:
        start: a head of raw hidden states to begin with.

    Raises:
        QwenchError: the loss is no number.
    """
    import torch
    from torch import nn

    o = options
    both = torch.cat((train.chosen, train.rejected))
    mean, deviation = both.mean(0), both.std(0, correction=0).clamp(min=1e-6)
    plain = [((s.chosen - mean) / deviation, (s.rejected - mean) / deviation, s.margin) for s in (train, validation)]
    module = fresh_head(o, both.shape[1], start, mean, deviation)
    count = len(train.chosen)
    steps = o.epochs * math.ceil(count / o.batch)
    optimiser = torch.optim.AdamW(module.parameters(), lr=o.lr, weight_decay=o.weight_decay)
    rate = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: pace(step, steps, o.warmup, o.schedule))
    dice = torch.Generator().manual_seed(o.seed)
    found, best, step = Trained(head_of(module)), math.inf, 0
    yield Started("train", o.epochs, "epochs")
    for epoch in range(1, o.epochs + 1):
        total = 0.0
        for rows in torch.randperm(count, generator=dice).split(o.batch):
            a, b, margin = (part[rows] for part in plain[0])
            rewards = module(torch.cat((a, b)))[:, 0]
            loss = pair_loss(rewards[: len(rows)], rewards[len(rows) :], margin, o.center)
            step += 1
            if not torch.isfinite(loss):
                raise QwenchError(f"the loss is not finite at step {step}", "use a smaller --lr")
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            rate.step()
            total += float(loss.detach()) * len(rows)
        with torch.no_grad():
            a, b, _ = plain[1]
            d = (module(a) - module(b))[:, 0]
            held = float(nn.functional.softplus(-d).mean())
            right = float(((d > 0).float() + 0.5 * (d == 0)).mean())
        found.history.append({"epoch": epoch, "loss": total / count, "validation_loss": held, "accuracy": right})
        if o.keep == "last" or held < best:
            best, found.epoch, found.head = held, epoch, head_of(module)
        yield Advanced("train", 1, detail=f"validation loss {held:.4f}")
    found.head = found.head.folded(mean, deviation)
    yield found


def pace(step: int, steps: int, warmup: float, schedule: str) -> float:
    """Share of the peak rate: up over the warm-up, then constant or a cosine to 0."""
    up = round(steps * warmup)
    if step < up:
        return (step + 1) / up
    if schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - up) / max(steps - up, 1)))


def fresh_head(o: HeadOptions, size: int, start: RewardHead | None, mean: Tensor, deviation: Tensor) -> Any:
    """A fresh head by the seed, or `start` for standardised states."""
    import torch
    from torch import nn

    width = o.width or size
    if o.kind == "linear":
        module: Any = nn.Sequential(nn.Linear(size, 1, bias=False))
    else:
        module = nn.Sequential(nn.Linear(size, width), nn.ReLU(), nn.Linear(width, 1))
    dice = torch.Generator().manual_seed(o.seed)
    with torch.no_grad():
        for layer in (m for m in module if isinstance(m, nn.Linear)):
            layer.weight.normal_(0, layer.in_features**-0.5, generator=dice)
            if layer.bias is not None:
                layer.bias.zero_()
        if start is not None:
            # x = (h - mean) / deviation: h is what the given head takes.
            turned = start.folded(-mean / deviation, 1 / deviation)
            layers = [m for m in module if isinstance(m, nn.Linear)]
            for layer, (weight, bias) in zip(layers, turned.layers, strict=True):
                if layer.weight.shape != weight.shape:
                    raise QwenchError(
                        f"the head to begin with has a layer of {tuple(weight.shape)}, and {tuple(layer.weight.shape)} "
                        "is trained",
                        "give the same --head and --width",
                    )
                layer.weight.copy_(weight)
                if layer.bias is not None and bias is not None:
                    layer.bias.copy_(bias)
    return module


def head_of(module: Any) -> RewardHead:
    """A trained module as a head, copied to the CPU."""
    from torch import nn

    layers = [m for m in module if isinstance(m, nn.Linear)]

    def copied(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.detach().cpu().clone()

    return RewardHead(tuple((copied(m.weight), copied(m.bias)) for m in layers))
