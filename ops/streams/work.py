"""A run of `qwench parscale-recycle`: its folder beside the output, the model in memory, what was measured so far."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.atomic import replacing, write
from ..base.errors import QwenchError
from ..base.events import Event, Produced, Started
from ..base.paths import check_output
from ..checkpoint.reader import Source, apart
from ..conversion.plan import ConvertOptions, plan_conversion
from ..models.device import pick_device, pick_threads
from ..models.hub import open_source
from ..training.data import Blocks, DataOptions
from ..training.options import Feed, TrainOptions
from ..training.precision import training_dtype
from ..training.ranks import rank
from ..training.run_folder import RunFolder
from .options import RATES, RecycleOptions, check, steps_of, tokens_of

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
        self.run_folder = RunFolder(self.out, options.force, options.resume)
        self.folder = self.run_folder.path
        if self.out.exists() and not options.force:
            raise QwenchError(f"the output is there already: `{self.out}`", "choose another name, or add --force")
        check_output(options.out, folder=True)
        self.source: Source = open_source(options.model, options.runtime.revision, options.runtime.offline)
        apart(self.source, self.out)
        self.plan = self._plan()
        self.config: dict[str, Any] = json.loads(self.plan.side.get("config.json") or b"null") or self.source.config()
        check_family(self.config)
        self.device = pick_device(options.runtime.device)
        stored = next((x.dtype for x in self.plan.outputs if len(x.shape) > 1), "float32")
        self.dtype = training_dtype(options.runtime.dtype, self.device.value, stored)
        self.losses: dict[str, dict[str, Any]] = {}

    def _plan(self) -> Plan:
        how = ConvertOptions(self.o.model, self.o.out, to="safetensors", layout=None)
        prefixed = any(n.startswith("model.") for n in self.source.infos) or self.source.reader.format == "gguf"
        return plan_conversion(self.source, how if prefixed else replace(how, layout="prefixed"))

    def open_folder(self) -> None:
        """Make the run's folder, or go on with this very run's; the first process does it for all.

        Raises:
            QwenchError: one is there of other options, or another run is at it.
        """
        own = ("model", "out", "resume", "force", "threads", "offline")
        asked = {k: v for k, v in asdict(self.o).items() if k not in own}
        kept = asked | {"model": self.o.model}
        state = sorted((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in self.source.files)
        job = {k: v for k, v in asked.items() if k != "read"} | asked["read"]
        job["input"] = {name: [size, time] for name, size, time in state}
        self.run_folder.open([kept, state], job)

    @property
    def mark(self) -> str:
        """Hash of what the run is of."""
        return self.run_folder.mark

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
            with replacing(kept, what="the data of the run") as (part,):
                self.blocks.save(part)

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
            lr=RATES[o.train] if o.lr is None else o.lr,
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

    def look(self, blocks: Tensor) -> dict[str, Any]:
        """Held-out loss of blocks, and what streams do where there are some."""
        from .measure import held_out, streams_apart

        batch = self.o.batch
        return streams_apart(self.model, blocks, max(batch // 2, 1)) or held_out(self.model, blocks, batch)

    def measured(self, name: str) -> Iterator[Event]:
        """Held-out loss of the model as it is, under `name`; what its streams do."""
        yield Started(f"measure {name}")
        found = self.look(self.blocks.held_out)
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
        before = folder / "before.json"
        done = folder / "done.safetensors"
        if self.o.train == "all" and streams == 1:
            self.build()
        module = self.prepare(streams)
        if not done.is_file():
            if not before.is_file():
                self._live(module)
                yield from self.measured(f"{name} untrained")
                if rank() == 0:
                    write(before, json.dumps(self.losses[f"{name} untrained"]))
            few = self.blocks.held_out[: max(len(self.blocks.held_out) // 4, 1)]

            def evaluate() -> dict[str, float]:
                self._live(module)
                return held_out(self.model, few, self.o.batch)

            yield from train(module, Feed.of_blocks(self.blocks.train), evaluate, self.train_options(), folder, name)
            if rank() == 0:
                with replacing(done, what="the trained state") as (part,):
                    save_file({n: t.cpu() for n, t in trained_state(module).items()}, part)
        else:
            state = load_file(done)
            for at, tensor in trained_state(module).items():
                tensor.copy_(state[at])
        if module.maker is not None:
            module.maker.merge()
        self.losses[f"{name} untrained"] = json.loads(before.read_text("utf-8"))
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
