"""What is merged and how: from flags or mergekit's YAML, and back to YAML."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..base.errors import QwenchError
from ..base.fields import TEXT, Fields, Kind, either, listed, number, one_of, shown, table, unfit, whole
from ..base.parse import parse_yaml
from ..base.paths import local
from ..checkpoint.tensors import FLOATS
from .reference import NAME, spell
from .settings import Setting, is_setting

Parameters = dict[str, Setting]
#: tokenizer_source for a tokenizer that has every model's tokens
UNION = "union"
#: keys of mergekit's YAML that are understood
TOP = ("merge_method", "models", "slices", "base_model", "parameters", "dtype", "out_dtype", "tokenizer_source")
TOP += ("tokenizer", "chat_template", "modules", "name", "qwench")
HINT = "see mergekit's examples"
#: a name, or mergekit's long form, which `spell` takes apart
MODEL = either(NAME, table())
PART = {"model": MODEL, "parameters": Kind("an object", lambda v: isinstance(v, dict)), "layer_range": listed(whole())}
SLICE = {"sources": listed(table(PART)), "parameters": PART["parameters"], "base_model": MODEL}
MODULE = {"models": listed(table(PART)), "slices": listed(table(SLICE)), "parameters": PART["parameters"]}
RECIPE = MODULE | {
    "merge_method": TEXT,
    "base_model": MODEL,
    "dtype": TEXT,
    "out_dtype": TEXT,
    "tokenizer_source": MODEL,
    "tokenizer": table({"source": MODEL}),
    "chat_template": TEXT,
    "modules": table(),
    "name": either(TEXT, number()),
    "qwench": table({"fold": one_of("sequential", "tree")}),
}


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
        tokenizer: model whose tokenizer is taken, None for the first, UNION for one that has every model's tokens.
        fold: sequential or tree, for more than two models with a method that takes two.
        name: of the result.
    """

    method: str
    slices: tuple[Slice, ...]
    base: str | None = None
    parameters: Parameters = field(default_factory=dict)
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer: str | None = None
    fold: str | None = None
    name: str | None = None

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
    local(path, "the recipe")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise QwenchError(f"the recipe cannot be read ({error.strerror}): `{path}`") from error
    said = parse_yaml(data, str(path), HINT)
    if not isinstance(said, dict) or not isinstance(said.get("merge_method"), str):
        raise QwenchError(f"the recipe names no merge_method: `{path}`", HINT)
    found = Fields(said, str(path), RECIPE, hint=HINT)
    if unknown := [key for key in found if key not in TOP]:
        raise QwenchError(f"the recipe has a key that is not supported: `{unknown[0]}`", f"supported: {', '.join(TOP)}")
    if found.get("chat_template") not in (None, "auto"):
        raise QwenchError("the recipe sets a chat_template, which is not supported", "copy it into the result by hand")
    if found.get("modules"):
        found = _one_module(found)
    if bool(found.get("models")) == bool(found.get("slices")):
        raise QwenchError(f"the recipe needs either models or slices: `{path}`")
    base = spell(found.get("base_model"))
    if found.get("models"):
        parts = tuple(_part(m) for m in found["models"])
        if base and base not in [p.model for p in parts]:
            parts = (*parts, Part(base))
        slices: tuple[Slice, ...] = (Slice(parts),)
    else:
        slices = tuple(_slice(s) for s in found["slices"])
    fold = (found.get("qwench") or {}).get("fold")
    made = Recipe(
        found["merge_method"],
        slices,
        base,
        _parameters(found),
        _dtype(found, "dtype"),
        # mergekit writes the dtype it computes in, unless out_dtype says another.
        _dtype(found, "out_dtype" if found.get("out_dtype") else "dtype"),
        _tokenizer(found, base),
        fold,
        None if found.get("name") is None else str(found["name"]),
    )
    weights = [p.parameters.get("weight", 1.0) for s in slices for p in s.parts] if fold else []
    if odd := [w for w in weights if not number(0).fits(w)]:
        raise QwenchError(f"a fold takes one number as the weight of each model, and not `{shown(odd[0])}`", HINT)
    return made


