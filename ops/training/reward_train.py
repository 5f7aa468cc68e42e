"""A run of `qwench reward train`: pairs and a base become a reward model."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ..base.atomic import opened as writing
from ..base.errors import QwenchError
from ..base.events import Chose, Event, Events, Finished, Kept, Produced, Warned
from ..base.lock import Lock
from ..base.paths import check_output, local
from ..base.runtime import Runtime
from ..checkpoint.reader import Source, apart
from ..models.device import Choice
from ..models.load_reward import HeadNote, open_base, open_reward, read_source_head, template_hash
from ..models.reward_heads import RewardHead
from ..scoring.preference import bt_losses, interval, rulers, wilson, wins
from ..scoring.reward import RewardModel
from ..scoring.reward_texts import RewardTexts, TextSettings
from ..text.fields import beside
from .reward_data import PairOptions, PairSet, TrainPair, read_pairs
from .reward_head import HeadOptions, Sides, Trained, cached_states, train_head
from .reward_save import architecture, save_checkpoint, save_head

if TYPE_CHECKING:
    from torch import Tensor

METHODS = ("head", "lora", "full")
HEADS = ("auto", "mlp", "linear")
#: peak learning rates and epochs by method: the paper's for all parameters, the others went well
RATES = {"head": 1e-3, "lora": 1e-5, "full": 3e-6}
EPOCHS = {"head": 40, "lora": 2, "full": 2}
BATCHES = {"head": 32, "lora": 8, "full": 8}
EXPORTS = ("trl",)


@dataclass(frozen=True, slots=True)
class RewardTrainOptions:
    """Everything `qwench reward train` can be told; names equal the flags.

    Attributes:
        model: the base. init_from: a reward model whose head is begun with.
        head: auto, mlp or linear. width: of an MLP's inner layer, 0 for the hidden states'.
        epochs, lr, batch: None for what the method goes well with.
        warmup: share of the steps. schedule: constant or cosine. keep: best or last epoch.
        swap_check: train a second head on exchanged answers, whose accuracy must be the mirror image.
        export: `trl` writes the pairs as plain strings to train with it, and nothing is trained.
        texts: how a conversation is read. pairs: which.
    """

    model: str
    out: str
    method: str = "head"
    head: str = "auto"
    width: int = 0
    init_from: str | None = None
    epochs: int | None = None
    lr: float | None = None
    batch: int | None = None
    grad_accum: int = 1
    weight_decay: float = 0.1
    warmup: float = 0.1
    schedule: str = "constant"
    center: float = 0.0
    keep: str = "best"
    swap_check: bool = False
    lora_rank: int = 16
    gradient_checkpointing: bool = False
    export: str | None = None
    batch_tokens: int = 0
    seed: int = 0
    resume: bool = False
    force: bool = False
    texts: TextSettings = field(default_factory=TextSettings)
    pairs: PairOptions = field(default_factory=PairOptions)
    runtime: Runtime = field(default_factory=Runtime)

    def check(self) -> None:
        """Raises QwenchError: words and numbers that do not fit, code 2."""
        known = {
            "--method": (self.method, METHODS),
            "--head": (self.head, HEADS),
            "--keep": (self.keep, ("best", "last")),
        }
        known |= {"--schedule": (self.schedule, ("constant", "cosine"))}
        known |= {"--export": (self.export, EXPORTS)} if self.export is not None else {}
        for flag, (value, words) in known.items():
            if value not in words:
                raise QwenchError(f"unknown {flag}: `{value}`", f"use {', '.join(words)}", code=2)
        if self.lr is not None and self.lr <= 0:
            raise QwenchError(f"--lr must be above 0, not {self.lr:g}", code=2)
        if not 0 <= self.warmup < 1:
            raise QwenchError(f"--warmup is a share of the steps below 1, not {self.warmup:g}", code=2)
        if self.swap_check and self.method != "head":
            raise QwenchError("--swap-check trains a second head, which --method head alone does", code=2)
        if self.width and self.method != "head":
            raise QwenchError("--width is for --method head", "leave it out", code=2)
        self.pairs.check()
        self.texts.check()

    def head_options(self, kind: str) -> HeadOptions:
        """What the head is trained with."""
        return HeadOptions(
            kind, self.width, self.value("epochs"), self.value("lr"), self.value("batch"), self.weight_decay,
            self.warmup, self.schedule, self.center, self.keep, self.seed,
        )  # fmt: skip

    def value(self, name: str) -> Any:
        """A number that was given, or the method's own."""
        given = getattr(self, name)
        return {"epochs": EPOCHS, "lr": RATES, "batch": BATCHES}[name][self.method] if given is None else given


