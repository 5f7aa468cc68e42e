"""Post-training of streams by the transformers Trainer, told as events."""

from __future__ import annotations

import json
import os
import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import QwenchError
from ..events import Advanced, Event, Produced, Started
from .loss import head_loss

if TYPE_CHECKING:
    from torch import Tensor, nn

SCHEDULES = ("wsd", "cosine")
#: the aggregator's rate over the prefixes': at the same rate it settles on one stream before the others have learnt
AGGREGATOR = 0.01
#: share of the steps in which the wsd schedule comes down
DECAY = 0.2
HISTORY, WHOLE = "history.jsonl", ".complete"
NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")
OUT_OF_MEMORY = ("use a smaller --batch with more --grad-accum, a smaller --seq-len, or --gradient-checkpointing",)


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """How to train; names equal the flags.

    Attributes:
        steps: of the optimiser, each over batch * grad_accum sequences a process.
        lr: peak learning rate, of fresh aggregators AGGREGATOR of it.
        schedule: wsd (warm up, stay, come down) or cosine.
        warmup: steps. clip: largest norm of the gradient.
        save_every, eval_every, log_every: steps; 0 never.
        autocast: compute in bfloat16 over float32 weights.
        frozen: the decoder is; what is trained is fresh.
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


def trained_state(module: nn.Module) -> dict[str, Tensor]:
    """Name -> tensor of everything that is trained."""
    return {n: p.detach() for n, p in module.named_parameters() if p.requires_grad}


def train(
    module: nn.Module,
    blocks: Tensor,
    evaluate: Callable[[], dict[str, float]],
    options: TrainOptions,
    folder: Path,
    name: str,
) -> Iterator[Event]:
    """Train `module` on blocks (n, S), or go on where `folder` has a checkpoint.

    Yields Advanced in steps and a Produced row for every report: run, step, tokens, loss, lr, grad_norm,
    tokens_per_second; and held_out rows from `evaluate`.

    Raises:
        QwenchError: loss or gradients that are not finite (names the layer); out of memory.
    """
    import torch

    told: queue.SimpleQueue[Event | BaseException | None] = queue.SimpleQueue()
    stop = threading.Event()
    last = newest(folder)
    begun = int(last.name.rpartition("-")[2]) if last else 0
    _forget(folder / HISTORY, begun)

    def work() -> None:
        try:
            torch.set_num_threads(options.threads or torch.get_num_threads())
            _trainer(module, blocks, evaluate, options, folder, name, told.put, stop).train(
                resume_from_checkpoint=str(last) if last else None
            )
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
        lines = (folder / HISTORY).read_text("utf-8").splitlines()
    except FileNotFoundError:
        return []
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except ValueError:  # the last line of a killed run
            break
    return rows


def _forget(path: Path, step: int) -> None:
    """Reports of steps that will be made again."""
    rows = [r for r in history(path.parent) if r["step"] <= step]
    if path.exists():
        path.write_text("".join(json.dumps(r) + "\n" for r in rows), "utf-8")


def _sentence(error: BaseException) -> BaseException:
    text = str(error).lower()
    if isinstance(error, MemoryError) or any(w in text for w in NO_MEMORY):
        return QwenchError("out of memory in training", *OUT_OF_MEMORY)
    return error


def culprit(module: nn.Module, ids: Tensor) -> str:
    """Name of the first trained tensor, or else layer output, that is not finite."""
    import torch

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
        module(ids)
    for handle in handles:
        handle.remove()
    return found[0] if found else "the loss"


def _trainer(
    module: nn.Module,
    blocks: Tensor,
    evaluate: Callable[[], dict[str, float]],
    o: TrainOptions,
    folder: Path,
    name: str,
    tell: Callable[[Event], None],
    stop: threading.Event,
) -> Any:
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    class Watch(TrainerCallback):
        """Reports, looks for NaN, and stops where the user wants it to."""

        def __init__(self) -> None:
            self.since, self.step = time.perf_counter(), -1

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            for at, parameter in module.named_parameters():
                if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
                    raise QwenchError(
                        f"a gradient is not finite at step {state.global_step + 1}: `{at.removeprefix('model.')}`",
                        "use a smaller --lr, or --init prompts; --resume goes on from the last checkpoint",
                    )

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            tell(Advanced(f"train {name}", 1))
            if o.log_every and state.global_step % o.log_every == 0:
                control.should_log = True
            if o.eval_every and state.global_step % o.eval_every == 0 and state.global_step < o.steps:
                row = {
                    "event": "held_out",
                    "run": name,
                    "step": state.global_step,
                    "loss": evaluate()["loss"],
                }
                module.train()
                self._report(row, state)
            if stop.is_set():
                control.should_save = control.should_training_stop = True

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
            if "loss" not in logs:
                return
            now, made = time.perf_counter(), state.global_step - max(self.step, 0)
            tokens = o.batch * o.grad_accum * blocks.shape[1] * args.world_size
            speed = made * tokens / (now - self.since) if self.step >= 0 else None
            self.since, self.step = now, state.global_step
            row = {
                "event": "step",
                "run": name,
                "step": state.global_step,
                "tokens": state.global_step * tokens,
                "loss": logs["loss"],
                "lr": logs["learning_rate"],
                "grad_norm": logs.get("grad_norm"),
                "tokens_per_second": None if speed is None else round(speed, 1),
            }
            pace = "" if speed is None else f", {speed:,.0f} tokens/s"
            tell(Advanced(f"train {name}", 0, detail=f"loss {logs['loss']:.4f}{pace}"))
            self._report(row, state)

        def _report(self, row: dict[str, Any], state: Any) -> None:
            if state.is_world_process_zero:
                with (folder / HISTORY).open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                tell(Produced(row))

    class Streams(Trainer):
        """The Trainer, with checkpoints that hold what is trained and are known to be whole."""

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            out = model(**inputs)
            if not torch.isfinite(out["loss"]):
                raise QwenchError(
                    f"the loss is not finite at step {self.state.global_step + 1}: "
                    f"`{culprit(module, inputs['input_ids'])}`",
                    "use a smaller --lr, or --dtype float32; --resume goes on from the last checkpoint",
                )
            return (out["loss"], out) if return_outputs else out["loss"]

        def create_optimizer(self, model: Any = None) -> Any:
            if o.frozen and self.optimizer is None:
                slow, fast = [], []
                for at, parameter in module.named_parameters():
                    if parameter.requires_grad:
                        (slow if ".aggregate_layer." in at else fast).append(parameter)
                groups = [{"params": fast, "lr": o.lr}, {"params": slow, "lr": o.lr * AGGREGATOR}]
                self.optimizer = torch.optim.AdamW([g for g in groups if g["params"]], weight_decay=0.0)
            return super().create_optimizer(model)

        def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
            assert output_dir is not None
            os.makedirs(output_dir, exist_ok=True)
            state = {n: t.cpu().contiguous() for n, t in trained_state(module).items()}
            save_file(state, os.path.join(output_dir, "trained.safetensors"))

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            state = load_file(os.path.join(resume_from_checkpoint, "trained.safetensors"))
            with torch.no_grad():
                for at, tensor in trained_state(module).items():
                    tensor.copy_(state[at])

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            super()._save_checkpoint(model, trial)
            if self.args.should_save:
                os.sync()
                (folder / f"checkpoint-{self.state.global_step}" / WHOLE).touch()

    class Dataset(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(blocks)

        def __getitem__(self, at: int) -> dict[str, Tensor]:
            return {"input_ids": blocks[at]}

    if o.checkpointing:
        module.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    wsd = o.schedule == "wsd"
    decay = max(round(o.steps * DECAY), 1)
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=o.steps,
        per_device_train_batch_size=o.batch,
        gradient_accumulation_steps=o.grad_accum,
        learning_rate=o.lr,
        lr_scheduler_type="warmup_stable_decay" if wsd else "cosine",
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
        dataloader_drop_last=len(blocks) >= o.batch,
    )
    trainer = Streams(model=module, args=args, train_dataset=Dataset(), callbacks=[Watch()])
    trainer.model_accepts_loss_kwargs = False
    trainer.remove_callback(PrinterCallback)
    return trainer
