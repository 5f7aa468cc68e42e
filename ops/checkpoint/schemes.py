"""Which tensors of a checkpoint are parts of a quantised matrix, as its config and the tensors themselves say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import Any

from ..base.errors import QwenchError
from ..base.fields import AGAIN
from .quantised import Columns, Load, Matrix
from .tensors import TensorInfo

FP8 = {"float8_e4m3fn": "fp8 e4m3", "float8_e5m2": "fp8 e5m2"}
#: formats of compressed-tensors whose parts are known
COMPRESSED = ("dense", "float-quantized", "naive-quantized", "int-quantized", "pack-quantized", "mixed-precision")
COMPRESSED += ("nvfp4-pack-quantized", "mxfp4-pack-quantized")
#: beside quantised matrices: what activations and caches are scaled by, which changes no weight
BESIDE = ("activation_scale", "input_scale", "input_zero_point", "input_global_scale", "output_scale")
BESIDE += ("k_scale", "v_scale", "q_scale")
HINT = "get it unquantised, or dequantise it with its own library"


class Parts:
    """Tensors of a file that are asked for as parts.

    Attributes:
        said: the quantization config.
        used: names that are parts, or stand beside them.
    """

    def __init__(self, infos: dict[str, TensorInfo], load: Load, said: dict[str, Any], path: Path) -> None:
        self.infos, self.load, self.said, self.path = infos, load, said, path
        self.used: set[str] = set()

    def ending(self, ending: str) -> Iterator[tuple[str, TensorInfo]]:
        """(name without the ending, tensor) of all that end so."""
        for name, info in self.infos.items():
            if name.endswith(ending):
                yield name.removesuffix(ending), info

    def take(self, roles: dict[str, str], optional: dict[str, str] | None = None) -> dict[str, str]:
        """The parts by role, those that are there of the optional ones.

        Raises:
            QwenchError: one is missing.
        """
        for name in roles.values():
            if name not in self.infos:
                first, lacks = next(iter(roles.values())), name.rsplit(".", 1)[-1]
                raise QwenchError(f"`{first}` is quantised and lacks its `{lacks}`: `{self.path}`", HINT)
        found = roles | {role: name for role, name in (optional or {}).items() if name in self.infos}
        self.used |= set(found.values())
        return found

    def shape(self, name: str) -> tuple[int, ...]:
        return self.infos[name].shape

    def block(self, shape: tuple[int, ...], scale: str, asked: tuple[int, int] | None = None) -> tuple[int, int]:
        """Rows and columns for which a scale stands.

        Args:
            shape: of the matrix.
            scale: name of the scales.
            asked: what the config says.

        Raises:
            QwenchError: there are not as many scales as the matrix needs.
        """
        have, (height, width) = self.shape(scale), (max(n, 1) for n in shape[-2:])
        count, stacks = prod(have), prod(shape[:-2])
        if count == 1:
            return height, width
        sizes = [asked] if asked else [(1, width), (height, width), (-(-height // 2), width)]
        if not asked and len(have) > 1 and have[-1] > 0:
            sizes.append((1, -(-width // have[-1])))
        for tall, wide in sizes:
            if count == stacks * -(-height // tall) * -(-width // wide):
                return tall, wide
        raise self.odd(scale, shape)

    def odd(self, name: str, shape: tuple[int, ...]) -> QwenchError:
        """The error for a part that does not fit its matrix."""
        have = list(self.shape(name))
        return QwenchError(
            f"`{name}` has the shape {have}, which does not fit a matrix of {list(shape)}: `{self.path}`", AGAIN
        )

    def number(self, key: str, default: int) -> int:
        """A whole number of the config.

        Raises:
            QwenchError: it is something else.
        """
        found = self.said.get(key, default)
        if isinstance(found, bool) or not isinstance(found, int) or not -1 <= found < 1 << 31:
            raise QwenchError(f"`{key}` of the quantization config is no whole number: `{self.path}`", HINT)
        return found


def refused(method: str, path: Path) -> QwenchError:
    """The error for a way of quantising that is not known here."""
    return QwenchError(f"the checkpoint is quantised with `{method}`, which cannot be read here: `{path}`", HINT)


def _scaled(parts: Parts) -> Iterator[Matrix]:
    """Numbers of 8 bits beside their scales: transformers' fp8, fbgemm, ModelOpt's FP8, compressed-tensors."""
    asked = parts.said.get("weight_block_size")
    if asked is not None and not (
        isinstance(asked, list) and len(asked) == 2 and all(isinstance(n, int) and 0 < n < 1 << 31 for n in asked)
    ):
        raise QwenchError(f"`weight_block_size` of the quantization config is no pair of sizes: `{parts.path}`", HINT)
    for name, info in parts.infos.items():
        kind = FP8.get(info.dtype) or ("int8" if info.dtype == "int8" and name.endswith(".weight") else None)
        if kind is None or len(info.shape) < 2 or name.endswith(("_scale", "_scale_inv")):
            continue
        scale = next((n for n in (f"{name}_scale_inv", f"{name}_scale") if n in parts.infos), f"{name}_scale")
        found = parts.take({"codes": name, "scale": scale}, {"zero": f"{name}_zero_point"})
        block = parts.block(info.shape, scale, tuple(asked) if asked else None)
        if "zero" in found and parts.shape(found["zero"]) != parts.shape(scale):
            raise parts.odd(found["zero"], info.shape)
        yield Matrix(name, info.shape, f"{kind}, {_words(block, info.shape)}", found, block)


def _words(block: tuple[int, int], shape: tuple[int, ...]) -> str:
    width = shape[-1]
    if block == (1, width):
        return "a scale a row"
    if block[1] == width:
        return "a scale a matrix"
    return f"groups of {block[1]}" if block[0] == 1 else f"blocks of {block[0]}x{block[1]}"


def _compressed(parts: Parts) -> Iterator[Matrix]:
    """compressed-tensors."""
    held = parts.said.get("config_groups")
    groups = [g for g in held.values() if isinstance(g, dict)] if isinstance(held, dict) else []
    weights = [g["weights"] for g in groups if isinstance(g.get("weights"), dict)]
    sparse = parts.said.get("sparsity_config")
    said = [parts.said, *groups, *([sparse] if isinstance(sparse, dict) else [])]
    for odd in sorted({str(s.get("format") or "dense") for s in said} - set(COMPRESSED)):
        raise refused(f"compressed-tensors` in the format `{odd}", parts.path)
    for bits in sorted(_numbers(weights, "num_bits") - {4, 8}):
        raise refused(f"compressed-tensors` of {bits} bits` and `pack-quantized", parts.path)
    blocks = [w["block_structure"] for w in weights if isinstance(w.get("block_structure"), list)]
    if blocks and all(b == blocks[0] for b in blocks):
        parts.said = parts.said | {"weight_block_size": blocks[0]}
    for base, info in parts.ending(".weight_packed"):
        found = {"codes": f"{base}.weight_packed", "scale": f"{base}.weight_scale"}
        if info.dtype == "uint8":
            pair = {"divisor": f"{base}.weight_global_scale"} if f"{base}.weight_global_scale" in parts.infos else {}
            yield _pairs(parts, f"{base}.weight", info, found | pair, "nvfp4" if pair else "mxfp4")
        else:
            yield _words_of_ints(parts, base, info, found, weights)
    yield from _scaled(parts)


def _numbers(weights: list[dict[str, Any]], key: str) -> set[int]:
    """The whole numbers that the groups say."""
    return {w[key] for w in weights if isinstance(w.get(key), int)}


def _words_of_ints(
    parts: Parts, base: str, info: TensorInfo, roles: dict[str, str], weights: list[dict[str, Any]]
) -> Matrix:
    names = {"zero": f"{base}.weight_zero_point", "order": f"{base}.weight_g_idx"}
    found = parts.take(roles | {"shape": f"{base}.weight_shape"}, names)
    shape_of = parts.infos[found.pop("shape")]
    if shape_of.numel != 2 or shape_of.dtype != "int64":
        raise parts.odd(f"{base}.weight_shape", info.shape)
    height, width = (int(n) for n in parts.load(f"{base}.weight_shape").reshape(2))
    if info.dtype != "int32" or len(info.shape) != 2 or info.shape[0] != height or not 0 < width < 1 << 40:
        raise parts.odd(f"{base}.weight_packed", (height, width))
    fits = [bits for bits in (4, 8) if info.shape[1] == -(-width * bits // 32)]
    bits = next((b for b in fits if b in _numbers(weights, "num_bits")), fits[0] if fits else 0)
    if not bits:
        raise parts.odd(f"{base}.weight_packed", (height, width))
    scale = parts.shape(roles["scale"])
    sizes = {n for n in _numbers(weights, "group_size") if n > 0}
    # A group size that the config says for all; by the number of groups where it says several.
    asked = (1, *sizes) if len(sizes) == 1 and len(scale) > 1 and scale[-1] == -(-width // next(iter(sizes))) else None
    block = parts.block((height, width), roles["scale"], asked)
    if "order" in found:
        _ordered(parts, found["order"], width, scale[-1])
    if "zero" in found and (parts.infos[found["zero"]].dtype, parts.shape(found["zero"])) != (
        "int32",
        (-(-height * bits // 32), *scale[1:]),
    ):
        raise parts.odd(found["zero"], (height, width))
    label = f"int{bits}, {_words(block, (height, width))}"
    return Matrix(f"{base}.weight", (height, width), label, found, block, bits)


def _ordered(parts: Parts, name: str, width: int, groups: int) -> None:
    """Every column's group is one that has a scale."""
    import torch

    info = parts.infos[name]
    if info.shape != (width,) or info.dtype not in ("int32", "int64"):
        raise parts.odd(name, (width,))
    index = parts.load(name)
    if len(index) and not bool(torch.all((index >= 0) & (index < groups))):
        raise QwenchError(f"`{name}` names a group that has no scale: `{parts.path}`", AGAIN)


