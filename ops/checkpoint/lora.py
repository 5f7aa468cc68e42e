"""Adapters of the peft layout, merged into weights row by row: LoRA, rsLoRA, DoRA, modules_to_save.

W' = W + s B A with s = alpha / r (LoRA, arXiv 2106.09685) or alpha / sqrt(r) (rsLoRA, arXiv 2312.03732);
DoRA (arXiv 2402.09353) then scales each row to its magnitude: m (W + s B A) / |W + s B A|.
All in float32 (float64 for float64 weights), cast once at the end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.errors import QwenchError
from ..base.fields import AGAIN
from ..base.paths import local
from .cast import PIECE, Losses, pieces
from .layout import EMBEDDING, LM_HEAD, renamed
from .plan import Output, Plan
from .reader import Source
from .safetensors_reader import SafetensorsReader
from .sidecars import read_json
from .torch_reader import TorchReader

if TYPE_CHECKING:
    from torch import Tensor

FILES = (("adapter_model.safetensors", SafetensorsReader), ("adapter_model.bin", TorchReader))
#: settings whose adapters mean something else than the formulas above
UNKNOWN = ("layer_replication", "trainable_token_indices", "target_parameters", "use_qalora", "alora_invocation_tokens")
#: ways to begin a training that change the base weights as well
OTHER_BASE = ("pissa", "olora", "corda", "lora_ga")
_PARTS = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+?)\.(?:modules_to_save\.|base_layer\.)?"
    r"(?P<part>lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_embedding_A|lora_embedding_B"
    r"|lora_magnitude_vector(?:\.weight)?|weight|bias)"
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

    def apply(self, rows: Tensor, first: int) -> Tensor:
        """Rows `first` and on of the weight, changed."""
        a, b, last = self.a.to(rows.dtype), self.b.to(rows.dtype), first + len(rows)
        change = a[:, first:last].t() @ b.t() if self.transposed else b[first:last] @ a
        rows = rows + self.scale * change
        if self.magnitude is not None:
            rows = rows * (self.magnitude[first:last].to(rows.dtype) / rows.norm(dim=1))[:, None]
        return rows

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the weight it fits."""
        out, width = self.b.shape[0], self.a.shape[1]
        return (width, out) if self.transposed else (out, width)


