"""What is merged and how: from flags or mergekit's YAML, and back to YAML."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..base.errors import QwenchError
from ..base.paths import local
from .settings import Setting

Parameters = dict[str, Setting]
#: keys of mergekit's YAML that are understood
TOP = ("merge_method", "models", "slices", "base_model", "parameters", "dtype", "out_dtype", "tokenizer_source")
TOP += ("tokenizer", "chat_template", "qwench")


@dataclass(frozen=True, slots=True)
class Part:
    """A model, or some layers of it, and parameters of its own.

    Attributes:
        model: as given; `model+adapter` merges a LoRA first.
        layers: [first, end), None for all.
    """

    model: str
    layers: tuple[int, int] | None = None
    parameters: Parameters = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Slice:
    """Layers of the output, made of as many layers of each part."""

    parts: tuple[Part, ...]
    parameters: Parameters = field(default_factory=dict)
    base: str | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """A merge.

    Attributes:
        method: name of mergekit.
        slices: one for whole models.
        base: the model differences are taken from, or that t = 0 stands for.
        dtype: arithmetic; None for float32 (float64 where an input is).
        out_dtype: None for each tensor's own, as the first model stores it.
        tokenizer: model whose tokenizer is taken, None for the first.
        fold: sequential or tree, for more than two models with a method that takes two.
    """

    method: str
    slices: tuple[Slice, ...]
    base: str | None = None
    parameters: Parameters = field(default_factory=dict)
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer: str | None = None
    fold: str | None = None

    @property
    def models(self) -> list[str]:
        """Every model, the base too, in the order of their first mention."""
        named = [p.model for s in self.slices for p in s.parts] + [s.base for s in self.slices] + [self.base]
        return list(dict.fromkeys(m for m in named if m))

    def sources(self, at: int, model: str | None = None) -> list[Parameters]:
        """Parameters that apply in a slice, the strongest first (mergekit's order)."""
        here = self.slices[at]
        own = [p.parameters for p in here.parts if p.model == model] if model is not None else []
        return [*own, here.parameters, self.parameters]


def from_yaml(path: Path) -> Recipe:
    """mergekit's YAML.

    Raises:
        QwenchError: it cannot be read, or asks for what is not supported, which is named.
    """
    import yaml

    local(path, "the recipe")
    try:
        found = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise QwenchError(f"the recipe cannot be read ({' '.join(str(error).split())}): `{path}`") from error
    if not isinstance(found, dict) or not isinstance(found.get("merge_method"), str):
        raise QwenchError(f"the recipe names no merge_method: `{path}`", "see mergekit's examples")
    if unknown := [key for key in found if key not in TOP]:
        raise QwenchError(f"the recipe has a key that is not supported: `{unknown[0]}`", f"supported: {', '.join(TOP)}")
    if found.get("chat_template") not in (None, "auto"):
        raise QwenchError("the recipe sets a chat_template, which is not supported", "copy it into the result by hand")
    if bool(found.get("models")) == bool(found.get("slices")):
        raise QwenchError(f"the recipe needs either models or slices: `{path}`")
    base = _model(found.get("base_model"))
    if found.get("models"):
        parts = tuple(_part(m, "models") for m in found["models"])
        if base and base not in [p.model for p in parts]:
            parts = (*parts, Part(base))
        slices: tuple[Slice, ...] = (Slice(parts),)
    else:
        slices = tuple(_slice(s) for s in found["slices"])
    own = found.get("qwench") or {}
    return Recipe(
        found["merge_method"],
        slices,
        base,
        found.get("parameters") or {},
        found.get("dtype"),
        found.get("out_dtype"),
        _tokenizer(found, base),
        own.get("fold"),
    )


def _tokenizer(found: dict[str, Any], base: str | None) -> str | None:
    wanted = found.get("tokenizer_source")
    if (more := found.get("tokenizer")) is not None:
        if extra := [k for k in more if k != "source"]:
            raise QwenchError(f"the recipe sets tokenizer.{extra[0]}, which is not supported", "give tokenizer.source")
        wanted = more.get("source")
    if wanted == "union":
        raise QwenchError(
            "tokenizer_source: union is not supported", "give the models one vocabulary first, or use base or a model"
        )
    return base if wanted == "base" else _model(wanted)


def _model(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    try:
        model = value["model"]["path"] if isinstance(value["model"], dict) else value["model"]
        lora = value.get("lora")
        return model if lora is None else f"{model}+{lora['path'] if isinstance(lora, dict) else lora}"
    except (KeyError, TypeError) as error:
        raise QwenchError(f"the recipe names a model in a way that is not understood: `{value}`") from error


def _part(value: Any, where: str) -> Part:
    if not isinstance(value, dict) or "model" not in value:
        raise QwenchError(f"an entry of `{where}` names no model", "write - model: NAME")
    if unknown := [k for k in value if k not in ("model", "parameters", "layer_range")]:
        raise QwenchError(f"an entry of `{where}` has a key that is not supported: `{unknown[0]}`")
    layers = value.get("layer_range")
    fits = isinstance(layers, list) and len(layers) == 2 and all(isinstance(n, int) for n in layers)
    if layers is not None and not (fits and 0 <= layers[0] < layers[1]):
        raise QwenchError(f"not a layer_range: `{layers}`", "write [first, end]")
    return Part(_model(value["model"]) or "", tuple(layers) if layers else None, value.get("parameters") or {})


def _slice(value: Any) -> Slice:
    if not isinstance(value, dict) or not value.get("sources"):
        raise QwenchError("an entry of `slices` has no sources")
    if unknown := [k for k in value if k not in ("sources", "parameters", "base_model")]:
        raise QwenchError(f"an entry of `slices` has a key that is not supported: `{unknown[0]}`")
    parts = tuple(_part(p, "sources") for p in value["sources"])
    if missing := [p for p in parts if p.layers is None]:
        raise QwenchError(f"a source of a slice has no layer_range: `{missing[0].model}`")
    return Slice(parts, value.get("parameters") or {}, _model(value.get("base_model")))


def to_yaml(recipe: Recipe, out_dtype: str) -> str:
    """The same merge as mergekit reads it; a fold of more than two models is a key of our own, which it refuses.

    Args:
        out_dtype: of the result, since mergekit writes one dtype.
    """
    import yaml

    said: dict[str, Any] = {"merge_method": recipe.method}
    whole = len(recipe.slices) == 1 and all(p.layers is None for p in recipe.slices[0].parts)
    if whole:
        said["models"] = [_entry(p) for p in recipe.slices[0].parts]
    else:
        said["slices"] = [
            {"sources": [_entry(p) for p in s.parts]}
            | ({"parameters": s.parameters} if s.parameters else {})
            | ({"base_model": s.base} if s.base else {})
            for s in recipe.slices
        ]
    if recipe.base:
        said["base_model"] = recipe.base
    if recipe.parameters:
        said["parameters"] = recipe.parameters
    said |= {"dtype": recipe.dtype or "float32", "out_dtype": recipe.out_dtype or out_dtype}
    if recipe.tokenizer:
        said["tokenizer_source"] = recipe.tokenizer
    if recipe.fold:
        said["qwench"] = {"fold": recipe.fold}
    text = yaml.safe_dump(said, sort_keys=False, default_flow_style=None, allow_unicode=True)
    return re.sub(r"\n+$", "\n", text)


def _entry(part: Part) -> dict[str, Any]:
    found: dict[str, Any] = {"model": part.model}
    if part.layers:
        found["layer_range"] = list(part.layers)
    if part.parameters:
        found["parameters"] = part.parameters
    return found
