"""The border of C: what the kernels take for granted is checked here before each call, in every build."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

#: what a matrix may be stored in, and its number in vectors.h
KINDS = {"float32": 0, "bfloat16": 1, "float16": 2, "q8_0": 3, "q4_1": 4}
#: bytes of a block of GROUP values, of the kinds that have them
BLOCKS = {"q8_0": 34, "q4_1": 20}
GROUP = 32
#: rows of one step, since for more the products of torch are faster; the largest head, MOST_D of attention.h
MOST_ROWS, MOST_WIDTH = 256, 512
#: threads that the C code has room for
MOST_THREADS = 1024
_loaded: list[tuple[Any, str]] = []


def enter(lib: Any, key: str = "") -> None:
    """Take a library, or None, for all calls from now on."""
    _loaded[:] = [] if lib is None else [(lib, key)]


def library() -> Any:
    """The loaded library.

    Raises:
        RuntimeError: there is none; `library.available` loads it or says why not.
    """
    if not _loaded:
        raise RuntimeError("the C kernels are not loaded: ask native.library.available() first")
    return _loaded[0][0]


def key_of_library() -> str:
    """What the loaded library was built from, as `build.key` names it."""
    library()
    return _loaded[0][1]


def threads() -> int:
    """Threads of a call: torch's number, and no more than the C code has room for."""
    import torch

    return min(torch.get_num_threads(), MOST_THREADS)


def strided(name: str, x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """x as it is, where it is float32 on the CPU and of the shape.

    Raises:
        TypeError: another dtype, device or layout, or no tensor.
        ValueError: another shape.
    """
    import torch

    if not isinstance(x, torch.Tensor) or x.dtype is not torch.float32 or not x.is_cpu or x.layout is not torch.strided:
        raise TypeError(f"`{name}` must be a float32 tensor on the CPU, and is {_told(x)}")
    if x.shape != shape:
        raise ValueError(f"`{name}` must have the shape {tuple(shape)}, and has {tuple(x.shape)}")
    return x


def floats(name: str, x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`strided`, and laid out row after row; the caller holds the result while C reads it."""
    return strided(name, x, shape).contiguous()


def sizes(name: str, x: Tensor, count: int) -> tuple[int, ...]:
    """The shape of a tensor of `count` dimensions, none of them empty but the first.

    Raises:
        TypeError: no tensor.
        ValueError: other dimensions.
    """
    shape = tuple(getattr(x, "shape", ())) if hasattr(x, "data_ptr") else None
    if shape is None:
        raise TypeError(f"`{name}` must be a tensor, and is {_told(x)}")
    if len(shape) != count or 0 in shape[1:]:
        raise ValueError(f"`{name}` must have {count} dimensions, only the first of which may be 0, and is {shape}")
    return shape


def grouped(heads: int, kv_heads: int, width: int, most: int = MOST_WIDTH) -> None:
    """Check heads of attention.

    Raises:
        ValueError: query heads that key heads cannot share evenly, or a width that the C code has no room for.
    """
    if heads < 1 or kv_heads < 1 or heads % kv_heads:
        raise ValueError(f"{heads} query heads are no multiple of {kv_heads} key heads")
    if not 1 <= width <= most:
        raise ValueError(f"heads must be 1 to {most} wide, and are {width}")


def _told(x: object) -> str:
    kind = getattr(x, "dtype", None)
    return f"{kind} on {getattr(x, 'device', '?')}" if kind is not None else type(x).__name__


class Matrix(ctypes.Structure):
    """Matrix of products.h. `of` and `of_blocks` check and keep the tensors; a copy of the structure does not."""

    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("n", ctypes.c_long),
        ("k", ctypes.c_long),
        ("kind", ctypes.c_int),
    )

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None = None) -> Matrix:
        """Of a weight (n, k) in one of three dtypes, contiguous, and a bias (n,) float32.

        Raises:
            TypeError: other dtypes, or not on the CPU.
            ValueError: other shapes or layouts.
        """
        import torch

        n, k = sizes("weight", weight, 2)
        kind = str(weight.dtype)[6:]
        if kind not in KINDS or not weight.is_cpu or weight.layout is not torch.strided:
            raise TypeError(f"`weight` must be float32, bfloat16 or float16 on the CPU, and is {_told(weight)}")
        return cls._made(weight, bias, n, k, kind)

    @classmethod
    def of_blocks(cls, data: Tensor, kind: str, shape: tuple[int, int], bias: Tensor | None = None) -> Matrix:
        """Of a weight of `shape` (n, k) in blocks: uint8 (n, bytes of a row), contiguous.

        Raises:
            TypeError: not uint8 on the CPU.
            ValueError: an unknown kind, rows that are no whole blocks, other shapes or layouts.
        """
        import torch

        n, k = shape
        if kind not in BLOCKS or k % GROUP:
            raise ValueError(f"no blocks of {GROUP}: `{kind}`, rows of {k}")
        if sizes("data", data, 2) != (n, k // GROUP * BLOCKS[kind]):
            raise ValueError(f"{n} rows of {k} in {kind} are not {tuple(data.shape)} bytes")
        if data.dtype is not torch.uint8 or not data.is_cpu:
            raise TypeError(f"`data` must be uint8 on the CPU, and is {_told(data)}")
        return cls._made(data, bias, n, k, kind)

    @classmethod
    def _made(cls, weight: Tensor, bias: Tensor | None, n: int, k: int, kind: str) -> Matrix:
        if not weight.is_contiguous() or n < 1 or k < 1:
            raise ValueError(f"a weight must be contiguous and not empty, and is {tuple(weight.shape)}")
        bias = None if bias is None else floats("bias", bias, (n,))
        made = cls(weight.data_ptr(), None if bias is None else bias.data_ptr(), n, k, KINDS[kind])
        made.kept = weight, bias
        return made


def product(x: Tensor, matrix: Matrix) -> Tensor:
    """x (rows, k) float32 of any row stride times the matrix, plus its bias: (rows, n) float32.

    Raises:
        TypeError, ValueError: another x.
    """
    import torch

    rows = len(x)
    strided("x", x, (rows, matrix.k))
    if x.stride(1) != 1:
        x = x.contiguous()
    y = torch.empty((rows, matrix.n))
    library().qwench_linear(ctypes.addressof(matrix), x.data_ptr(), x.stride(0), y.data_ptr(), rows, 0, threads())
    return y
