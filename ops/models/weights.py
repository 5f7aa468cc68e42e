"""Weights of a checkpoint folder, taken by name, with an account of what was missing or left over."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import QwenchError

if TYPE_CHECKING:
    from torch import Tensor, dtype


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up the checkpoint, from the index where there is one.

    Raises:
        QwenchError: no weights, a pickle-only checkpoint, or an index that names a missing file.
    """
    index = folder / "model.safetensors.index.json"
    if (single := folder / "model.safetensors").is_file():
        return [single]
    if not index.is_file():
        if any(folder.glob("*.bin")):
            raise QwenchError(
                f"only pickle weights (.bin) are there, which can run code when opened: `{folder}`",
                "download the safetensors version of the model",
            )
        raise QwenchError(f"no model.safetensors in the model folder: `{folder}`", "check the folder, or its download")
    try:
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise QwenchError(f"the weight index cannot be read: `{index}`", "download the model again") from error
    for name in names:
        if not (folder / name).is_file():
            raise QwenchError(
                f"the weight index names a file that is missing: `{folder / name}`", "download the model again"
            )
    return [folder / name for name in names]


class Weights:
    """Tensors of a folder, read lazily from its safetensors files.

    `take` removes a name from the account; `close` fails when something was left that nobody asked for.

    Args:
        folder: the checkpoint folder.
        prefixes: name prefixes to strip (`model.`, `bert.`): the first that fits some tensor is used for those.
    """

    def __init__(self, folder: Path, prefixes: Iterable[str] = ()) -> None:
        from safetensors import SafetensorError, safe_open

        self.folder = folder
        self._names: dict[str, tuple[object, str]] = {}
        prefixes = tuple(prefixes)
        for path in weight_files(folder):
            try:
                file = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise QwenchError(
                    f"the weight file is damaged ({error}): `{path}`", "download or copy the model again"
                ) from error
            for name in file.keys():  # noqa: SIM118 (a safetensors handle, not a dict)
                bare = next((name[len(p) :] for p in prefixes if name.startswith(p)), name)
                self._names[bare] = (file, name)

    def __contains__(self, name: str) -> bool:
        return name in self._names

    @property
    def stored_dtype(self) -> str:
        """dtype of the first matrix, as torch names it (`float32`, `bfloat16`, ...)."""
        names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
        first = None
        for file, name in self._names.values():
            part = file.get_slice(name)  # type: ignore[attr-defined]
            if len(part.get_shape()) >= 2:
                return names.get(part.get_dtype(), part.get_dtype())
            first = first or names.get(part.get_dtype(), part.get_dtype())
        return first or "float32"

    def take(self, name: str, dtype: dtype, shape: tuple[int, ...] | None = None, device: str = "cpu") -> Tensor:
        """One tensor, cast and moved.

        Raises:
            QwenchError: the name is not in the checkpoint, or its shape is not `shape`.
        """
        try:
            file, full = self._names.pop(name)
        except KeyError:
            raise QwenchError(
                f"the checkpoint lacks a weight of its architecture: `{name}` in `{self.folder}`",
                "it would be random; use a complete checkpoint",
            ) from None
        tensor = file.get_tensor(full)  # type: ignore[attr-defined]
        if shape is not None and tuple(tensor.shape) != shape:
            raise QwenchError(
                f"weight `{full}` has shape {tuple(tensor.shape)} but config.json asks for {shape}: `{self.folder}`",
                "config.json and weights are from different models",
            )
        return tensor.to(device=device, dtype=dtype)

    def stored_name(self, name: str) -> str | None:
        """The name in the file, prefix included; None when it is not there."""
        return self._names[name][1] if name in self._names else None

    def rows(self, name: str, rows: list[int]) -> Tensor:
        """Some rows of a matrix as float32, reading no others; the name stays in the account.

        Raises:
            QwenchError: the name is not in the checkpoint.
        """
        import torch

        if name not in self._names:
            raise QwenchError(
                f"the checkpoint lacks a weight of its architecture: `{name}` in `{self.folder}`",
                "it would be random; use a complete checkpoint",
            )
        file, full = self._names[name]
        part = file.get_slice(full)  # type: ignore[attr-defined]
        if rows and max(rows) >= part.get_shape()[0]:
            raise QwenchError(f"weight `{full}` has {part.get_shape()[0]} rows, and row {max(rows)} is needed")
        return torch.cat([part[r : r + 1] for r in rows]).float()

    def close(self, unused: Iterable[str] = ()) -> list[str]:
        """End of loading. Returns the names left aside on purpose (those that start with one of `unused`).

        Raises:
            QwenchError: a tensor is left that the architecture does not know.
        """
        unused = tuple(unused)
        left = sorted(self._names)
        unknown = [name for name in left if not name.startswith(unused)] if unused else left
        if unknown:
            raise QwenchError(
                f"the checkpoint has weights its architecture does not use: `{unknown[0]}`"
                + (f" and {len(unknown) - 1} more" if len(unknown) > 1 else "")
                + f" in `{self.folder}`",
                "the vectors would be wrong without them; this model needs its own code",
            )
        self._names.clear()
        return left
