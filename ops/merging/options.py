"""What `qwench merge` can be told, and the recipe that it asks for."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..base.errors import QwenchError
from ..base.paths import local
from ..base.runtime import Runtime
from ..checkpoint.tensors import FLOATS
from .methods import find_method, uses_base
from .recipe import Part, Recipe, Slice, from_yaml
from .settings import parse_setting

if TYPE_CHECKING:
    from mergekit.merge_methods.base import MergeMethod

FOLDS = ("sequential", "tree")
#: methods whose base is the first model when none is named
FIRST_IS_BASE = ("slerp", "nearswap", "arcee_fusion")


@dataclass(frozen=True, slots=True)
class MergeOptions:
    """Everything `qwench merge` can be told.

    Attributes:
        models: folders, hub ids, .gguf files; `model+adapter` merges a LoRA first.
        t, weight, param: as `settings.parse_setting` reads them; weight may list one value for each model.
        fold: sequential or tree, for more than two models with a method of two.
        config: mergekit's YAML in place of models and method.
        trajectory: a training run's folder; its last checkpoints are the models.
        dtype: of the arithmetic; out_dtype: of the result; auto as `Recipe` says.
        memory: bytes that whole tensors in flight may take.
    """

    models: tuple[str, ...] = ()
    out: str = ""
    method: str = "slerp"
    t: str | None = None
    weight: str | None = None
    param: tuple[str, ...] = ()
    base: str | None = None
    fold: str | None = None
    config: str | None = None
    trajectory: str | None = None
    last: int = 0
    dtype: str = "auto"
    out_dtype: str = "auto"
    max_shard_size: str = "5GB"
    memory: str = "2GB"
    seed: int = 0
    allow_mismatch: bool = False
    resume: bool = False
    force: bool = False
    runtime: Runtime = field(default_factory=Runtime)


def recipe_of(options: MergeOptions) -> Recipe:
    """The recipe that flags, a file or a trajectory ask for.

    Raises:
        QwenchError: they contradict one another, or name what is not there.
    """
    for flag, value, known in (
        ("--dtype", options.dtype, ("auto", "float32", "float64")),
        ("--out-dtype", options.out_dtype, ("auto", *FLOATS)),
        ("--fold", options.fold, (None, *FOLDS)),
    ):
        if value not in known:
            raise QwenchError(f"unknown {flag}: `{value}`", "use " + ", ".join(k for k in known if k), code=2)
    dtype, out_dtype = (None if d == "auto" else d for d in (options.dtype, options.out_dtype))
    if options.config:
        given = [n for n in ("models", "t", "weight", "param", "base", "fold", "trajectory") if getattr(options, n)]
        if given:
            raise QwenchError(f"--config has all of the recipe, and --{given[0]} is given too", "leave one out", code=2)
        found = from_yaml(Path(options.config))
        return replace(found, dtype=dtype or found.dtype, out_dtype=out_dtype or found.out_dtype)
    models = _trajectory(options) if options.trajectory else list(options.models)
    if not models:
        raise QwenchError("there is nothing to merge", "give the models, --trajectory or --config", code=2)
    method = find_method(options.method)
    base = options.base
    if base is None and options.method in FIRST_IS_BASE:
        base = models[0]
    if options.base and not uses_base(method):
        raise QwenchError(f"`{options.method}` has no base, and --base is given", "leave it out", code=2)
    parts = models if base is None or base in models else [*models, base]
    most = method.spec.contract.max_inputs
    fold = options.fold or ("sequential" if most == 2 and len(parts) > 2 and options.method == "slerp" else None)
    if fold and options.method != "slerp":
        raise QwenchError(f"--fold is for slerp, and the method is `{options.method}`", code=2)
    fold = fold if len(parts) > 2 else None
    parameters = _parameters(options, method, fold)
    weights = _weights(options, method, [p for p in parts if p != base or not _non_base(method)], fold)
    entries = tuple(Part(p, parameters={"weight": weights[p]} if p in weights else {}) for p in parts)
    return Recipe(options.method, (Slice(entries),), base, parameters, dtype, out_dtype, None, fold)


def _non_base(method: MergeMethod) -> bool:
    return any(p.name == "weight" and p.scope.value == "non_base" for p in method.spec.parameters)


def _parameters(options: MergeOptions, method: MergeMethod, fold: str | None) -> dict:
    found = {}
    for text in options.param:
        name, equals, value = text.partition("=")
        if not equals:
            raise QwenchError(f"not a parameter: `{text}`", "write --param name=value", code=2)
        found[name.strip()] = parse_setting(value)
    known = {p.name: p for p in method.spec.parameters}
    if options.t is not None and fold:
        raise QwenchError("--t is between two models, and there are more", "give each a share: --weight 1,1,2", code=2)
    if options.t is not None:
        if "t" not in known:
            raise QwenchError(f"`{options.method}` has no t", f"it has: {', '.join(known) or 'none'}", code=2)
        found["t"] = parse_setting(options.t)
    elif "t" in known and known["t"].required and options.method == "slerp" and not fold:
        found.setdefault("t", 0.5)
    return found


def _weights(options: MergeOptions, method: MergeMethod, models: list[str], fold: str | None) -> dict:
    """A weight for each of `models` where the method wants them: 1 each unless something else is said."""
    spec = next((p for p in method.spec.parameters if p.name == "weight"), None)
    if spec is None and not fold:
        if options.weight is not None:
            raise QwenchError(f"`{options.method}` has no weights", "leave --weight out", code=2)
        return {}
    if options.weight is None:
        return dict.fromkeys(models, 1.0) if spec is None or spec.required else {}
    setting = parse_setting(options.weight)
    if isinstance(setting, list) and not isinstance(setting[0], dict):
        if len(setting) != len(models):
            raise QwenchError(f"--weight has {len(setting)} values, and {len(models)} models take one", code=2)
        return dict(zip(models, setting, strict=True))
    return dict.fromkeys(models, setting)


def _trajectory(options: MergeOptions) -> list[str]:
    if options.models:
        raise QwenchError("--trajectory finds the models, and some are given too", "leave one out", code=2)
    folder = Path(local(options.trajectory or "", "the trajectory"))
    steps = [(int(m[1]), p) for p in folder.glob("checkpoint-*") if (m := re.fullmatch(r"checkpoint-(\d+)", p.name))]
    found = [str(p) for _, p in sorted(steps)]
    if len(found) < 2 or options.last > len(found):
        raise QwenchError(
            f"{len(found)} checkpoints are in the run, and {max(options.last, 2)} are wanted: `{folder}`",
            "name the folder that holds checkpoint-1000 and so on",
        )
    return found[-options.last :] if options.last else found