def _pairs(parts: Parts, name: str, info: TensorInfo, roles: dict[str, str], kind: str) -> Matrix:
    """Two 4-bit floats a byte."""
    found = parts.take(roles)
    group = 16 if kind == "nvfp4" else 32
    shape = (*info.shape[:-1], info.shape[-1] * 2) if len(info.shape) > 1 else ()
    if not shape or info.dtype != "uint8":
        raise parts.odd(found["codes"], info.shape)
    parts.block(shape, found["scale"], (1, group))
    for role in ("factor", "divisor"):
        if role in found and parts.infos[found[role]].numel != 1:
            raise parts.odd(found[role], shape)
    return Matrix(name, shape, f"{kind}, groups of {group}", found, (1, group), pairs=True)


def _modelopt(parts: Parts) -> Iterator[Matrix]:
    """ModelOpt's FP8 and NVFP4."""
    said = parts.said.get("quantization", parts.said)
    algorithm = said.get("quant_algo") if isinstance(said, dict) else None
    if algorithm not in (None, "FP8", "FP8_PER_CHANNEL_PER_TOKEN", "NVFP4", "MIXED_PRECISION"):
        raise refused(f"modelopt` and `{algorithm}", parts.path)
    for base, info in parts.ending(".weight"):
        if info.dtype == "uint8":
            name = f"{base}.weight"
            roles = {"codes": name, "scale": f"{name}_scale", "factor": f"{name}_scale_2"}
            yield _pairs(parts, name, info, roles, "nvfp4")
    yield from _scaled(parts)


