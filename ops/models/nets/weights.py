"""Weights of a checkpoint folder, taken by name, with an account of what was missing or left over."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ...base.choice import Choice
from ...base.errors import QwenchError
from ...checkpoint.gguf_blocks import Blocks
from ...checkpoint.gguf_reader import IN_BLOCKS, GgufReader
from ...checkpoint.reader import Reader, Source
from ...checkpoint.unquantised import Unquantised
from ..device import pick_dtype

if TYPE_CHECKING:
    from torch import Tensor, dtype


class Weights:
    """Tensors of a checkpoint, taken one by one and let go of in the mapped file.

    `take` removes a name from the account; `close` fails when something was left that nobody asked for.

    Args:
        folder: the checkpoint folder.
        prefixes: name prefixes to strip (`model.`, `bert.`): the first that fits some tensor is used for those.
        reader: tensors to take in place of the folder's.

    Attributes:
        as_stored: formats that `matrix` leaves as they are stored, where all parts have one; the others become float32.
            Empty: all get the dtype that is asked for.
        kept: formats of matrices that were left as they are.
        widened: and of those that were not.

    Raises:
        QwenchError: see Source.
    """

    def __init__(self, folder: Path, prefixes: Iterable[str] = (), reader: Reader | None = None) -> None:
        self.folder = folder
        self.as_stored: frozenset[str] = frozenset()
        self.kept: set[str] = set()
        self.widened: set[str] = set()
        self._reader = reader or Source(folder).reader
        self._names: dict[str, str] = {}
        prefixes = tuple(prefixes)
        for name in self._reader.infos:
            bare = next((name[len(p) :] for p in prefixes if name.startswith(p)), name)
            self._names[bare] = name

    def __contains__(self, name: str) -> bool:
        return name in self._names

    @property
    def stored_dtype(self) -> str:
        """dtype of the first matrix, as torch names it (`float32`, `bfloat16`, ...)."""
        infos = [self._reader.infos[name] for name in self._names.values()]
        return next((i.dtype for i in infos if len(i.shape) >= 2), infos[0].dtype if infos else "float32")

    def numbers(self, dtype: str, device: str) -> Choice:
        """`pick_dtype` for these weights, and what they were dequantised from."""
        chosen = pick_dtype(dtype, device, self.stored_dtype)
        return Choice(chosen.value, chosen.reason + self.dequantised)

    @property
    def dequantised(self) -> str:
        """What the matrices were made of, to go behind a reason; empty where they are stored as matrices."""
        return f"; {self._reader.note}" if isinstance(self._reader, Unquantised) else ""

    def _stored(self, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
        """The tensor as it lies in the file, its name still in the account."""
        tensor = self._reader.load(self._full(name))
        self._fits(name, tensor.shape, shape)
        return tensor

    def _full(self, name: str) -> str:
        """The name in the file."""
        if name not in self._names:
            raise QwenchError(
                f"the checkpoint lacks a weight of its architecture: `{name}` in `{self.folder}`",
                "it would be random; use a complete checkpoint",
            )
        return self._names[name]

    def _fits(self, name: str, found: Iterable[int], shape: tuple[int, ...] | None) -> None:
        if shape is not None and tuple(found) != shape:
            raise QwenchError(
                f"weight `{self._names[name]}` has shape {tuple(found)} but config.json asks for {shape}: "
                f"`{self.folder}`",
                "config.json and weights are from different models",
            )

    def take(self, name: str, dtype: dtype, shape: tuple[int, ...] | None = None, device: str = "cpu") -> Tensor:
        """One tensor, cast and moved; without a cast it stays a view of the mapped file.

        Raises:
            QwenchError: the name is not in the checkpoint, or its shape is not `shape`.
        """
        stored = self._stored(name, shape)
        tensor = stored.to(device=device, dtype=dtype)
        full = self._names.pop(name)
        if tensor is not stored:
            self._reader.release(full)
        return tensor

    def joined(self, parts: dict[str, tuple[int, ...]], dtype: dtype, device: str = "cpu") -> Tensor:
        """Several tensors (name -> shape) as one, one below the other; the file's pages are let go of."""
        import torch

        # What the config asks for is allocated only where the file holds as much.
        for name, shape in parts.items():
            self._fits(name, self._reader.infos[self._full(name)].shape, shape)
        rows = sum(shape[0] for shape in parts.values())
        out = torch.empty((rows, *next(iter(parts.values()))[1:]), dtype=dtype, device=device)
        at = 0
        for name, shape in parts.items():
            out[at : at + shape[0]] = self._stored(name, shape)
            self._reader.release(self._names.pop(name))
            at += shape[0]
        return out

    def matrix(self, parts: dict[str, tuple[int, ...]], dtype: dtype, device: str = "cpu") -> Tensor | Blocks:
        """Like `take` or `joined`, for what is only ever multiplied with or looked up in."""
        import torch

        if self.as_stored and parts.keys() <= self._names.keys():
            formats = {self._format(name) for name in parts}
            if formats <= self.as_stored and (found := self._in_blocks(parts)) is not None:
                self.kept |= formats
                return found
            alone = len(formats) == 1 and formats <= self.as_stored - set(IN_BLOCKS)
            dtype = getattr(torch, *formats) if alone else torch.float32
            (self.kept if alone else self.widened).update(formats)
        if len(parts) > 1:
            return self.joined(parts, dtype, device)
        ((name, shape),) = parts.items()
        return self.take(name, dtype, shape, device)

    def _in_blocks(self, parts: dict[str, tuple[int, ...]]) -> Blocks | None:
        """All parts as they are stored, or None where that is not in blocks of one kind."""
        import torch

        if not isinstance(self._reader, GgufReader):
            return None
        found = [self._reader.blocks(self._names[name]) for name in parts]
        if len({block and block.kind for block in found}) > 1 or found[0] is None:
            return None
        for (name, shape), block in zip(parts.items(), found, strict=True):
            self._fits(name, block.shape, shape)
        data = torch.cat([block.data for block in found])
        for name in parts:
            self._reader.release(self._names.pop(name))
        return Blocks(data, found[0].kind, (len(data), found[0].shape[1]))

    def _format(self, name: str) -> str:
        full = self._names[name]
        return self._reader.stored[full] if isinstance(self._reader, GgufReader) else self._reader.infos[full].dtype

    def height(self, name: str) -> int:
        """Rows of a matrix; 0 when it is not there."""
        return self._reader.infos[self._names[name]].shape[0] if name in self._names else 0

    def named(self, beginning: str) -> list[str]:
        """Names that nobody has taken yet and that begin so."""
        return sorted(name for name in self._names if name.startswith(beginning))

    def stored_name(self, name: str) -> str | None:
        """The name in the file, prefix included; None when it is not there."""
        return self._names.get(name)

    def rows(self, name: str, rows: list[int]) -> Tensor:
        """Some rows of a matrix as float32, reading no others; the name stays in the account.

        Raises:
            QwenchError: the name is not in the checkpoint.
        """

        stored = self._stored(name)
        if rows and max(rows) >= len(stored):
            raise QwenchError(f"weight `{self._names[name]}` has {len(stored)} rows, and row {max(rows)} is needed")
        return stored[rows].float()

    def discard(self, unwanted: Callable[[str], bool]) -> None:
        """Take names from the account that are not wanted here, and not wrong to be there."""
        self._names = {bare: name for bare, name in self._names.items() if not unwanted(bare)}

    def close(self, unused: Iterable[str] = ()) -> list[str]:
        """End of loading. Returns the names left aside on purpose (those that start with one of `unused`).

        Raises:
            QwenchError: a tensor is left that the architecture does not know.
        """
        unused = tuple(unused)
        left = sorted(self._names)
        unknown = [name for name in left if not name.startswith(unused)] if unused else left
        if unknown:
            raise QwenchError(
                f"the checkpoint has weights its architecture does not use: `{unknown[0]}`"
                + (f" and {len(unknown) - 1} more" if len(unknown) > 1 else "")
                + f" in `{self.folder}`",
                "the vectors would be wrong without them; this model needs its own code",
            )
        self._names.clear()
        return left
