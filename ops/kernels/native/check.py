"""A library that was just built is asked for every kernel, on small random inputs, against PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from .. import eager, parscale
from . import rows
from .border import BLOCKS, GROUP, KINDS, Matrix, product
from .linear import BlockLinear, NativeLinear, to_blocks
from .step import DecodeStep, attend

if TYPE_CHECKING:
    from torch import Tensor

Pair = tuple[str, Callable[[], Any], Callable[[], Any]]


def fault_of() -> str | None:
    """What is wrong with the loaded library's results, None when they are right."""
    import torch

    made = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=made)

    for name, ours, truth in (*_products(made), *_steps(random), *_attention(random), *_decoder(random)):
        found, wanted = ours(), truth()
        for a, b in zip(*((x if isinstance(x, tuple) else (x,)) for x in (found, wanted)), strict=True):
            if not torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-4 * float(b.abs().max())):
                return f"{name} came out wrong in the check after the build"
    return None


def _products(made: Any) -> Iterator[Pair]:
    import torch

    for name in KINDS:
        for count, inner, outer in ((1, 70, 29), (3, 64, 8), (11, 96, 50)):
            inner = inner // GROUP * GROUP if name in BLOCKS else inner
            x, values = (torch.randn(n, inner, generator=made) for n in (count, outer))
            if name in BLOCKS:
                data, values = _blocks(name, outer, inner, made)
                layer = BlockLinear(data, name, (outer, inner), few=0)
                matrix = Matrix.of_blocks(data, name, (outer, inner))
            else:
                values = values.to(getattr(torch, name))
                layer, matrix = NativeLinear(values, few=0), Matrix.of(values)

            def truth(x: Tensor = x, values: Tensor = values) -> Tensor:
                return x.double() @ values.double().t()

            yield f"a product in {name}", lambda x=x, matrix=matrix: product(x, matrix), truth
            yield f"a widened product in {name}", lambda x=x, layer=layer: layer.wide(x), truth
        if name in BLOCKS:
            again = values.float()
            layer = BlockLinear(to_blocks(again, name), name, tuple(again.shape), few=0)
            eye = torch.eye(again.shape[1])
            step = float((again.unflatten(1, (-1, GROUP)).amax(2) - again.unflatten(1, (-1, GROUP)).amin(2)).max())
            yield (
                f"blocks in {name}",
                lambda layer=layer, eye=eye, again=again, step=step: (layer.wide(eye).t() - again).abs() < step / 14,
                lambda again=again: torch.ones_like(again),
            )


