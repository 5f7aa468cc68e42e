"""What a checkpoint is, told from its headers and config alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from ..base.errors import QwenchError
from ..checkpoint.adapter import CONFIG, UNKNOWN, adapter_file
from ..checkpoint.gates import Heads, gate_kind
from ..checkpoint.gguf_reader import GgufReader
from ..checkpoint.layout import EMBEDDING, LM_HEAD, PREFIX, layout_of
from ..checkpoint.reader import Source
from ..checkpoint.sidecars import modules_of, read_json
from ..checkpoint.tensors import TensorInfo
from ..checkpoint.unquantised import Unquantised
from ..checkpoint.whole import gaps

#: settings of an adapter that are more than a plain LoRA
_EXTRAS = ("use_rslora", "use_dora", "lora_bias", "modules_to_save", "trainable_token_indices", *UNKNOWN)


def describe(source: Source, tensors: bool = False) -> dict[str, Any]:
    """What `qwench inspect` tells, every tensor too when `tensors`."""
    config = source.config()
    infos = source.infos
    stored = source.reader.stored if isinstance(source.reader, GgufReader | Unquantised) else {}
    by_dtype: Counter[str] = Counter()
    for info in infos.values():
        by_dtype[stored.get(info.name, info.dtype)] += info.numel
    report: dict[str, Any] = {
        "schema": 1,
        "path": str(source.path),
        "format": source.reader.format,
        "architectures": config.get("architectures"),
        "model_type": config.get("model_type"),
        "tensors": len(infos),
        "parameters": sum(by_dtype.values()),
        "bytes": sum(i.nbytes for i in infos.values()),
        "files": [{"name": f.name, "bytes": f.stat().st_size} for f in source.files],
        "dtypes": dict(by_dtype.most_common()),
        "layout": layout_of(infos),
        "quantised": _quantised(source),
        "tied": _tied(source, config),
        "vocabulary": _vocabulary(source, config),
        "head": _head(source, config),
        "gates": _gates(source, config),
        "streams": _streams(source, config),
        "problems": source.problems + _problems(source, config),
        "left_out": source.left_out(),
    }
    if tensors:
        report["tensor_list"] = [_row(i, stored.get(i.name, i.dtype)) for i in infos.values()]
    return report


def _quantised(source: Source) -> list[dict[str, Any]]:
    kinds = source.quantised.kinds() if source.quantised else {}
    return [{"scheme": kind, "matrices": count, "parameters": values} for kind, (count, values) in kinds.items()]


def _embedding(source: Source) -> Any:
    return next((source.infos[n] for n in (PREFIX + EMBEDDING, EMBEDDING) if n in source.infos), None)


def _rows(info: TensorInfo) -> int:
    return info.shape[0] if info.shape else 1


def _tied(source: Source, config: dict[str, Any]) -> dict[str, Any]:
    return {"config": config.get("tie_word_embeddings"), "head_stored": LM_HEAD in source.infos}


def _vocabulary(source: Source, config: dict[str, Any]) -> dict[str, Any] | None:
    """Rows of the embeddings against tokens of the tokenizer: the difference is padding."""
    embedding = _embedding(source)
    if embedding is None:
        return None
    file = source.folder / "tokenizer.json"
    tokens = None
    if isinstance(source.reader, GgufReader):
        tokens = len(source.reader.file.said.get("tokenizer.ggml.tokens", [])) or None
    elif file.is_file():
        tokenizer = read_json(file)
        ids = [t["id"] for t in tokenizer.get("added_tokens", [])]
        vocab = tokenizer.get("model", {}).get("vocab", {})
        ids += vocab.values() if isinstance(vocab, dict) else range(len(vocab))
        tokens = max(ids, default=-1) + 1
    rows = _rows(embedding)
    padding = rows - tokens if tokens is not None else None
    return {"rows": rows, "config": config.get("vocab_size"), "tokenizer": tokens, "padding": padding}


def _head(source: Source, config: dict[str, Any]) -> str:
    modules = [m.get("type", "").rsplit(".", 1)[-1] for m in modules_of(source.folder)]
    if "Pooling" in modules:
        return "embedding"
    name = next((n for n in ("score.weight", "classifier.weight") if n in source.infos), None)
    if name:
        return f"classifier, {_rows(source.infos[name])} labels"
    if LM_HEAD in source.infos:
        return "language model"
    causal = any(a.endswith("ForCausalLM") for a in config.get("architectures") or [])
    if causal and config.get("tie_word_embeddings"):
        return "language model, tied" if layout_of(source.infos) == "prefixed" else "none, or tied: flat names"
    return "none"


def _gates(source: Source, config: dict[str, Any]) -> str | None:
    """headwise or elementwise, by the rows of q_proj (Gated Attention, arXiv 2505.06708)."""
    info = next((i for n, i in source.infos.items() if n.endswith("self_attn.q_proj.weight")), None)
    if info is None or not config.get("num_attention_heads") or not config.get("hidden_size"):
        return None
    try:
        return gate_kind(_rows(info), Heads.of(config))
    except QwenchError as error:
        return f"unknown: {error.message}"


def _streams(source: Source, config: dict[str, Any]) -> int | None:
    """P of a ParScale model (arXiv 2505.10475)."""
    return config.get("parscale_n") if any("prefix_k" in n for n in source.infos) else None


def _problems(source: Source, config: dict[str, Any]) -> list[str]:
    found = []
    if not config:
        found.append("there is no config.json")
    vocabulary = _vocabulary(source, config)
    if vocabulary and vocabulary["config"] not in (None, vocabulary["rows"]):
        found.append(f"config.json has vocab_size {vocabulary['config']} and the embeddings {vocabulary['rows']} rows")
    if vocabulary and vocabulary["padding"] is not None and vocabulary["padding"] < 0:
        found.append(f"the tokenizer has {-vocabulary['padding']} tokens more than the embeddings have rows")
    claimed = config.get("dtype") or config.get("torch_dtype")
    largest = max(source.infos.values(), key=lambda i: i.nbytes, default=None)
    if claimed and largest and largest.is_float and claimed != largest.dtype:
        found.append(f"config.json claims {claimed} and the tensors are {largest.dtype}")
    head = _head(source, config)
    if head == "none" and any(a.endswith("ForCausalLM") for a in config.get("architectures") or []):
        found.append(f"config.json says the head is not tied, and there is no `{LM_HEAD}`")
    found += gaps(list(source.infos), config)
    layers = config.get("num_hidden_layers")
    numbers = {n.split("layers.")[1].split(".")[0] for n in source.infos if "layers." in n}
    if layers is not None and len(numbers) > layers:
        found.append(f"config.json has {layers} layers and the tensors {len(numbers)}")
    return found


def describe_adapter(folder: Path, tensors: bool = False) -> dict[str, Any]:
    """The same of a folder that peft saved: its own tensors, and under `adapter` what it is."""
    config = read_json(folder / CONFIG)
    file, kind = adapter_file(folder)
    infos = kind([file]).infos
    modules = config.get("target_modules") or []
    by_dtype: Counter[str] = Counter()
    for info in infos.values():
        by_dtype[info.dtype] += info.numel
    report: dict[str, Any] = {
        "schema": 1,
        "path": str(folder),
        "format": file.suffix.lstrip("."),
        "architectures": [f"{config.get('peft_type')} adapter of {config.get('base_model_name_or_path')}"],
        "model_type": None,
        "tensors": len(infos),
        "parameters": sum(by_dtype.values()),
        "bytes": sum(i.nbytes for i in infos.values()),
        "files": [{"name": file.name, "bytes": file.stat().st_size}],
        "dtypes": dict(by_dtype.most_common()),
        "head": "none: an adapter",
        "quantised": [],
        "adapter": {
            "type": config.get("peft_type"),
            "base": config.get("base_model_name_or_path"),
            "r": config.get("r"),
            "alpha": config.get("lora_alpha"),
            "modules": sorted(modules) if isinstance(modules, list) else [str(modules)],
            "extras": sorted(k for k in _EXTRAS if config.get(k)),
        },
        "problems": [],
        "left_out": [],
    } | dict.fromkeys(("layout", "tied", "vocabulary", "gates", "streams"))
    return report | ({"tensor_list": [_row(i, i.dtype) for i in infos.values()]} if tensors else {})


def _row(info: TensorInfo, kind: str) -> dict[str, Any]:
    shape = list(info.shape)
    return {"name": info.name, "shape": shape, "dtype": kind, "bytes": info.nbytes, "file": info.file.name}
