"""The C kernels: products of a few rows with a large matrix, bound by reading the matrix.

torch's product reads a bfloat16 matrix with rounded activations, and a float32 one far below the speed of the memory
once there are two rows or more. These read every weight once for all rows and compute in float32.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import time
from functools import cache
from typing import TYPE_CHECKING, Any

from ..choice import Choice
from . import build

if TYPE_CHECKING:
    from torch import Tensor, dtype

#: rows of the products that are measured; what wins at the last is taken for any number
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
#: float32 values of a widened block of weights: small enough for the cache between widening and product
BLOCK = 1 << 20


@cache
def kinds() -> dict[dtype, int]:
    """The numbers that the C code has for dtypes of weights."""
    import torch

    return {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


@cache
def _loaded() -> tuple[Any, str, str]:
    """(the library or None, its key, the reason)."""
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
    def of(cls, weight: Tensor, bias: Tensor | None) -> Matrix:
        outer, inner = weight.shape
        return cls(weight.data_ptr(), None if bias is None else bias.data_ptr(), outer, inner, kinds()[weight.dtype])


def _declare(lib: Any) -> None:
    p, n, f, i = ctypes.c_void_p, ctypes.c_long, ctypes.c_float, ctypes.c_int
    for name, kinds in {
        "linear": [p, p, n, p, n, i, i],
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
    for kind in kinds():
        for rows, inner, outer in ((1, 70, 29), (3, 64, 8), (11, 96, 50)):
            x = torch.randn(rows, inner, generator=made)
            weight = torch.randn(outer, inner, generator=made).to(kind)
            ours = _product(lib, x, Matrix.of(weight, None))
            truth = x.double() @ weight.double().t()
            if not torch.allclose(ours.double(), truth, rtol=1e-4, atol=1e-4):
                return f"a product in {str(kind)[6:]} came out wrong in the check after the build"
    return None


def available() -> Choice:
    """Whether the C kernels can be used here: Choice(bool, reason). The first call builds them (seconds, once)."""
    lib, _, reason = _loaded()
    return Choice(lib is not None, reason)


def loaded() -> Any:
    """The library; `available` says whether there is one."""
    return _loaded()[0]


def _product(lib: Any, x: Tensor, matrix: Matrix) -> Tensor:
    import torch

    rows = len(x)
    if x.stride(-1) != 1:
        x = x.contiguous()
    y = torch.empty((rows, matrix.n))
    lib.qwench_linear(
        ctypes.addressof(matrix), x.data_ptr(), x.stride(0), y.data_ptr(), rows, 0, torch.get_num_threads()
    )
    return y


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias in float32.

    Args:
        x: (rows, in) float32 on the CPU, any row stride.
        weight: (out, in) float32, bfloat16 or float16, contiguous.
        bias: (out,) float32.

    Returns:
        (rows, out) float32.
    """
    return _product(_loaded()[0], x, Matrix.of(weight, bias))


