"""GGUF files as named tensors, under transformers' names and with its order of rows; blocks become float32."""

from __future__ import annotations

import mmap
import re
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.errors import QwenchError
from ..base.fields import Fields
from .account import Account
from .gguf_arch import PERMUTED, POOLING, TYPES, config_of, hf_name
from .gguf_blocks import PLAIN, Blocks, decode, torch_of, with_offsets
from .gguf_file import GgufFile, Stored
from .gguf_keys import GGUF, SILENT_GGUF, SILENT_TEXTS, STRUCTURE
from .gguf_tokenizer import files_of
from .rope_factors import NAME as DIVISORS
from .rope_factors import scaling_of
from .safetensors_reader import AGAIN, damaged
from .schemas import CONFIG
from .tensors import TensorInfo

if TYPE_CHECKING:
    from torch import Tensor


_LAYER = re.compile(r"model\.layers\.(\d{1,9})\.")
#: block formats that `blocks` gives
IN_BLOCKS = ("q8_0", "q4_0", "q4_1")


class GgufReader:
    """Tensors of a GGUF file, or of all parts of one; see SafetensorsReader for the interface.

    Experts that lie in one stack are tensors of their own. Names that llama.cpp's architectures do not share with
    transformers' stay as they are.

    Attributes:
        parts: the parsed heads; `file` is the first, which holds the metadata.
        arch: `general.architecture`.
        stored: name -> format on disk, such as `q4_1` or `float32`.

    Raises:
        QwenchError: damaged, or parts that are not those of one file.
    """

    format = "gguf"

    def __init__(self, files: list[Path]) -> None:
        self.parts = [GgufFile(file) for file in files]
        self.file = self.parts[0]
        self._maps = {part.path: part.map for part in self.parts}
        said = self.file.said
        _belong(self.parts)
        self.arch: str = said.get("general.architecture", "")
        self.metadata = {k: str(v) for k, v in said.items() if not isinstance(v, list)}
        self.infos: dict[str, TensorInfo] = {}
        self.stored: dict[str, str] = {}
        self._config: dict[str, Any] | None = None
        self._divisors: TensorInfo | None = None
        self._heads: dict[str, int | list[int]] = {}
        if self.arch in PERMUTED and (heads := said.get(f"{self.arch}.attention.head_count")):
            self._heads = {"q": heads, "k": said.get(f"{self.arch}.attention.head_count_kv", heads)}
        for file, tensor in ((part.path, tensor) for part in self.parts for tensor in part.tensors):
            for name, made in self._named(tensor):
                if name in self.infos:
                    raise QwenchError(f"`{name}` is twice in the file: `{file}`", AGAIN)
                kind = made.kind if made.kind in PLAIN else "float32"
                info = TensorInfo(name, made.shape, kind, made.nbytes, file, made.offset)
                if name == DIVISORS and self.arch in TYPES:
                    # No weight, but how positions are scaled: the config says it.
                    self._divisors = info
                    continue
                self.infos[name] = info
                self.stored[name] = made.kind

    def _named(self, tensor: Stored) -> list[tuple[str, Stored]]:
        name = hf_name(tensor.name) if self.arch in TYPES else None
        if name is None:
            return [(tensor.name, tensor)]
        if "{}" not in name:
            return [(name, tensor)]
        # A stack without a byte may claim any number of experts.
        if len(tensor.shape) < 2 or not tensor.nbytes:
            raise damaged(self.file.path, f"`{tensor.name}` is no stack of experts but of shape {list(tensor.shape)}")
        count, size = tensor.shape[0], tensor.nbytes // tensor.shape[0]
        return [
            (name.format(i), Stored(tensor.name, tensor.shape[1:], tensor.kind, tensor.offset + i * size, size))
            for i in range(count)
        ]

    def load(self, name: str) -> Tensor:
        """The tensor; a view of the mapped file where it is stored as it is, float32 made from blocks elsewhere."""
        import torch

        info, kind = self.infos[name], self.stored[name]
        dtype = torch_of(kind)
        if not info.nbytes:
            return torch.empty(info.shape, dtype=dtype or torch.float32)
        raw = self._bytes(info)
        found = raw.view(dtype).view(info.shape) if dtype is not None else decode(raw, kind, info.shape)
        found = self._in_order(name, found)
        # llama.cpp ranks by (yes, no), transformers' classifier is (no, yes).
        return found.flip(0) if name == "score.weight" and len(found) == 2 else found

    def blocks(self, name: str) -> Blocks | None:
        """A matrix as it is stored, where that is in blocks of 8 or 4 bits; q4_0's become q4_1's."""
        info, kind = self.infos[name], self.stored[name]
        if kind not in IN_BLOCKS or len(info.shape) != 2 or not info.nbytes:
            return None
        data = self._in_order(name, self._bytes(info).view(info.shape[0], -1))
        rows, columns = info.shape
        if kind == "q4_0":
            return Blocks(with_offsets(data), "q4_1", (rows, columns))
        return Blocks(data, kind, (rows, columns))

    def _bytes(self, info: TensorInfo) -> Tensor:
        import torch

        return torch.frombuffer(self._maps[info.file], dtype=torch.uint8, count=info.nbytes, offset=info.offset)

    def _in_order(self, name: str, rows: Tensor) -> Tensor:
        """Rows of q and k as transformers has them."""
        for side, heads in self._heads.items():
            if f".self_attn.{side}_proj." in name:
                if isinstance(heads, list):
                    # Some files give a number for each layer.
                    layer = _LAYER.match(name)
                    heads = next(iter(heads[int(layer[1]) :]), 0) if layer else 0
                if not heads or not rows.dim() or not len(rows) or len(rows) % (2 * heads):
                    raise damaged(self.file.path, f"`{name}` of shape {list(rows.shape)} is not of {heads} heads")
                return unpermuted(rows, heads)
        return rows

    def release(self, name: str) -> None:
        """Let go of the tensor's pages."""
        info = self.infos[name]
        first = -(-(info.offset or 0) // mmap.PAGESIZE) * mmap.PAGESIZE
        last = ((info.offset or 0) + info.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first and hasattr(mmap, "MADV_DONTNEED"):
            self._maps[info.file].madvise(mmap.MADV_DONTNEED, first, last - first)

    def exact(self) -> str | None:
        """The dtype that says every float of the file: that of its matrices, when its vectors fit into it; else None.

        llama.cpp wants norms and biases in float32 whatever the model's own dtype.
        """
        import torch

        kinds: dict[str, int] = {}
        for name, info in self.infos.items():
            if info.is_float and len(info.shape) > 1:
                kind = self.stored[name] if self.stored[name] in PLAIN else "float32"
                kinds[kind] = kinds.get(kind, 0) + info.numel
        if not kinds:
            return None
        most = max(kinds, key=kinds.__getitem__)
        for name, info in self.infos.items():
            if info.is_float and info.dtype != most:
                if len(info.shape) > 1 and self.stored[name] not in PLAIN:
                    return "float32"
                found = self.load(name)
                if not torch.equal(found.to(getattr(torch, most)).to(found.dtype), found):
                    return "float32"
        return most

    def config(self) -> dict[str, Any]:
        """config.json rebuilt; empty for an architecture that is not known here.

        Raises:
            QwenchError: a setting is missing or cannot be rebuilt.
        """
        if self._config is None:
            # `exact` looks at every norm.
            self._config = self._rebuilt()
        return Fields(self._config, str(self.file.path), CONFIG)

    def _rebuilt(self) -> dict[str, Any]:
        if self.arch not in TYPES:
            return {}
        embedding = self.infos.get("model.embed_tokens.weight")
        if embedding is None:
            raise QwenchError(f"the GGUF file has no token embeddings: `{self.file.path}`", AGAIN)
        for name in ("model.embed_tokens.weight", "lm_head.weight", "score.weight"):
            if name in self.infos and len(self.infos[name].shape) != 2:
                raise damaged(self.file.path, f"`{name}` is no matrix but of shape {list(self.infos[name].shape)}")
        biases = {b for n in self.infos if _LAYER.match(n) and n.endswith(".bias") for b in n.split(".")[3:4]}
        config, _ = config_of(
            self.file.said,
            embedding.shape[0],
            "lm_head.weight" not in self.infos,
            self.exact() or "float32",
            biases,
            "score.weight" in self.infos,
        )
        if "score.weight" in self.infos:
            labels = self.infos["score.weight"].shape[0]
            config |= {"num_labels": labels, "id2label": {str(i): f"LABEL_{i}" for i in range(labels)}}
        if self._divisors:
            if config.get("rope_scaling") or self._divisors.dtype != "float32":
                raise damaged(self.file.path, f"it scales positions in two ways, by `{DIVISORS}` and by its settings")
            found = self._bytes(self._divisors).view(torch_of("float32")) if self._divisors.nbytes else None
            if found is None or len(found) != config["head_dim"] // 2:
                raise damaged(self.file.path, f"`{DIVISORS}` is of shape {list(self._divisors.shape)}")
            config["rope_scaling"] = scaling_of(found, config["rope_theta"], self.file.path)
        return config

    def sides(self) -> dict[str, bytes]:
        """Tokenizer files rebuilt."""
        return files_of(Account(self.file.said, "the GGUF file"), str(self.file.path))

    def unheard(self) -> list[str]:
        """Settings of the architecture that the config says nothing of, and that change nothing of what is computed.

        Raises:
            QwenchError: a setting or tensor that changes what the model computes and that transformers cannot say.
        """
        self._tensors_fit()
        _, held = config_of(self.file.said, 0, False, "float32", set(), False)
        return held.close(GGUF, SILENT_GGUF.__contains__, "config.json")

    def left_behind(self) -> list[str]:
        """Names of metadata that config and tokenizer files say nothing of.

        Raises:
            QwenchError: see `unheard`.
        """
        said, at, left = self.file.said, len(self.arch) + 1, self.unheard()
        texts = {k: v for k, v in said.items() if k[:at] != f"{self.arch}."}
        texts = Account(Fields(texts, said.file, said.kinds), "the GGUF file")
        if files_of(texts, str(self.file.path)):
            texts.read |= SILENT_TEXTS
        return [f"{self.arch}.{k}" for k in left] + texts.close({}, lambda k: k in STRUCTURE, "config.json")

    def _tensors_fit(self) -> None:
        """Every tensor has a place in transformers' module; biases come as its flags have them."""
        names = (tensor.name for part in self.parts for tensor in part.tensors)
        if odd := next((name for name in names if name != DIVISORS and hf_name(name) is None), None):
            raise QwenchError(
                f"transformers has no name for a tensor of the GGUF file: `{odd}`", "get the model in safetensors"
            )
        own = {n.split(".", 3)[3] for n in self.infos if n.startswith("model.layers.")}
        held = {n.removesuffix(".bias") for n in own if n.endswith(".bias")}
        wanted = [{f"self_attn.{p}_proj" for p in ("qkv" if self.arch == "qwen2" else "qkvo")}]
        wanted += [{f"mlp.{p}_proj" for p in ("gate", "up", "down")}] if self.arch == "llama" else []
        for group in wanted:
            if held & group == group:
                held -= group
        if held:
            raise QwenchError(
                f"the GGUF file has a bias of `{min(held)}`, and {TYPES[self.arch][1]} has all of a layer's or none",
                "get the model in safetensors",
            )

    @property
    def pooling(self) -> str | None:
        """mean, cls, last or rank, when the file says so."""
        said = self.file.said.get(f"{self.arch}.pooling_type")
        return next((name for name, number in POOLING.items() if number == said), None)


def _belong(parts: list[GgufFile]) -> None:
    """Every part is the one that its place says, of as many as there are.

    Raises:
        QwenchError: one is not.
    """
    count = max(parts[0].said.get("split.count", 0), 1)
    if count != len(parts):
        raise QwenchError(
            f"the GGUF file is one part of {count}, and {len(parts)} of that name are there: `{parts[0].path}`",
            "name the parts MODEL-00001-of-0000N.gguf, as llama.cpp has them",
        )
    for number, part in enumerate(parts if count > 1 else ()):
        said = part.said.get("split.no", 0), part.said.get("split.count", 0)
        if said != (number, count):
            raise damaged(part.path, f"it says that it is part {said[0] + 1} of {said[1]}")
    tensors, held = parts[0].said.get("split.tensors.count"), sum(len(part.tensors) for part in parts)
    if count > 1 and tensors is not None and tensors != held:
        raise damaged(parts[0].path, f"its parts have {held} tensors, and it says {tensors}")


def permuted(weight: Tensor, heads: int) -> Tensor:
    """Rows of q or k in llama.cpp's order: the halves of each head interleaved."""
    return weight.view(heads, 2, -1, prod(weight.shape[1:])).transpose(1, 2).reshape(weight.shape)


def unpermuted(weight: Tensor, heads: int) -> Tensor:
    """Rows of q or k in transformers' order."""
    return weight.view(heads, -1, 2, prod(weight.shape[1:])).transpose(1, 2).reshape(weight.shape)
