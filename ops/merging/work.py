"""One tensor's merge as the writer asks for it, and the account of all of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod, sqrt
from typing import TYPE_CHECKING, Any

from ..base.errors import QwenchError
from ..checkpoint.cast import Losses, pieces, same_bits
from ..checkpoint.tensors import torch_dtype
from .arithmetic import Job
from .inputs import Input

if TYPE_CHECKING:
    from mergekit.merge_methods.base import MergeMethod
    from torch import Tensor


class Ledger:
    """What was merged, and how much memory whole tensors may take together.

    Attributes:
        rows: by output name: cosine and norm ratio of the result to the first model's tensor.
    """

    def __init__(self, memory: int) -> None:
        self.memory, self._held = memory, 0
        self.rows: dict[str, dict[str, float]] = {}
        self._free = threading.Condition()

    @contextmanager
    def room(self, count: int) -> Iterator[None]:
        """Wait until `count` bytes fit; more than there is at all runs alone."""
        with self._free:
            self._free.wait_for(lambda: self._held == 0 or self._held + count <= self.memory)
            self._held += count
        try:
            yield
        finally:
            with self._free:
                self._held -= count
                self._free.notify_all()


@dataclass(slots=True)
class Task:
    """An output tensor and where it comes from."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    inputs: list[tuple[Input, str]]
    ledger: Ledger
    job: Job | None = field(default=None)

    def plan(
        self,
        method: MergeMethod,
        models: list[str],
        base: int | None,
        parameters: dict[str, Any],
        dtype: str,
        seed: int,
        fold: str | None,
    ) -> None:
        """Say how it is merged."""
        self.job = Job(method, self.name, tuple(models), base, parameters, torch_dtype(dtype), seed, fold)

    def copied(self, losses: Losses | None) -> Iterator[Tensor]:
        """The first input's tensor; others must be equal to it.

        Raises:
            QwenchError: they are not.
        """
        model, name = self.inputs[0]
        tensor = model.tensor(name)
        for other, there in self.inputs[1:]:
            if not same_bits(tensor, other.tensor(there)):
                raise QwenchError(
                    f"`{self.name}` is not of floats, and differs between `{model.model}` and `{other.model}`",
                    "it cannot be merged",
                )
        yield from pieces(self.name, tensor, self.dtype, losses)

    def merged(self, losses: Losses | None) -> Iterator[Tensor]:
        """The merged tensor, piece by piece, each looked at for what is not finite.

        Raises:
            QwenchError: the result is not finite; says which input is to blame.
        """
        assert self.job is not None
        tensors = [model.tensor(name) for model, name in self.inputs]
        job, target, first = self.job, torch_dtype(self.dtype), tensors[0].reshape(-1)
        need = 0 if job.streams else prod(self.shape) * job.dtype.itemsize * (len(tensors) + 2)
        rr = aa = ra = 0.0
        at = 0
        with self.ledger.room(need):
            for piece in job.run(tensors):
                for part in piece.split(1 << 20):
                    cast = part.to(target)
                    # The report can do with the dtype of the arithmetic, half of slerp's own.
                    part = part.to(job.dtype)
                    origin = first[at : at + len(part)].to(job.dtype)
                    at += len(part)
                    squared = float(part.dot(part))
                    if not squared < float("inf"):
                        self._check(cast, tensors)
                    rr, aa, ra = rr + squared, aa + float(origin.dot(origin)), ra + float(part.dot(origin))
                    yield cast
        if losses is not None:
            both = sqrt(rr) * sqrt(aa)
            row = {"cosine": min(ra / both, 1.0) if both else 1.0, "norm_ratio": sqrt(rr / aa) if aa else 1.0}
            self.ledger.rows[self.name] = row

    def _check(self, cast: Tensor, tensors: list[Tensor]) -> None:
        import torch

        if torch.isfinite(cast).all():
            return
        for (model, name), tensor in zip(self.inputs, tensors, strict=True):
            if not torch.isfinite(tensor.float()).all():
                raise QwenchError(
                    f"a tensor of `{model.model}` is not finite: `{model.outputs[name].name}`",
                    "the model is damaged; download or train it again",
                )
        raise QwenchError(
            f"the merge of `{self.name}` is not finite in {self.dtype}", "use other weights, or --out-dtype float32"
        )
