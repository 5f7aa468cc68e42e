"""Safetensors files: headers checked against the bytes that are there, tensors as views of the mapped file."""

from __future__ import annotations

import json
import mmap
import struct
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.errors import QwenchError
from .tensors import CODES, TensorInfo, torch_dtype

if TYPE_CHECKING:
    from torch import Tensor

#: the format's own limit
MAX_HEADER = 100_000_000
AGAIN = "download or copy the model again"


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
            header = json.loads(file.read(length))
        except ValueError as error:
            raise damaged(path, "its header is not JSON") from error
    if not isinstance(header, dict):
        raise damaged(path, "its header is not an object")
    return header, 8 + length


def damaged(path: Path, reason: str) -> QwenchError:
    """The error for a file that cannot be what its name says."""
    return QwenchError(f"the weight file is damaged ({reason}): `{path}`", AGAIN)


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
        self.metadata |= header.pop("__metadata__", None) or {}
        entries = []
        for name, entry in header.items():
            try:
                kind, count = CODES[entry["dtype"]]
                shape = tuple(int(n) for n in entry["shape"])
                first, last = (int(n) for n in entry["data_offsets"])
            except (KeyError, TypeError, ValueError) as error:
                raise damaged(path, f"its entry for `{name}` makes no sense") from error
            if last - first != prod(shape) * count:
                raise damaged(path, f"`{name}` has {last - first} bytes and its shape needs {prod(shape) * count}")
            if first < 0 or start + last > size:
                raise damaged(path, f"`{name}` ends at byte {start + last} and the file at {size}: it is truncated")
            if name in self.infos:
                raise QwenchError(f"`{name}` is in two files: `{self.infos[name].file}` and `{path}`", AGAIN)
            entries.append(TensorInfo(name, shape, kind, last - first, path, start + first))
        for info in sorted(entries, key=lambda e: e.offset):
            self.infos[info.name] = info

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
