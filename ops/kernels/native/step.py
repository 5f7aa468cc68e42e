"""A decode step in one call: every layer of a decoder for one token of each sequence, in the C kernels."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from .library import Matrix, library
from .linear import NativeLinear

if TYPE_CHECKING:
    from torch import Tensor

#: rows of one call, since for more the products of torch are faster; the largest head, MOST_D of attention.h
MOST_ROWS, MOST_WIDTH = 256, 512


class _Attention(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_long) for name in ("heads", "kv_heads", "d")),
        *((name, ctypes.c_void_p) for name in ("keys", "values")),
        *((name, ctypes.c_long) for name in ("slot_stride", "head_stride")),
        *((name, ctypes.c_void_p) for name in ("prefix_keys", "prefix_values")),
        ("prefix", ctypes.c_long),
        ("scale", ctypes.c_float),
    )

    def cache(self, keys: Tensor, values: Tensor) -> None:
        """Keys and values, (slots, kv_heads, capacity, d) float32; kept alive by the caller."""
        assert keys.stride() == values.stride() and keys.stride(2) == self.d and keys.stride(3) == 1
        self.keys, self.values = keys.data_ptr(), values.data_ptr()
        self.slot_stride, self.head_stride = keys.stride(0), keys.stride(1)

    def shared(self, keys: Tensor | None, values: Tensor | None) -> None:
        """Prefix keys and values, (streams, kv_heads, length, d) float32 contiguous; kept alive by the caller."""
        if keys is None or values is None:
            self.prefix = 0
            return
        assert keys.is_contiguous() and values.is_contiguous() and keys.shape == values.shape
        self.prefix_keys, self.prefix_values, self.prefix = keys.data_ptr(), values.data_ptr(), keys.shape[2]


class _Decoder(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("layers", "norm")),
        ("words", Matrix),
        *((name, ctypes.c_long) for name in ("count", "streams")),
        ("eps", ctypes.c_float),
    )


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("norm1", "norm2", "qk_norm")),
        *((name, Matrix) for name in ("qkv", "out", "gate_up", "down")),
        ("attention", _Attention),
    )


def attend(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: list[int],
    prefix_keys: Tensor | None = None,
    prefix_values: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """See parscale.prefix_attention, in float32; d is 512 at most."""
    import torch

    rows, heads, width = q.shape
    found = _Attention(heads=heads, kv_heads=keys.shape[1], d=width, scale=scale or width**-0.5)
    found.cache(keys, values)
    found.shared(prefix_keys, prefix_values)
    q = q.contiguous()
    streams = 1 if prefix_keys is None else len(prefix_keys)
    slot, length = torch.arange(rows), torch.tensor(lengths)
    stream = slot // (rows // streams)
    y = torch.empty((rows, heads * width))
    library().qwench_attend(
        ctypes.addressof(found),
        q.data_ptr(),
        heads * width,
        slot.data_ptr(),
        length.data_ptr(),
        stream.data_ptr(),
        y.data_ptr(),
        rows,
        torch.get_num_threads(),
    )
    return y


class DecodeStep:
    """Prepared once for a model.

    Args:
        layers: `qkv`, `out`, `gate_up`, `down` as NativeLinear, and `norm1`, `norm2`, `qk_norm` (or None), float32.
        norm: (hidden,) float32, of the norm after the last layer.
        words: (vocabulary, hidden).
    """

    def __init__(
        self,
        layers: list[dict[str, Any]],
        norm: Tensor,
        words: Matrix,
        heads: int,
        kv_heads: int,
        width: int,
        eps: float,
    ) -> None:
        self._kept = layers, norm, words
        self._layers = (_Layer * len(layers))()
        for at, layer in zip(self._layers, layers, strict=True):
            for name in ("qkv", "out", "gate_up", "down"):
                setattr(at, name, layer[name].matrix)
            for name in ("norm1", "norm2", "qk_norm"):
                setattr(at, name, None if layer[name] is None else layer[name].data_ptr())
            at.attention = _Attention(heads=heads, kv_heads=kv_heads, d=width, scale=width**-0.5)
        first = layers[0]
        # As qwench_step lays them out: normed, qkv, mixed, gate_up, product.
        sizes = (first["out"], first["qkv"], first["gate_up"])
        self._floats = sum(int(m.matrix.n) for m in sizes) + heads * width
        self._floats += max(int(layer["down"].matrix.k) for layer in layers)
        self._decoder = _Decoder(count=len(layers), streams=1, words=words, eps=eps)
        self._decoder.layers, self._decoder.norm = ctypes.addressof(self._layers), norm.data_ptr()
        self._hidden = words.k

    @staticmethod
    def fits(layers: list[dict[str, Any]], width: int) -> bool:
        """Whether all layers are of the kind the C code knows."""
        names = ("qkv", "out", "gate_up", "down")
        return width <= MOST_WIDTH and all(
            isinstance(layer.get(name), NativeLinear) for layer in layers for name in names
        )

    def cache(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Where a layer's keys and values are from now on, (slots, kv_heads, capacity, d); kept alive by the caller."""
        self._layers[layer].attention.cache(keys, values)

    def prefixes(self, keys: list[Tensor], values: list[Tensor]) -> None:
        """What every layer's rows attend to before their own keys, (streams, kv_heads, length, d)."""
        self._prefixes = (keys, values)
        self._decoder.streams = len(keys[0])
        for layer, k, v in zip(self._layers, keys, values, strict=True):
            layer.attention.shared(k, v)

    def __call__(self, ids: list[int], slots: list[int], past: list[int], cos: Tensor, sin: Tensor) -> Tensor:
        """One token of each sequence, from its word to the norm after the last layer.

        Args:
            slots: with P streams, rows P * slot and after it of the caches are the sequence's.
            past: tokens there are; the new one's keys and values go behind them.
            cos, sin: tables of all positions, (capacity, d) float32; sin is negative in the first half.

        Returns:
            (sequences * P, hidden) float32, the streams of a sequence one after the other; MOST_ROWS at most.
        """
        import torch

        count = len(ids)
        rows, longs = count * self._decoder.streams, ctypes.c_long * count
        x, scratch = torch.empty((rows, self._hidden)), torch.empty(rows * self._floats)
        library().qwench_step(
            ctypes.addressof(self._decoder),
            longs(*ids),
            longs(*slots),
            longs(*past),
            count,
            cos.data_ptr(),
            sin.data_ptr(),
            x.data_ptr(),
            scratch.data_ptr(),
            torch.get_num_threads(),
        )
        return x
