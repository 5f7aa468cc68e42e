"""A run of `qwench parscale-recycle`: its folder beside the output, the model in memory, what was measured so far."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.errors import QwenchError
from ..base.events import Event, Produced, Started
from ..checkpoint.reader import Source, apart
from ..conversion.plan import ConvertOptions, plan_conversion
from ..models.device import Choice, pick_device, pick_dtype, pick_threads
from ..models.hub import open_source
from ..training.data import Blocks, DataOptions
from ..training.options import TrainOptions
from .options import RATES, RecycleOptions, check, rank, steps_of, tokens_of

#: of the run's folder: what the run is of, and who is at it
NOTE, LOCK = "run.json", "lock"

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..checkpoint.plan import Plan


class Work:
    """A run: its folder OUT.run beside the output, the model in memory, and what was measured so far."""

    def __init__(self, options: RecycleOptions) -> None:
        """Open model and folder.

        Raises:
            QwenchError: output or run there already, no such model or none that streams fit, options that do not fit.
        """
        from .model import check_family

        check(options)
        self.o, self.out = options, Path(os.path.abspath(options.out))
        self.folder = self.out.with_name(self.out.name + ".run")
        if self.out.exists() and not options.force:
            raise QwenchError(f"the output is there already: `{self.out}`", "choose another name, or add --force")
        if not self.out.parent.is_dir():
            raise QwenchError(f"the folder of the output is not there: `{self.out.parent}`", "make it first")
        self.source: Source = open_source(options.model, options.runtime.revision, options.runtime.offline)
        apart(self.source, self.out)
        self.plan = self._plan()
        self.config: dict[str, Any] = json.loads(self.plan.side.get("config.json") or b"null") or self.source.config()
        check_family(self.config)
        self.device = pick_device(options.runtime.device)
        stored = next((x.dtype for x in self.plan.outputs if len(x.shape) > 1), "float32")
        self.dtype = training_dtype(options.runtime.dtype, self.device.value, stored)
        self.losses: dict[str, dict[str, Any]] = {}
        self._lock: int | None = None

    def _plan(self) -> Plan:
        how = ConvertOptions(self.o.model, self.o.out, to="safetensors", layout=None)
        prefixed = any(n.startswith("model.") for n in self.source.infos) or self.source.reader.format == "gguf"
        return plan_conversion(self.source, how if prefixed else replace(how, layout="prefixed"))

    def open_folder(self) -> None:
        """Make the run's folder, or go on with it.

        Raises:
            QwenchError: one is there and --resume is not, it is of other options, or another process is at it.
        """
        kept = {k: v for k, v in asdict(self.o).items() if k not in ("resume", "force", "threads", "out", "offline")}
        state = sorted((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in self.source.files)
        mark = hashlib.sha256(json.dumps([kept, state], sort_keys=True, default=str).encode()).hexdigest()
        note = self.folder / NOTE
        if self.folder.exists() and rank() == 0:
            there = json.loads(note.read_text("utf-8"))["plan"] if note.is_file() else ""
            if self.o.force and not self.o.resume:
                shutil.rmtree(self.folder)
            elif not self.o.resume:
                raise QwenchError(
                    f"an interrupted run left `{self.folder}`",
                    "add --resume to go on with it, or --force to begin anew",
                )
            elif there and there != mark:
                raise QwenchError(f"`{self.folder}` is of another run: its model or options differ", "add --force")
        self.folder.mkdir(exist_ok=True)
        if rank() == 0:
            self._lock = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise QwenchError(f"another run is at `{self.folder}`", "wait for it to end") from None
            note.write_text(json.dumps({"plan": mark}))

    def close(self) -> None:
        """Let another run at the folder; one without anything to go on with is removed."""
        if self._lock is None:
            return
        if self.folder.is_dir() and all(f.name in (NOTE, LOCK) or f.suffix == ".part" for f in self.folder.iterdir()):
            shutil.rmtree(self.folder)
        os.close(self._lock)

    def read(self) -> Iterator[Event]:
        """Fill `blocks`: from the run's folder, or from the data."""
        from ..models.load_decoder import texts_of
        from ..training.data import end_of, read_blocks

        kept = self.folder / "data.safetensors"
        if kept.is_file():
            self.blocks = Blocks.load(kept)
            return
        tokenizer, _ = texts_of(self.source)
        o = self.o
        how = DataOptions(
            o.data, o.eval_data, o.read, o.seq_len, o.prefix_tokens, tokens_of(o), o.eval_tokens, o.end_token, o.seed
        )
        for event in read_blocks(how, tokenizer, end_of(tokenizer, self.config, o.end_token)):
            if isinstance(event, Blocks):
                self.blocks = event
            else:
                yield event
        if self.folder.is_dir() and rank() == 0:
            self.blocks.save(kept.with_suffix(".part"))
            kept.with_suffix(".part").rename(kept)

    def build(self) -> None:
        """The model in memory, with one stream, equal to the base.

        Raises:
            QwenchError: it is not.
        """
        from .model import build, equals_base

        whole = self.o.train == "all"
        self.model: nn.Module = build(
            self.config, self.plan, "float32" if whole else self.dtype.value, self.device.value
        )
        ids = self.blocks.held_out[:1, :64].long().to(self.device.value)
        if not equals_base(self.model, self.config, ids):
            raise QwenchError("with one stream the model does not give the base's own logits", "please report it")

    def prepare(self, streams: int) -> nn.Module:
        """Give the model its streams, freeze what is not trained; returns what the Trainer is given."""
        from ..training.train import trainee
        from .model import added_parameters, give_streams, reparameterised

        o, lone = self.o, streams == 1
        only = lone and o.train == "added"
        smooth, seed = (0.0 if lone else o.smooth), o.seed
        give_streams(self.model, streams, self.blocks.heads, init=o.init, smooth=smooth, prefix_only=only, seed=seed)
        for parameter in self.model.parameters():
            parameter.requires_grad_(o.train == "all")
        maker = reparameterised(self.model, seed) if o.init == "reparam" and (streams > 1 or only) else None
        for name, parameter in added_parameters(self.model):
            parameter.requires_grad_(maker is None or ".prefix_" not in name)
        return trainee(self.model, maker)

    def train_options(self) -> TrainOptions:
        """What the Trainer is told."""
        o, steps = self.o, steps_of(self.o)

        def every(asked: int | None, share: int) -> int:
            return max(steps // share, 1) if asked is None else asked

        return TrainOptions(
            steps=steps,
            batch=o.batch,
            grad_accum=o.grad_accum,
            lr=o.lr or RATES[o.train],
            schedule=o.schedule,
            warmup=max(steps // 20, 1) if o.warmup is None else o.warmup,
            clip=o.clip,
            save_every=every(o.save_every, 10),
            eval_every=every(o.eval_every, 5),
            log_every=o.log_every or max(steps // 100, 1),
            autocast=o.train == "all" and self.dtype.value == "bfloat16",
            checkpointing=o.gradient_checkpointing,
            frozen=o.train == "added",
            seed=o.seed,
            device=self.device.value.partition(":")[0],
            threads=pick_threads(o.runtime.threads).value,
        )

    def measured(self, name: str) -> Iterator[Event]:
        """Held-out loss of the model as it is, under `name`; what its streams do."""
        from .measure import held_out, streams_apart

        yield Started(f"measure {name}")
        blocks, batch = self.blocks.held_out, self.o.batch
        found = streams_apart(self.model, blocks, max(batch // 2, 1)) or held_out(self.model, blocks, batch)
        self.losses[name] = found
        yield Produced({"event": "measured", "name": name} | {k: v for k, v in found.items() if k != "by_block"})

    def run(self, streams: int, name: str) -> Iterator[Event]:
        """Train one number of streams to its end, or take it from the folder; measures before and after."""
        from safetensors.torch import load_file, save_file

        from ..training.options import trained_state
        from ..training.train import train
        from .measure import held_out

        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        done = folder / "done.safetensors"
        if self.o.train == "all" and streams == 1:
            self.build()
        module = self.prepare(streams)
        if not done.is_file():
            if not (folder / "before.json").is_file():
                self._live(module)
                yield from self.measured(f"{name} untrained")
                (folder / "before.json").write_text(json.dumps(self.losses[f"{name} untrained"]))
            part = self.blocks.held_out[: max(len(self.blocks.held_out) // 4, 1)]

            def evaluate() -> dict[str, float]:
                self._live(module)
                return held_out(self.model, part, self.o.batch)

            yield from train(module, self.blocks.train, evaluate, self.train_options(), folder, name)
            if rank() == 0:
                save_file({n: t.cpu() for n, t in trained_state(module).items()}, folder / "done.part")
                (folder / "done.part").rename(done)
        else:
            state = load_file(done)
            for at, tensor in trained_state(module).items():
                tensor.copy_(state[at])
        if module.maker is not None:
            module.maker.merge()
        self.losses[f"{name} untrained"] = json.loads((folder / "before.json").read_text("utf-8"))
        yield from self.measured(name)

    @staticmethod
    def _live(module: nn.Module) -> None:
        import torch

        if module.maker is not None:
            with torch.no_grad():
                module.maker.live()

    def added(self) -> dict[str, Tensor]:
        """Prefixes and aggregator of the model as it is, copied."""
        from .model import added_parameters

        return {n: p.detach().float().cpu().contiguous().clone() for n, p in added_parameters(self.model)}

    def decoder(self) -> dict[str, Tensor]:
        """The decoder's tensors, where they were trained."""
        from transformers.core_model_loading import revert_weight_conversion

        from .modeling_parscale import is_added

        if self.o.train == "added":
            return {}
        own = {n: p.detach() for n, p in self.model.named_parameters() if not is_added(n)}
        return {n: t.cpu().clone() for n, t in revert_weight_conversion(self.model, own).items()}


def training_dtype(asked: str, device: str, stored: str) -> Choice:
    """bfloat16 where the hardware computes in it, else float32.

    Args:
        asked: auto, float32 or bfloat16.
        stored: dtype of the base's matrices.

    Raises:
        QwenchError: float16, whose range training leaves.
    """
    if asked == "float16":
        raise QwenchError("float16 is too narrow to train in without loss scaling", "use bfloat16 or float32", code=2)
    if asked != "auto":
        return pick_dtype(asked, device, stored)
    found = pick_dtype("auto", device, "bfloat16")
    if found.value == "float32":
        return Choice("float32", "this device has no bfloat16 units")
    return Choice("bfloat16", f"{device} has bfloat16 units; what is trained stays in float32")