def wide_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same for many rows: torch's float32 product, a narrow weight widened block by block in the cache."""
    import torch

    if weight.dtype == torch.float32:
        return torch.nn.functional.linear(x, weight, bias)
    outer, inner = weight.shape
    step = max(1, BLOCK // inner)
    y = torch.empty((len(x), outer))
    wide = torch.empty((min(step, outer), inner))
    for at in range(0, outer, step):
        part = weight[at : at + step]
        block = wide[: len(part)].copy_(part)
        torch.mm(x, block.t(), out=y[:, at : at + step])
    return y if bias is None else y.add_(bias)


@cache
def rows_limit(kind: dtype) -> int:
    """Rows up to which `linear` beats `wide_linear` with weights of a dtype, measured once on this machine."""
    import torch

    lib, key, _ = _loaded()
    if lib is None:
        return 0
    path = build.cache() / f"{key}-{torch.get_num_threads()}.json"
    name = str(kind)[6:]
    try:
        known = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        known = {}
    if name not in known:
        known[name] = _measure(kind)
        beside = path.with_suffix(f".{os.getpid()}")
        beside.write_text(json.dumps(known), "utf-8")
        os.replace(beside, path)
    return known[name]


def _measure(kind: dtype) -> int:
    """The row count up to which the logarithms of the gains add up to most; no limit when that is the last.

    Least CPU times of one thread, which a busy machine blurs little, over weights that do not stay in the cache.
    """
    import torch

    threads = torch.get_num_threads()
    weights = [torch.ones((1024, 1024), dtype=kind) for _ in range(12)]
    best, most, total = 0, 0.0, 0.0
    torch.set_num_threads(1)
    try:
        for rows in ROWS:
            x = torch.ones((rows, 1024))
            times = {linear: 1e9, wide_linear: 1e9}
            for weight in weights[: 12 if rows < 128 else 4]:
                for product in times:
                    begun = time.thread_time()
                    product(x, weight)
                    times[product] = min(times[product], time.thread_time() - begun)
            total += math.log(times[wide_linear] / times[linear])
            if total > most:
                best, most = rows, total
    finally:
        torch.set_num_threads(threads)
    return best if best < ROWS[-1] else 1 << 30


class NativeLinear:
    """Float32 arithmetic on a weight kept in its stored dtype: C kernels for few rows, torch's product for many."""

    __slots__ = ("bias", "few", "lib", "matrix", "parameters", "weight")

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight = weight.contiguous()
        self.bias = None if bias is None else bias.float()
        self.few = rows_limit(weight.dtype)
        self.lib, self.matrix = _loaded()[0], Matrix.of(self.weight, self.bias)
        self.parameters = weight.numel() + (0 if bias is None else bias.numel())

    def __call__(self, x: Tensor) -> Tensor:
        """x (rows, in) float32 -> (rows, out) float32."""
        if len(x) <= self.few:
            return _product(self.lib, x, self.matrix)
        return wide_linear(x, self.weight, self.bias)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See elementwise.rms_norm: x (T, h) float32."""
    import torch

    x = x.contiguous()
    y = torch.empty_like(x)
    width = x.shape[-1]
    rows = x.numel() // width
    _loaded()[0].qwench_rms_norm(
        x.data_ptr(), weight.data_ptr(), y.data_ptr(), rows, width, eps, torch.get_num_threads()
    )
    return y


def norm_rotate(x: Tensor, weight: Tensor | None, eps: float, cos: Tensor, sin: Tensor) -> Tensor:
    """See elementwise.norm_rotate: x (T, heads, d) float32 with any row stride."""
    import torch

    rows, heads, width = x.shape
    if x.stride(2) != 1 or x.stride(1) != width:
        x = x.contiguous()
    cos, sin = cos.contiguous(), sin.contiguous()
    y = torch.empty((rows, heads, width))
    _loaded()[0].qwench_norm_rotate(
        x.data_ptr(),
        x.stride(0),
        None if weight is None else weight.data_ptr(),
        cos.data_ptr(),
        sin.data_ptr(),
        y.data_ptr(),
        rows,
        heads,
        width,
        eps,
        torch.get_num_threads(),
    )
    return y


def silu_mul(gate_up: Tensor) -> Tensor:
    """See elementwise.silu_mul: gate_up (T, 2 f) float32."""
    import torch

    gate_up = gate_up.contiguous()
    rows, width = gate_up.shape
    y = torch.empty((rows, width // 2))
    _loaded()[0].qwench_silu_mul(gate_up.data_ptr(), y.data_ptr(), rows, width // 2, torch.get_num_threads())
    return y


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(norm of the sum, the sum): x and residual (T, h) float32."""
    import torch

    x, residual = x.contiguous(), residual.contiguous()
    y, total = torch.empty_like(x), torch.empty_like(x)
    _loaded()[0].qwench_add_rms_norm(
        x.data_ptr(),
        residual.data_ptr(),
        weight.data_ptr(),
        y.data_ptr(),
        total.data_ptr(),
        *x.shape,
        eps,
        torch.get_num_threads(),
    )
    return y, total


def gated(y: Tensor, gate: Tensor, heads: int) -> Tensor:
    """See gated.gated: y (T, heads * d) float32, gate (T, heads) or (T, heads * d) -> (T, heads * d)."""
    import torch

    y = y.contiguous()
    if gate.stride(-1) != 1:
        gate = gate.contiguous()
    rows, width = y.shape
    out = torch.empty_like(y)
    _loaded()[0].qwench_gate(
        y.data_ptr(),
        gate.data_ptr(),
        gate.stride(0),
        out.data_ptr(),
        rows,
        heads,
        width // heads,
        gate.shape[1] // heads,
        torch.get_num_threads(),
    )
    return out


def aggregate(h: Tensor, w0: Tensor, b0: Tensor, w2: Tensor, b2: Tensor, smooth: float) -> Tensor:
    """See parscale.aggregate: w0 in any of the three dtypes, the rest float32."""
    return join(linear(h.flatten(1), w0, b0), h, w2, b2, smooth)


def join(hidden: Tensor, h: Tensor, w2: Tensor, b2: Tensor, smooth: float) -> Tensor:
    """See parscale.join, in one call and in float32."""
    import torch

    hidden, w2 = hidden.contiguous(), w2.contiguous()
    if h.stride(2) != 1:
        h = h.contiguous()
    tokens, streams, width = h.shape
    y = torch.empty_like(hidden)
    _loaded()[0].qwench_join(
        hidden.data_ptr(),
        h.data_ptr(),
        h.stride(1),
        h.stride(0),
        w2.data_ptr(),
        b2.data_ptr(),
        smooth,
        y.data_ptr(),
        tokens,
        streams,
        width,
    )
    return y
