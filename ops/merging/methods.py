"""mergekit's merge methods by name, and their parameters for one tensor."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from ..base.errors import QwenchError
from .recipe import Recipe
from .settings import evaluate

if TYPE_CHECKING:
    from mergekit.merge_methods.base import MergeMethod

#: methods whose result at an element depends on that element of the inputs alone, so that pieces can be merged apart
ELEMENTWISE = ("linear", "task_arithmetic", "nearswap", "passthrough")
#: methods that draw random numbers
RANDOM = ("dare_ties", "dare_linear", "della", "della_linear")


def find_method(name: str) -> MergeMethod:
    """A registered method.

    Raises:
        QwenchError: there is none of that name; the nearest is offered.
    """
    try:
        from mergekit.merge_methods import registered_methods
    except ImportError as error:
        raise QwenchError("merging needs the package mergekit", "pip install mergekit") from error
    known = {m.spec.name: m for m in registered_methods()}
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean `{near[0]}`? Known: " if near else "known: "
        raise QwenchError(f"unknown merge method: `{name}`", hint + ", ".join(sorted(known)), code=2)
    return known[name]


def method_names() -> list[str]:
    """Every method mergekit registers."""
    from mergekit.merge_methods import registered_methods

    return sorted(m.spec.name for m in registered_methods())


def uses_base(method: MergeMethod) -> bool:
    """The method tells one input from the others."""
    return method.spec.contract.base.value != "ignored"


def check(method: MergeMethod, recipe: Recipe) -> None:
    """Models, base and parameter names fit the method; nothing is read.

    Raises:
        QwenchError: they do not.
    """
    known = {p.name for p in method.spec.parameters} | ({"weight"} if recipe.fold else set())
    stated = [recipe.parameters, *(s.parameters for s in recipe.slices)]
    stated += [p.parameters for s in recipe.slices for p in s.parts]
    for name in (n for parameters in stated for n in parameters):
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise QwenchError(
                f"`{method.spec.name}` has no parameter `{name}`",
                (f"did you mean `{near[0]}`? " if near else "") + f"it has: {', '.join(sorted(known)) or 'none'}",
                code=2,
            )
    for part in recipe.slices:
        models = [p.model for p in part.parts]
        base = part.base or recipe.base
        if recipe.fold:
            models = models[:2]
        try:
            method.validate_inputs(models, base if uses_base(method) else None)
        except ValueError as error:
            raise QwenchError(
                f"`{method.spec.name}` does not take these models: {error}",
                "see the docs for the method; name the base with --base, or fold with --fold",
                code=2,
            ) from error


def bind(method: MergeMethod, recipe: Recipe, at: int, name: str, layer: float) -> dict[str, Any]:
    """Values of all parameters for a tensor; those of inputs as {model: value}.

    Args:
        at: number of the slice.
        name: of the tensor, prefixed, as filters see it.
        layer: see `settings.evaluate`.

    Raises:
        QwenchError: a required one is missing, or has a value of another type.
    """
    here = recipe.slices[at]
    base = here.base or recipe.base
    found: dict[str, Any] = {}
    for spec in method.spec.parameters:
        if spec.scope.value == "shared":
            value = _value(method, spec, recipe.sources(at), name, layer, None)
            found[spec.name] = value
        else:
            models = [p.model for p in here.parts if spec.scope.value == "input" or p.model != base]
            found[spec.name] = {m: _value(method, spec, recipe.sources(at, m), name, layer, m) for m in models}
    return found


def _value(method: MergeMethod, spec: Any, sources: list[dict], name: str, layer: float, model: str | None) -> Any:
    for parameters in sources:
        if spec.name not in parameters:
            continue
        value = evaluate(parameters[spec.name], name, layer)
        if value is not None:
            try:
                return spec.validate(value)
            except (ValueError, TypeError, OverflowError) as error:
                raise QwenchError(f"`{spec.name}` cannot be {value!r} for `{method.spec.name}`", code=2) from error
    if spec.required:
        of = f" of `{model}`" if model else ""
        raise QwenchError(
            f"`{method.spec.name}` needs `{spec.name}`{of} (asked for `{name}`)",
            f"give --{spec.name if spec.name in ('t', 'weight') else 'param ' + spec.name + '=VALUE'}",
            code=2,
        )
    return spec.default
