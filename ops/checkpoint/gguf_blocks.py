"""Block formats of GGUF: values to bytes and back, in pieces that stay in the cache.

Q8_0 and the 4-bit formats are ours, equal to gguf's byte for byte and value for value; the others are gguf's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..base.errors import QwenchError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

#: format -> (GGUF's number, elements in a block, bytes of a block, `general.file_type` of a file mostly made of it)
BLOCKS = {
    "q4_0": (2, 32, 18, 2),
    "q4_1": (3, 32, 20, 3),
    "q5_0": (6, 32, 22, 8),
    "q5_1": (7, 32, 24, 9),
    "q8_0": (8, 32, 34, 7),
}
#: torch's name -> (GGUF's number, bytes, `general.file_type`)
PLAIN = {
    "float32": (0, 4, 0),
    "float16": (1, 2, 1),
    "bfloat16": (30, 2, 32),
    "float64": (28, 8, None),
    "int8": (24, 1, None),
    "int16": (25, 2, None),
    "int32": (26, 4, None),
    "int64": (27, 8, None),
}


@dataclass(frozen=True, slots=True)
class Blocks:
    """A matrix in blocks.

    Attributes:
        data: (rows, bytes of a row) uint8.
        kind: `q8_0` or `q4_1`.
        shape: of its values.
    """

    data: Tensor
    kind: str
    shape: tuple[int, int]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Tensor) -> Blocks:
        return Blocks(self.data[rows], self.kind, (len(rows), self.shape[1]))

    def numel(self) -> int:
        """Number of values."""
        return self.shape[0] * self.shape[1]

    def values(self) -> Tensor:
        """float32."""
        return decode(self.data.flatten(), self.kind, self.shape)


def with_offsets(data: Tensor) -> Tensor:
    """Blocks of q4_0, (rows, bytes), as those of q4_1 with the same values, exactly."""
    import torch

    blocks = data.view(len(data), -1, 18)
    offsets = blocks[..., :2].contiguous().view(torch.float16) * -8
    return torch.cat((blocks[..., :2], offsets.view(torch.uint8), blocks[..., 2:]), -1).flatten(1)


def encode(values: Tensor, kind: str) -> Tensor:
    """Bytes of flat values in a block format.

    Args:
        values: any float dtype, whole blocks.
        kind: a key of BLOCKS.

    Returns:
        uint8, flat.
    """
    import torch

    _, size, count, _ = BLOCKS[kind]
    x = values.float().view(-1, size)
    if kind != "q8_0":
        import gguf
        import numpy as np

        with np.errstate(all="ignore"):
            found = gguf.quants._type_traits[gguf.GGMLQuantizationType[kind.upper()]].quantize_blocks(x.numpy())
        return torch.from_numpy(found.reshape(-1))
    out = torch.empty(len(x), count, dtype=torch.uint8)
    scale = torch.maximum(x.amax(1), -x.amin(1)).abs_() / 127
    inverse = torch.where(scale == 0, 0.0, 1 / scale)
    # Halves away from zero, as llama.cpp rounds: torch.round takes them to even.
    scaled = x * inverse[:, None]
    rounded = scaled.trunc()
    rounded += (scaled - rounded).mul_(2).trunc_()
    out[:, :2] = scale.half().view(torch.uint8).view(-1, 2)
    out[:, 2:] = rounded.to(torch.int8).view(torch.uint8)
    return out.view(-1)


def decode(data: Tensor, kind: str, shape: tuple[int, ...]) -> Tensor:
    """Values of a tensor in a block format.

    Args:
        data: uint8, flat.
        kind: GGUF's name in small letters, such as `q4_k`.
        shape: of the values.

    Returns:
        float32.

    Raises:
        QwenchError: gguf cannot read the format.
    """
    import torch

    out = torch.empty(shape, dtype=torch.float32)
    flat = out.view(-1)
    size, count = sizes_of(kind)
    blocks = data.view(-1, count)
    step = max((1 << 18) // size, 1)
    for at in range(0, len(blocks), step):
        piece = blocks[at : at + step]
        flat[at * size : (at + len(piece)) * size] = _decoded(piece, kind)
    return out


def _decoded(blocks: Tensor, kind: str) -> Tensor:
    import torch

    if kind == "q8_0":
        scale = blocks[:, :2].contiguous().view(torch.float16).float()
        return (blocks[:, 2:].view(torch.int8).float() * scale).view(-1)
    if kind in ("q4_0", "q4_1"):
        head = 2 if kind == "q4_0" else 4
        scale = blocks[:, :head].contiguous().view(torch.float16).float()
        packed = blocks[:, head:]
        values = torch.cat((packed & 15, packed >> 4), 1).float()
        if kind == "q4_0":
            return ((values - 8) * scale).view(-1)
        return (values * scale[:, :1] + scale[:, 1:]).view(-1)
    import gguf
    import numpy as np

    traits = gguf.quants._type_traits.get(gguf.GGMLQuantizationType[kind.upper()])
    if traits is None:
        raise QwenchError(f"blocks of type `{kind}` cannot be read here", "get the model in another quantisation")
    traits.init_grid()
    with np.errstate(all="ignore"):
        return torch.from_numpy(traits.dequantize_blocks(blocks.contiguous().numpy()).reshape(-1))


def sizes_of(kind: str) -> tuple[int, int]:
    """(elements, bytes) of a block."""
    if kind in BLOCKS:
        return BLOCKS[kind][1:3]
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    return GGML_QUANT_SIZES[GGMLQuantizationType[kind.upper()]]


def kind_of(number: int) -> str | None:
    """Torch's name, or the block format's, of GGUF's number; None for an unknown one."""
    for name, (own, *_) in (PLAIN | BLOCKS).items():
        if own == number:
            return name
    from gguf import GGMLQuantizationType

    try:
        return GGMLQuantizationType(number).name.lower()
    except ValueError:
        return None


def torch_of(kind: str) -> torch.dtype | None:
    """The dtype of a plain format, None for blocks."""
    import torch

    return getattr(torch, kind) if kind in PLAIN else None
