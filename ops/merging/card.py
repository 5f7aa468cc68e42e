"""The README.md of a merged model."""

from __future__ import annotations

from .recipe import Recipe


def model_card(recipe: Recipe, yaml: str) -> str:
    """What was merged and how, with the recipe to do it again."""
    named = [m for m in recipe.models if not m.startswith(("/", ".", "~"))]
    head = ["---", "tags:", "- merge", "- qwench"]
    if hub := [m for m in named if m.count("/") == 1]:
        head += ["base_model:", *(f"- {m}" for m in hub)]
    lines = [
        *head,
        "---",
        "",
        f"# {recipe.name or 'Merged model'}",
        "",
        f"Merged with `qwench merge` by **{recipe.method}** from:",
        "",
    ]
    for model in recipe.models:
        lines.append(f"- `{model}`" + (" (base)" if model == recipe.base else ""))
    lines += ["", "The recipe, as mergekit reads it:", "", "```yaml", yaml.rstrip(), "```", ""]
    return "\n".join(lines)