def _mxfp4(parts: Parts) -> Iterator[Matrix]:
    """The experts of gpt-oss: blocks of 32 values as an axis of their own."""
    for base, info in parts.ending("_blocks"):
        if len(info.shape) < 3:
            raise parts.odd(f"{base}_blocks", info.shape)
        flat = TensorInfo(base, (*info.shape[:-2], info.shape[-2] * info.shape[-1]), info.dtype, 0, info.file)
        yield _pairs(parts, base, flat, {"codes": f"{base}_blocks", "scale": f"{base}_scales"}, "mxfp4")


def _columns(parts: Parts, awq: bool) -> Iterator[Matrix]:
    bits = parts.number("bits", 4)
    if bits not in ((4,) if awq else (2, 4, 8)):
        raise refused(f"{'awq' if awq else 'gptq'}` of {bits} bits` and `words of 32", parts.path)
    per = 32 // bits
    more = 0 if awq or parts.said.get("checkpoint_format") == "gptq_v2" else 1
    for base, info in parts.ending(".qweight"):
        roles = {"codes": f"{base}.qweight", "zero": f"{base}.qzeros", "scale": f"{base}.scales"}
        found = parts.take(roles, {} if awq else {"order": f"{base}.g_idx"})
        scale = parts.shape(found["scale"])
        if info.dtype != "int32" or len(info.shape) != 2 or len(scale) != 2 or not scale[0]:
            raise parts.odd(f"{base}.qweight", info.shape)
        inner, outer = (info.shape[0], info.shape[1] * per) if awq else (info.shape[0] * per, info.shape[1])
        asked = parts.number("group_size", -1)
        group = asked if asked > 0 else inner
        if scale != (-(-inner // group), outer):
            raise parts.odd(found["scale"], (outer, inner))
        if parts.shape(found["zero"]) != (scale[0], -(-outer // per)) or parts.infos[found["zero"]].dtype != "int32":
            raise parts.odd(found["zero"], (outer, inner))
        if "order" in found:
            _ordered(parts, found["order"], inner, scale[0])
        label = f"{'awq' if awq else 'gptq'} int{bits}, groups of {group}"
        yield Columns(f"{base}.weight", (outer, inner), label, found, (1, group), bits, awq=awq, more=more)


def _awq(parts: Parts) -> Iterator[Matrix]:
    if (version := str(parts.said.get("version", "gemm")).lower()) != "gemm":
        raise refused(f"awq` in the layout `{version}", parts.path)
    yield from _columns(parts, True)


def _gptq(parts: Parts) -> Iterator[Matrix]:
    if (form := parts.said.get("checkpoint_format", "gptq")) not in ("gptq", "gptq_v2"):
        raise refused(f"gptq` in the format `{form}", parts.path)
    yield from _columns(parts, False)


def _auto_round(parts: Parts) -> Iterator[Matrix]:
    packing = str(parts.said.get("packing_format", "auto_round"))
    if packing not in ("auto_round:auto_gptq", "auto_round:auto_awq"):
        raise refused(f"auto-round` in the packing `{packing}", parts.path)
    yield from _columns(parts, packing.endswith("awq"))


#: quant_method -> finds the matrices
METHODS: dict[str, Callable[[Parts], Iterator[Matrix]]] = {
    "fp8": _scaled,
    "fbgemm_fp8": _scaled,
    "compressed-tensors": _compressed,
    "modelopt": _modelopt,
    "mxfp4": _mxfp4,
    "awq": _awq,
    "gptq": _gptq,
    "auto-round": _auto_round,
}


def matrices(
    infos: dict[str, TensorInfo], load: Load, said: dict[str, Any], path: Path
) -> tuple[dict[str, Matrix], set[str]]:
    """(name -> matrix, names that are no tensors of the model) of a quantised checkpoint.

    Raises:
        QwenchError: a method or form that is not known, a part that is missing or does not fit.
    """
    method = str(said.get("quant_method") or ("modelopt" if "quant_algo" in said or "quantization" in said else ""))
    if method not in METHODS:
        raise refused(method or "a method that the config does not name", path)
    parts = Parts(infos, load, said, path)
    found: dict[str, Matrix] = {}
    for matrix in METHODS[method](parts):
        if matrix.name in infos and matrix.name not in parts.used:
            raise QwenchError(f"`{matrix.name}` is there twice, as it is and quantised: `{path}`", HINT)
        found[matrix.name] = matrix
    return found, parts.used | {n for n in infos if n.rsplit(".", 1)[-1] in BESIDE}
