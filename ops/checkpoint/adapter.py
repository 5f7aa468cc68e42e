"""A folder that peft saved, read and checked: what it does to which tensor of which model."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.errors import QwenchError
from ..base.fields import AGAIN
from .layout import EMBEDDING, LM_HEAD, renamed
from .safetensors_reader import SafetensorsReader
from .sidecars import read_json
from .torch_reader import TorchReader

if TYPE_CHECKING:
    from torch import Tensor

CONFIG = "adapter_config.json"
WEIGHTS = (("adapter_model.safetensors", SafetensorsReader), ("adapter_model.bin", TorchReader))
#: an adapter's own files
FILES = (CONFIG, *(name for name, _ in WEIGHTS))
#: settings whose adapters mean something else than the formulas of `lora`
UNKNOWN = ("layer_replication", "target_parameters", "use_qalora", "alora_invocation_tokens", "arrow_config")
#: ways to begin a training that change the base weights as well
OTHER_BASE = ("pissa", "olora", "corda", "lora_ga")
#: model types whose linear layers are transformers' Conv1D, stored (in, out), and the names of those layers
CONV1D = {"gpt2": ("c_attn", "c_proj", "c_fc", "q_attn"), "openai-gpt": ("c_attn", "c_proj", "c_fc")}
CONV1D |= dict.fromkeys(("imagegpt", "decision_transformer"), CONV1D["gpt2"])
_PARTS = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+?)\.(?:modules_to_save\.|base_layer\.)?"
    r"(?P<part>lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_embedding_A|lora_embedding_B"
    r"|lora_magnitude_vector(?:\.weight)?|token_adapter\.trainable_tokens_delta|weight|bias)"
)


@dataclass(slots=True)
class Delta:
    """What an adapter does to one weight.

    Attributes:
        a, b: (r, in) and (out, r); for embeddings (r, rows) and (width, r).
        scale: s.
        magnitude: (out,) for DoRA.
        transposed: the weight is stored (in, out), or is an embedding: its rows are columns of b a.
    """

    a: Tensor
    b: Tensor
    scale: float
    magnitude: Tensor | None = None
    transposed: bool = False

    def apply(self, rows: Tensor, index: slice | list[int]) -> Tensor:
        """The rows at `index` of the weight, changed."""
        a, b = self.a.to(rows.dtype), self.b.to(rows.dtype)
        change = a[:, index].t() @ b.t() if self.transposed else b[index] @ a
        rows = rows + self.scale * change
        if self.magnitude is not None:
            rows = rows * (self.magnitude[index].to(rows.dtype) / rows.norm(dim=1))[:, None]
        return rows

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the weight it fits."""
        out, width = self.b.shape[0], self.a.shape[1]
        return (width, out) if self.transposed else (out, width)


