"""Adapters of the peft layout, merged into weights row by row: LoRA, rsLoRA, DoRA, modules_to_save, token rows.

W' = W + s B A with s = alpha / r (LoRA, arXiv 2106.09685) or alpha / sqrt(r) (rsLoRA, arXiv 2312.03732);
DoRA (arXiv 2402.09353) then scales each row to its magnitude: m (W + s B A) / |W + s B A|; a bias of B is added as
s b to the layer's own. All in float32 (float64 for float64 weights), cast once at the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any

from ..base.errors import QwenchError
from .adapter import Adapter
from .cast import PIECE, Losses, pieces
from .layout import EMBEDDING, LM_HEAD, renamed
from .plan import Output, Plan

if TYPE_CHECKING:
    from torch import Tensor

_ENDS = (EMBEDDING, LM_HEAD)


def merge_adapters(plan: Plan, adapters: Sequence[Adapter], tied: bool, wanted: Sequence[str] = ()) -> None:
    """Put adapters into a plan's outputs, in order.

    Args:
        plan: its outputs are replaced by merged ones.
        adapters: applied one after the other.
        tied: the head shares the embeddings' tensor in the output.
        wanted: bare names to change; all but the score by default, which belongs to a head made later.

    Raises:
        QwenchError: an adapter tensor has no place or another shape, or changes one side of tied weights.
    """
    at = {renamed(o.name, "flat"): i for i, o in enumerate(plan.outputs)}
    done: set[str] = set()
    for adapter in adapters:
        touched = adapter.touched & {*wanted} if wanted else adapter.touched
        if tied and touched & {*_ENDS} and one_sided(plan, [adapter]):
            one = LM_HEAD if LM_HEAD in touched else EMBEDDING
            raise QwenchError(
                f"the adapter `{adapter.folder.name}` changes `{one}`, and head and embeddings share one tensor",
                "add --untie to give the head its own",
            )
        if tied:
            touched = touched - {LM_HEAD}
        for name in sorted(touched):
            if name not in at:
                raise QwenchError(
                    f"the adapter `{adapter.folder.name}` changes `{name}`, which the model does not have"
                )
            output = plan.outputs[at[name]]
            merged = _merged(output, adapter, name)
            words = [output.action] if name in done else []
            plan.outputs[at[name]] = replace(merged, action="; ".join([*words, adapter.describe(name)]))
            done.add(name)


def one_sided(plan: Plan, adapters: Sequence[Adapter]) -> bool:
    """An adapter changes the embeddings or the head, and not both alike.

    Embeddings with other rows, saved alone, are both: a head tied to them can only be the same.
    """
    for adapter in adapters:
        new = adapter.saved.get(EMBEDDING)
        grown = new is not None and not any(
            o.shape[0] == len(new) for o in plan.outputs if renamed(o.name, "flat") == EMBEDDING
        )
        alike = adapter.same_both() or (grown and LM_HEAD not in adapter.touched)
        if adapter.touched & {*_ENDS} and not alike:
            return True
    return False


def _shape(output: Output, adapter: Adapter, name: str) -> tuple[int, ...]:
    """Of the merged tensor: peft saves embeddings that were resized with all their rows."""
    shape = adapter.shape(name)
    if shape is None or shape == output.shape:
        return output.shape
    if name in adapter.saved and name in _ENDS and shape[1:] == output.shape[1:]:
        return shape
    raise QwenchError(
        f"the adapter `{adapter.folder.name}` fits a `{name}` of shape {list(shape)}, "
        f"and the model's is {list(output.shape)}",
        "it was trained on another model",
    )


def _merged(output: Output, adapter: Adapter, name: str) -> Output:
    import torch

    base = output.rows
    assert base is not None
    shape = _shape(output, adapter, name)
    if name in adapter.tokens and int(adapter.tokens[name][0].max()) >= shape[0]:
        raise QwenchError(
            f"the adapter `{adapter.folder.name}` changes row {int(adapter.tokens[name][0].max())} of `{name}`, "
            f"which has {shape[0]}",
            "it was trained on another model",
        )

    if name in adapter.tokens and adapter.tokens[name][1].shape[1:] != shape[1:]:
        raise QwenchError(
            f"the adapter `{adapter.folder.name}` has rows of {adapter.tokens[name][1].shape[1]} for `{name}`, "
            f"which is of shape {list(shape)}",
            "it was trained on another model",
        )

    def rows(index: slice | list[int]) -> Tensor:
        held = base(index) if shape == output.shape else adapter.saved[name][index]
        return adapter.apply(name, held.to(torch.float64 if held.dtype == torch.float64 else torch.float32), index)

    def made(losses: Losses | None) -> Iterator[Tensor]:
        step = max(PIECE // max(prod(shape[1:]), 1), 1)
        for first in range(0, shape[0], step):
            yield from pieces(output.name, rows(slice(first, first + step)), output.dtype, losses)

    return replace(output, shape=shape, pieces=made, rows=rows)


def resized(plan: Plan, config: dict[str, Any]) -> dict[str, Any]:
    """The config with as many tokens as the embeddings have rows, where adapters brought resized ones.

    Raises:
        QwenchError: embeddings and head have different rows.
    """
    ends = {renamed(o.name, "flat"): o.shape[0] for o in plan.outputs if renamed(o.name, "flat") in _ENDS}
    if len({*ends.values()}) > 1:
        raise QwenchError(
            f"the adapters leave {ends[EMBEDDING]} rows in the embeddings and {ends[LM_HEAD]} in the head",
            "train with both saved (peft: save_embedding_layers, or modules_to_save with both)",
        )
    rows = ends.get(EMBEDDING)
    return config | {"vocab_size": rows} if rows and "vocab_size" in config else config