def _dtype(found: Fields, key: str) -> str | None:
    """mergekit's names, with `torch.` in front or not."""
    name = found.get(key)
    name = name.removeprefix("torch.") if name else None
    if name not in (None, "auto", *FLOATS):
        raise unfit(found.file, key, one_of(*FLOATS), found[key], HINT)
    return None if name == "auto" else name


def _parameters(found: Fields) -> Parameters:
    """Values that are numbers, texts or flags, gradients of them, and conditions on the tensor's name."""
    parameters = found.get("parameters") or {}
    for name, value in parameters.items():
        if not isinstance(name, str) or (value is not None and not is_setting(value)):
            kind = Kind("a number, a gradient [0, 0.5, 1] or a list of filter and value", is_setting)
            raise unfit(found.file, f"{found.at}parameters.{name}", kind, value, HINT)
    return {name: value for name, value in parameters.items() if value is not None}


def _one_module(found: Fields) -> Fields:
    """A recipe whose one module is the model, as one without modules; the module's parameters come first.

    Raises:
        QwenchError: more than one module.
    """
    modules = found["modules"]
    if len(modules) != 1 or found.get("models") or found.get("slices"):
        raise QwenchError(
            f"the recipe merges several modules, which is not supported: {', '.join(map(str, modules))}",
            "write one recipe for each part, with `models` or `slices` at its top",
        )
    ((name, module),) = modules.items()
    if not isinstance(module, dict) or (unknown := [k for k in module if k not in MODULE]):
        what = f"a key that is not supported: `{unknown[0]}`" if isinstance(module, dict) else "nothing to merge"
        raise QwenchError(f"the module `{name}` of the recipe has {what}", "write models: or slices: in it")
    module = Fields(module, found.file, MODULE, f"modules.{name}.", HINT)
    parameters = _parameters(found) | _parameters(module)
    made = found.copy()
    del made["modules"]
    made.update({k: v for k in ("models", "slices") if (v := module.get(k))}, parameters=parameters)
    return made


def _tokenizer(found: Fields, base: str | None) -> str | None:
    wanted = found.get("tokenizer_source")
    if (more := found.get("tokenizer")) is not None:
        if extra := [k for k in more if k != "source"]:
            raise QwenchError(f"the recipe sets tokenizer.{extra[0]}, which is not supported", "give tokenizer.source")
        wanted = more.get("source")
    if wanted == UNION:
        return UNION
    return base if wanted == "base" else spell(wanted)


def _part(value: Fields) -> Part:
    if unknown := [k for k in value if k not in PART]:
        raise QwenchError(f"`{value.file}`: a key is not supported: `{value.at}{unknown[0]}`", HINT)
    name = spell(value["model"])
    layers = value.get("layer_range")
    if layers is not None and not (len(layers) == 2 and layers[0] < layers[1]):
        raise QwenchError(f"not a layer_range: `{layers}`", "write [first, end]")
    return Part(name, tuple(layers) if layers else None, _parameters(value))


def _slice(value: Fields) -> Slice:
    if not value.get("sources"):
        raise QwenchError("an entry of `slices` has no sources", HINT)
    if unknown := [k for k in value if k not in SLICE]:
        raise QwenchError(f"an entry of `slices` has a key that is not supported: `{unknown[0]}`", HINT)
    parts = tuple(_part(p) for p in value["sources"])
    if missing := [p for p in parts if p.layers is None]:
        raise QwenchError(f"a source of a slice has no layer_range: `{missing[0].model}`", "write [first, end]")
    return Slice(parts, _parameters(value), spell(value.get("base_model")))


def to_yaml(recipe: Recipe, out_dtype: str) -> str:
    """The same merge as mergekit reads it; a fold of more than two models is a key of our own, which it refuses.

    Args:
        out_dtype: of the result, since mergekit writes one dtype.
    """
    import yaml

    said: dict[str, Any] = {"name": recipe.name} if recipe.name else {}
    said["merge_method"] = recipe.method
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
