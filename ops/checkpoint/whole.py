"""Is all of a model there, as its own config and file names say."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.errors import QwenchError

if TYPE_CHECKING:
    from .reader import Source

_SHARD = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})(\.\w+)")
_LAYER = re.compile(r"(?:^|\.)layers\.(\d{1,9})\.(.+)")
#: families whose layers all have the same tensors, and tensors that may differ all the same
ALIKE = {"llama": (), "qwen2": (), "qwen3": (), "qwen3_moe": ("mlp.",)}


def shard_of(path: Path) -> tuple[int, int] | None:
    """(number, how many) of a file that calls itself a part of several."""
    found = _SHARD.fullmatch(path.name)
    return (int(found[2]), int(found[3])) if found and int(found[3]) > 1 else None


def siblings(path: Path) -> list[Path]:
    """All parts that a part's name speaks of, whether they are there or not."""
    found = _SHARD.fullmatch(path.name)
    assert found is not None
    count = int(found[3])
    return [path.with_name(f"{found[1]}-{n:05}-of-{count:05}{found[4]}") for n in range(1, count + 1)]


def gaps(names: list[str], config: dict[str, Any]) -> list[str]:
    """Sentences about layers, and tensors of layers, that a decoder's config promises and `names` lack."""
    layers: dict[int, set[str]] = {}
    for name in names:
        if found := _LAYER.search(name):
            layers.setdefault(int(found[1]), set()).add(found[2])
    count = config.get("num_hidden_layers")
    if not layers or not isinstance(count, int) or config.get("is_encoder_decoder"):
        return []
    gone = [n for n in range(count) if n not in layers]
    more = f" and {len(gone) - 1} more" if len(gone) > 1 else ""
    found = [f"layer {gone[0]}{more} of {count} is missing"] if gone else []
    kind = config.get("model_type")
    if kind in ALIKE:
        free = ALIKE[kind]
        held = {n: {t for t in layers[n] if not t.startswith(free)} for n in layers if n < count}
        every = set().union(*held.values())
        found += [f"layer {n} lacks `{min(every - own)}`" for n, own in sorted(held.items()) if every - own]
    return found


def lacking(names: Iterable[str], config: dict[str, Any]) -> str:
    """The first of `gaps` and how many more there are, empty for a whole model."""
    found = gaps(list(names), config)
    return "" if not found else found[0] + (f", and {len(found) - 1} more" if len(found) > 1 else "")


def whole(source: Source, config: dict[str, Any], layers: bool = True) -> None:
    """Refuse a part of a model; `layers`: also one that lacks tensors of a layer.

    Raises:
        QwenchError: a lone shard, or one without all of its layers.
    """
    if source.path.is_file() and len(source.files) == 1 and (part := shard_of(source.path)):
        raise QwenchError(
            f"the file is part {part[0]} of {part[1]}, not the whole model: `{source.path}`", "give the folder"
        )
    if layers and (found := lacking(source.infos, config)):
        raise QwenchError(
            f"the checkpoint is not whole: {found}: `{source.path}`",
            "download or copy the model again, or correct num_hidden_layers in config.json",
        )
