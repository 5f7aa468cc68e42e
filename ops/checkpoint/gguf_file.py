"""The head of a GGUF file, in one pass: its metadata and where its tensors lie (docs/gguf.md of ggml)."""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from ..base.errors import QwenchError
from ..base.fields import Fields
from .gguf_blocks import PLAIN, kind_of, sizes_of
from .safetensors_reader import damaged
from .schemas import GGUF

MAGIC = b"GGUF"
ALIGNMENT = 32
#: axes of a tensor, ggml's own limit
AXES = 4
#: arrays of arrays: no key of the format has any, and each level is a call
NESTED = 8
_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor as it lies in the file: name, shape (outermost first), format, first byte, bytes."""

    name: str
    shape: tuple[int, ...]
    kind: str
    offset: int
    nbytes: int


class GgufFile:
    """A mapped GGUF file.

    Attributes:
        said: metadata; arrays are lists; known keys are checked as they are read.
        tensors: in the order of the file.
        map: the bytes, private: nothing written reaches the file.

    Raises:
        QwenchError: not a GGUF file of version 2 or 3, or a truncated one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        size = path.stat().st_size
        if size < 24:
            raise damaged(path, "it ends within its first 24 bytes")
        with open(path, "rb") as file:
            self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        if self.map[:4] != MAGIC:
            raise damaged(path, "it does not begin with GGUF")
        self._at = 4
        try:
            version, tensors, keys = self._take("<IQQ")
            if version not in (2, 3):
                raise damaged(path, f"its version is {version}, and 2 and 3 are known")
            said: dict[str, Any] = {}
            for _ in range(keys):
                key = self._string()
                if key in said:
                    raise damaged(path, f"its metadata has `{key}` twice")
                said[key] = self._value(self._take("<I")[0])
            self.said = Fields(said, str(path), GGUF)
            heads = [self._head() for _ in range(tensors)]
        except (struct.error, UnicodeDecodeError, KeyError, OverflowError, MemoryError) as error:
            raise damaged(path, "its header makes no sense") from error
        align = self.said.get("general.alignment", ALIGNMENT)
        if align & (align - 1):
            raise damaged(path, f"its alignment is {align}")
        start = -(-self._at // align) * align
        self.tensors = [self._stored(start, size, *head) for head in heads]
        at, before = start, ""
        for tensor in sorted(self.tensors, key=lambda t: (t.offset, t.nbytes)):
            if tensor.offset < at:
                raise damaged(path, f"`{before}` and `{tensor.name}` overlap")
            at, before = tensor.offset + tensor.nbytes, tensor.name

    def _take(self, form: str) -> tuple[Any, ...]:
        found = struct.unpack_from(form, self.map, self._at)
        self._at += struct.calcsize(form)
        return found

    def _string(self) -> str:
        (length,) = self._take("<Q")
        if length > len(self.map) - self._at:
            raise struct.error
        self._at += length
        return self.map[self._at - length : self._at].decode("utf-8")

    def _value(self, kind: int, depth: int = 0) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._take("<" + _SCALARS[kind])[0]
        inner, count = self._take("<IQ")
        if depth == NESTED:
            raise damaged(self.path, f"its metadata has arrays nested more than {NESTED} deep")
        # Each text and array begins with 8 bytes at least.
        if count > (len(self.map) - self._at) // (8 if inner in (_STRING, _ARRAY) else 1):
            raise struct.error
        if inner in (_STRING, _ARRAY):
            return [self._value(inner, depth + 1) for _ in range(count)]
        return list(self._take(f"<{count}{_SCALARS[inner]}"))

    def _head(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string()
        (dims,) = self._take("<I")
        if dims > AXES:
            raise damaged(self.path, f"`{name}` has {dims} axes, and the format has {AXES} at most")
        shape = self._take(f"<{dims}Q")[::-1]
        number, offset = self._take("<IQ")
        return name, shape, number, offset

    def _stored(self, start: int, size: int, name: str, shape: tuple[int, ...], number: int, offset: int) -> Stored:
        kind = kind_of(number)
        if kind is None:
            raise QwenchError(
                f"`{name}` is in a block format newer than this version knows, number {number}: `{self.path}`",
                "update qwench and its `gguf` package, or convert the model from another format",
            )
        elements, count = (1, PLAIN[kind][1]) if kind in PLAIN else sizes_of(kind)
        if (shape[-1] if shape else 1) % elements:
            raise damaged(self.path, f"rows of `{name}` are not whole blocks")
        if prod(n or 1 for n in shape) >= 1 << 63:
            raise damaged(self.path, f"`{name}` is larger than any file")
        nbytes = prod(shape) // elements * count
        if start + offset + nbytes > size:
            end = start + offset + nbytes
            raise damaged(self.path, f"`{name}` ends at byte {end} and the file at {size}: it is truncated")
        return Stored(name, shape, kind, start + offset, nbytes)


def header(said: dict[str, Any], tensors: list[tuple[str, tuple[int, ...], int, int]]) -> tuple[bytes, dict[str, int]]:
    """(header, name -> first byte in the file).

    Args:
        said: metadata: int (uint32), float (float32), bool, str, lists of str, of int (int32) or of float.
        tensors: (name, shape, GGUF's number of the type, bytes).
    """
    parts = [MAGIC, struct.pack("<IQQ", 3, len(tensors), len(said))]
    for key, value in said.items():
        parts += [_text(key), _packed(value)]
    at, starts = 0, {}
    for name, shape, number, nbytes in tensors:
        parts += [_text(name), struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], number, at)]
        starts[name] = at
        at += -(-nbytes // ALIGNMENT) * ALIGNMENT
    head = b"".join(parts)
    head += bytes(-len(head) % ALIGNMENT)
    return head, {name: len(head) + start for name, start in starts.items()}


def _text(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def _packed(value: Any) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        # Unsigned as most keys are, and wider or signed where that is needed.
        kind, code = (4, "I") if 0 <= value < 1 << 32 else (10, "Q") if value > 0 else (11, "q")
        return struct.pack(f"<I{code}", kind, value)
    if isinstance(value, float):
        wide = 3.4e38 < abs(value) < float("inf")
        return struct.pack("<Id", 12, value) if wide else struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    if all(isinstance(v, str) for v in value):
        return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(_text, value))
    if all(isinstance(v, bool) for v in value):
        kind, code = _BOOL, "?"
    elif all(isinstance(v, int) for v in value):
        kind, code = (5, "i") if all(-1 << 31 <= v < 1 << 31 for v in value) else (11, "q")
        kind, code = (10, "Q") if max(value) >= 1 << 63 else (kind, code)
    else:
        wide = any(3.4e38 < abs(v) < float("inf") for v in value)
        kind, code = (12, "d") if wide else (6, "f")
    return struct.pack(f"<IIQ{len(value)}{code}", _ARRAY, kind, len(value), *value)
