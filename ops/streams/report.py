"""What a run of `qwench parscale-recycle` will cost, and what it brought."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .options import steps_of, tokens_of
from .work import Work

if TYPE_CHECKING:
    from torch import nn


def estimate(work: Work) -> dict[str, Any]:
    """Parameters, FLOPs, memory and time of every number of streams, and the time of all; from batches measured now.

    `seconds` of a run are those of its training; `measuring_seconds` those of its held-out losses before, between and
    after. `seconds` beside the runs are of all that is done, the baseline and the base's loss included.
    """
    from ..training.loss import ROOM
    from .law import PUBLISHED
    from .size import added_of, base_parameters
    from .train_cost import training_cost

    o, rows = work.o, []
    counts = base_parameters(work.config)
    kept = 2 if work.dtype.value == "bfloat16" and o.train == "added" else 4
    whole = _measuring(work, 1, 0)
    baseline = sum(_seconds(work, work.prepare(1))) if o.baseline else None
    for streams in o.streams:
        module = work.prepare(streams)
        seconds, measuring = _seconds(work, module)
        whole += seconds + measuring
        cost = training_cost(
            work.config,
            streams,
            tokens_of(o),
            o.train,
            o.seq_len,
            o.batch,
            kept,
            o.gradient_checkpointing,
            o.prefix_tokens,
        )
        added = added_of(work.config, streams, o.prefix_tokens)
        laws = {n: law.loss(counts.body, 1) - law.loss(counts.body + added, streams) for n, law in PUBLISHED.items()}
        rows.append(
            {
                "streams": streams,
                "added": added,
                "trained": sum(p.numel() for p in module.parameters() if p.requires_grad),
                "flops": cost.flops,
                # Logits exist a chunk at a time here: values, gradient and its cast.
                "memory": cost.memory - cost.logits + min(ROOM, o.batch * o.seq_len * work.config["vocab_size"]) * 10,
                "seconds": round(seconds, 1),
                "measuring_seconds": round(measuring, 1),
                "predicted_gain": laws,
            }
        )
    work.model.set_streams(parscale_n=1, parscale_prefix_only=False)
    return {
        "parameters": counts.body,
        "steps": steps_of(o),
        "tokens": tokens_of(o),
        "train_blocks": len(work.blocks.train),
        "held_out_blocks": len(work.blocks.held_out),
        "runs": rows,
        "baseline_seconds": None if baseline is None else round(baseline, 1),
        "seconds": round(whole + (baseline or 0), 1),
        "note": "predicted_gain is the scaling law of arXiv 2505.10475 for pre-training, in nats a token: no promise",
    }


def _seconds(work: Work, module: nn.Module) -> tuple[float, float]:
    """(seconds of a run's training, seconds of its held-out losses: before, between and after)."""
    o, ids = work.o, work.blocks.train[: work.o.batch].to(work.device.value)
    batch = _timed(work, lambda: module.train()(ids)["loss"].backward())
    module.zero_grad(set_to_none=True)
    steps = steps_of(o)
    return batch * steps * o.grad_accum, _measuring(work, 2, (steps - 1) // work.train_options().eval_every)


def _measuring(work: Work, times: int, between: int) -> float:
    """Seconds of `times` whole measurements of the model as it is, and of `between` on a quarter of the blocks."""
    from .measure import held_out

    blocks, batch = work.blocks.held_out, work.o.batch
    one = blocks[:batch]
    whole = _timed(work, lambda: work.look(one))
    plain = _timed(work, lambda: held_out(work.model, one, batch)) if between else 0.0
    return (times * whole + between * plain / 4) * len(blocks) / len(one)


def _timed(work: Work, run: Callable[[], object]) -> float:
    """Seconds of the second time."""
    import torch

    for _ in range(2):
        begun = time.perf_counter()
        run()
        if work.device.value.startswith("cuda"):
            torch.cuda.synchronize()
        seconds = time.perf_counter() - begun
    return seconds


def result_of(work: Work) -> dict[str, Any]:
    """Losses with their gains over the base, the best number of streams, and whether it helped."""
    from .measure import gain

    o, losses = work.o, work.losses
    rows = []
    for name, found in losses.items():
        fall, error = gain(losses["base"]["by_block"], found["by_block"])
        first = name == "base"
        rows.append(
            {"name": name, "loss": found["loss"], "gain": None if first else fall, "error": None if first else error}
            | {k: v for k, v in found.items() if k not in ("loss", "by_block")}
        )
    best = min(o.streams, key=lambda p: losses[f"p{p}"]["loss"])
    rivals = [n for n in ("base", "baseline") if n in losses]
    falls = {n: gain(losses[n]["by_block"], losses[f"p{best}"]["by_block"]) for n in rivals}
    helped = all(fall > 2 * error for fall, error in falls.values())
    said = " and ".join(f"{fall:+.4f} ± {error:.4f} over the {name}" for name, (fall, error) in falls.items())
    verdict = f"{best} streams gain {said} (nats per token, with standard error over blocks)"
    if not helped:
        verdict = f"It did not help: {verdict}; more than two standard errors are asked for."
    return {
        "schema": 1,
        "model": o.model,
        "out": o.out,
        "streams": best,
        "adapters": sorted(o.streams),
        "train": o.train,
        "init": o.init,
        "data": list(o.data),
        "steps": steps_of(o),
        "tokens": tokens_of(o),
        "held_out": {
            "tokens": work.blocks.held_out.numel(),
            "documents": work.blocks.held_documents,
            "chosen": work.blocks.note,
        },
        "losses": rows,
        "helped": helped,
        "verdict": verdict,
    }
