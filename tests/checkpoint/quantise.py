"""Quantised checkpoints as their libraries write them, and what they stand for, computed value by value in numpy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

Parts = dict[str, torch.Tensor]
#: rng, (rows, columns) -> (ending -> tensor, values as float32); `.weight` is the matrix's own ending
Scheme = Callable[[np.random.Generator, tuple[int, int]], tuple[Parts, np.ndarray]]
E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]


def codes(rng: np.random.Generator, shape: tuple[int, ...], bits: int) -> np.ndarray:
    return rng.integers(0, 1 << bits, shape)


def scales(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.uniform(0.001, 0.02, shape).astype(np.float32)


def pack(values: np.ndarray, bits: int, order: tuple[int, ...] | None = None) -> torch.Tensor:
    """Codes along the last axis as int32 words, the lowest bits first; `order[n]` is the value in nibble n."""
    per = 32 // bits
    padded = np.zeros((*values.shape[:-1], -(-values.shape[-1] // per) * per), np.int64)
    padded[..., : values.shape[-1]] = values
    groups = padded.reshape(*padded.shape[:-1], -1, per)
    words = sum(groups[..., order[n] if order else n] << (bits * n) for n in range(per))
    return torch.from_numpy(words.astype(np.uint32).view(np.int32).copy())


def fp8(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[torch.Tensor, np.ndarray]:
    made = torch.from_numpy(rng.normal(0, 60, shape).astype(np.float32)).to(torch.float8_e4m3fn)
    return made, made.float().numpy()


def fp8_blocks(tall: int, wide: int, ending: str = ".weight_scale_inv", exponents: bool = False) -> Scheme:
    def make(rng, shape):
        made, q = fp8(rng, shape)
        down, across = -(-shape[0] // tall), -(-shape[1] // wide)
        s = scales(rng, down, across)
        stored = torch.from_numpy(s)
        if exponents:
            bits = rng.integers(116, 121, (down, across))
            s, stored = 2.0 ** (bits - 127.0), torch.from_numpy(bits.astype(np.uint8)).view(torch.float8_e8m0fnu)
        value = np.empty(shape, np.float32)
        for i in range(shape[0]):
            for j in range(shape[1]):
                value[i, j] = np.float32(q[i, j]) * np.float32(s[i // tall, j // wide])
        return {".weight": made, ending: stored}, value

    return make


def fp8_one(ending: str, rows: bool = False, **beside: float) -> Scheme:
    def make(rng, shape):
        made, q = fp8(rng, shape)
        s = scales(rng, shape[0], 1) if rows else scales(rng, 1)
        more = {f".{name}": torch.tensor(value) for name, value in beside.items()}
        return {".weight": made, ending: torch.from_numpy(s), **more}, q * s

    return make


def int8(zero: bool) -> Scheme:
    def make(rng, shape):
        q = rng.integers(-128, 128, shape).astype(np.int8)
        s, z = scales(rng, shape[0], 1), rng.integers(-5, 5, (shape[0], 1)).astype(np.int8) * zero
        parts = {".weight": torch.from_numpy(q), ".weight_scale": torch.from_numpy(s).bfloat16()}
        s = parts[".weight_scale"].float().numpy()
        if zero:
            parts[".weight_zero_point"] = torch.from_numpy(z.astype(np.int8))
        return parts, (q.astype(np.float32) - z) * s

    return make


def packed(bits: int, group: int, zero: bool, shuffled: bool = False) -> Scheme:
    def make(rng, shape):
        rows, columns = shape
        groups = -(-columns // group) if group else 1
        u, s = codes(rng, shape, bits), scales(rng, rows, groups)
        z = codes(rng, (rows, groups), bits) if zero else np.full((rows, groups), 1 << (bits - 1))
        order = np.arange(columns) // (group or columns)
        parts = {".weight_packed": pack(u, bits), ".weight_scale": torch.from_numpy(s)}
        parts[".weight_shape"] = torch.tensor(shape)
        if shuffled:
            order = rng.permutation(order)
            parts[".weight_g_idx"] = torch.from_numpy(order.astype(np.int32))
        if zero:
            parts[".weight_zero_point"] = pack(z.T, bits).T.contiguous()
        value = np.empty(shape, np.float32)
        for j in range(columns):
            value[:, j] = (u[:, j] - z[:, order[j]]).astype(np.float32) * s[:, order[j]]
        return parts, value

    return make


def floats_of_4(kind: str) -> Scheme:
    """nvfp4 of compressed-tensors, nvfp4 of ModelOpt, mxfp4."""

    def make(rng, shape):
        rows, columns = shape
        u = codes(rng, shape, 4)
        data = torch.from_numpy((u[:, 0::2] | u[:, 1::2] << 4).astype(np.uint8))
        table = np.array(E2M1, np.float32)[u]
        if kind == "mxfp4":
            bits = rng.integers(118, 122, (rows, columns // 32))
            value = table * np.repeat(2.0 ** (bits - 127.0), 32, 1).astype(np.float32)
            return {".weight_packed": data, ".weight_scale": torch.from_numpy(bits.astype(np.uint8))}, value
        scale = torch.from_numpy(rng.uniform(1, 400, (rows, columns // 16)).astype(np.float32)).to(torch.float8_e4m3fn)
        spread = np.repeat(scale.float().numpy(), 16, 1)
        if kind == "modelopt":
            two = np.float32(0.0003)
            parts = {".weight": data, ".weight_scale": scale, ".weight_scale_2": torch.tensor(two)}
            return parts | {".input_scale": torch.tensor(0.5)}, table * spread * two
        whole = np.float32(3000.0)
        parts = {".weight_packed": data, ".weight_scale": scale, ".weight_global_scale": torch.tensor([whole])}
        return parts, table * spread / whole

    return make


def awq(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[Parts, np.ndarray]:
    out, inner = shape
    order, group = (0, 2, 4, 6, 1, 3, 5, 7), 32
    q, z = codes(rng, (inner, out), 4), codes(rng, (inner // group, out), 4)
    s = torch.from_numpy(scales(rng, inner // group, out)).half()
    value = np.empty(shape, np.float32)
    for i in range(inner):
        value[:, i] = (q[i] - z[i // group]).astype(np.float32) * s[i // group].float().numpy()
    return {".qweight": pack(q, 4, order), ".qzeros": pack(z, 4, order), ".scales": s}, value


def gptq(bits: int, more: int, shuffled: bool) -> Scheme:
    def make(rng, shape):
        out, inner = shape
        group = 32
        q, z = codes(rng, (inner, out), bits), codes(rng, (inner // group, out), bits)
        s = torch.from_numpy(scales(rng, inner // group, out)).half()
        order = np.arange(inner) // group
        order = rng.permutation(order) if shuffled else order
        parts = {".qweight": pack(q.T, bits).T.contiguous(), ".qzeros": pack(z, bits), ".scales": s}
        parts[".g_idx"] = torch.from_numpy(order.astype(np.int32))
        value = np.empty(shape, np.float32)
        for i in range(inner):
            value[:, i] = (q[i] - (z[order[i]] + more)).astype(np.float32) * s[order[i]].float().numpy()
        return parts, value

    return make


def groups(**weights: Any) -> dict[str, Any]:
    return {"config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}


def compressed(form: str, **weights: Any) -> dict[str, Any]:
    return {"quant_method": "compressed-tensors", "format": form, **groups(**weights)}


#: name -> (scheme, quantization config)
SCHEMES: dict[str, tuple[Scheme, dict[str, Any]]] = {
    "fp8 blocks": (fp8_blocks(48, 32), {"quant_method": "fp8", "weight_block_size": [48, 32]}),
    "fp8 whole blocks": (fp8_blocks(32, 32), {"quant_method": "fp8", "weight_block_size": [32, 32]}),
    "fp8 exponents": (fp8_blocks(32, 32, exponents=True), {"quant_method": "fp8", "weight_block_size": [32, 32]}),
    "fp8 tensor": (
        fp8_one(".weight_scale_inv", activation_scale=0.5),
        {"quant_method": "fp8", "weight_block_size": None, "activation_scheme": "static"},
    ),
    "fbgemm": (fp8_one(".weight_scale", True), {"quant_method": "fbgemm_fp8"}),
    "compressed fp8 rows": (
        fp8_one(".weight_scale", True, input_scale=1.0),
        compressed("float-quantized", num_bits=8, type="float", strategy="channel"),
    ),
    "compressed fp8 blocks": (
        fp8_blocks(48, 32, ".weight_scale"),
        compressed("float-quantized", num_bits=8, type="float", strategy="block", block_structure=[48, 32]),
    ),
    "compressed int8": (int8(False), compressed("int-quantized", num_bits=8, type="int", strategy="channel")),
    "compressed int8 zeros": (int8(True), compressed("int-quantized", num_bits=8, type="int", strategy="channel")),
    "compressed int4": (packed(4, 16, False), compressed("pack-quantized", num_bits=4, group_size=16)),
    "compressed int4 zeros": (packed(4, 16, True), compressed("pack-quantized", num_bits=4, group_size=16)),
    "compressed int4 rows": (packed(4, 0, True), compressed("pack-quantized", num_bits=4, strategy="channel")),
    "compressed int8 order": (packed(8, 16, False, True), compressed("pack-quantized", num_bits=8, group_size=16)),
    "compressed nvfp4": (floats_of_4("nvfp4"), compressed("nvfp4-pack-quantized", num_bits=4, group_size=16)),
    "compressed mxfp4": (floats_of_4("mxfp4"), compressed("mxfp4-pack-quantized", num_bits=4, group_size=32)),
    "modelopt nvfp4": (floats_of_4("modelopt"), {"quant_method": "modelopt", "quant_algo": "NVFP4"}),
    "modelopt fp8": (
        fp8_one(".weight_scale", input_scale=0.5, k_scale=1.0),
        {"quant_method": "modelopt", "quant_algo": "FP8"},
    ),
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}),
    "gptq": (gptq(4, 1, True), {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True}),
    "gptq 2": (gptq(2, 1, False), {"quant_method": "gptq", "bits": 2, "group_size": 32}),
    "gptq v2": (
        gptq(8, 0, False),
        {"quant_method": "gptq", "bits": 8, "group_size": 32, "checkpoint_format": "gptq_v2"},
    ),
}


def quantised(source: Path, folder: Path, scheme: str, seed: int = 0) -> Path:
    """A copy of a decoder with the linear layers of its blocks quantised; what they are lies in `<folder>-whole`."""
    make, said = SCHEMES[scheme]
    rng = np.random.default_rng(seed)
    plain = Path(f"{folder}-whole")
    for place in (folder, plain):
        place.mkdir()
        for file in source.iterdir():
            if file.suffix != ".safetensors":
                (place / file.name).write_bytes(file.read_bytes())
    stored: Parts = {}
    values: Parts = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if "_proj.weight" not in name:
            stored[name] = values[name] = tensor.bfloat16()
            continue
        parts, value = make(rng, tuple(tensor.shape))
        stored |= {name.removesuffix(".weight") + end: part for end, part in parts.items()}
        values[name] = torch.from_numpy(value).bfloat16()
    config = json.loads((source / "config.json").read_text())
    config = {k: v for k, v in config.items() if k != "torch_dtype"} | {"dtype": "bfloat16"}
    (plain / "config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": said}))
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    save_file(values, plain / "model.safetensors", {"format": "pt"})
    return folder
