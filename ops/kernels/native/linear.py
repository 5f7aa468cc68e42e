"""Linear layers in the C kernels: weights as they are stored, float32 arithmetic."""

from __future__ import annotations

import ctypes
import math
import time
from functools import cache
from typing import TYPE_CHECKING

from . import store
from .border import BLOCKS, GROUP, KINDS, Matrix, key_of_library, library, product, threads

if TYPE_CHECKING:
    from torch import Tensor

#: rows of the products that are measured; what wins at the last is taken for any number
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
#: float32 values of a widened piece of weights: small enough for the cache between widening and product
PIECE = 1 << 20


class NativeLinear:
    """x (rows, in) float32 -> (rows, out) float32: C kernels for few rows, torch's product for many.

    Args:
        weight: (out, in) float32, bfloat16 or float16.
        bias: (out,).
        few: rows up to which the C kernel is used; None for what is faster here.
    """

    __slots__ = ("bias", "few", "matrix", "parameters", "weight")

    def __init__(self, weight: Tensor, bias: Tensor | None = None, few: int | None = None) -> None:
        self.weight = weight.contiguous()
        self.bias = None if bias is None else bias.float().contiguous()
        self._of(Matrix.of(self.weight, self.bias), str(weight.dtype)[6:], few)

    def _of(self, matrix: Matrix, kind: str, few: int | None) -> None:
        self.matrix = matrix
        self.parameters = matrix.n * (matrix.k + (self.bias is not None))
        self.few = rows_limit(kind) if few is None else few

    def __call__(self, x: Tensor) -> Tensor:
        return self.narrow(x) if len(x) <= self.few else self.wide(x)

    def narrow(self, x: Tensor) -> Tensor:
        """Every weight is read once for all rows."""
        return product(x, self.matrix)

    def wide(self, x: Tensor) -> Tensor:
        """torch's float32 product, with a weight that is not float32 widened piece by piece in the cache."""
        import torch

        outer, inner = self.matrix.n, self.matrix.k
        if self.matrix.kind == KINDS["float32"]:
            return torch.nn.functional.linear(x, self.weight, self.bias)
        step = max(1, PIECE // inner)
        y = torch.empty((len(x), outer))
        piece = torch.empty((min(step, outer), inner))
        for at in range(0, outer, step):
            end = min(at + step, outer)
            library().qwench_widen(ctypes.addressof(self.matrix), at, end, piece.data_ptr(), threads())
            torch.mm(x, piece[: end - at].t(), out=y[:, at:end])
        return y if self.bias is None else y.add_(self.bias)


class BlockLinear(NativeLinear):
    """The same for a weight in blocks of GGUF: 8.5 or 5 bits a parameter.

    Args:
        data: (out, bytes of a row) uint8, see `to_blocks`.
        kind: of BLOCKS.
        shape: (out, in), in whole blocks.
    """

    __slots__ = ()

    def __init__(
        self, data: Tensor, kind: str, shape: tuple[int, int], bias: Tensor | None = None, few: int | None = None
    ) -> None:
        self.weight = data.contiguous()
        self.bias = None if bias is None else bias.float().contiguous()
        self._of(Matrix.of_blocks(self.weight, kind, shape, self.bias), kind, few)


def to_blocks(weight: Tensor, kind: str) -> Tensor:
    """A weight (out, in), in whole blocks, in one of three dtypes, as uint8 (out, bytes of a row).

    Values are rounded as llama.cpp does: in `q8_0` to 127ths of the block's largest, in `q4_1` to 15ths between least
    and largest; scales are float16.

    Raises:
        TypeError, ValueError: see `Matrix.of`; an unknown kind, rows that are no whole blocks.
    """
    import torch

    matrix = Matrix.of(weight.contiguous())  # keeps it until C has read it
    if kind not in BLOCKS or matrix.k % GROUP:
        raise ValueError(f"no blocks of {GROUP}: `{kind}`, rows of {matrix.k}")
    # Zeros, which the system gives for nothing: the check after a build never finds an earlier right result here.
    out = torch.zeros((matrix.n, matrix.k // GROUP * BLOCKS[kind]), dtype=torch.uint8)
    library().qwench_to_blocks(ctypes.addressof(matrix), KINDS[kind], out.data_ptr(), threads())
    return out


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias in float32.

    Args:
        x: (rows, in) float32 on the CPU, any row stride.
        weight: (out, in) float32, bfloat16 or float16, contiguous.
        bias: (out,) float32.

    Returns:
        (rows, out) float32.

    Raises:
        TypeError, ValueError: see `Matrix.of` and `product`.
    """
    return product(x, Matrix.of(weight, bias))


@cache
def rows_limit(kind: str) -> int:
    """Rows up to which `narrow` beats `wide` with weights of a kind, measured once on this machine."""
    import torch

    name = f"{key_of_library()}-{torch.get_num_threads()}.json"
    known = {k: n for k, n in store.read(name).items() if type(n) is int and n >= 0}
    if kind not in known:
        known[kind] = _measure(kind)
        store.write(name, known)
    return known[kind]


def _some(kind: str, side: int) -> NativeLinear:
    import torch

    if kind in BLOCKS:
        data = torch.ones((side, side // GROUP * BLOCKS[kind]), dtype=torch.uint8)
        return BlockLinear(data, kind, (side, side), few=0)
    return NativeLinear(torch.ones((side, side), dtype=getattr(torch, kind)), few=0)


def _measure(kind: str) -> int:
    """The row count up to which the logarithms of the gains add up to most; no limit when that is the last.

    Least CPU times of one thread, which a busy machine blurs little, over weights that do not stay in the cache.
    """
    import torch

    threads = torch.get_num_threads()
    layers = [_some(kind, 1024) for _ in range(12)]
    best, most, total = 0, 0.0, 0.0
    torch.set_num_threads(1)
    try:
        for rows in ROWS:
            x = torch.ones((rows, 1024))
            times = [1e9, 1e9]
            for layer in layers[: 12 if rows < 128 else 4]:
                for i, run in enumerate((layer.narrow, layer.wide)):
                    begun = time.thread_time()
                    run(x)
                    times[i] = min(times[i], time.thread_time() - begun)
            total += math.log(times[1] / times[0])
            if total > most:
                best, most = rows, total
    finally:
        torch.set_num_threads(threads)
    return best if best < ROWS[-1] else 1 << 30
