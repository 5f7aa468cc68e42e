"""One checkpoint in, another out: the work behind `qwench convert`.

A plan names every tensor before the first byte is read; tensors then stream from mapped files to where they belong,
and the output appears in one step.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .checkpoint.cast import Losses, pieces, same_bits
from .checkpoint.gates import GATES, apply_gates
from .checkpoint.gates import LAYOUTS as GATE_LAYOUTS
from .checkpoint.heads import HEADS, to_classifier, to_embedding, to_lm, to_reward
from .checkpoint.layout import EMBEDDING, LAYOUTS, LM_HEAD, PREFIX, layout_of, renamed
from .checkpoint.lora import Adapter, adapter_file, merge_adapters
from .checkpoint.plan import Output, Plan, parse_size, shards_of
from .checkpoint.reader import Source
from .checkpoint.sidecars import ST_FILES, as_json, embedding_files, read_json, side_files, with_end_token
from .checkpoint.staging import Staging
from .checkpoint.tensors import FLOATS, TensorInfo
from .checkpoint.writer import check_room, verify_bits, write_sides, write_tensors
from .errors import QwenchError
from .events import Advanced, Events, Finished, Started, Warned
from .models.device import pick_threads
from .models.hub import open_source
from .models.tokenizer import TextTokenizer
from .text.prompts import EMBED_DEFAULT_TASK, EMBED_EOS, RERANK_NO, RERANK_YES, embed_query_prompt

FORMATS = {"safetensors": ("model", ".safetensors"), "bin": ("pytorch_model", ".bin")}
VERIFY = ("none", "bits")


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """Everything `qwench convert` can be told; names equal the flags.

    Attributes:
        src: folder, weight file, hub id or packaged name.
        to: safetensors or bin; None keeps the format.
        dtype: auto keeps each tensor's; else all float tensors are cast.
        max_shard_size: bytes, such as `5GB`.
        layout: prefixed or flat names; None keeps them.
        head: lm, embedding, reranker (sequence classifier) or reward; None keeps it.
        labels: of the reranker classifier, 1 or 2.
        lora: adapter folders, merged in this order.
        gate: headwise or elementwise attention gates to insert; None keeps what is there.
        gate_layout: stock (what transformers' Qwen3-Next reads) or fork (as published); None keeps it.
        untie: write a tied head as a tensor of its own.
        verify: bits reads everything again and compares.
        allow_nan: convert although a tensor holds NaN.
    """

    src: str
    out: str
    to: str | None = None
    dtype: str = "auto"
    max_shard_size: str = "5GB"
    layout: str | None = None
    head: str | None = None
    labels: int = 1
    lora: tuple[str, ...] = ()
    gate: str | None = None
    gate_layout: str | None = None
    untie: bool = False
    verify: str = "none"
    allow_nan: bool = False
    resume: bool = False
    force: bool = False
    threads: int = 0
    revision: str | None = None
    offline: bool = False


def plan_conversion(source: Source, options: ConvertOptions) -> Plan:
    """What will be written, from headers and config alone.

    Raises:
        QwenchError: options that do not fit the checkpoint.
    """
    _check(options)
    config = read_json(source.folder / "config.json", {})
    plan = Plan([], notes=list(source.problems))
    plan.outputs = [_output(source, info, options) for info in source.infos.values()]
    dtype = None if options.dtype == "auto" else options.dtype
    if options.head:
        config = _headed(source, config, plan, options, dtype)
    config = _tied(source, config, plan, options)
    if options.gate or options.gate_layout:
        if options.lora:
            raise QwenchError("--lora and --gate cannot go together", "merge the adapter first, then add gates", code=2)
        config = apply_gates(source, config, plan, options.gate, options.gate_layout or "stock")
    if options.lora:
        tied = not any(o.name == LM_HEAD for o in plan.outputs)
        merge_adapters(source, plan, [Adapter(Path(folder)) for folder in options.lora], tied)
    plan.check(list(source.infos))
    stem, suffix = FORMATS[options.to or source.reader.format]
    plan.shards = shards_of(plan.outputs, parse_size(options.max_shard_size), stem, suffix)
    plan.copies, plan.left = side_files(source)
    _sides(source, config, plan, options, dtype)
    return plan


def _check(options: ConvertOptions) -> None:
    for flag, value, known in (
        ("--to", options.to, tuple(FORMATS)),
        ("--dtype", options.dtype, ("auto", *FLOATS)),
        ("--layout", options.layout, LAYOUTS),
        ("--head", options.head, HEADS),
        ("--labels", options.labels, (1, 2)),
        ("--gate", options.gate, GATES),
        ("--gate-layout", options.gate_layout, GATE_LAYOUTS),
        ("--verify", options.verify, VERIFY),
    ):
        if value is not None and value not in known:
            raise QwenchError(f"unknown {flag}: `{value}`", "use " + ", ".join(map(str, known)), code=2)


def _output(source: Source, info: TensorInfo, options: ConvertOptions) -> Output:
    layout = options.layout
    if layout is None and options.head in ("reranker", "reward", "lm"):
        # Only an embedding model may go without the prefix: with a head beside it, transformers asks for it.
        layout = "prefixed" if layout_of(source.infos) == "flat" else None
    name = renamed(info.name, layout)
    dtype = options.dtype if options.dtype != "auto" and info.is_float else info.dtype
    did = [f"cast from {info.dtype}"] if dtype != info.dtype else []
    did += [f"renamed from `{info.name}`"] if name != info.name else []
    return Output(
        name,
        info.shape,
        dtype,
        (info.name,),
        ", ".join(did) or "copied",
        lambda losses: pieces(info.name, source.reader.load(info.name), dtype, losses),
    )


def _headed(
    source: Source, config: dict[str, Any], plan: Plan, options: ConvertOptions, dtype: str | None
) -> dict[str, Any]:
    if layout_of(source.infos) is None:
        raise QwenchError(f"--head is for decoders, and this has no `{EMBEDDING}`: `{source.path}`")
    if options.head == "embedding":
        return to_embedding(source, config, plan)
    if options.head == "reward":
        return to_reward(source, config, plan, dtype)
    yes, no = TextTokenizer.load(source.folder).single_ids((RERANK_YES, RERANK_NO), source.folder)
    if options.head == "reranker":
        return to_classifier(source, config, plan, yes, no, options.labels, dtype)
    return to_lm(source, config, plan, yes, no)


def _tied(source: Source, config: dict[str, Any], plan: Plan, options: ConvertOptions) -> dict[str, Any]:
    """Keep a tied head tied, or write it out when asked; say where config and tensors disagree."""
    head = next((o for o in plan.outputs if o.name == LM_HEAD), None)
    embedding = next((o for o in plan.outputs if o.name in (EMBEDDING, PREFIX + EMBEDDING)), None)
    tied = bool(config.get("tie_word_embeddings", False))
    if embedding is None:
        return config
    if head is not None and tied:
        if same_bits(*(source.reader.load(o.sources[0]) for o in (head, embedding))):
            plan.outputs.remove(head)
            plan.dropped[head.sources[0]] = f"equal to `{embedding.sources[0]}`, which config.json ties it to"
        else:
            plan.notes.append(f"config.json ties `{LM_HEAD}` to the embeddings, and the tensors differ; both are kept")
    causal = any(a.endswith("ForCausalLM") for a in config.get("architectures") or [])
    if not options.untie:
        if head is None and not tied and causal and options.head != "embedding":
            plan.notes.append(f"config.json says the head is not tied, and there is no `{LM_HEAD}`")
        return config
    if head is not None and head in plan.outputs:
        return config | {"tie_word_embeddings": False}
    name = f"copy of `{embedding.sources[0]}`"
    plan.outputs.append(Output(LM_HEAD, embedding.shape, embedding.dtype, embedding.sources, name, embedding.pieces))
    return config | {"tie_word_embeddings": False}


def _sides(source: Source, config: dict[str, Any], plan: Plan, options: ConvertOptions, dtype: str | None) -> None:
    if config:
        if dtype:
            key = "torch_dtype" if "torch_dtype" in config and "dtype" not in config else "dtype"
            config = config | {key: dtype}
        if config != read_json(source.folder / "config.json", {}):
            plan.side["config.json"] = as_json(config)
    if options.head == "embedding":
        length = int(config.get("max_position_embeddings", 32768))
        plan.side |= embedding_files(config["hidden_size"], length, embed_query_prompt(EMBED_DEFAULT_TASK, ""))
        file = source.folder / "tokenizer.json"
        if file.is_file():
            plan.side["tokenizer.json"] = as_json(with_end_token(read_json(file), EMBED_EOS))
        else:
            plan.notes.append(f"no tokenizer.json to append `{EMBED_EOS}` in; texts must be ended by hand")
    elif options.head:
        for name in [n for n in plan.copies if n in ST_FILES or n.split("/")[0] in ("1_Pooling", "2_Normalize")]:
            plan.copies.remove(name)
            plan.left.append(name)
    else:
        # Modules such as Normalize can be folders without a file.
        folders = {m.get("path") for m in read_json(source.folder / "modules.json", [])} - {"", None}
        plan.side |= {f: None for f in sorted(folders) if (source.folder / f).is_dir()}
    plan.copies = [n for n in plan.copies if n not in plan.side]
    plan.left.sort()


def convert(options: ConvertOptions) -> Events:
    """Convert a checkpoint.

    Yields Warned for what the user should know, Advanced in bytes, and Finished with sizes, losses of casts, what was
    dropped, and the outcome of the verification.

    Raises:
        QwenchError: unreadable input, options that do not fit, output there already, disk too small, NaN.
    """
    begun = time.monotonic()
    source = open_source(options.src, options.revision, options.offline)
    out = Path(os.path.abspath(options.out))
    _apart(source, out)
    plan = plan_conversion(source, options)
    for note in plan.notes:
        yield Warned("note", note)
    adapters = [adapter_file(Path(folder))[0] for folder in options.lora]
    state = {str(f): (f.stat().st_size, f.stat().st_mtime_ns) for f in (*source.files, *adapters)}
    losses, threads = Losses(), pick_threads(options.threads).value
    staging = Staging(out, plan.fingerprint(str(state)), resume=options.resume, force=options.force)
    check_room(plan, out.parent, staging.held())
    with staging:
        resumed = sum(o.nbytes for s in plan.shards for o in s.outputs if {o.name, s.file} & staging.done)
        yield Started("write", plan.nbytes, "B")
        for count in write_tensors(plan, staging, losses, threads, source.reader.release):
            yield Advanced("write", count)
        if losses.nan and not options.allow_nan:
            raise QwenchError(
                f"a tensor holds NaN: `{sorted(losses.nan)[0]}`", "the model is damaged; --allow-nan converts it anyway"
            )
        write_sides(plan, staging, source.folder)
        if options.verify == "bits":
            yield Started("verify", plan.nbytes, "B")
            for name, count, same in verify_bits(plan, staging.part):
                if not same:
                    raise QwenchError(f"what was written differs from the input: `{name}`", "check the disk", code=3)
                yield Advanced("verify", count)
        staging.commit()
    for name, count in losses.overflow.items():
        yield Warned("overflow", f"{count} values of `{name}` became infinite in {options.dtype}", name)
    yield Finished(
        {
            "schema": 1,
            "out": options.out,
            "tensors": len(plan.outputs),
            "bytes": plan.nbytes,
            "shards": len(plan.shards),
            "resumed_bytes": resumed,
            "dropped": plan.to_dict()["dropped"],
            "left_out": plan.left,
            "notes": plan.notes,
            "losses": losses.report() if options.dtype != "auto" else None,
            "verified": options.verify == "bits",
            "seconds": round(time.monotonic() - begun, 3),
        }
    )


def dry_run(options: ConvertOptions) -> Events:
    """The plan: Finished has it tensor by tensor, with the disk it needs and has."""
    import shutil

    source = open_source(options.src, options.revision, options.offline)
    out = Path(os.path.abspath(options.out))
    _apart(source, out)
    plan = plan_conversion(source, options)
    free = shutil.disk_usage(out.parent).free if out.parent.is_dir() else None
    chosen = {k: v for k, v in asdict(options).items() if k not in ("src", "out")}
    result = {"schema": 1, "out": options.out, "format": source.reader.format, "options": chosen, "free": free}
    yield Finished(result | {"shards": len(plan.shards)} | plan.to_dict())


def _apart(source: Source, out: Path) -> None:
    """The output may be neither the input nor inside it.

    Raises:
        QwenchError: it is.
    """
    inside = source.folder.resolve()
    target = out.resolve()
    if source.path.is_dir() and (target == inside or inside in target.parents):
        raise QwenchError(f"the output lies in the input: `{out}`", "write it elsewhere; the input is never changed")
    if target in inside.parents or any(target == f.resolve() for f in source.files):
        raise QwenchError(f"the input lies in the output: `{out}`", "write it elsewhere; the input is never changed")
