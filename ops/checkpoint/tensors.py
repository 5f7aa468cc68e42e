"""What is said of a tensor without reading it, and dtype names."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

#: safetensors code -> (torch name, bytes per element)
CODES = {
    "F64": ("float64", 8),
    "I64": ("int64", 8),
    "U64": ("uint64", 8),
    "F32": ("float32", 4),
    "I32": ("int32", 4),
    "U32": ("uint32", 4),
    "BF16": ("bfloat16", 2),
    "F16": ("float16", 2),
    "I16": ("int16", 2),
    "U16": ("uint16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "F8_E8M0": ("float8_e8m0fnu", 1),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}
NAMES = {name: (code, size) for code, (name, size) in CODES.items()}
#: endings of files that hold weights
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".ckpt", ".onnx", ".h5", ".msgpack")
#: files of a training run that end like weights
NO_WEIGHTS = ("training_args.bin", "optimizer.pt", "scheduler.pt", "optimizer.bin", "rng_state.pth", "scaler.pt")
FLOATS = ("float64", "float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor of a checkpoint.

    Attributes:
        name: as in the file.
        shape: of the tensor; empty for a scalar.
        dtype: torch's name, such as `bfloat16`.
        nbytes: bytes on disk.
        file: where it lies.
        offset: first byte in the file, None where the format has its own way to it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    file: Path
    offset: int | None = None

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def is_float(self) -> bool:
        """A dtype that casts apply to."""
        return self.dtype in FLOATS


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a name."""
    import torch

    return getattr(torch, name)
