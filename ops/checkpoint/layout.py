"""Tensor names: with or without `model.`, and heads tied to the embeddings."""

from __future__ import annotations

from collections.abc import Iterable

LAYOUTS = ("prefixed", "flat")
PREFIX = "model."
#: names that never carry the prefix
HEADS = ("lm_head.", "score.", "classifier.")
EMBEDDING, LM_HEAD = "embed_tokens.weight", "lm_head.weight"


def layout_of(names: Iterable[str]) -> str | None:
    """prefixed, flat, or None for a checkpoint that is no decoder's."""
    names = set(names)
    if PREFIX + EMBEDDING in names:
        return "prefixed"
    return "flat" if EMBEDDING in names else None


def renamed(name: str, layout: str | None) -> str:
    """The name of a tensor in a layout; None keeps it."""
    if layout is None or name.startswith(HEADS):
        return name
    bare = name.removeprefix(PREFIX)
    return PREFIX + bare if layout == "prefixed" else bare
