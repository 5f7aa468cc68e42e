"""PyTorch files (.bin, .pt, .pth): unpickled with `weights_only`, so that no code in them runs; mapped, not read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.errors import QwenchError
from .impostors import impostor
from .safetensors_reader import AGAIN, damaged
from .tensors import NAMES, TensorInfo

if TYPE_CHECKING:
    from torch import Tensor


class TorchReader:
    """Tensors of some PyTorch files; see SafetensorsReader for the interface.

    Raises:
        QwenchError: damaged, holds something else than tensors, or code.
    """

    format = "bin"

    def __init__(self, files: list[Path]) -> None:
        self.infos: dict[str, TensorInfo] = {}
        self.metadata: dict[str, str] = {}
        self._tensors: dict[str, Tensor] = {}
        for path in files:
            for name, tensor in _tensors(path).items():
                if name in self.infos:
                    raise QwenchError(f"`{name}` is in two files: `{self.infos[name].file}` and `{path}`", AGAIN)
                self._tensors[name] = tensor
                kind = str(tensor.dtype).removeprefix("torch.")
                self.infos[name] = TensorInfo(
                    name, tuple(tensor.shape), kind, tensor.numel() * tensor.element_size(), path
                )

    def load(self, name: str) -> Tensor:
        """The tensor, backed by the mapped file; do not write into it."""
        return self._tensors[name].detach().contiguous()

    def release(self, name: str) -> None:
        """Nothing: PyTorch keeps its own mapping."""


def _tensors(path: Path) -> dict[str, Tensor]:
    import pickle

    import torch

    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise impostor(path) or QwenchError(
            f"the file holds more than tensors, and opening it could run code: `{path}`",
            "get a safetensors version of the model",
        ) from error
    except (RuntimeError, ValueError, EOFError, OSError) as error:
        if "mmap can only be used with files saved with" not in str(error):
            raise damaged(path, str(error).splitlines()[0][:120] if str(error) else "it ends early") from error
        found = _legacy(path)
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict) or not all(isinstance(v, torch.Tensor) for v in found.values()):
        raise QwenchError(f"the file holds something else than named tensors: `{path}`", "give a model's state dict")
    for name, tensor in found.items():
        if odd := _odd(tensor):
            raise QwenchError(
                f"`{name}` is {odd}, which no weight file written here can hold: `{path}`",
                "save the model again with dense tensors, without it, or as safetensors",
            )
    return {str(k): v for k, v in found.items()}


def _odd(tensor: Tensor) -> str | None:
    """What keeps a tensor from being plain numbers in memory, in words; None for a plain one."""
    import torch

    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_nested or tensor.layout != torch.strided:
        return f"not dense ({'nested' if tensor.is_nested else str(tensor.layout).removeprefix('torch.')})"
    if tensor.device.type == "meta":
        return "without values (meta)"
    return None if dtype in NAMES else f"of the dtype {dtype}"


def _legacy(path: Path) -> Any:
    """Files from before PyTorch 1.6 cannot be mapped."""
    import pickle

    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError) as error:
        raise damaged(path, str(error).splitlines()[0][:120] if str(error) else "it ends early") from error
