"""Weights in 8 or 4 bits for decoding on the CPU, where every token reads all of them.

In the C kernels they are blocks of GGUF, with float32 arithmetic. Without those the products are PyTorch's own kernels
for few rows; for many rows (a prompt) the weight is unpacked once per call, which then costs little.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...base.errors import QwenchError
from ...kernels.native.linear import BlockLinear, NativeLinear, to_blocks
from .linear import Linear, Maker

if TYPE_CHECKING:
    from torch import Tensor

GROUP = 32


class _WeightOnly:
    #: rows of one call of the kernel, and rows up to which it wins over unpacking the weight (both measured)
    each: int
    few: int
    bias: Tensor | None
    parameters: int

    def _packed(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _weight(self) -> Tensor:
        raise NotImplementedError

    def __call__(self, x: Tensor) -> Tensor:
        import torch

        if len(x) <= self.few:
            narrow = x.bfloat16()
            parts = [self._packed(part) for part in narrow.split(self.each)]
            y = (parts[0] if len(parts) == 1 else torch.cat(parts)).to(x.dtype)
            return y if self.bias is None else y.add_(self.bias)
        return torch.nn.functional.linear(x, self._weight().to(x.dtype), self.bias)


class Int8Weight(_WeightOnly):
    """int8 with one scale per output; x (rows, in) -> (rows, out), products in bfloat16."""

    each, few = 4, 16

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        import torch

        wide = weight.float()
        scales = (wide.abs().amax(1) / 127).clamp_min_(1e-12)
        self.values = (wide / scales[:, None]).round_().to(torch.int8)
        self.scales, self.bias = scales.bfloat16(), bias
        self.parameters = weight.numel() + (0 if bias is None else bias.numel())

    def _packed(self, x: Tensor) -> Tensor:
        import torch

        return torch.ops.aten._weight_int8pack_mm(x, self.values, self.scales)

    def _weight(self) -> Tensor:
        return self.values * self.scales.float()[:, None]


class Int4Weight(_WeightOnly):
    """4 bits with scale and offset for every 32 inputs; x (rows, in) -> (rows, out), products in bfloat16."""

    each, few = 96, 96

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        import torch

        groups = weight.float().unflatten(1, (-1, GROUP))
        low, high = groups.amin(-1), groups.amax(-1)
        scales = ((high - low) / 15).clamp_min_(1e-9).bfloat16()
        # The kernel computes (code - 8) * scale + offset.
        offsets = (low + scales.float() * 8).bfloat16()
        codes = (groups - offsets.float()[..., None]) / scales.float()[..., None]
        codes = codes.add_(8).round_().clamp_(0, 15).to(torch.int32).flatten(1)
        self.packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 2)
        self.codes = (codes[:, 0::2] | codes[:, 1::2] << 4).to(torch.uint8)
        self.scale_offset = torch.stack((scales, offsets), -1).transpose(0, 1).contiguous()
        self.bias = bias
        self.parameters = weight.numel() + (0 if bias is None else bias.numel())

    def _packed(self, x: Tensor) -> Tensor:
        import torch

        return torch.ops.aten._weight_int4pack_mm_for_cpu(x, self.packed, GROUP, self.scale_offset)

    def _weight(self) -> Tensor:
        import torch

        codes = torch.stack((self.codes & 15, self.codes >> 4), -1).flatten(1).unflatten(1, (-1, GROUP))
        scale, offset = self.scale_offset.transpose(0, 1).float().unsqueeze(-1).unbind(2)
        return ((codes.float() - 8) * scale + offset).flatten(1)


#: `--quantize` and the kind of its blocks
KINDS = {"int8": "q8_0", "int4": "q4_1"}


def weight_only(quantize: str, device: str, native: bool = False) -> Maker:
    """The linear class for `chat --quantize`.

    Args:
        native: in the C kernels; a weight whose rows are no whole blocks then stays as it is.

    Raises:
        QwenchError: unknown choice, or not on the CPU.
    """
    if quantize == "none":
        return Linear
    if quantize not in KINDS:
        raise QwenchError(f"unknown quantization: `{quantize}`", "use none, int8 or int4", code=2)
    if device != "cpu":
        raise QwenchError(
            f"--quantize {quantize} has kernels for the CPU only, and the device is `{device}`", "add --device cpu"
        )
    if native:
        return BlockMaker(KINDS[quantize])
    if quantize == "int8":
        return Int8Weight

    def int4(weight: Tensor, bias: Tensor | None) -> Int4Weight | Int8Weight:
        rows, columns = weight.shape
        return (Int4Weight if columns % GROUP == 0 and rows % 16 == 0 else Int8Weight)(weight, bias)

    return int4


class BlockMaker:
    """Weights into blocks of a kind.

    Attributes:
        left: how many stayed as they are, their rows being no whole blocks.
    """

    def __init__(self, kind: str) -> None:
        self.kind, self.left = kind, 0

    def __call__(self, weight: Tensor, bias: Tensor | None) -> NativeLinear:
        rows, columns = weight.shape
        if columns % GROUP:
            self.left += 1
            return NativeLinear(weight, bias)
        return BlockLinear(to_blocks(weight, self.kind), self.kind, (rows, columns), bias)
