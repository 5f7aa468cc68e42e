"""Held-out loss of a model with streams, and what its streams do."""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING, Any

from ..training.loss import token_losses
from .modeling_parscale import prefixed

if TYPE_CHECKING:
    from torch import Tensor, nn


def held_out(model: nn.Module, blocks: Tensor, batch: int) -> dict[str, Any]:
    """Mean loss of the next token over blocks (n, S), in nats: loss, and by_block for comparisons."""
    import torch

    losses = []
    with torch.no_grad():
        for ids in blocks.long().to(model.device).split(batch):
            hidden = model.eval().model(input_ids=ids, use_cache=False).last_hidden_state
            losses.append(_by_block(model, hidden, ids))
    per = torch.cat(losses)
    return {"loss": per.mean().item(), "by_block": per.tolist()}


def streams_apart(model: nn.Module, blocks: Tensor, batch: int) -> dict[str, Any]:
    """`held_out`, and what the streams do on the blocks, in one pass.

    Returns:
        loss, by_block; single: loss of each stream alone; uniform: loss with equal weights; weights: mean weight of
        each stream; entropy: mean entropy of the weights over ln P; cosine: mean cosine between two streams' hidden
        states.
        Empty for one stream.
    """
    import torch

    count = model.config.parscale_n
    if count == 1 or not prefixed(model.config):
        return {}
    single, uniform = torch.zeros(count), 0.0
    weights, entropy, cosine, seen, losses = torch.zeros(count), 0.0, 0.0, 0, []
    with torch.no_grad():
        for ids in blocks.long().to(model.device).split(batch):
            streams = model.eval().model.run_streams(input_ids=ids, use_cache=False).last_hidden_state
            mixed, w = model.model.aggregate(streams)
            losses.append(_by_block(model, mixed, ids))
            split = streams.unflatten(0, (count, -1))
            n = len(ids)
            single += torch.tensor([_by_block(model, h, ids).sum().item() for h in split])
            uniform += _by_block(model, split.float().mean(0).to(split.dtype), ids).sum().item()
            weights += w.mean((0, 1)).cpu() * n
            entropy += -(w * w.log()).sum(-1).mean().item() * n
            unit = torch.nn.functional.normalize(split.float(), dim=-1)
            total = unit.sum(0).square().sum(-1).mean().item()
            cosine += (total - count) / (count * (count - 1)) * n
            seen += n
    per = torch.cat(losses)
    return {
        "loss": per.mean().item(),
        "by_block": per.tolist(),
        "single": (single / seen).tolist(),
        "uniform": uniform / seen,
        "weights": (weights / seen).tolist(),
        "entropy": entropy / seen / torch.log(torch.tensor(float(count))).item(),
        "cosine": cosine / seen,
    }


def gain(before: list[float], after: list[float]) -> tuple[float, float]:
    """(mean fall of the loss from `before` to `after`, its standard error), over the same blocks, two at least."""
    falls = [b - a for b, a in zip(before, after, strict=True)]
    mean = sum(falls) / len(falls)
    return mean, sqrt(sum((f - mean) ** 2 for f in falls) / (len(falls) - 1) / len(falls))


def _by_block(model: nn.Module, hidden: Tensor, ids: Tensor) -> Tensor:
    """Mean loss of each sequence, (B,)."""
    head = model.lm_head.weight.to(hidden.dtype)
    losses = token_losses(hidden[:, :-1].flatten(0, 1), head, ids[:, 1:].flatten())
    return losses.view(len(ids), -1).mean(1).cpu()