class Adapter:
    """An adapter folder, read and checked.

    Attributes:
        deltas: bare tensor name -> what is added.
        saved: bare tensor name -> what replaces it.

    Raises:
        QwenchError: no adapter, another kind than LoRA, a setting or tensor this code does not know.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        local(folder, "the adapter")
        self.config: dict[str, Any] = read_json(folder / "adapter_config.json")
        if self.config.get("peft_type") != "LORA":
            raise QwenchError(f"not a LoRA adapter, but `{self.config.get('peft_type')}`: `{folder}`")
        if odd := [name for name in UNKNOWN if self.config.get(name)]:
            raise QwenchError(
                f"the adapter uses `{odd[0]}`, which cannot be merged here: `{folder}`", "merge with peft"
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
        for module, parts in found.items():
            self._module(module, parts)

    def _module(self, module: str, parts: dict[str, Tensor]) -> None:
        bare = renamed(f"{module}.weight", "flat")
        for plain, name in (("weight", bare), ("bias", bare.removesuffix("weight") + "bias")):
            if plain in parts:
                self.saved[name] = parts.pop(plain)
        embedding = "lora_embedding_A" in parts
        stem = "lora_embedding_" if embedding else "lora_"
        if not parts:
            return
        if "lora_B.bias" in parts or f"{stem}A" not in parts or f"{stem}B" not in parts:
            raise QwenchError(
                f"the adapter of `{module}` has parts this code cannot merge: {sorted(parts)}", "use peft"
            )
        magnitude = parts.get("lora_magnitude_vector")
        turned = bool(self.config.get("fan_in_fan_out"))
        if magnitude is not None and (embedding or turned):
            raise QwenchError(f"DoRA on `{module}` of this kind cannot be merged here", "merge with peft")
        a, b = parts[f"{stem}A"], parts[f"{stem}B"]
        if a.dim() != 2 or b.dim() != 2 or not a.shape[0] or a.shape[0] != b.shape[1]:
            shapes = f"{list(a.shape)} and {list(b.shape)}"
            raise QwenchError(
                f"the adapter's two matrices for `{module}` do not fit: {shapes} in `{self.folder}`", AGAIN
            )
        if magnitude is not None and magnitude.shape != b.shape[:1]:
            shape = list(magnitude.shape)
            raise QwenchError(f"the adapter's magnitudes for `{module}` are of shape {shape}: `{self.folder}`", AGAIN)
        self.deltas[bare] = Delta(a, b, self._scale(module, a.shape[0]), magnitude, embedding or turned)

    def _scale(self, module: str, rank: int) -> float:
        alpha = _pattern(self.config.get("alpha_pattern"), module, self.config.get("lora_alpha", 8))
        return alpha / rank**0.5 if self.config.get("use_rslora") else alpha / rank

    def describe(self, name: str) -> str:
        """What it does to a tensor, in words."""
        if name in self.saved:
            return f"replaced by `{self.folder.name}`"
        delta = self.deltas[name]
        kind = "DoRA" if delta.magnitude is not None else "LoRA"
        return f"merged with {kind} `{self.folder.name}` (r={delta.a.shape[0]}, scale={delta.scale:g})"


def adapter_file(folder: Path) -> tuple[Path, type[SafetensorsReader] | type[TorchReader]]:
    """The weights of an adapter folder, and what reads them.

    Raises:
        QwenchError: there are none.
    """
    for name, kind in FILES:
        if (folder / name).is_file():
            return folder / name, kind
    raise QwenchError(f"the adapter folder has no adapter_model.safetensors: `{folder}`", "give the folder peft saved")


def adapter_files(folder: Path) -> list[Path]:
    """The files that decide what an adapter adds."""
    return [adapter_file(folder)[0], folder / "adapter_config.json"]


def _pattern(patterns: dict[str, Any] | None, module: str, default: Any) -> Any:
    """peft's way: the first key that matches the end of the module's name."""
    for key, value in (patterns or {}).items():
        try:
            if re.fullmatch(rf"(.*\.)?({key})", module):
                return value
        except (re.error, RecursionError, OverflowError) as error:
            raise QwenchError(f"adapter_config.json: `{key}` is no pattern ({error})", AGAIN) from error
    return default


def merge_adapters(source: Source, plan: Plan, adapters: list[Adapter], tied: bool) -> None:
    """Put adapters into a plan's outputs, in order.

    Args:
        source: where the base weights are.
        plan: its outputs are replaced by merged ones.
        adapters: applied one after the other.
        tied: the head shares the embeddings' tensor in the output.

    Raises:
        QwenchError: an adapter tensor has no place or another shape, or changes one side of tied weights.
    """
    at = {renamed(o.name, "flat"): i for i, o in enumerate(plan.outputs)}
    for adapter in adapters:
        touched = {*adapter.deltas, *adapter.saved}
        if tied and touched & {EMBEDDING, LM_HEAD} and not _same_both(adapter):
            one = LM_HEAD if LM_HEAD in touched else EMBEDDING
            raise QwenchError(
                f"the adapter `{adapter.folder.name}` changes `{one}`, and head and embeddings share one tensor",
                "add --untie to give the head its own",
            )
        if tied:
            touched -= {LM_HEAD}
        for name in sorted(touched):
            if name not in at:
                raise QwenchError(
                    f"the adapter `{adapter.folder.name}` changes `{name}`, which the model does not have"
                )
            shape = adapter.saved[name].shape if name in adapter.saved else adapter.deltas[name].shape
            output = plan.outputs[at[name]]
            if tuple(shape) != output.shape:
                raise QwenchError(
                    f"the adapter `{adapter.folder.name}` fits a `{name}` of shape {list(shape)}, "
                    f"and the model's is {list(output.shape)}",
                    "it was trained on another model",
                )
            chain = [a for a in adapters[: adapters.index(adapter) + 1] if name in {*a.deltas, *a.saved}]
            words = "; ".join(a.describe(name) for a in chain)
            plan.outputs[at[name]] = replace(output, action=words, pieces=_merged(source, output, name, chain))


def _same_both(adapter: Adapter) -> bool:
    """Both sides of tied weights were saved, and are equal."""
    import torch

    both = [adapter.saved.get(n) for n in (EMBEDDING, LM_HEAD)]
    return all(t is not None for t in both) and torch.equal(*both) and not {EMBEDDING, LM_HEAD} & {*adapter.deltas}


def _merged(source: Source, output: Output, name: str, chain: list[Adapter]) -> Any:
    import torch

    def make(losses: Losses | None) -> Iterator[Tensor]:
        weight = source.reader.load(output.sources[0])
        wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
        step = max(PIECE // max(weight[0].numel(), 1), 1) if weight.dim() > 1 else len(weight)
        for first in range(0, len(weight), step):
            rows = weight[first : first + step].to(wide)
            for adapter in chain:
                if name in adapter.saved:
                    rows = adapter.saved[name][first : first + step].to(wide)
                if name in adapter.deltas:
                    rows = adapter.deltas[name].apply(rows, first)
            yield from pieces(output.name, rows, output.dtype, losses)

    return make