class Adapter:
    """An adapter folder.

    Attributes:
        deltas: bare tensor name -> what is added.
        saved: bare tensor name -> what replaces it.
        biases: bare name of a bias -> what is added to it.
        tokens: bare tensor name -> (numbers of rows, what replaces them).

    Args:
        folder: as peft saved it.
        model_type: of the model it is for, which decides how linear layers are stored.

    Raises:
        QwenchError: no adapter, another kind than LoRA, a setting or tensor this code does not know.
    """

    def __init__(self, folder: Path, model_type: str | None = None) -> None:
        self.folder, self.model_type = folder, model_type
        self.config: dict[str, Any] = read_json(folder / CONFIG)
        if self.config.get("peft_type") != "LORA":
            raise QwenchError(f"not a LoRA adapter, but `{self.config.get('peft_type')}`: `{folder}`")
        if odd := [name for name in UNKNOWN if self.config.get(name)]:
            raise QwenchError(
                f"the adapter uses `{odd[0]}`, which cannot be merged here: `{folder}`",
                "merge with peft (merge_and_unload), save the model, and convert that",
            )
        begun = self.config.get("init_lora_weights")
        if isinstance(begun, str) and begun.lower().startswith(OTHER_BASE):
            raise QwenchError(
                f"the adapter began as `{begun}`, which changes the base weights too: `{folder}`",
                "save it as a plain LoRA first (peft: path_initial_model_for_weight_conversion)",
            )
        file, kind = adapter_file(folder)
        reader = kind([file])
        found: dict[str, dict[str, Tensor]] = {}
        for name in reader.infos:
            match = _PARTS.fullmatch(name)
            if match is None:
                raise QwenchError(f"the adapter has a tensor of unknown kind: `{name}` in `{file}`", "merge with peft")
            found.setdefault(match["module"], {})[match["part"].removesuffix(".weight")] = reader.load(name)
        self.deltas: dict[str, Delta] = {}
        self.saved: dict[str, Tensor] = {}
        self.biases: dict[str, Tensor] = {}
        self.tokens: dict[str, tuple[Tensor, Tensor]] = {}
        for module, parts in found.items():
            self._module(module, parts)

    def _module(self, module: str, parts: dict[str, Tensor]) -> None:
        bare = renamed(f"{module}.weight", "flat")
        bias = bare.removesuffix("weight") + "bias"
        for plain, name in (("weight", bare), ("bias", bias)):
            if plain in parts:
                self.saved[name] = parts.pop(plain)
        if (rows := parts.pop("token_adapter.trainable_tokens_delta", None)) is not None:
            self.tokens[bare] = self._numbers(module, rows), rows
        embedding = "lora_embedding_A" in parts
        stem = "lora_embedding_" if embedding else "lora_"
        if not parts:
            return
        if f"{stem}A" not in parts or f"{stem}B" not in parts:
            raise QwenchError(
                f"the adapter of `{module}` has parts this code cannot merge: {sorted(parts)}", "use peft"
            )
        magnitude = parts.get("lora_magnitude_vector")
        turned = module.rsplit(".", 1)[-1] in CONV1D.get(self.model_type or "", ())
        if magnitude is not None and (embedding or turned):
            raise QwenchError(f"DoRA on `{module}` of this kind cannot be merged here", "merge with peft")
        a, b = parts[f"{stem}A"], parts[f"{stem}B"]
        self._fit(module, a, b, magnitude, parts.get("lora_B.bias"))
        delta = Delta(a, b, self._scale(module, a.shape[0]), magnitude, embedding or turned)
        self.deltas[bare] = delta
        if "lora_B.bias" in parts:
            self.biases[bias] = delta.scale * parts["lora_B.bias"].float()

    def _fit(self, module: str, a: Tensor, b: Tensor, magnitude: Tensor | None, bias: Tensor | None) -> None:
        if a.dim() != 2 or b.dim() != 2 or not a.shape[0] or a.shape[0] != b.shape[1]:
            shapes = f"{list(a.shape)} and {list(b.shape)}"
            raise QwenchError(
                f"the adapter's two matrices for `{module}` do not fit: {shapes} in `{self.folder}`", AGAIN
            )
        for what, vector in (("magnitudes", magnitude), ("biases", bias)):
            if vector is not None and vector.shape != b.shape[:1]:
                shape = list(vector.shape)
                raise QwenchError(f"the adapter's {what} for `{module}` are of shape {shape}: `{self.folder}`", AGAIN)

    def _numbers(self, module: str, rows: Tensor) -> Tensor:
        import torch

        said = self.config.get("trainable_token_indices")
        if isinstance(said, dict):
            said = next((v for k, v in said.items() if f".{module}".endswith(f".{k}")), None)
        if rows.dim() != 2 or not len(rows):
            raise QwenchError(
                f"the adapter's token rows of `{module}` are of shape {list(rows.shape)}: `{self.folder}`", AGAIN
            )
        if not isinstance(said, list) or len(said) != len(rows):
            raise QwenchError(
                f"the adapter has {len(rows)} token rows of `{module}`, and its trainable_token_indices name "
                f"{len(said) if isinstance(said, list) else 'none'}: `{self.folder}`",
                "download or save the adapter again",
            )
        return torch.tensor(said)

    def _scale(self, module: str, rank: int) -> float:
        alpha = _pattern(self.config.get("alpha_pattern"), module, self.config.get("lora_alpha", 8))
        return alpha / rank**0.5 if self.config.get("use_rslora") else alpha / rank

    @property
    def touched(self) -> set[str]:
        """Bare names of everything it changes."""
        return {*self.deltas, *self.saved, *self.biases, *self.tokens}

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Shape that a tensor has after it; None where it fits any number of rows."""
        if name in self.saved:
            return tuple(self.saved[name].shape)
        if name in self.deltas:
            return self.deltas[name].shape
        return tuple(self.biases[name].shape) if name in self.biases else None

    def same_both(self) -> bool:
        """It does the same to both sides of tied weights: both were saved and are equal, or rows of tokens replaced."""
        import torch

        if {EMBEDDING, LM_HEAD} & {*self.deltas}:
            return False
        both = [self.saved.get(n) for n in (EMBEDDING, LM_HEAD)]
        if any(t is not None for t in both):
            return all(t is not None for t in both) and torch.equal(*both)
        # peft ties the rows of tied weights, and saves them once.
        return LM_HEAD not in self.tokens

    def apply(self, name: str, rows: Tensor, index: slice | list[int]) -> Tensor:
        """Rows of a tensor, changed; in the dtype of `rows`."""
        import torch

        if name in self.saved:
            rows = self.saved[name][index].to(rows.dtype)
        if name in self.deltas:
            rows = self.deltas[name].apply(rows, index)
        if name in self.biases:
            rows = rows + self.biases[name][index].to(rows.dtype)
        if name in self.tokens:
            numbers, new = self.tokens[name]
            first = index.start or 0 if isinstance(index, slice) else 0
            held = torch.arange(first, first + len(rows)) if isinstance(index, slice) else torch.tensor(index)
            at, which = (held[:, None] == numbers).nonzero(as_tuple=True)
            rows = rows.index_copy(0, at, new[which].to(rows.dtype))
        return rows

    def describe(self, name: str) -> str:
        """What it does to a tensor, in words."""
        if name in self.saved:
            return f"replaced by `{self.folder.name}`"
        if name in self.tokens:
            return f"{len(self.tokens[name][0])} rows replaced by `{self.folder.name}`"
        if name in self.biases:
            return f"merged with LoRA `{self.folder.name}` (bias)"
        delta = self.deltas[name]
        kind = "DoRA" if delta.magnitude is not None else "LoRA"
        return f"merged with {kind} `{self.folder.name}` (r={delta.a.shape[0]}, scale={delta.scale:g})"


def adapter_file(folder: Path) -> tuple[Path, type[SafetensorsReader] | type[TorchReader]]:
    """The weights of an adapter folder, and what reads them.

    Raises:
        QwenchError: there are none.
    """
    for name, kind in WEIGHTS:
        if (folder / name).is_file():
            return folder / name, kind
    raise QwenchError(f"the adapter folder has no adapter_model.safetensors: `{folder}`", "give the folder peft saved")


def adapter_files(folder: Path) -> list[Path]:
    """The files that decide what an adapter adds."""
    return [adapter_file(folder)[0], folder / CONFIG]


def adapter_alone(folder: Path, signs: Iterable[str] = (CONFIG,)) -> QwenchError | None:
    """The error for a folder that holds an adapter, with or without weights beside it; None for a model's own.

    Args:
        signs: files that say so, any of them.
    """
    found = next((name for name in signs if (folder / name).is_file()), None)
    if found is None:
        return None
    base = read_json(folder / CONFIG, {}).get("base_model_name_or_path") or "BASE"
    return QwenchError(
        f"the folder is an adapter, not a model: it has `{found}`, to be put into `{base}`: `{folder}`",
        f"merge it first: qwench convert {base} MERGED --lora {folder} (in a merge: {base}+{folder})",
    )


def _pattern(patterns: dict[str, Any] | None, module: str, default: Any) -> Any:
    """peft's way: the first key that matches the end of the module's name."""
    for key, value in (patterns or {}).items():
        try:
            if re.fullmatch(rf"(.*\.)?({key})", module):
                return value
        except (re.error, RecursionError, OverflowError) as error:
            raise QwenchError(f"{CONFIG}: `{key}` is no pattern ({error})", AGAIN) from error
    return default
