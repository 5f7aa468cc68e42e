"""A quantised checkpoint read as the matrices that its codes and scales stand for."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.errors import QwenchError
from ..base.fields import AGAIN, Fields
from .cast import PIECE
from .schemes import matrices
from .sidecars import QUANTISED, read_json
from .tensors import FLOATS, TensorInfo, torch_dtype

if TYPE_CHECKING:
    from torch import Tensor

    from .reader import Reader

#: keys of config.json under which libraries say how they quantised
KEYS = ("quantization_config", "compression_config")


class Unquantised:
    """Codes and scales as the matrices that they stand for; see SafetensorsReader for the interface.

    A matrix is computed in float32 and rounded once, to the dtype that the config says.

    Attributes:
        raw: the tensors as they lie in the files.
        matrices: name -> what it is made of.
        stored: name -> format on disk, such as `fp8 e4m3, blocks of 128x128`; of quantised matrices alone.

    Raises:
        QwenchError: a scheme that is not known, a part that is missing or does not fit.
    """

    def __init__(self, raw: Reader, said: dict[str, Any], dtype: str, path: Path) -> None:
        self.raw = raw
        self.format, self.metadata = raw.format, raw.metadata
        self.matrices, hidden = matrices(raw.infos, raw.load, said, path)
        by_codes = {m.parts["codes"]: m for m in self.matrices.values()}
        self.infos: dict[str, TensorInfo] = {}
        for name, info in raw.infos.items():
            if matrix := by_codes.get(name):
                held = sum(raw.infos[part].nbytes for part in matrix.parts.values())
                made = replace(info, name=matrix.name, shape=matrix.shape, dtype=dtype, nbytes=held, offset=None)
                self.infos[matrix.name] = made
            elif name not in hidden:
                if not (info.is_float or len(info.shape) < 2):
                    raise QwenchError(
                        f"`{name}` is of {info.dtype}, and nothing says how it was quantised: `{path}`", AGAIN
                    )
                self.infos[name] = info
        self.stored = {m.name: m.kind for m in self.matrices.values()}

    def load(self, name: str) -> Tensor:
        """The tensor: a quantised matrix made anew, others as views of the mapped file."""
        import torch

        if name not in self.matrices:
            return self.raw.load(name)
        matrix, dtype = self.matrices[name], torch_dtype(self.infos[name].dtype)
        out = torch.empty(matrix.shape, dtype=dtype)
        if not out.numel():
            return out
        flat = out.view(matrix.count, -1)
        # A multiple of 32, so that no word of packed rows is cut.
        step = max(PIECE // matrix.shape[-1] // 32 * 32, 32)
        for first in range(0, matrix.count, step):
            last = min(first + step, matrix.count)
            flat[first:last] = matrix.rows(self.raw.load, first, last)
        return out

    def release(self, name: str) -> None:
        """Let go of the pages of all its parts."""
        for part in self.matrices[name].parts.values() if name in self.matrices else (name,):
            self.raw.release(part)

    def kinds(self) -> dict[str, tuple[int, int]]:
        """Scheme -> (matrices, values)."""
        count, values = Counter[str](), Counter[str]()
        for matrix in self.matrices.values():
            count[matrix.kind] += 1
            values[matrix.kind] += self.infos[matrix.name].numel
        return {kind: (count[kind], values[kind]) for kind in count}

    @property
    def note(self) -> str:
        """What becomes of it, in words."""
        return f"dequantised to {self._dtypes()}: {len(self.matrices)} matrices from {'; '.join(self.kinds())}"

    def _dtypes(self) -> str:
        return next((self.infos[name].dtype for name in self.matrices), "nothing")


def quantisation(config: dict[str, Any], folder: Path) -> dict[str, Any] | None:
    """How the tensors of a folder are quantised, None where they are as they are.

    Raises:
        QwenchError: what is said is no object.
    """
    said = next((config[key] for key in KEYS if config.get(key)), None)
    if said is None:
        # ModelOpt keeps its settings beside the config.
        said = read_json(folder / QUANTISED, {}) or None
    if said is not None and not isinstance(said, dict):
        raise QwenchError(f"the quantization config is no object: `{folder / 'config.json'}`", AGAIN)
    return said


def without(config: dict[str, Any]) -> dict[str, Any]:
    """A config of the same model with its tensors as they are."""
    left = {key: value for key, value in config.items() if key not in KEYS}
    left |= {} if {"dtype", "torch_dtype"} & left.keys() else {"dtype": dtype_of(config)}
    return Fields(left, config.file, config.kinds, config.at, config.hint) if isinstance(config, Fields) else left


def dtype_of(config: dict[str, Any]) -> str:
    """What the matrices are rounded to: the dtype of the config, bfloat16 without one."""
    said = config.get("dtype") or config.get("torch_dtype")
    return said if said in FLOATS else "bfloat16"
