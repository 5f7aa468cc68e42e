"""Tensors of a plan as a reader has them: made when they are asked for, and never on disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoint.plan import Plan
from ..checkpoint.tensors import TensorInfo, torch_dtype

if TYPE_CHECKING:
    from torch import Tensor


class PlannedReader:
    """A `Reader` over the outputs of a plan, in their output dtype.

    Attributes:
        infos, metadata: see Reader.
    """

    format = "planned"

    def __init__(self, plan: Plan) -> None:
        self._outputs = {o.name: o for o in plan.outputs}
        self.infos = {o.name: TensorInfo(o.name, o.shape, o.dtype, o.nbytes, Path(), None) for o in plan.outputs}
        self.metadata: dict[str, str] = {}

    def load(self, name: str) -> Tensor:
        """The tensor; see the plan's outputs for what may be raised."""
        import torch

        output = self._outputs[name]
        whole, at = torch.empty(output.shape, dtype=torch_dtype(output.dtype)), 0
        flat = whole.view(-1)
        threads = torch.get_num_threads()
        # As the writer's workers compute: sums depend on the number of threads.
        torch.set_num_threads(1)
        try:
            for piece in output.pieces(None):
                flat[at : at + len(piece)] = piece
                at += len(piece)
        finally:
            torch.set_num_threads(threads)
        return whole

    def release(self, name: str) -> None:
        """Nothing is held."""
