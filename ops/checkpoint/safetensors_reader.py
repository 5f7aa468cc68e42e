"""Safetensors files: headers checked against the bytes that are there, tensors as views of the mapped file."""

from __future__ import annotations

import mmap
import struct
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.errors import QwenchError
from ..base.fields import AGAIN as AGAIN
from ..base.fields import TEXT, listed, mapped, shown, whole
from ..base.parse import json_value
from .impostors import impostor
from .tensors import CODES, TensorInfo, torch_dtype

if TYPE_CHECKING:
    from torch import Tensor

#: the format's own limit
MAX_HEADER = 100_000_000
_SIZES = listed(whole(0, None))
_SAID = mapped(TEXT)


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """(header, first byte of the data) of a safetensors file.

    Raises:
        QwenchError: not a safetensors file, or a truncated one.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(8)
        if len(head) < 8:
            raise damaged(path, "it ends within its first 8 bytes")
        length = struct.unpack("<Q", head)[0]
        if length > min(size - 8, MAX_HEADER):
            raise damaged(path, f"its header claims {length} bytes and the file has {size}")
        try:
            header = json_value(file.read(length))
        except ValueError as error:
            raise damaged(path, f"its header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise damaged(path, "its header is not an object")
    return header, 8 + length


def damaged(path: Path, reason: str) -> QwenchError:
    """The error for a file that cannot be what its name says."""
    return impostor(path) or QwenchError(f"the weight file is damaged ({reason}): `{path}`", AGAIN)


def _entry(path: Path, name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    """(dtype, shape, first byte, last byte) of a tensor, as its entry in the header says."""
    if not isinstance(entry, dict) or not TEXT.fits(entry.get("dtype")):
        raise damaged(path, f"its entry for `{name}` has no dtype")
    if entry["dtype"] not in CODES:
        raise QwenchError(f"`{name}` has the dtype `{entry['dtype']}`, which cannot be read here: `{path}`")
    kind, count = CODES[entry["dtype"]]
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not _SIZES.fits(shape):
        raise damaged(path, f"the shape of `{name}` is {shown(shape)}")
    if not _SIZES.fits(offsets) or len(offsets) != 2:
        raise damaged(path, f"the offsets of `{name}` are {shown(offsets)}")
    first, last = offsets
    # torch counts elements and steps over empty axes in 64 bits, and Python prints no number of 4,300 digits.
    if prod(n or 1 for n in shape) >= 1 << 63 or last >= 1 << 63:
        raise damaged(path, f"`{name}` is larger than any file")
    if last - first != prod(shape) * count:
        raise damaged(path, f"`{name}` has {last - first} bytes and its shape needs {prod(shape) * count}")
    return kind, tuple(shape), first, last


def _covered(path: Path, entries: list[TensorInfo], start: int, size: int) -> None:
    """Every byte of the data belongs to one tensor, as the format asks.

    Raises:
        QwenchError: two tensors overlap, or bytes belong to none.
    """
    at, before = start, ""
    for info in entries:
        if info.offset < at:
            raise damaged(path, f"`{before}` and `{info.name}` overlap")
        if info.offset > at:
            between = f"between `{before}` and `{info.name}`" if before else f"before `{info.name}`"
            raise damaged(path, f"{info.offset - at} bytes {between} belong to no tensor")
        at, before = at + info.nbytes, info.name
    if at < size:
        raise damaged(path, f"{size - at} bytes {f'after `{before}`' if before else ''} belong to no tensor")


class SafetensorsReader:
    """Tensors of some safetensors files, mapped and never read ahead.

    Attributes:
        infos: name -> TensorInfo, in the order of files and offsets.
        metadata: the files' own `__metadata__`, merged.

    Raises:
        QwenchError: a damaged file, or a name in two files.
    """

    format = "safetensors"

    def __init__(self, files: list[Path]) -> None:
        self.infos: dict[str, TensorInfo] = {}
        self.metadata: dict[str, str] = {}
        self._maps: dict[Path, mmap.mmap] = {}
        for path in files:
            self._open(path)

    def _open(self, path: Path) -> None:
        header, start = read_header(path)
        size = path.stat().st_size
        said = header.pop("__metadata__", {})
        if not _SAID.fits(said):
            raise damaged(path, f"its `__metadata__` is {shown(said)}, and not text by name")
        self.metadata |= said
        entries = []
        for name, entry in header.items():
            kind, shape, first, last = _entry(path, name, entry)
            if start + last > size:
                raise damaged(path, f"`{name}` ends at byte {start + last} and the file at {size}: it is truncated")
            if name in self.infos:
                raise QwenchError(f"`{name}` is in two files: `{self.infos[name].file}` and `{path}`", AGAIN)
            entries.append(TensorInfo(name, shape, kind, last - first, path, start + first))
        entries.sort(key=lambda e: (e.offset, e.nbytes))
        _covered(path, entries, start, size)
        self.infos |= {info.name: info for info in entries}

    def load(self, name: str) -> Tensor:
        """The tensor as a view of the mapped file; do not write into it."""
        import torch

        info = self.infos[name]
        if not info.nbytes:
            return torch.empty(info.shape, dtype=torch_dtype(info.dtype))
        return torch.frombuffer(
            self._map(info.file), dtype=torch_dtype(info.dtype), count=info.numel, offset=info.offset
        ).view(info.shape)

    def release(self, name: str) -> None:
        """Let go of the tensor's pages in memory; they are read again when it is looked at again."""
        info = self.infos[name]
        if not hasattr(mmap, "MADV_DONTNEED") or info.file not in self._maps:
            return
        first = -(-info.offset // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (info.offset + info.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first:
            self._maps[info.file].madvise(mmap.MADV_DONTNEED, first, last - first)

    def _map(self, path: Path) -> mmap.mmap:
        if path not in self._maps:
            with open(path, "rb") as file:
                # A private mapping: torch wants a writable buffer, and nothing written would reach the file.
                self._maps[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return self._maps[path]
