"""A run of `qwench explore train`: rows of a run make its model better, by DPO or by MARGE's loss on pairs."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ..base.atomic import remove, replacing
from ..base.errors import QwenchError
from ..base.events import Chose, Event, Events, Finished, Started, Warned
from ..base.paths import check_output, local
from ..base.runtime import Runtime
from ..checkpoint.layout import LM_HEAD
from ..checkpoint.reader import Source, apart
from ..checkpoint.sidecars import as_json
from ..models.device import pick_device, pick_threads
from ..models.load_decoder import FAMILIES, texts_of, unknown
from ..models.load_reward import open_base
from ..models.nets.generic import complete_model
from ..writing.load import ends_of
from .lora import adapters, merged
from .options import Feed, TrainOptions
from .precision import training_dtype
from .preference import LOSSES, Pair, collated, measured, preference_model, told
from .preference_data import Pairs, end_of_turn, read
from .ranks import first, rank
from .reward_save import base_plan, retrained, written
from .run_folder import RunFolder
from .train import history, train

if TYPE_CHECKING:
    from torch import Tensor

METHODS = ("lora", "full")
#: peak learning rates by method, the paper's for all parameters; betas by loss, the paper's for pairs
RATES = {"lora": 1e-5, "full": 1e-6}
BETAS = {"dpo": 0.1, "pairs": 0.01}
#: of a runtime, what changes the numbers
NUMBERS = ("device", "dtype")
CURRENT, REFERENCE = "current", "reference.safetensors"
CARD, REPORT = "README.md", "explore_train.json"


@dataclass(frozen=True, slots=True)
class PreferenceOptions:
    """Everything `qwench explore train` can be told; names equal the flags.

    Attributes:
        rows: what `explore rows --form dpo|pairs` made.
        loss: dpo or pairs. ref: current, the model as it is, or another as it was in the first episode.
        lr, beta: None for what method and loss go well with.
        batch: pairs. warmup: share of the steps. schedule: cosine or constant.
        seq_len: longest prompt and completion together, 0 for what the model has room for.
    """

    rows: str
    model: str
    out: str
    loss: str = "dpo"
    method: str = "lora"
    ref: str = CURRENT
    beta: float | None = None
    epochs: int = 2
    lr: float | None = None
    batch: int = 8
    grad_accum: int = 1
    weight_decay: float = 0.0
    warmup: float = 0.1
    schedule: str = "cosine"
    lora_rank: int = 16
    seq_len: int = 0
    gradient_checkpointing: bool = False
    seed: int = 0
    resume: bool = False
    keep_going: bool = False
    force: bool = False
    runtime: Runtime = field(default_factory=Runtime)

    def check(self) -> None:
        """Raises QwenchError: words and numbers that do not fit, code 2."""
        for flag, value, words in (
            ("loss", self.loss, LOSSES),
            ("method", self.method, METHODS),
            ("schedule", self.schedule, ("cosine", "constant")),
        ):
            if value not in words:
                raise QwenchError(f"unknown --{flag}: `{value}`", f"use {' or '.join(words)}", code=2)
        for flag, number in (("lr", self.rate), ("beta", self.strength)):
            if not (number > 0 or (flag == "beta" and self.loss == "pairs" and number == 0)):
                raise QwenchError(f"--{flag} must be above 0, not {number:g}", code=2)
        if not 0 <= self.warmup < 1:
            raise QwenchError(f"--warmup is a share of the steps below 1, not {self.warmup:g}", code=2)
        if self.epochs < 1 or self.batch < 1 or self.grad_accum < 1:
            raise QwenchError("--epochs, --batch and --grad-accum must be at least 1", code=2)

    @property
    def rate(self) -> float:
        """Peak learning rate."""
        return RATES[self.method] if self.lr is None else self.lr

    @property
    def strength(self) -> float:
        """Beta of the loss."""
        return BETAS[self.loss] if self.beta is None else self.beta


class PreferenceTraining:
    """See the module.

    Raises:
        QwenchError: options or an output that cannot be; a model that is not trained here.
    """

    def __init__(self, options: PreferenceOptions) -> None:
        options.check()
        self.o, self.out = options, Path(os.path.abspath(Path(options.out).expanduser()))
        if self.out.exists() and not options.force:
            raise QwenchError(f"the output is there already: `{self.out}`", "choose another name, or add --force")
        check_output(options.out, folder=True)
        local(options.rows, "the rows")
        self.base = open_base(options.model, options.runtime)
        checkpoint = self.base.checkpoint
        if checkpoint.path.is_file():
            raise QwenchError(
                f"the model is a GGUF file, and tensors of a folder are trained: `{options.model}`",
                f"turn it into one: qwench convert {options.model} FOLDER",
            )
        if reason := unknown(self.base.config):
            hint = f"it trains {', '.join(FAMILIES)}"
            raise QwenchError(f"explore train knows no {reason}: `{options.model}`", hint)
        self.reference = checkpoint
        if options.ref != CURRENT:
            other = open_base(options.ref, replace(options.runtime, revision=None))
            if other.checkpoint.path.is_file() or other.config.get("vocab_size") != self.base.config.get("vocab_size"):
                raise QwenchError(
                    f"the reference is no folder of the same vocabulary as the model: `{options.ref}`",
                    "name the model of the first episode with --ref, or leave it out",
                )
            self.reference = other.checkpoint
        self.source = Source(checkpoint.path, checkpoint.reader)
        apart(self.source, self.out)
        self.plan = base_plan(self.source, options.model, str(self.out))
        room = self.base.limit
        if options.seq_len > room:
            raise QwenchError(f"--seq-len {options.seq_len} is longer than the model's context of {room}", code=2)
        self.room = options.seq_len or room

    def run(self, stdin: BinaryIO | None = None) -> Events:
        """Read, train, measure, save; Produced rows are of the history; Finished has the report.

        Raises:
            QwenchError: see `read` and `train`; peft is not installed; another run at the output.
        """
        begun, o, pairs = time.monotonic(), self.o, Pairs()
        tokenizer, files = texts_of(self.source)
        end = end_of_turn(tokenizer, self.base.template, ends_of(self.base.config, files, tokenizer))
        yield Chose("end", tokenizer.backend.id_to_token(end), "put after every completion that was not cut")
        for event in read(o.rows, o.loss, tokenizer, end, self.room, o.keep_going, stdin):
            if isinstance(event, Pairs):
                pairs = event
            else:
                yield event
        folder = RunFolder(self.out, o.force, o.resume)
        free = ("out", "resume", "force", "keep_going", "runtime")
        job = {k: v for k, v in asdict(o).items() if k not in free} | {n: getattr(o.runtime, n) for n in NUMBERS}
        # What they are, wherever they lie.
        job |= {"rows": pairs.digest, "model": self.base.checkpoint.revision, "ref": self.reference.revision}
        folder.open(job, job)
        try:
            yield from folder.told()
            yield from self._trained(pairs, folder.path, begun)
        finally:
            folder.close()

    def _trained(self, pairs: Pairs, folder: Path, begun: float) -> Events:
        import torch

        o = self.o
        threads, device = pick_threads(o.runtime.threads), pick_device(o.runtime.device)
        torch.set_num_threads(threads.value)
        numbers = training_dtype(o.runtime.dtype, device.value, "float32")
        for name, choice in (("device", device), ("dtype", numbers), ("threads", threads)):
            yield Chose(name, choice.value, choice.reason)
        yield from self._reference(pairs, folder, device.value, numbers.value)
        yield Started("load", None, "")
        module = self._module(self.base.checkpoint.path, numbers.value, device.value)
        self._check(module)
        before = told(*measured(module, pairs.rows, o.batch), pairs.rows, o.loss, o.strength)
        options = self._options(len(pairs.rows), device.value, numbers.value, threads.value)
        feed = Feed(pairs.rows, sum(p.tokens for p in pairs.rows) / len(pairs.rows), collated)
        yield from train(module, feed, lambda: {"loss": math.nan}, options, folder, o.method)
        after = told(*measured(module, pairs.rows, o.batch), pairs.rows, o.loss, o.strength)
        rows = [{k: v for k, v in r.items() if k not in ("run", "event")} for r in history(folder)]
        found = self._report(pairs, options.steps, before, after)
        if rank() == 0:
            yield from self._save(merged(module.model), found | {"history": rows})
        # A process that ends before the others have may end them.
        first(lambda: remove(folder))
        yield Finished(found | {"seconds": round(time.monotonic() - begun, 3)})

    def _module(self, path: Path, numbers: str, device: str, reference: bool = False) -> Any:
        """A model with its loss, and what of it is trained; a reference as it is."""
        import torch

        o, whole = self.o, self.o.method == "full"
        kind = torch.float32 if whole else getattr(torch, numbers)
        model, _ = complete_model("AutoModelForCausalLM", path, kind)
        torch.manual_seed(o.seed)
        if not whole and not reference:
            adapters(model, o.lora_rank)
        return preference_model(model, o.loss, o.strength).to(device)

    def _check(self, module: Any) -> None:
        """Raises QwenchError: transformers calls a tensor otherwise than the checkpoint: it could not be saved."""
        names = {n.replace(".base_layer", "") for n in module.model.state_dict() if "lora_" not in n}
        if lost := sorted({o.name for o in self.plan.outputs} - names):
            raise QwenchError(f"a tensor of the checkpoint is not trained by its own name: `{lost[0]}`", "use another")

    def _reference(self, pairs: Pairs, folder: Path, device: str, numbers: str) -> Iterator[Event]:
        """Log-probabilities under the reference, computed once for a run."""
        from safetensors.torch import load_file, save_file

        o, kept = self.o, folder / REFERENCE
        if not kept.is_file():
            yield Started("reference", None, "")
            module = self._module(self.reference.path, numbers, device, reference=True)
            sums, _ = measured(module, pairs.rows, o.batch)
            if rank() == 0:
                with replacing(kept, what="the reference's log-probabilities") as (part,):
                    save_file({"sums": sums.contiguous()}, part)
            first(lambda: None)
        sums = load_file(kept)["sums"]
        pairs.rows = [replace(p, reference=tuple(r)) for p, r in zip(pairs.rows, sums.tolist(), strict=True)]

    def _options(self, count: int, device: str, numbers: str, threads: int) -> TrainOptions:
        o = self.o
        where = {"device": device.partition(":")[0], "autocast": numbers == "bfloat16", "threads": threads}
        made = TrainOptions.of_epochs(o, count, epochs=o.epochs, batch=o.batch, lr=o.rate, **where)
        return replace(made, eval_every=0)

    def _report(self, pairs: Pairs, steps: int, before: dict[str, float], after: dict[str, float]) -> dict[str, Any]:
        o = self.o
        return {
            "schema": 1,
            **{n: getattr(o, n) for n in ("model", "out", "loss", "method", "ref", "epochs", "batch", "seed")},
            "beta": o.strength,
            "lr": o.rate,
            "pairs": len(pairs.rows),
            "long": pairs.long,
            "bad": pairs.bad,
            "completion_tokens": _completion_tokens(pairs.rows),
            "steps": steps,
            "before": before,
            "after": after,
        }

    def _save(self, tensors: dict[str, Tensor], report: dict[str, Any]) -> Iterator[Event]:
        """Write the output, in the dtypes of the model; a tied head is its embedding."""
        o, names = self.o, {x.name for x in self.plan.outputs}
        if self.out.exists() and not o.force:
            raise QwenchError(f"the output appeared in the meantime: `{self.out}`", "move it away")
        new = {n: t for n, t in tensors.items() if n in names}
        if lost := sorted(set(tensors) - names - {LM_HEAD}):
            yield Warned("save", f"{len(lost)} tensors are no part of the checkpoint and left out, such as `{lost[0]}`")
        self.plan.outputs = [retrained(x, new[x.name]) for x in self.plan.outputs]
        self.plan.side |= {CARD: _card(report).encode(), REPORT: as_json(report)}
        yield from written(self.plan, self.source, self.out, report, o.force)


def _completion_tokens(pairs: list[Pair]) -> int:
    return sum(len(c) for p in pairs for c in p.completions)


def _card(report: dict[str, Any]) -> str:
    """README.md: what was done, on what, and what came of it on the rows themselves."""
    base, before, after = report["model"], report["before"], report["after"]
    head = ["---", "tags:", "- qwench"]
    head += [f"base_model: {base}"] if base.count("/") == 1 and not base.startswith(("/", ".", "~")) else []
    how = {"lora": "low-rank adapters, merged", "full": "all parameters"}[report["method"]]
    lines = [
        *head, "---", "", f"# {base}, trained on its own completions", "",
        f"Made by `qwench explore train`: {how}, loss `{report['loss']}` with beta {report['beta']:g}, "
        f"{report['pairs']:,} pairs, {report['epochs']} epochs, learning rate {report['lr']:g}.", "",
        f"On these pairs the loss went from {before['loss']:.4f} to {after['loss']:.4f}, and "
        f"{100 * after['ordered']:.1f} % of them are ordered. They are what it was trained on: nothing is said about "
        "other questions.", "",
    ]  # fmt: skip
    return "\n".join(lines)
