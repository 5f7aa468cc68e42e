"""What `qwench convert` will write: options and checkpoint become a plan, from headers and config alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..base.errors import QwenchError
from ..base.runtime import Runtime
from ..checkpoint.adapter import Adapter
from ..checkpoint.cast import pieces, same_bits
from ..checkpoint.gates import GATES, apply_gates
from ..checkpoint.gates import LAYOUTS as GATE_LAYOUTS
from ..checkpoint.gguf_arch import TYPES, names_of
from ..checkpoint.gguf_blocks import BLOCKS, PLAIN
from ..checkpoint.gguf_plan import to_gguf
from ..checkpoint.gguf_reader import GgufReader
from ..checkpoint.heads import HEADS, SCORE, to_classifier, to_embedding, to_lm, to_reward, untied
from ..checkpoint.layout import EMBEDDING, LAYOUTS, LM_HEAD, PREFIX, layout_of, renamed
from ..checkpoint.lora import merge_adapters
from ..checkpoint.plan import Output, Plan, parse_size, shards_of
from ..checkpoint.reader import Source
from ..checkpoint.sidecars import ST_FILES, as_json, embedding_files, modules_of, read_json, side_files, with_end_token
from ..checkpoint.tensors import FLOATS, TensorInfo
from ..checkpoint.whole import whole
from ..models.hub import adapter_folder
from ..models.rerank_template import read_template
from ..models.tokenizer import TextTokenizer
from ..text.prompts import EMBED_DEFAULT_TASK, EMBED_EOS, RERANK_NO, RERANK_YES, embed_query_prompt
from .adapted import MAKES_SCORE, adapted, tokenizers

FORMATS = {"safetensors": ("model", ".safetensors"), "bin": ("pytorch_model", ".bin"), "gguf": ("model", ".gguf")}
VERIFY = ("none", "bits", "logits")


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """Everything `qwench convert` can be told; names equal the flags.

    Attributes:
        src: folder, weight file, hub id or packaged name.
        to: safetensors, bin or gguf; None keeps the format, except that GGUF becomes safetensors, and an `out` that
            ends in .gguf says gguf.
        dtype: auto keeps each tensor's; else all float tensors are cast; GGUF has block formats too, such as q8_0.
        max_shard_size: bytes, such as `5GB`.
        layout: prefixed or flat names; None keeps them.
        head: lm, embedding, reranker (sequence classifier) or reward; None keeps it.
        labels: of the reranker classifier, 1 or 2.
        lora: adapter folders, merged in this order.
        gate: headwise or elementwise attention gates to insert; None keeps what is there.
        gate_layout: stock (what transformers' Qwen3-Next reads) or fork (as published); None keeps it.
        untie: write a tied head as a tensor of its own.
        verify: bits reads everything again and compares; logits asks both models the same.
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
    runtime: Runtime = field(default_factory=Runtime)


def plan_conversion(source: Source, options: ConvertOptions, layers: bool = True) -> Plan:
    """What will be written, from headers and config alone.

    Every step reads the plan as the steps before it left it: a head made of others' rows is made of merged ones.

    Args:
        layers: refuse a checkpoint that lacks tensors of a layer.

    Raises:
        QwenchError: options that do not fit the checkpoint, or a checkpoint that is not whole.
    """
    _check(options)
    config = source.config()
    whole(source, config, layers)
    plan = Plan([], notes=list(source.problems))
    if source.quantised:
        plan.notes.append(source.quantised.note)
    to = target_format(source, options)
    dtype = None if options.dtype == "auto" or to == "gguf" else options.dtype
    if isinstance(source.reader, GgufReader):
        dtype = _from_gguf(source, source.reader, plan, options, dtype)
    if source.reader.format == "safetensors":
        plan.metadata = {k: v for k, v in source.reader.metadata.items() if k != "format"}
        if plan.metadata and to != "safetensors":
            plan.notes.append(f"left behind with the .safetensors files: their metadata ({', '.join(plan.metadata)})")
    plan.outputs = [_output(source, info, options, dtype) for info in source.infos.values()]
    config = _tied(source, config, plan, options)
    kind = config.get("model_type")
    adapters = [Adapter(adapter_folder(name, options.runtime.offline), kind) for name in options.lora]
    if adapters:
        config = adapted(config, plan, options.head, adapters)
    if options.head:
        config = _headed(source, config, plan, options, dtype, any(SCORE in a.touched for a in adapters))
        late = [a for a in adapters if SCORE in a.touched]
        if late and options.head in MAKES_SCORE:
            merge_adapters(plan, late, False, (SCORE,))
    if options.gate or options.gate_layout:
        if options.lora:
            raise QwenchError("--lora and --gate cannot go together", "merge the adapter first, then add gates", code=2)
        config = apply_gates(source, config, plan, options.gate, options.gate_layout or "stock")
    stem, suffix = FORMATS[to]
    plan.copies, plan.left = side_files(source)
    tokenizers(source, plan, adapters)
    _sides(source, config, plan, options, dtype)
    if to == "gguf":
        ranks = any(o.name == SCORE for o in plan.outputs)
        prompt = read_template(source.folder).filled("{query}", "{document}") if ranks else ""
        to_gguf(source, config, plan, options.dtype, stem + suffix, prompt)
    else:
        plan.shards = shards_of(plan.outputs, parse_size(options.max_shard_size), stem, suffix)
    plan.check(list(source.infos))
    return plan


def target_format(source: Source, options: ConvertOptions) -> str:
    """safetensors, bin or gguf.

    Raises:
        QwenchError: `out` and `to` do not fit together.
    """
    named = options.out.endswith(".gguf")
    to = options.to or ("gguf" if named else source.reader.format.replace("gguf", "safetensors"))
    if named != (to == "gguf"):
        raise QwenchError(
            f"a GGUF model is one file that ends in .gguf, and --to is {to}: `{options.out}`",
            "name the output model.gguf" if to == "gguf" else "name a folder",
            code=2,
        )
    if options.dtype in BLOCKS and to != "gguf":
        raise QwenchError(f"--dtype {options.dtype} is for GGUF", "name the output model.gguf", code=2)
    return to


def _from_gguf(
    source: Source, reader: GgufReader, plan: Plan, options: ConvertOptions, dtype: str | None
) -> str | None:
    """Files rebuilt from what the GGUF file says; the dtype of the tensors unless one was asked for."""
    if not source.config():
        raise QwenchError(
            f"the GGUF architecture `{reader.arch}` is not known here: `{source.path}`", "known: " + ", ".join(TYPES)
        )
    if options.head or options.lora or options.gate or options.layout:
        raise QwenchError(
            "--head, --lora, --gate and --layout need a checkpoint with its tokenizer and names",
            f"convert the file first: qwench convert {source.path} folder",
            code=2,
        )
    kinds = sorted({k for k in reader.stored.values() if k not in PLAIN})
    if kinds:
        plan.notes.append(f"blocks of {', '.join(kinds)} become float32 values before anything else")
    if target_format(source, options) == "gguf":
        return None
    plan.side |= reader.sides()
    if left := reader.left_behind():
        plan.notes.append(f"metadata of the GGUF file that is left behind: {names_of(left)}")
    return dtype or reader.exact()


def _check(options: ConvertOptions) -> None:
    for flag, value, known in (
        ("--to", options.to, tuple(FORMATS)),
        ("--dtype", options.dtype, ("auto", *FLOATS, *BLOCKS)),
        ("--layout", options.layout, LAYOUTS),
        ("--head", options.head, HEADS),
        ("--labels", options.labels, (1, 2)),
        ("--gate", options.gate, GATES),
        ("--gate-layout", options.gate_layout, GATE_LAYOUTS),
        ("--verify", options.verify, VERIFY),
    ):
        if value is not None and value not in known:
            raise QwenchError(f"unknown {flag}: `{value}`", "use " + ", ".join(map(str, known)), code=2)


def _output(source: Source, info: TensorInfo, options: ConvertOptions, wanted: str | None) -> Output:
    layout = options.layout
    if layout is None and options.head in ("reranker", "reward", "lm"):
        # Only an embedding model may go without the prefix: with a head beside it, transformers asks for it.
        layout = "prefixed" if layout_of(source.infos) == "flat" else None
    name = renamed(info.name, layout)
    dtype = wanted if wanted and info.is_float else info.dtype
    scheme = source.quantised.stored.get(info.name) if source.quantised else None
    did = [f"dequantised from {scheme}"] if scheme else []
    did += [f"cast from {info.dtype}"] if dtype != info.dtype else []
    did += [f"renamed from `{info.name}`"] if name != info.name else []
    return Output(
        name,
        info.shape,
        dtype,
        (info.name,),
        ", ".join(did) or "copied",
        lambda losses: pieces(info.name, source.reader.load(info.name), dtype, losses),
        lambda index: source.reader.load(info.name)[index],
    )


def _headed(
    source: Source, config: dict[str, Any], plan: Plan, options: ConvertOptions, dtype: str | None, trained: bool
) -> dict[str, Any]:
    if layout_of(source.infos) is None:
        raise QwenchError(f"--head is for decoders, and this has no `{EMBEDDING}`: `{source.path}`")
    if options.head == "embedding":
        return to_embedding(config, plan)
    if options.head == "reward":
        return to_reward(config, plan, dtype, trained)
    yes, no = TextTokenizer.load(source.folder).single_ids((RERANK_YES, RERANK_NO), source.folder)
    if options.head == "reranker":
        return to_classifier(config, plan, yes, no, options.labels, dtype)
    return to_lm(config, plan, yes, no)


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
        if head is None and not tied and causal and options.head not in ("embedding", "reward"):
            plan.notes.append(f"config.json says the head is not tied, and there is no `{LM_HEAD}`")
        return config
    if head is not None and head in plan.outputs:
        return config | {"tie_word_embeddings": False}
    untied(plan)
    return config | {"tie_word_embeddings": False}


def _sides(source: Source, config: dict[str, Any], plan: Plan, options: ConvertOptions, dtype: str | None) -> None:
    if config:
        if dtype:
            key = "torch_dtype" if "torch_dtype" in config and "dtype" not in config else "dtype"
            config = config | {key: dtype}
        if isinstance(source.reader, GgufReader) or config != read_json(source.folder / "config.json", {}):
            plan.side["config.json"] = as_json(config)
    if options.head == "embedding":
        length = int(config.get("max_position_embeddings", 32768))
        plan.side |= embedding_files(config["hidden_size"], length, embed_query_prompt(EMBED_DEFAULT_TASK, ""))
        file = source.folder / "tokenizer.json"
        if file.is_file():
            plan.side["tokenizer.json"] = as_json(with_end_token(read_json(file), EMBED_EOS))
        else:
            plan.notes.append(f"no tokenizer.json to append `{EMBED_EOS}` in; texts must be ended by hand")
    elif isinstance(source.reader, GgufReader):
        if source.reader.pooling == "last" and SCORE not in source.infos:
            length = int(config["max_position_embeddings"])
            plan.side |= embedding_files(config["hidden_size"], length, embed_query_prompt(EMBED_DEFAULT_TASK, ""))
            plan.notes.append("the file pools the last token: the files of an embedding model are written beside it")
    elif options.head:
        for name in [n for n in plan.copies if n in ST_FILES or n.split("/")[0] in ("1_Pooling", "2_Normalize")]:
            plan.copies.remove(name)
            plan.left.append(name)
    else:
        # Modules such as Normalize can be folders without a file.
        folders = {m.get("path") for m in modules_of(source.folder)} - {"", None}
        plan.side |= {f: None for f in sorted(folders) if (source.folder / f).is_dir()}
    plan.copies = [n for n in plan.copies if n not in plan.side]
    plan.left.sort()
