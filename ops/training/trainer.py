"""The transformers Trainer as streams and reward models are trained with it: import this late, as it imports much."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from ..base.atomic import append
from ..base.errors import QwenchError
from ..base.events import Advanced, Event, Produced
from .options import AGGREGATOR, HISTORY, WHOLE, Feed, TrainOptions, trained_state

#: share of the steps in which the wsd schedule comes down
DECAY = 0.2
#: what transformers calls them
SCHEDULERS = {"wsd": "warmup_stable_decay", "cosine": "cosine", "constant": "constant_with_warmup"}


@dataclass(frozen=True, slots=True)
class Run:
    """What a training is about.

    Attributes:
        evaluate: held-out `loss`.
        folder: of checkpoints and history. name: in reports.
        tell: takes events. stop: set where the step in hand shall be the last.
    """

    module: nn.Module
    feed: Feed
    evaluate: Callable[[], dict[str, float]]
    options: TrainOptions
    folder: Path
    name: str
    tell: Callable[[Event], None]
    stop: threading.Event


def culprit(module: nn.Module, inputs: dict[str, Any]) -> str:
    """Name of the first trained tensor, or else layer output, that is not finite."""
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and not torch.isfinite(parameter).all():
            return name.removeprefix("model.")
    found: list[str] = []

    def hook(name: str) -> Callable[..., None]:
        def look(_: nn.Module, __: Any, out: Any) -> None:
            first = out[0] if isinstance(out, tuple) else out
            if isinstance(first, torch.Tensor) and not found and not torch.isfinite(first).all():
                found.append(name.removeprefix("model."))

        return look

    handles = [m.register_forward_hook(hook(n)) for n, m in module.named_modules() if n and not list(m.children())]
    with torch.no_grad():
        module(**inputs)
    for handle in handles:
        handle.remove()
    return found[0] if found else "the loss"


class Watch(TrainerCallback):
    """Reports, looks for NaN, and stops where the user wants it to."""

    def __init__(self, run: Run) -> None:
        self.run, self.since, self.step = run, time.perf_counter(), -1

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for at, parameter in self.run.module.named_parameters():
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
                raise QwenchError(
                    f"a gradient is not finite at step {state.global_step + 1}: `{at.removeprefix('model.')}`",
                    "use a smaller --lr, and --force to begin anew",
                )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        o, step = self.run.options, state.global_step
        self.run.tell(Advanced(f"train {self.run.name}", 1))
        if o.log_every and step % o.log_every == 0:
            control.should_log = True
        if o.eval_every and step % o.eval_every == 0 and step < o.steps:
            row = {
                "event": "held_out",
                "run": self.run.name,
                "step": step,
                "loss": self.run.evaluate()["loss"],
            }
            self.run.module.train()
            self._report(row, state)
        if self.run.stop.is_set():
            control.should_save = control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "loss" not in logs:
            return
        o = self.run.options
        now, made = time.perf_counter(), state.global_step - max(self.step, 0)
        tokens = round(o.batch * o.grad_accum * self.run.feed.length * args.world_size)
        speed = made * tokens / (now - self.since) if self.step >= 0 else None
        self.since, self.step = now, state.global_step
        row = {
            "event": "step",
            "run": self.run.name,
            "step": state.global_step,
            "tokens": state.global_step * tokens,
            "loss": logs["loss"],
            "lr": logs["learning_rate"],
            "grad_norm": logs.get("grad_norm"),
            "tokens_per_second": None if speed is None else round(speed, 1),
        }
        pace = "" if speed is None else f", {speed:,.0f} tokens/s"
        self.run.tell(Advanced(f"train {self.run.name}", 0, detail=f"loss {logs['loss']:.4f}{pace}"))
        self._report(row, state)

    def _report(self, row: dict[str, Any], state: Any) -> None:
        if state.is_world_process_zero:
            append(self.run.folder / HISTORY, json.dumps(row), "the history of the run")
            self.run.tell(Produced(row))


class Loop(Trainer):
    """The Trainer, with checkpoints that hold what is trained and are known to be whole."""

    run: Run

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        out = model(**inputs)
        if not torch.isfinite(out["loss"]):
            raise QwenchError(
                f"the loss is not finite at step {self.state.global_step + 1}: `{culprit(self.run.module, inputs)}`",
                "use a smaller --lr, or --dtype float32, and --force to begin anew",
            )
        return (out["loss"], out) if return_outputs else out["loss"]

    def create_optimizer(self, model: Any = None) -> Any:
        o = self.run.options
        if o.frozen and self.optimizer is None:
            slow, fast = [], []
            for at, parameter in self.run.module.named_parameters():
                if parameter.requires_grad:
                    (slow if ".aggregate_layer." in at else fast).append(parameter)
            groups = [{"params": fast, "lr": o.lr}, {"params": slow, "lr": o.lr * AGGREGATOR}]
            self.optimizer = torch.optim.AdamW([g for g in groups if g["params"]], weight_decay=0.0)
        return super().create_optimizer(model)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        assert output_dir is not None
        os.makedirs(output_dir, exist_ok=True)
        state = {n: t.cpu().contiguous() for n, t in trained_state(self.run.module).items()}
        save_file(state, os.path.join(output_dir, "trained.safetensors"))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        state = load_file(os.path.join(resume_from_checkpoint, "trained.safetensors"))
        with torch.no_grad():
            for at, tensor in trained_state(self.run.module).items():
                tensor.copy_(state[at])

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            os.sync()
            (self.run.folder / f"checkpoint-{self.state.global_step}" / WHOLE).touch()


def trainer(run: Run) -> Trainer:
    """The Trainer of a run."""
    o = run.options
    if o.checkpointing:
        run.module.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    wsd = o.schedule == "wsd"
    decay = max(round(o.steps * DECAY), 1)
    args = TrainingArguments(
        output_dir=str(run.folder),
        max_steps=o.steps,
        per_device_train_batch_size=o.batch,
        gradient_accumulation_steps=o.grad_accum,
        learning_rate=o.lr,
        lr_scheduler_type=SCHEDULERS[o.schedule],
        weight_decay=o.weight_decay,
        lr_scheduler_kwargs={"num_decay_steps": decay, "min_lr_ratio": 0.1} if wsd else {},
        warmup_steps=o.warmup,
        max_grad_norm=o.clip,
        logging_strategy="no",
        save_strategy="steps" if o.save_every else "no",
        save_steps=o.save_every or o.steps,
        save_total_limit=2,
        bf16=o.autocast,
        use_cpu=o.device == "cpu",
        seed=o.seed,
        data_seed=o.seed,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=o.device != "cpu",
        dataloader_drop_last=len(run.feed.rows) >= o.batch,
    )
    made = Loop(
        model=run.module, args=args, train_dataset=run.feed.rows, data_collator=run.feed.collate, callbacks=[Watch(run)]
    )
    made.run = run
    made.model_accepts_loss_kwargs = False
    made.remove_callback(PrinterCallback)
    return made