class RewardTraining:
    """See the module.

    Raises:
        QwenchError: options or an output that cannot be; a base that has no such reward model.
    """

    def __init__(self, options: RewardTrainOptions) -> None:
        options.check()
        self.o, self.out = options, Path(os.path.abspath(options.out))
        self.folder = self.out.with_name(self.out.name + ".run")
        if self.out.exists() and not options.force:
            raise QwenchError(f"the output is there already: `{self.out}`", "choose another name, or add --force")
        check_output(options.out, folder=True)
        for name in filter(None, (options.pairs.pairs, options.pairs.validation)):
            local(name, "the pairs")
        self.base = open_base(options.model, options.runtime)
        self.source = Source(self.base.checkpoint.path, self.base.checkpoint.reader)
        apart(self.source, self.out)
        family = self.base.config.get("model_type")
        self.kind = options.head
        if self.kind == "auto":
            self.kind = "mlp" if options.method == "head" or family == "qwen2" else "linear"
        whole = int(self.base.config.get("hidden_size") or 0)
        published = family == "qwen2" and self.kind == "mlp" and options.width in (0, whole)
        self.saved = "checkpoint" if published or options.method != "head" else "head"
        if options.method != "head":
            architecture(self.base.config, self.kind)
            if self.base.checkpoint.path.is_file():
                raise QwenchError(
                    f"--method {options.method} trains tensors of a folder, and the base is a GGUF file",
                    f"turn it into one: qwench convert {options.model} FOLDER; or use --method head",
                )
        self.texts = RewardTexts(
            self.base.tokenizer, self.base.template, self.kind, self.base.limit, self.base.pad, options.texts
        )
        if not published:
            self.texts.adopt(None)
        self.start = None if options.init_from is None else _head_of(options.init_from, options.runtime)

    def run(self, stdin: BinaryIO | None = None) -> Events:
        """Read, train, measure, save; Produced rows have `event`: epoch; Finished has the report.

        Raises:
            QwenchError: see `read_pairs`, `train_head`; another run at the output.
        """
        begun, pairs = time.monotonic(), PairSet([], [])
        for event in read_pairs(replace(self.o.pairs, seed=self.o.seed), self.texts, stdin):
            if isinstance(event, PairSet):
                pairs = event
            else:
                yield event
        yield from (Warned(kind, text) for kind, text in self.texts.notes.items())
        if self.o.export:
            yield from self._export(pairs)
            return
        if self.start is None and any(name.startswith("score.") for name in self.base.tensors):
            yield Warned("head", "the base has a reward head of its own, and a fresh one is trained: see --init-from")
        yield Chose("saved as", self.saved, _why(self.saved, self.base.config, self.kind))
        if self.o.method == "head":
            with Lock(self.folder) as lock:
                if lock.note:
                    yield Warned("lock", lock.note)
                yield Kept(str(self.folder))
                yield from self._headed(pairs, begun)
        else:
            from .reward_whole import train_whole

            yield from train_whole(self, pairs, begun)

    def _headed(self, pairs: PairSet, begun: float) -> Events:
        """Hidden states once, then the head."""
        o, sides = self.o, {}
        for event in self._states(pairs):
            if isinstance(event, dict):
                sides = event
            else:
                yield event
        trained = Trained(RewardHead(()))
        for event in train_head(sides["train"], sides["validation"], o.head_options(self.kind), self.start):
            if isinstance(event, Trained):
                trained = event
            else:
                yield event
        for row in trained.history:
            yield Produced({"event": "epoch"} | row)
        report = self.report(pairs, _rewards(trained.head, sides["validation"]), trained.epoch, trained.history)
        if o.swap_check:
            turned = replace(o.head_options(self.kind))
            for event in train_head(sides["train"].swapped(), sides["validation"].swapped(), turned, None):
                if isinstance(event, Trained):
                    d = _rewards(event.head, sides["validation"]).diff(dim=1)[:, 0]
                    report["swapped_accuracy"] = float(((d < 0) + 0.5 * (d == 0)).mean())
        yield from self.save(trained.head, {}, report)
        yield Finished(report | {"seconds": round(time.monotonic() - begun, 3)})

    def _states(self, pairs: PairSet) -> Iterator[Event | dict[str, Sides]]:
        """Hidden states of all texts; the base is loaded where some are missing."""
        import torch

        everyone = [*pairs.train, *pairs.validation]
        texts = [t for p in everyone for t in (p.chosen, p.rejected)]
        chosen: list[Event] = []

        def load() -> RewardModel:
            model = RewardModel(self.base, Choice("hidden", "frozen"), self.o.runtime, self.o.batch_tokens)
            chosen.extend(Chose(n, c.value, c.reason) for n, c in model.choices.items() if n != "head")
            return model

        mark = f"{self.base.checkpoint.revision}:{self.o.runtime.dtype}:{self.o.runtime.quantize}"
        states = None
        for event in cached_states(load, texts, self.folder, mark):
            yield from chosen
            chosen.clear()
            if isinstance(event, Event):
                yield event
            else:
                states = torch.from_numpy(event)
        assert states is not None
        margins = torch.tensor([p.margin for p in everyone])
        cut = len(pairs.train)
        found = {}
        for name, rows in (("train", slice(0, cut)), ("validation", slice(cut, None))):
            found[name] = Sides(states[0::2][rows], states[1::2][rows], margins[rows])
        yield found

    def report(self, pairs: PairSet, rewards: Tensor, epoch: int, history: list[dict[str, Any]]) -> dict[str, Any]:
        """What was done and what came of it, by the rewards of the validation pairs, (n, 2) chosen and rejected."""
        o, d = self.o, (rewards[:, 0] - rewards[:, 1]).numpy()
        won = wins(d)
        self.validation = b"".join(
            json.dumps(self._scored(p, *r, len(pairs.train)), ensure_ascii=False).encode() + b"\n"
            for p, r in zip(pairs.validation, rewards.tolist(), strict=True)
        )
        lengths = [[t.answer_tokens for t in side] for side in zip(*map(_texts, pairs.validation), strict=True)]
        return {
            "schema": 1,
            "model": o.model,
            "out": o.out,
            "saved": self.saved,
            "method": o.method,
            "head": self.kind,
            "pairs": len(pairs.train),
            "validation_pairs": len(pairs.validation),
            **{n: getattr(pairs, n) for n in ("skipped", "bad", "identical")},
            "epochs": o.value("epochs"),
            "epoch": epoch,
            "keep": o.keep,
            "lr": o.value("lr"),
            "seed": o.seed,
            "accuracy": float(won.mean()),
            "accuracy_interval": interval(wilson(float(won.sum()), len(won))),
            "validation_loss": float(bt_losses(d).mean()),
            "rulers": rulers(*lengths, o.seed),
            "settings": asdict(o.texts),
            "history": history,
        }

    def _scored(self, pair: TrainPair, chosen: float, rejected: float, count: int) -> dict[str, Any]:
        """A validation row as `reward score` would have it, and how many pairs the model has seen."""
        tokens = [t.answer_tokens for t in (pair.chosen, pair.rejected)]
        told = {"reward_chosen": chosen, "reward_rejected": rejected, "answer_tokens": tokens}
        return beside(pair.row, told | {"model": self.o.out, "train_pairs": count})

    def save(self, head: RewardHead, trained: dict[str, Tensor], report: dict[str, Any]) -> Iterator[Event]:
        """Write the output."""
        o, checkpoint = self.o, self.base.checkpoint
        if self.out.exists() and not o.force:
            raise QwenchError(f"the output appeared in the meantime: `{self.out}`", "move it away")
        if self.saved == "checkpoint":
            yield from save_checkpoint(
                self.source, o.model, self.out, head, self.kind, trained, report, self.validation, o.force
            )
            return
        size = int(self.base.config["hidden_size"])
        hashed = template_hash(self.base.template)
        name = o.model if not Path(o.model).expanduser().exists() else os.path.abspath(os.path.expanduser(o.model))
        note = HeadNote(name, checkpoint.revision, self.kind, size, o.texts.pool, self.texts.system, hashed)
        save_head(self.out, note, head, report, self.validation)

    def _export(self, pairs: PairSet) -> Events:
        """The pairs as plain strings, which trl takes with `chosen` and `rejected` columns."""
        self.out.mkdir(exist_ok=True)
        for name, part in (("train", pairs.train), ("validation", pairs.validation)):
            with writing(self.out / f"{name}.jsonl", "the pairs") as file:
                for pair in part:
                    row = {"chosen": pair.chosen.text, "rejected": pair.rejected.text}
                    row |= {"margin": pair.margin} if self.o.pairs.margin_field else {}
                    file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        yield Finished(
            {"schema": 1, "out": self.o.out, "export": "trl", "pairs": len(pairs.train),
             "validation_pairs": len(pairs.validation)}
        )  # fmt: skip


def _texts(pair: TrainPair) -> tuple[Any, Any]:
    return pair.chosen, pair.rejected


def _rewards(head: RewardHead, sides: Sides) -> Tensor:
    import torch

    return torch.cat((head(sides.chosen), head(sides.rejected)), 1)


def _why(saved: str, config: dict[str, Any], kind: str) -> str:
    if saved == "head":
        return "a head over its base: no published class has it"
    return f"{architecture(config, kind)}, a folder of its own"


def _head_of(name: str, runtime: Runtime) -> RewardHead:
    """The head of a reward model, without its network."""
    opened = open_reward(name, runtime)
    return opened.head or read_source_head(opened, name)
