"""What a writing command will do, said before it does it: every output tensor, every tensor left behind, shards."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

from ..base.errors import QwenchError
from .cast import Losses
from .gguf_blocks import BLOCKS
from .tensors import NAMES, torch_dtype

if TYPE_CHECKING:
    from torch import Tensor

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Output:
    """A tensor to be written.

    Attributes:
        name, shape, dtype: as in the output.
        sources: names in the input that it is made of.
        action: what happens to it, in words.
        pieces: makes the flattened tensor in `dtype`, piece by piece; tells the losses of casts where asked.
        rows: some rows as they are before any cast, by slice or list of numbers; None where nothing is derived of them.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    sources: tuple[str, ...]
    action: str
    pieces: Callable[[Losses | None], Iterator[Tensor]]
    rows: Callable[[slice | list[int]], Tensor] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes in the output."""
        if self.dtype in BLOCKS:
            _, size, count, _ = BLOCKS[self.dtype]
            return prod(self.shape) // size * count
        return prod(self.shape) * NAMES[self.dtype][1]

    def whole(self, losses: Losses | None = None) -> Tensor:
        """The tensor in memory."""
        import torch

        parts = list(self.pieces(losses))
        return (torch.cat(parts) if parts else torch.empty(0, dtype=torch_dtype(self.dtype))).view(self.shape)


@dataclass(frozen=True, slots=True)
class Shard:
    """A file to be written: its name, its tensors in the order of their bytes, and what a GGUF file says of itself."""

    file: str
    outputs: list[Output]
    said: dict[str, Any] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(o.nbytes for o in self.outputs)


@dataclass(slots=True)
class Plan:
    """Everything that will be written.

    Attributes:
        outputs: tensors.
        dropped: input tensor -> why it is left behind.
        shards: files.
        side: relative path -> text or bytes of a side file, or a folder when None.
        copies: relative paths of side files taken as they are.
        left: what is in the source folder and not taken along.
        notes: what the user should know.
        metadata: what safetensors files say of themselves.
    """

    outputs: list[Output]
    dropped: dict[str, str] = field(default_factory=dict)
    shards: list[Shard] = field(default_factory=list)
    side: dict[str, bytes | None] = field(default_factory=dict)
    copies: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(o.nbytes for o in self.outputs)

    @property
    def files(self) -> set[str]:
        """Relative paths of everything that will be written."""
        sides = {name for name, content in self.side.items() if content is not None}
        index = {"model.safetensors.index.json", "pytorch_model.bin.index.json"} if len(self.shards) > 1 else set()
        return {s.file for s in self.shards} | set(self.copies) | sides | index

    def check(self, inputs: Sequence[str]) -> None:
        """Every input tensor is written or named as dropped, and no output comes twice.

        Raises:
            QwenchError: a tensor would be lost, or two would have the same name.
        """
        used = {name for o in self.outputs for name in o.sources} | set(self.dropped)
        if lost := [name for name in inputs if name not in used]:
            raise QwenchError(f"the plan would lose a tensor: `{lost[0]}`", "a fault of qwench; please report it")
        names = [o.name for o in self.outputs]
        if twice := [name for name in names if names.count(name) > 1][:1] if len(set(names)) < len(names) else []:
            raise QwenchError(f"two tensors would get the same name: `{twice[0]}`", "the checkpoint mixes two layouts")

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, without the bytes."""
        place = {o.name: s.file for s in self.shards for o in s.outputs}
        return {
            "bytes": self.nbytes,
            "tensors": [
                {
                    "name": o.name,
                    "from": list(o.sources),
                    "shape": list(o.shape),
                    "dtype": o.dtype,
                    "bytes": o.nbytes,
                    "shard": place.get(o.name),
                    "action": o.action,
                }
                for o in self.outputs
            ],
            "dropped": [{"name": n, "reason": r} for n, r in self.dropped.items()],
            "side_files": sorted({*self.copies, *(n for n, v in self.side.items() if v is not None)}),
            "left_out": self.left,
            "notes": self.notes,
        }

    def fingerprint(self, source: str) -> str:
        """Hash of what will be written and of `source`, a description of the input; a resumed run compares it."""
        side = {n: None if v is None else hashlib.sha256(v).hexdigest() for n, v in self.side.items()}
        said = [s.said for s in self.shards]
        text = json.dumps([source, self.to_dict(), side, said, self.metadata], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def parse_size(text: str) -> int:
    """Bytes of `5GB`, `200MB`, `1.5GiB` or a plain number.

    Raises:
        QwenchError: not a size, or zero (code 2).
    """
    found = _SIZE.fullmatch(text.strip())
    if not found or float(found[1]) <= 0:
        raise QwenchError(f"not a size in bytes: `{text}`", "write 5GB, 200MB or 1GiB", code=2)
    base = 1024 if found[3] else 1000
    return max(int(float(found[1]) * base ** " kmgt".index(found[2].lower() or " ")), 1)


def shards_of(outputs: Sequence[Output], most: int, stem: str, suffix: str) -> list[Shard]:
    """Files of at most `most` bytes each, in the order given; a larger tensor has a file of its own."""
    groups: list[list[Output]] = [[]]
    room = most
    for output in outputs:
        if groups[-1] and output.nbytes > room:
            groups.append([])
            room = most
        groups[-1].append(output)
        room -= output.nbytes
    if len(groups) == 1:
        names = [f"{stem}{suffix}"]
    else:
        names = [f"{stem}-{i:05}-of-{len(groups):05}{suffix}" for i in range(1, len(groups) + 1)]
    # Wide elements first, so that every tensor is aligned to its own.
    return [Shard(n, sorted(g, key=lambda o: -NAMES[o.dtype][1])) for n, g in zip(names, groups, strict=True)]
