"""Matrices that are stored as codes and scales: the rules that make values of their parts.

Every rule computes in float32 and rounds once, after it. The layouts are those of transformers' `fp8`,
compressed-tensors, ModelOpt, AutoAWQ and GPTQ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Load = Callable[[str], "Tensor"]
#: values of the 4-bit float E2M1, by code
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
#: the nibble of a word in which AutoAWQ keeps value k of eight
AWQ_NIBBLES = (0, 4, 1, 5, 2, 6, 3, 7)


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix in parts: (code - zero) * scale, where a scale stands for a block of values, cropped at the edges.

    Attributes:
        name: of the matrix as a model knows it.
        shape: logical; leading axes are stacks.
        kind: the scheme in words, such as `fp8 e4m3, blocks of 128x128`.
        parts: role -> name in the file: codes, scale, and where there are, zero, factor, divisor, order.
        block: rows and columns that share a scale.
        bits: of codes packed into words of 32, lowest bits first, along the columns; 0 where each is a number.
        pairs: two E2M1 codes a byte, low nibble first.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    parts: dict[str, str] = field(hash=False)
    block: tuple[int, int] = (1, 1)
    bits: int = 0
    pairs: bool = False

    @property
    def height(self) -> int:
        """Rows of one stack."""
        return self.shape[-2] if len(self.shape) > 1 else 1

    @property
    def count(self) -> int:
        """Rows of all stacks."""
        return prod(self.shape[:-1])

    def rows(self, load: Load, first: int, last: int) -> Tensor:
        """Rows `first` to `last` of the stacks laid end to end: float32, (last - first, columns)."""
        import torch

        codes = load(self.parts["codes"]).reshape(self.count, -1)[first:last]
        width = self.shape[-1]
        if self.pairs:
            halves = torch.stack([codes & 15, codes >> 4], -1).flatten(1)
            values = torch.tensor(E2M1)[halves.int()]
        elif self.bits:
            values = unpacked(codes, self.bits)[:, :width].float()
        else:
            values = codes.float()
        index = torch.arange(first, last)
        if "zero" in self.parts:
            values -= self._spread(load, self._zeros(load, first, last))
        elif self.bits:
            values -= 1 << (self.bits - 1)
        table = load(self.parts["scale"])
        if table.numel() > 1:
            down = -(-self.height // self.block[0])
            table = table.reshape(self.count // self.height * down, -1)
            # Of the rows alone that are asked for: a large matrix is made in many pieces.
            table = table[index // self.height * down + index % self.height // self.block[0]]
        values *= self._spread(load, as_scale(table))
        if "factor" in self.parts:
            values *= load(self.parts["factor"]).float()
        if "divisor" in self.parts:
            values /= load(self.parts["divisor"]).float()
        return values

    def _zeros(self, load: Load, first: int, last: int) -> Tensor:
        zero = load(self.parts["zero"])
        if self.bits:
            # Packed along the rows: a word holds the zeros of some rows, for one group.
            per = 32 // self.bits
            words, skipped = zero[first // per : -(-last // per)], first % per
            return unpacked(words.T, self.bits).T[skipped : skipped + last - first].float()
        return zero.float() if zero.numel() == 1 else zero.reshape(self.count, -1)[first:last].float()

    def _spread(self, load: Load, table: Tensor) -> Tensor:
        """A number for every column, of numbers for groups of columns."""
        width = self.shape[-1]
        if table.numel() == 1:
            return table.reshape(1, 1)
        if "order" in self.parts:
            return table[:, load(self.parts["order"]).long()]
        return table if table.shape[1] == 1 else table.repeat_interleave(self.block[1], 1)[:, :width]


@dataclass(frozen=True, slots=True)
class Columns(Matrix):
    """The same with codes, zeros and scales as (in, out), zeros packed along out: AutoAWQ and GPTQ.

    Attributes:
        awq: codes are packed along out, in AutoAWQ's order of nibbles; else along in.
        more: what is added to a zero; GPTQ's first format stores one less.
    """

    awq: bool = False
    more: int = 0

    def rows(self, load: Load, first: int, last: int) -> Tensor:
        """See `Matrix`."""
        import torch

        per = 32 // self.bits
        words = slice(first // per, -(-last // per))
        kept = slice(first - words.start * per, last - words.start * per)
        order = AWQ_NIBBLES if self.awq else None
        codes, zeros = load(self.parts["codes"]), load(self.parts["zero"])[:, words]
        zeros = unpacked(zeros, self.bits, order)[:, kept].float() + self.more
        if self.awq:
            codes = unpacked(codes[:, words], self.bits, order)[:, kept]
        else:
            codes = unpacked(codes[:, first:last].T, self.bits).T
        scales = load(self.parts["scale"])[:, first:last].float()
        if "order" in self.parts:
            groups = load(self.parts["order"]).long()
        else:
            groups = torch.arange(self.shape[1]) // self.block[1]
        return (scales[groups] * (codes.float() - zeros[groups])).T


def unpacked(words: Tensor, bits: int, order: tuple[int, ...] | None = None) -> Tensor:
    """Codes of int32 words along the last axis, lowest bits first or by nibbles in an order: int32."""
    import torch

    places = torch.tensor(order if order else range(32 // bits), dtype=torch.int32) * bits
    return ((words.int().unsqueeze(-1) >> places) & ((1 << bits) - 1)).flatten(-2)


def as_scale(stored: Tensor) -> Tensor:
    """Scales as float32; bytes are exponents of two (E8M0)."""
    import torch

    if stored.element_size() > 1 or stored.dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        return stored.float()
    bits = stored.contiguous().view(torch.uint8).int()
    # 2**-127 has no exponent of its own, and 255 says not a number.
    found = torch.where(bits == 0, 1 << 22, bits << 23)
    return torch.where(bits == 255, 0x7FC00000, found).int().view(torch.float32)
