"""A decode step in one call: every layer of a decoder for one token of each sequence, in the C kernels."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from .border import MOST_ROWS, MOST_WIDTH, Matrix, floats, grouped, library, sizes, strided, threads
from .linear import NativeLinear

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["MOST_ROWS", "DecodeStep", "attend"]

#: products of a layer
PRODUCTS = ("qkv", "out", "gate_up", "down")


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
        """Keys and values, (slots, kv_heads, capacity, d) float32; kept alive by the caller.

        Raises:
            TypeError, ValueError: other tensors, or laid out otherwise.
        """
        slots, _, capacity, _ = sizes("keys", keys, 4)
        for name, t in (("keys", keys), ("values", values)):
            strided(name, t, (slots, self.kv_heads, capacity, self.d))
        if keys.stride() != values.stride() or keys.stride(2) != self.d or keys.stride(3) != 1:
            raise ValueError("keys and values must lie alike, and those of a head one after the other")
        self.keys, self.values = keys.data_ptr(), values.data_ptr()
        self.slot_stride, self.head_stride = keys.stride(0), keys.stride(1)

    def shared(self, keys: Tensor | None, values: Tensor | None) -> None:
        """Prefix keys and values, (streams, kv_heads, length, d) float32 contiguous; kept alive by the caller.

        Raises:
            TypeError, ValueError: other tensors, or one of the two.
        """
        if keys is None and values is None:
            self.prefix = 0
            return
        streams, _, length, _ = sizes("prefix_keys", keys, 4)
        for name, t in (("prefix_keys", keys), ("prefix_values", values)):
            if not strided(name, t, (streams, self.kv_heads, length, self.d)).is_contiguous():
                raise ValueError(f"`{name}` must be contiguous")
        self.prefix_keys, self.prefix_values, self.prefix = keys.data_ptr(), values.data_ptr(), length


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
    """See parscale.prefix_attention, in float32; d is 512 at most.

    Raises:
        TypeError: a tensor that is not float32 on the CPU.
        ValueError: shapes that do not go together, a length that is not in the cache.
    """
    import torch

    rows, heads, width = sizes("q", q, 3)
    slots, kv_heads, capacity, _ = sizes("keys", keys, 4)
    grouped(heads, kv_heads, width)
    q = floats("q", q, (rows, heads, width))
    found = _Attention(heads=heads, kv_heads=kv_heads, d=width, scale=scale or width**-0.5)
    found.cache(keys, values)
    found.shared(prefix_keys, prefix_values)
    streams = 1 if prefix_keys is None else len(prefix_keys)
    if rows > slots or len(lengths) != rows or streams < 1 or rows % streams:
        raise ValueError(f"{rows} rows, {len(lengths)} lengths, {slots} slots and {streams} streams do not go together")
    if rows and not (found.prefix == 0) <= min(lengths) <= max(lengths) <= capacity:
        raise ValueError(f"lengths of {min(lengths)} to {max(lengths)} in a cache of {capacity}")
    slot, length = torch.arange(rows), torch.tensor(lengths, dtype=torch.int64)
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
        threads(),
    )
    return y


class DecodeStep:
    """Prepared once for a model: what cannot change between calls is checked here.

    Args:
        layers: `qkv`, `out`, `gate_up`, `down` as NativeLinear, and `norm1`, `norm2`, `qk_norm` (or None), float32.
        norm: (hidden,) float32, of the norm after the last layer.
        words: (vocabulary, hidden).

    Raises:
        TypeError: other layers, or a norm that is not float32 on the CPU.
        ValueError: sizes that do not go together.
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
        if not layers or not self.fits(layers, width):
            raise TypeError("layers that are not all in the C kernels")
        grouped(heads, kv_heads, width)
        first = {name: layers[0][name].matrix for name in PRODUCTS}
        self._hidden, self._heads, self._width = int(words.k), (heads, kv_heads), width
        self._layers = (_Layer * len(layers))()
        kept: list[Any] = [words, floats("norm", norm, (self._hidden,))]
        for at, layer in zip(self._layers, layers, strict=True):
            kept.append([layer[name] for name in PRODUCTS])
            for name in PRODUCTS:
                setattr(at, name, layer[name].matrix)
            self._check(at, first)
            for name, shape in (("norm1", (self._hidden,)), ("norm2", (self._hidden,)), ("qk_norm", None)):
                given = layer[name]
                if given is not None or shape:
                    kept.append(floats(name, given, shape or (heads + kv_heads, width)))
                    setattr(at, name, kept[-1].data_ptr())
            at.attention = _Attention(heads=heads, kv_heads=kv_heads, d=width, scale=width**-0.5)
        self._kept = kept
        # As qwench_step lays them out: normed, qkv, mixed, gate_up, product.
        self._floats = sum(int(first[n].n) for n in ("out", "qkv", "gate_up")) + heads * width + int(first["down"].k)
        self._decoder = _Decoder(count=len(layers), streams=1, words=words, eps=eps)
        self._decoder.layers, self._decoder.norm = ctypes.addressof(self._layers), kept[1].data_ptr()
        self._words = int(words.n)
        self._caches: list[tuple[Tensor, Tensor] | None] = [None] * len(layers)
        self._slots = self._capacity = 0

    def _check(self, layer: _Layer, first: dict[str, Matrix]) -> None:
        hidden, (heads, kv_heads), inner = self._hidden, self._heads, layer.down.k
        gates = layer.qkv.n - (heads + 2 * kv_heads) * self._width
        sizes_ = {
            "qkv": (first["qkv"].n, hidden),
            "out": (hidden, heads * self._width),
            "gate_up": (2 * inner, hidden),
            "down": (hidden, first["down"].k),
        }
        for name, wanted in sizes_.items():
            found = getattr(layer, name)
            if (found.n, found.k) != wanted:
                raise ValueError(f"`{name}` must be {wanted[0]} by {wanted[1]}, and is {found.n} by {found.k}")
        if gates not in (0, heads, heads * self._width):
            raise ValueError(f"{gates} gates for {heads} heads of {self._width}")

    @staticmethod
    def fits(layers: list[dict[str, Any]], width: int) -> bool:
        """Whether all layers are of the kind the C code knows."""
        known = all(isinstance(layer.get(name), NativeLinear) for layer in layers for name in PRODUCTS)
        return known and width <= MOST_WIDTH and width % 2 == 0

    def cache(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Where a layer's keys and values are from now on, (slots, kv_heads, capacity, d) float32, contiguous.

        Raises:
            TypeError, ValueError: other tensors.
        """
        self._layers[layer].attention.cache(keys, values)
        if not keys.is_contiguous():
            raise ValueError("a cache that is written to must be contiguous")
        self._caches[layer] = keys, values
        # A cache that could not grow with the others bounds all.
        shapes = [(0, 0, 0)] if None in self._caches else [pair[0].shape for pair in self._caches if pair]
        self._slots, self._capacity = min(s[0] for s in shapes), min(s[2] for s in shapes)

    def prefixes(self, keys: list[Tensor], values: list[Tensor]) -> None:
        """What every layer's rows attend to before their own keys, (streams, kv_heads, length, d).

        Raises:
            TypeError, ValueError: other tensors, or not as many as there are layers.
        """
        if len(keys) != len(self._layers) or len({len(k) for k in keys}) != 1 or len(keys[0]) < 1:
            raise ValueError(f"prefixes of {len(keys)} layers for {len(self._layers)}, or of different streams")
        for layer, k, v in zip(self._layers, keys, values, strict=True):
            layer.attention.shared(k, v)
        self._prefixes = (keys, values)
        self._decoder.streams = len(keys[0])

    def __call__(self, ids: list[int], slots: list[int], past: list[int], cos: Tensor, sin: Tensor) -> Tensor:
        """One token of each sequence, from its word to the norm after the last layer.

        Args:
            slots: with P streams, rows P * slot and after it of the caches are the sequence's.
            past: tokens there are; the new one's keys and values go behind them.
            cos, sin: tables of all positions, (capacity, d) float32; sin is negative in the first half.

        Returns:
            (sequences * P, hidden) float32, the streams of a sequence one after the other; MOST_ROWS at most.

        Raises:
            TypeError: tables that are not float32 on the CPU.
            ValueError: a token, slot or place that there is not, or too many rows.
        """
        import torch

        count, streams = len(ids), self._decoder.streams
        rows, longs = count * streams, ctypes.c_long * count
        if not (count == len(slots) == len(past) and 1 <= rows <= MOST_ROWS):
            raise ValueError(f"{count} ids, {len(slots)} slots and {len(past)} places in {streams} streams")
        if min(ids) < 0 or max(ids) >= self._words:
            raise ValueError(f"tokens {min(ids)} to {max(ids)} of {self._words}")
        if min(slots) < 0 or (max(slots) + 1) * streams > self._slots or len(set(slots)) != count:
            raise ValueError(f"slots {slots} of a cache with {self._slots} rows for {streams} streams")
        last = max(past)
        if min(past) < 0 or last >= self._capacity:
            raise ValueError(f"places {min(past)} to {last} of a cache of {self._capacity}")
        for name, table in (("cos", cos), ("sin", sin)):
            strided(name, table, (len(cos), self._width))
            if last >= len(table) or not table.is_contiguous():
                raise ValueError(f"`{name}` must be contiguous and have a row for place {last}")
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
            threads(),
        )
        return x
