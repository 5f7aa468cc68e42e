"""An off-the-shelf decoder becomes a parallel one by short post-training: the work behind `qwench parscale-recycle`."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checkpoint.cast import Losses
from .checkpoint.reader import Source, apart
from .checkpoint.staging import Staging
from .checkpoint.writer import check_room, write_sides, write_tensors
from .convert_plan import ConvertOptions, plan_conversion
from .errors import QwenchError
from .events import Advanced, Chose, Event, Events, Finished, Produced, Started, Warned
from .models.device import Choice, pick_device, pick_dtype, pick_threads
from .models.hub import open_source
from .recycling.data import Blocks, DataOptions
from .recycling.train import SCHEDULES, TrainOptions
from .text.inputs import ReadOptions

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .checkpoint.plan import Plan

INITS = ("prompts", "random", "reparam")
TRAINS = ("added", "all")
#: peak learning rates that went well: fresh tensors bear far more than a trained decoder
RATES = {"added": 1e-2, "all": 1e-5}


@dataclass(frozen=True, slots=True)
class RecycleOptions:
    """Everything `qwench parscale-recycle` can be told; names equal the flags.

    Attributes:
        streams: numbers of streams, each trained over the same decoder.
        tokens: of training for each; steps in its place. warmup: steps, None for a twentieth of them.
        lr: None for RATES. save_every, eval_every: steps; None for a tenth and a fifth of them.
        baseline: train one stream on the same tokens too: a prefix alone, or with train=all the whole decoder.
    """

    model: str
    out: str
    data: tuple[str, ...] = ()
    eval_data: tuple[str, ...] = ()
    read: ReadOptions = field(default_factory=ReadOptions)
    streams: tuple[int, ...] = (4,)
    train: str = "added"
    prefix_tokens: int = 48
    smooth: float = 0.1
    init: str = "prompts"
    tokens: int = 0
    steps: int = 0
    seq_len: int = 512
    batch: int = 4
    grad_accum: int = 1
    lr: float | None = None
    schedule: str = "wsd"
    warmup: int | None = None
    clip: float = 1.0
    save_every: int | None = None
    eval_every: int | None = None
    log_every: int = 0
    eval_tokens: int = 32768
    end_token: str | None = None
    baseline: bool = False
    gradient_checkpointing: bool = False
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    threads: int = 0
    resume: bool = False
    force: bool = False
    revision: str | None = None
    offline: bool = False


def check(o: RecycleOptions) -> None:
    """Options that contradict one another, before anything is read.

    Raises:
        QwenchError: code 2.
    """
    for flag, value, known in (
        ("--train", o.train, TRAINS),
        ("--init", o.init, INITS),
        ("--schedule", o.schedule, SCHEDULES),
    ):
        if value not in known:
            raise QwenchError(f"unknown {flag}: `{value}`", f"use {', '.join(known)}", code=2)
    if not o.streams or min(o.streams) < 2 or len(set(o.streams)) < len(o.streams):
        raise QwenchError("--streams takes numbers from 2 up, each once", "write --streams 4 or --streams 2,4,8", 2)
    if o.train == "all" and len(o.streams) > 1:
        raise QwenchError("--train all makes a decoder of its own for each number of streams", "give one --streams", 2)
    if bool(o.tokens) == bool(o.steps):
        raise QwenchError("say how long to train, once", "add --tokens 20M or --steps 1000", code=2)
    if not 0 <= o.smooth < 1:
        raise QwenchError(f"--smooth is a share from 0 to below 1, not {o.smooth:g}", code=2)
    if o.prefix_tokens < 1 or o.prefix_tokens > o.seq_len:
        raise QwenchError("--prefix-tokens is at least 1 and at most --seq-len", code=2)


def rank() -> int:
    """Number of this process where torchrun or accelerate started several."""
    return int(os.environ.get("RANK", "0"))


def steps_of(o: RecycleOptions) -> int:
    """Steps of the optimiser that the token budget is worth, over all processes."""
    a_step = o.batch * o.grad_accum * o.seq_len * int(os.environ.get("WORLD_SIZE", "1"))
    return o.steps or max(round(o.tokens / a_step), 1)


def tokens_of(o: RecycleOptions) -> int:
    """Tokens that are trained on."""
    return steps_of(o) * o.batch * o.grad_accum * o.seq_len * int(os.environ.get("WORLD_SIZE", "1"))


class Work:
    """A run: its folder OUT.run beside the output, the model in memory, and what was measured so far."""

    def __init__(self, options: RecycleOptions) -> None:
        """Open model and folder.

        Raises:
            QwenchError: output or run there already, no such model, options that do not fit.
        """
        check(options)
        self.o, self.out = options, Path(os.path.abspath(options.out))
        self.folder = self.out.with_name(self.out.name + ".run")
        if self.out.exists() and not options.force:
            raise QwenchError(f"the output is there already: `{self.out}`", "choose another name, or add --force")
        if not self.out.parent.is_dir():
            raise QwenchError(f"the folder of the output is not there: `{self.out.parent}`", "make it first")
        self.source: Source = open_source(options.model, options.revision, options.offline)
        apart(self.source, self.out)
        self.plan = self._plan()
        self.config: dict[str, Any] = json.loads(self.plan.side.get("config.json") or b"null") or self.source.config()
        self.device = pick_device(options.device)
        stored = next((x.dtype for x in self.plan.outputs if len(x.shape) > 1), "float32")
        self.dtype = training_dtype(options.dtype, self.device.value, stored)
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
        note = self.folder / "run.json"
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
            self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise QwenchError(f"another run is at `{self.folder}`", "wait for it to end") from None
            note.write_text(json.dumps({"plan": mark}))

    def close(self) -> None:
        """Let another run at the folder."""
        if self._lock is not None:
            os.close(self._lock)

    def read(self) -> Iterator[Event]:
        """Fill `blocks`: from the run's folder, or from the data."""
        from .models.load_causal import texts_of
        from .recycling.data import end_of, read_blocks

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
        from .recycling.model import build, equals_base

        whole = self.o.train == "all"
        self.model: nn.Module = build(
            self.config, self.plan, "float32" if whole else self.dtype.value, self.device.value
        )
        ids = self.blocks.held_out[:1, :64].long().to(self.device.value)
        if not equals_base(self.model, self.config, ids):
            raise QwenchError("with one stream the model does not give the base's own logits", "please report it")

    def prepare(self, streams: int) -> nn.Module:
        """Give the model its streams, freeze what is not trained; returns what the Trainer is given."""
        from .recycling.model import added_parameters, give_streams, reparameterised
        from .recycling.train import trainee

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
            seed=o.seed,
            device=self.device.value.partition(":")[0],
            threads=pick_threads(o.threads).value,
        )

    def measured(self, name: str) -> Iterator[Event]:
        """Held-out loss of the model as it is, under `name`; what its streams do."""
        from .recycling.measure import held_out, streams_apart

        yield Started(f"measure {name}")
        found = held_out(self.model, self.blocks.held_out, self.o.batch)
        found |= streams_apart(self.model, self.blocks.held_out, max(self.o.batch // 2, 1))
        self.losses[name] = found
        yield Produced({"event": "measured", "name": name} | {k: v for k, v in found.items() if k != "by_block"})

    def run(self, streams: int, name: str) -> Iterator[Event]:
        """Train one number of streams to its end, or take it from the folder; measures before and after."""
        from safetensors.torch import load_file, save_file

        from .recycling.measure import held_out
        from .recycling.train import train, trained_state

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
            self._live(module)
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
        from .recycling.model import added_parameters

        return {n: p.detach().float().cpu().contiguous().clone() for n, p in added_parameters(self.model)}

    def decoder(self) -> dict[str, Tensor]:
        """The decoder's tensors, where they were trained."""
        from transformers.core_model_loading import revert_weight_conversion

        from .models.modeling_parscale import is_added

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


def recycle(options: RecycleOptions) -> Events:
    """Train parallel streams over a decoder and write the result.

    Yields Chose, Warned, Advanced, and Produced rows with `event`: estimate, measured, step, held_out; Finished has the
    losses, the verdict and `helped`.

    Raises:
        QwenchError: see `Work`, `read_blocks`, `train`; disk too small.
    """
    work = Work(options)
    work.open_folder()
    try:
        yield from _recycled(work)
    finally:
        work.close()


def _recycled(work: Work) -> Events:
    begun, options = time.monotonic(), work.o
    yield from _begin(work)
    work.build()
    yield Chose("one stream", "equals the base", "the logits are the same to the bit on held-out text")
    yield Produced({"event": "estimate"} | estimate(work))
    yield from work.measured("base")
    if options.baseline:
        yield from work.run(1, "baseline")
        if options.train == "all":
            work.build()
    kept: dict[int, dict[str, Tensor]] = {}
    for streams in options.streams:
        yield from work.run(streams, f"p{streams}")
        kept[streams] = work.added()
    result = _result(work) | {"seconds": round(time.monotonic() - begun, 3)}
    if rank() == 0:
        yield from _write(work, kept, result)
    yield Finished(result)


def dry_run(options: RecycleOptions) -> Events:
    """What would be done: parameters, cost and time, one step measured; nothing is written."""
    work = Work(options)
    yield from _begin(work)
    work.build()
    yield Finished({"schema": 1, "model": options.model, "out": options.out} | estimate(work))


def _begin(work: Work) -> Iterator[Event]:
    import torch

    threads = pick_threads(work.o.threads)
    torch.set_num_threads(threads.value)
    for name, choice in (("device", work.device), ("dtype", work.dtype), ("threads", threads)):
        yield Chose(name, choice.value, choice.reason)
    _quiet()
    for note in work.plan.notes:
        yield Warned("note", note)
    yield from work.read()
    wanted, there = tokens_of(work.o), work.blocks.train.numel()
    if wanted > there:
        yield Warned(
            "data", f"{there:,} tokens of data for {wanted:,} of training: each is seen {wanted / there:.1f} times"
        )


def _quiet() -> None:
    import logging
    import warnings

    from transformers.utils import logging as library

    library.set_verbosity_error()
    library.disable_progress_bar()
    for name in ("accelerate", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(transformers|accelerate|torch)\b")


def estimate(work: Work) -> dict[str, Any]:
    """Parameters, FLOPs, memory and time of every number of streams; time from one batch measured now."""
    from .models.parscale_size import added_of, base_parameters
    from .models.parscale_train import training_cost
    from .models.scaling_law import PUBLISHED
    from .recycling.loss import ROOM

    o, rows = work.o, []
    counts = base_parameters(work.config)
    kept = 2 if work.dtype.value == "bfloat16" and o.train == "added" else 4
    for streams in o.streams:
        module = work.prepare(streams)
        seconds = _one_batch(work, module)
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
                "seconds": round(seconds * steps_of(o) * o.grad_accum, 1),
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
        "note": "predicted_gain is the scaling law of arXiv 2505.10475 for pre-training, in nats a token: no promise",
    }


def _one_batch(work: Work, module: nn.Module) -> float:
    """Seconds of one forward and backward pass."""
    import torch

    ids = work.blocks.train[: work.o.batch].to(work.device.value)
    for _ in range(2):
        begun = time.perf_counter()
        module.train()(ids)["loss"].backward()
        if work.device.value.startswith("cuda"):
            torch.cuda.synchronize()
        seconds = time.perf_counter() - begun
    module.zero_grad(set_to_none=True)
    return seconds


def _result(work: Work) -> dict[str, Any]:
    from .recycling.measure import gain

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


def _write(work: Work, kept: dict[int, dict[str, Tensor]], result: dict[str, Any]) -> Iterator[Event]:
    from .checkpoint.sidecars import as_json
    from .plots import recycle_curves
    from .recycling.save import adapter_bytes, adapter_name, finish_plan, model_card
    from .recycling.train import history

    o, plan = work.o, work.plan
    said = {"parscale_n_tokens": o.prefix_tokens, "parscale_attn_smooth": o.smooth}
    best = result["streams"]
    finish_plan(plan, work.config, {"parscale_n": best} | said, kept[best], work.decoder())
    for streams, tensors in kept.items() if o.train == "added" else ():
        plan.side[adapter_name(streams)] = adapter_bytes(tensors, {"parscale_n": streams} | said)
    runs = {f.name: history(f) for f in sorted(work.folder.iterdir()) if f.is_dir()}
    plan.side["README.md"] = model_card(result).encode()
    plan.side["recycle.json"] = as_json(result | {"history": runs})
    picture = work.folder / "loss.png"
    try:
        recycle_curves(runs, {r["name"]: r["loss"] for r in result["losses"]}, o.model, picture)
        plan.side["loss.png"] = picture.read_bytes()
    except QwenchError as error:
        yield Warned("plot", f"the curves are not drawn: {error.message}")
    plan.copies = [n for n in plan.copies if n not in plan.side]
    # Any part there is of an earlier end of this very run: it is cheap to write again.
    staging = Staging(work.out, plan.fingerprint(""), resume=False, force=True, files=plan.files)
    check_room(plan, work.out.parent, staging.held())
    with staging:
        yield Started("write", plan.nbytes, "B")
        for count in write_tensors(plan, staging, Losses(), pick_threads(o.threads).value, work.source.reader.release):
            yield Advanced("write", count)
        write_sides(plan, staging.part, work.source.folder)
        staging.commit()
    shutil.rmtree(work.folder)
