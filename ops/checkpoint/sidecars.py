"""The files around the weights: what goes along, and what a kind of model needs beside it."""

from __future__ import annotations

import json
import os
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from ..base.errors import QwenchError
from ..base.fields import AGAIN
from ..base.parse import parse_json
from .impostors import genuine, impostor
from .schemas import fields_of
from .tensors import NO_WEIGHTS, WEIGHT_SUFFIXES

if TYPE_CHECKING:
    from .reader import Source

#: side files above this size are left out, and named
LARGEST = 64 << 20
#: files of the sentence-transformers layout
ST_FILES = ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json")
#: what a tokenizer is made of, its templates too
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
TOKENIZER_FILES += ("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "chat_template.jinja")
TOKENIZER_FILES += ("chat_template.json",)
TEMPLATES = "additional_chat_templates"
#: where ModelOpt says how it quantised, of no use beside matrices that are whole again
QUANTISED = "hf_quant_config.json"
_SKIPPED_FOLDERS = ("onnx", "openvino", "runs", "wandb", "__pycache__")


def side_files(source: Source) -> tuple[list[str], list[str]]:
    """(relative paths to copy, relative paths left out), for a checkpoint folder; nothing for a lone file.

    Weights of sub-folders that modules.json names (dense layers) go along, and the adapters of parallel streams; other
    weights, hidden files, checkpoints of a training run and its logs do not.
    """
    if not source.path.is_dir():
        return [], []
    modules = {m.get("path") for m in modules_of(source.folder)} - {"", None}
    if "parscale_n" in source.config():
        modules.add("adapters")
    copies: list[str] = []
    left: list[str] = []
    seen: set[str] = set()
    # Folders may be links; one that leads back to where the walk has been is left alone.
    for folder, folders, files in os.walk(source.folder, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:
            folders[:] = []
            continue
        seen.add(real)
        inner = Path(folder).relative_to(source.folder).as_posix()
        top = inner.split("/")[0]
        skip = [d for d in folders if d.startswith((".", "checkpoint-")) or d in _SKIPPED_FOLDERS]
        left += [f"{inner}/{d}/".removeprefix("./") for d in skip if not d.startswith(".")]
        folders[:] = sorted(d for d in folders if d not in skip)
        for name in sorted(files):
            path = name if inner == "." else f"{inner}/{name}"
            if name.startswith(".") or name.endswith(".index.json"):
                continue
            if path == QUANTISED and source.quantised:
                left.append(path)
                continue
            if not (Path(folder) / name).exists():
                raise QwenchError(f"a file of the model is a link to nothing: `{Path(folder) / name}`", AGAIN)
            size = (Path(folder) / name).stat().st_size
            weight = name.endswith(WEIGHT_SUFFIXES) or name in NO_WEIGHTS
            if inner == "." and (Path(folder) / name) in source.files:
                continue
            if top not in modules and (weight or size > LARGEST):
                left.append(path)
            else:
                if not name.endswith((".html", ".htm", ".xml", ".svg")):
                    genuine(Path(folder) / name)
                copies.append(path)
    return copies, left


def read_json(path: Path, default: Any = None) -> Any:
    """A JSON file, `default` when it is not there.

    Raises:
        QwenchError: it is there and cannot be parsed (see `json_of`), or it is not there and has no default.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        if default is None:
            raise QwenchError(f"the model folder lacks a file: `{path}`", AGAIN) from None
        return fields_of(default, path)
    except OSError as error:
        raise QwenchError(f"cannot be read ({error.strerror}): `{path}`", AGAIN) from error
    try:
        return json_of(data, path)
    except QwenchError as error:
        if odd := impostor(path):
            raise odd from error
        raise


def json_of(data: bytes | str, file: Path | str) -> Any:
    """The JSON of a file of a model, its known fields checked as they are read (see `schemas`).

    Raises:
        QwenchError: it cannot be parsed, or is a list and should be an object, or the other way round.
    """
    return fields_of(parse_json(data, str(file)), file)


def modules_of(folder: Path) -> list[dict[str, Any]]:
    """modules.json of a folder, empty where there is none.

    Raises:
        QwenchError: it cannot be read, or a module lies outside the folder.
    """
    file = folder / "modules.json"
    found = read_json(file, [])
    for module in found:
        if not inside(module.get("path", "")):
            raise QwenchError(f"a module lies outside the model folder: `{module['path']}` in `{file}`", AGAIN)
    return found


def inside(path: str) -> bool:
    """A relative path that does not climb out of its folder."""
    return not PurePosixPath(path).is_absolute() and ".." not in PurePosixPath(path).parts and "\0" not in path


def as_json(value: Any) -> bytes:
    """The way transformers writes its files."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def embedding_files(dim: int, max_length: int, query_prompt: str) -> dict[str, bytes | None]:
    """The sentence-transformers files of a last-token embedder with normalised vectors."""
    kinds = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    names = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    modes = {f"pooling_mode_{name}": name == "lasttoken" for name in names}
    prompts = {"query": query_prompt, "document": ""}
    return {
        "modules.json": as_json(modules),
        "1_Pooling/config.json": as_json({"word_embedding_dimension": dim, **modes, "include_prompt": True}),
        "2_Normalize": None,
        "sentence_bert_config.json": as_json({"max_seq_length": max_length, "do_lower_case": False}),
        "config_sentence_transformers.json": as_json(
            {"prompts": prompts, "default_prompt_name": None, "similarity_fn_name": "cosine"}
        ),
    }


def with_end_token(tokenizer: dict[str, Any], token: str) -> dict[str, Any]:
    """A tokenizer.json that appends `token` to every text, as last-token embedders read it.

    Raises:
        QwenchError: the vocabulary has no such token.
    """
    found: int | None = next((t["id"] for t in tokenizer.get("added_tokens", []) if t["content"] == token), None)
    if found is None:
        raise QwenchError(f"the tokenizer has no `{token}` to end texts with", "use a tokenizer of the Qwen family")
    before = tokenizer.get("post_processor")
    if token in json.dumps(before or {}):
        return tokenizer
    end = {"SpecialToken": {"id": token, "type_id": 0}}
    a, b = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    template = {
        "type": "TemplateProcessing",
        "single": [a, end],
        "pair": [a, b, end],
        "special_tokens": {token: {"id": token, "ids": [found], "tokens": [token]}},
    }
    parts = [before, template] if before else [template]
    return tokenizer | {"post_processor": {"type": "Sequence", "processors": parts}}
