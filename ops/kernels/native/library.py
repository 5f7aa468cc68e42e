"""The library of C kernels: loaded, checked and declared."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from typing import TYPE_CHECKING, Any

from ...base.choice import Choice
from . import build

if TYPE_CHECKING:
    from torch import Tensor

#: what a matrix may be stored in, and its number in vectors.h
KINDS = {"float32": 0, "bfloat16": 1, "float16": 2, "q8_0": 3, "q4_1": 4}
#: bytes of a block of GROUP values, of the kinds that have them
BLOCKS = {"q8_0": 34, "q4_1": 20}
GROUP = 32


class Matrix(ctypes.Structure):
    """Matrix of products.h; the tensors must outlive it."""

    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("n", ctypes.c_long),
        ("k", ctypes.c_long),
        ("kind", ctypes.c_int),
    )

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None = None) -> Matrix:
        """Of a weight (n, k) in one of three dtypes, contiguous, and a bias (n,) float32."""
        n, k = weight.shape
        return cls(weight.data_ptr(), None if bias is None else bias.data_ptr(), n, k, KINDS[str(weight.dtype)[6:]])


@cache
def built() -> tuple[Any, str, str]:
    """(the library or None, its key, the reason). The first call builds it (seconds, once)."""
    import torch  # before the library, so that its OpenMP is the one that is used

    if os.environ.get("QWENCH_NATIVE") == "0":
        return None, "", "QWENCH_NATIVE=0"
    try:
        lib, key = build.library()
        _declare(lib)
        if fault := _check(lib, torch):
            return None, "", fault
    except (build.NotBuilt, AttributeError) as error:
        return None, "", str(error)
    return lib, key, "C kernels built for this CPU"


def _declare(lib: Any) -> None:
    p, n, f, i = ctypes.c_void_p, ctypes.c_long, ctypes.c_float, ctypes.c_int
    for name, kinds in {
        "linear": [p, p, n, p, n, i, i],
        "widen": [p, n, n, p, i],
        "to_blocks": [p, i, p, i],
        "rms_norm": [p, p, p, n, n, f, i],
        "norm_rotate": [p, n, p, p, p, p, n, n, n, f, i],
        "silu_mul": [p, p, n, n, i],
        "add_rms_norm": [p, p, p, p, p, n, n, f, i],
        "gate": [p, p, n, p, n, n, n, n, i],
        "attend": [p, p, n, p, p, p, p, n, i],
        "join": [p, p, n, n, p, p, f, p, n, n, n],
        "step": [p, p, p, p, n, p, p, p, p, i],
    }.items():
        function = getattr(lib, f"qwench_{name}")
        function.restype, function.argtypes = None, kinds


def _check(lib: Any, torch: Any) -> str | None:
    """What is wrong with the library's results, None when they are right."""
    made = torch.Generator().manual_seed(0)

    def random(rows: int, columns: int, name: str) -> tuple[Tensor, Tensor]:
        """(stored, values)."""
        if name in ("float32", "bfloat16", "float16"):
            found = torch.randn(rows, columns, generator=made).to(getattr(torch, name))
            return found, found.double()
        scales = torch.randn(rows, columns // GROUP, 2 if name == "q4_1" else 1, generator=made).half()
        bytes_ = torch.randint(0, 256, (rows, columns // GROUP, BLOCKS[name] - 2 * scales.shape[2]), generator=made)
        bytes_ = bytes_.to(torch.uint8)
        codes = torch.cat((bytes_ & 15, bytes_ >> 4), 2) if name == "q4_1" else bytes_.view(torch.int8)
        values = codes.double() * scales[..., :1] + (scales[..., 1:] if name == "q4_1" else 0)
        return torch.cat((scales.view(torch.uint8), bytes_), 2).flatten(1), values.flatten(1)

    for name in KINDS:
        for rows, inner, outer in ((1, 70, 29), (3, 64, 8), (11, 96, 50)):
            inner = inner // GROUP * GROUP if name in BLOCKS else inner
            x = torch.randn(rows, inner, generator=made)
            stored, values = random(outer, inner, name)
            ours = product(lib, x, Matrix(stored.data_ptr(), None, outer, inner, KINDS[name]))
            truth = x.double() @ values.t()
            if not torch.allclose(ours.double(), truth, rtol=1e-4, atol=1e-4 * truth.abs().max()):
                return f"a product in {name} came out wrong in the check after the build"
    return None


def available() -> Choice:
    """Whether the C kernels can be used here: Choice(bool, reason). The first call builds them (seconds, once)."""
    lib, _, reason = built()
    return Choice(lib is not None, reason)


def library() -> Any:
    """The library; `available` says whether there is one."""
    return built()[0]


def product(lib: Any, x: Tensor, matrix: Matrix) -> Tensor:
    """x (rows, k) float32 of any row stride times the matrix, plus its bias: (rows, n) float32."""
    import torch

    rows = len(x)
    if x.stride(-1) != 1:
        x = x.contiguous()
    y = torch.empty((rows, matrix.n))
    lib.qwench_linear(
        ctypes.addressof(matrix), x.data_ptr(), x.stride(0), y.data_ptr(), rows, 0, torch.get_num_threads()
    )
    return y
