"""Linear layers of the packed encoders: plain, or with int8 weights on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ...base.errors import QwenchError
from ...checkpoint.gguf_blocks import Blocks

if TYPE_CHECKING:
    from torch import Tensor

    from ...kernels.native.border import Matrix
    from ...kernels.native.linear import NativeLinear

QUANTIZE = ("none", "int8")
#: takes a weight, in blocks only where `native_maker` is
Maker = Callable[["Any", "Tensor | None"], "Linear | Int8Linear | NativeLinear"]


class Linear:
    """x (..., in) -> (..., out), in the weight's dtype."""

    __slots__ = ("bias", "weight")

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        import torch

        return torch.nn.functional.linear(x, self.weight, self.bias)

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return self.weight.numel() + (0 if self.bias is None else self.bias.numel())


class Int8Linear:
    """Weights in int8 with one scale per output, activations quantised per token; x and result are float32.

    Symmetric rounding on both sides (the W8A8 scheme of SmoothQuant, arXiv 2211.10438, without smoothing);
    the integer matrix product is PyTorch's own, which uses VNNI or AMX where the CPU has them.
    """

    __slots__ = ("bias", "parameters", "scales", "weight")

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        import torch

        weight = weight.float()
        self.scales = (weight.abs().amax(1) / 127).clamp_min_(1e-12)
        self.weight = (weight / self.scales[:, None]).round_().to(torch.int8).t()
        self.bias = None if bias is None else bias.float()
        self.parameters = weight.numel() + (0 if bias is None else bias.numel())

    def __call__(self, x: Tensor) -> Tensor:
        import torch

        shape = x.shape
        x = x.reshape(-1, shape[-1])
        per_token = x.abs().amax(1, keepdim=True).div_(127).clamp_min_(1e-12)
        y = torch._int_mm((x / per_token).round_().to(torch.int8), self.weight) * self.scales
        y = y.mul_(per_token) if self.bias is None else torch.addcmul(self.bias, y, per_token)
        return y.unflatten(0, shape[:-1])


def native_maker(kernels: str, dtype: str) -> Maker | None:
    """NativeLinear where the C kernels are in use and the arithmetic is float32; it takes Blocks too."""
    return _native if kernels == "native" and dtype == "float32" else None


def _native(weight: Tensor | Blocks, bias: Tensor | None) -> NativeLinear:
    from ...kernels.native.linear import BlockLinear, NativeLinear

    if isinstance(weight, Blocks):
        return BlockLinear(weight.data, weight.kind, weight.shape, bias)
    return NativeLinear(weight, bias)


def matrix_of(weight: Tensor | Blocks) -> Matrix:
    """What the C kernels see of a weight."""
    from ...kernels.native.border import Matrix

    if isinstance(weight, Blocks):
        return Matrix.of_blocks(weight.data, weight.kind, weight.shape)
    return Matrix.of(weight)


def linear_maker(quantize: str, device: str) -> Maker:
    """The linear class for a `--quantize` choice.

    Raises:
        QwenchError: unknown choice, or int8 away from the CPU.
    """
    if quantize == "none":
        return Linear
    if quantize != "int8":
        raise QwenchError(f"unknown quantization: `{quantize}`", f"use {' or '.join(QUANTIZE)}", code=2)
    if device != "cpu":
        raise QwenchError(f"--quantize int8 is for the CPU, and the device is `{device}`", "add --device cpu")
    return Int8Linear