def _blocks(name: str, outer: int, inner: int, made: Any) -> tuple[Tensor, Tensor]:
    """(stored, values) of random blocks."""
    import torch

    scales = torch.randn(outer, inner // GROUP, 2 if name == "q4_1" else 1, generator=made).half()
    bytes_ = torch.randint(0, 256, (outer, inner // GROUP, BLOCKS[name] - 2 * scales.shape[2]), generator=made)
    bytes_ = bytes_.to(torch.uint8)
    codes = torch.cat((bytes_ & 15, bytes_ >> 4), 2) if name == "q4_1" else bytes_.view(torch.int8)
    values = codes.double() * scales[..., :1] + (scales[..., 1:] if name == "q4_1" else 0)
    return torch.cat((scales.view(torch.uint8), bytes_), 2).flatten(1), values.flatten(1)


def _steps(random: Callable[..., Tensor]) -> Iterator[Pair]:
    for count, heads, width in ((1, 1, 8), (3, 5, 70)):
        x, other, weight = random(count, width), random(count, width), random(width)
        qk, per_head, cos, sin = (random(*s) for s in ((count, heads, width), (heads, width), *[(count, 1, width)] * 2))
        gate_up, y = random(count, 2 * width), random(count, heads * width)
        h, w2, b2 = random(count, heads, width), random(heads, width), random(heads)
        cases: list[tuple[str, tuple[Any, ...]]] = [
            ("rms_norm", (x, weight, 1e-6)),
            ("add_rms_norm", (x, other, weight, 1e-6)),
            ("norm_rotate", (qk, per_head, 1e-6, cos, sin)),
            ("norm_rotate", (qk, None, 1e-6, cos, sin)),
            ("silu_mul", (gate_up,)),
            ("gated", (y, random(count, heads), heads)),
            ("gated", (y, random(count, heads * width), heads)),
        ]
        for name, given in cases:
            yield name, lambda n=name, a=given: getattr(rows, n)(*a), lambda n=name, a=given: getattr(eager, n)(*a)
        joined = (x, h, w2, b2, 0.1)
        yield "join", lambda a=joined: rows.join(*a), lambda a=joined: parscale.join(*a)


def _attention(random: Callable[..., Tensor]) -> Iterator[Pair]:
    for heads, kv_heads, width, length in ((1, 1, 8, 1), (6, 2, 20, 37), (9, 1, 16, 140)):
        q, keys, values = (random(4, n, *rest) for n, rest in ((heads, (width,)), *[(kv_heads, (length, width))] * 2))
        lengths = [1 + 31 * r % length for r in range(4)]
        for prefix in ((), tuple(random(2, kv_heads, 5, width) for _ in range(2))):
            given = (q, keys, values, lengths, *prefix)
            yield "attention", lambda a=given: attend(*a), lambda a=given: eager.prefix_attention(*a)


def _decoder(random: Callable[..., Tensor]) -> Iterator[Pair]:
    """Two layers over a cache, one token each of two sequences."""
    import torch

    heads, kv_heads, width, hidden, inner, places = 4, 2, 8, 24, 40, 6
    shapes = {"qkv": ((heads + 2 * kv_heads) * width, hidden), "out": (hidden, heads * width)}
    shapes |= {"gate_up": (2 * inner, hidden), "down": (hidden, inner)}
    layers: list[dict[str, Any]] = []
    for _ in range(2):
        layer = {name: NativeLinear(random(*shape) * 0.2, few=0) for name, shape in shapes.items()}
        norms = {"norm1": random(hidden), "norm2": random(hidden), "qk_norm": random(heads + kv_heads, width)}
        layers.append(layer | norms)
    norm, words, cos, sin = random(hidden), random(11, hidden), random(places, width), random(places, width)
    caches = [tuple(random(2, kv_heads, places, width) for _ in range(2)) for _ in layers]
    ids, slots, past = [10, 3], [1, 0], [2, 4]

    def ours() -> Tensor:
        step = DecodeStep(layers, norm, Matrix.of(words), heads, kv_heads, width, 1e-6)
        for at, (keys, values) in enumerate(caches):
            step.cache(at, keys.clone(), values.clone())
        return step(ids, slots, past, cos, sin)

    def truth() -> Tensor:
        x = words[torch.tensor(ids)]
        for layer, (k_, v_) in zip(layers, caches, strict=True):
            keys, values = k_[slots].clone(), v_[slots].clone()
            qkv = eager.linear(eager.rms_norm(x, layer["norm1"], 1e-6), layer["qkv"].weight).unflatten(1, (-1, width))
            qk, v = qkv.split((heads + kv_heads, kv_heads), 1)
            at = cos[past].unsqueeze(1), sin[past].unsqueeze(1)
            q, k = eager.norm_rotate(qk, layer["qk_norm"], 1e-6, *at).split((heads, kv_heads), 1)
            keys[[0, 1], :, past], values[[0, 1], :, past] = k, v
            mixed = eager.decode_attention(q, keys, values, [p + 1 for p in past])
            x = x + eager.linear(mixed, layer["out"].weight)
            inside = eager.linear(eager.rms_norm(x, layer["norm2"], 1e-6), layer["gate_up"].weight)
            x = x + eager.linear(eager.silu_mul(inside), layer["down"].weight)
        return eager.rms_norm(x, norm, 1e-6)

    yield "a decode step", ours, truth
