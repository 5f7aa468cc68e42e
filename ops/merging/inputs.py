"""The models of a merge: read through the plan a conversion would have, so that every format and LoRA is an input."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint.layout import EMBEDDING, LM_HEAD, PREFIX
from ..checkpoint.plan import Output, Plan
from ..checkpoint.reader import Source
from ..checkpoint.sidecars import TEMPLATES, TOKENIZER_FILES, json_of
from ..checkpoint.tensors import TensorInfo

if TYPE_CHECKING:
    from torch import Tensor

_LAYER = re.compile(r"^(.*?\blayers?\.)(\d+)(\..*)$")


def bare(name: str) -> str:
    """A tensor's name without the prefix, the same in flat and prefixed checkpoints."""
    return name.removeprefix(PREFIX)


def layer_of(name: str) -> int | None:
    """Number of the layer a bare name is of."""
    found = _LAYER.match(name)
    return int(found[2]) if found else None


def at_layer(name: str, layer: int) -> str:
    """The name of the same tensor in another layer."""
    return _LAYER.sub(lambda m: f"{m[1]}{layer}{m[3]}", name)


@dataclass(frozen=True, slots=True)
class Head:
    """What the headers say of a model, for a look before it is downloaded."""

    model: str
    config: dict[str, Any]
    outputs: dict[str, TensorInfo]
    tokenizer_hash: str | None = None
    vocabulary: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, model: str, config: dict[str, Any], infos: Mapping[str, TensorInfo]) -> Head:
        """A tied head that is stored all the same is left out: it is dropped later where it is a copy."""
        tied = config.get("tie_word_embeddings", False)
        return cls(model, config, {bare(n): i for n, i in infos.items() if not (tied and n == LM_HEAD)})


class Input:
    """One model.

    Args:
        model: as the user gave it.
        plan: of an unchanged copy, adapters merged.
        adapters: files of theirs.

    Attributes:
        outputs: its tensors by bare name.
        layers: number of layers.
        files: that its tensors come from.
    """

    def __init__(self, model: str, source: Source, plan: Plan, adapters: Iterable[Path] = ()) -> None:
        self.model, self.source, self.plan = model, source, plan
        self.outputs: dict[str, Output] = {bare(o.name): o for o in plan.outputs}
        self.layers = 1 + max((n for n in map(layer_of, self.outputs) if n is not None), default=-1)
        self.config: dict[str, Any] = source.config()
        self.files = [*source.files, *adapters]

    def tensor(self, name: str) -> Tensor:
        """A whole tensor by its bare name, a view of the mapped file where it is stored as it is."""
        import torch

        output = self.outputs[name]
        if output.action == "copied":
            return self.source.reader.load(output.sources[0])
        return torch.cat(list(output.pieces(None))).view(output.shape)

    def labels(self, name: str) -> list[str]:
        """What its tensors are called in a plan of several models."""
        return [f"{self.model}: {source}" for source in self.outputs[name].sources]

    @property
    def inputs(self) -> list[str]:
        """Labels of everything that is stored."""
        return [f"{self.model}: {name}" for name in self.source.infos]

    @cached_property
    def tokenizer_hash(self) -> str | None:
        """Hash of tokenizer.json; None where there is no such file."""
        content = self.side("tokenizer.json")
        return None if content is None else hashlib.sha256(content).hexdigest()

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """token -> id, of tokenizer.json."""
        found = json_of(self.side("tokenizer.json") or b"{}", self.source.folder / "tokenizer.json")
        model = found["model"].get("vocab", {}) if found else {}
        ids = dict(model) if isinstance(model, dict) else {entry[0]: i for i, entry in enumerate(model)}
        return ids | {t["content"]: t["id"] for t in found.get("added_tokens", [])}

    def side(self, name: str) -> bytes | None:
        """A side file's content as it would be written, None when it is not there."""
        if self.plan.side.get(name) is not None:
            return self.plan.side[name]
        path = self.source.folder / name
        return path.read_bytes() if self.source.path.is_dir() and path.is_file() else None

    def texts(self) -> list[str]:
        """Names of its tokenizer's files and templates."""
        there = {*self.plan.copies, *(n for n, v in self.plan.side.items() if v is not None)}
        return sorted(n for n in there if of_tokenizer(n))


def of_tokenizer(name: str) -> bool:
    """A side file is part of the tokenizer, or a template of chats."""
    return name in TOKENIZER_FILES or name.startswith(f"{TEMPLATES}/")


def share_heads(models: Sequence[Input | Head]) -> None:
    """Where one model has a head of its own, those that tie theirs to the embeddings bring those rows for it."""
    if not any(LM_HEAD in m.outputs for m in models):
        return
    for model in models:
        held = model.outputs.get(EMBEDDING)
        if held is not None and LM_HEAD not in model.outputs and model.config.get("tie_word_embeddings"):
            model.outputs[LM_HEAD] = replace(held, name=LM_HEAD)
