"""A folder or file becomes named tensors, whatever its format."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..base.errors import QwenchError
from .adapter import FILES as ADAPTER_FILES
from .adapter import adapter_alone
from .gguf_reader import GgufReader
from .safetensors_reader import AGAIN, SafetensorsReader
from .sidecars import inside, modules_of, read_json
from .tensors import WEIGHT_SUFFIXES, TensorInfo
from .torch_reader import TorchReader
from .unquantised import Unquantised, dtype_of, quantisation, without
from .whole import shard_of, siblings

if TYPE_CHECKING:
    from torch import Tensor

#: single file, index, reader, in the order transformers looks for them
FORMATS = (
    ("model.safetensors", "model.safetensors.index.json", SafetensorsReader),
    ("pytorch_model.bin", "pytorch_model.bin.index.json", TorchReader),
)


#: ending of a part -> what reads it
_PARTS = {".safetensors": SafetensorsReader, ".bin": TorchReader}


class Reader(Protocol):
    """Named tensors of some files.

    Attributes:
        format: safetensors, bin or gguf.
        infos: name -> TensorInfo, read from headers alone.
        metadata: what the files say of themselves.
    """

    format: str
    infos: dict[str, TensorInfo]
    metadata: dict[str, str]

    def load(self, name: str) -> Tensor:
        """The tensor, in its own dtype; not to be written into."""
        ...

    def release(self, name: str) -> None:
        """The tensor is not needed for now: its pages may leave the memory."""
        ...


class Source:
    """A checkpoint: its tensors, its config, and what is odd about it.

    Args:
        reader: tensors to take in place of those in `path`.
        as_stored: leave quantised tensors as they lie in the files.

    Attributes:
        folder: where config and side files lie.
        reader: its tensors.
        problems: sentences about what is there and should not be, or the other way round.

    Raises:
        QwenchError: no weights, a damaged file, an index that does not fit.
    """

    def __init__(self, path: Path, reader: Reader | None = None, as_stored: bool = False) -> None:
        self.path = path
        self.folder = path if path.is_dir() else path.parent
        self.problems: list[str] = []
        self.reader: Reader = reader or (self._folder() if path.is_dir() else self._file(path))
        raw = self.reader.raw if isinstance(self.reader, Unquantised) else self.reader
        self.files = sorted({info.file for info in raw.infos.values()})
        if isinstance(raw, GgufReader):
            # The first part may hold no tensor.
            self.files = [part.path for part in raw.parts]
        if reader is None and not as_stored and not isinstance(raw, GgufReader):
            config = read_json(self.folder / "config.json", {})
            said = quantisation(config, self.folder)
            if said and all(info.is_float for info in raw.infos.values()):
                self.problems.append("the config says that the model is quantised, and all of its tensors are floats")
            elif said:
                self.reader = Unquantised(raw, said, dtype_of(config), path)

    def _file(self, path: Path) -> Reader:
        if not path.is_file():
            raise QwenchError(f"no such checkpoint: `{path}`", "give a folder or a weight file")
        if path.suffix == ".gguf":
            return GgufReader(gguf_parts(path))
        if part := shard_of(path):
            self.problems.append(f"the file is part {part[0]} of {part[1]}, not the whole model")
        if path.suffix == ".safetensors":
            return SafetensorsReader([path])
        if path.suffix in (".bin", ".pt", ".pth"):
            return TorchReader([path])
        raise QwenchError(f"not a weight file this command can read: `{path}`", "give .safetensors, .bin, .pt or .gguf")

    def _folder(self) -> Reader:
        for single, index, reader in FORMATS:
            if (self.folder / single).is_file():
                if (self.folder / index).is_file():
                    self.problems.append(f"`{single}` and `{index}` are both there; the single file is read")
                return reader([self.folder / single])
            if (self.folder / index).is_file():
                return self._indexed(self.folder / index, reader)
        others = sorted(p for p in self.folder.glob("*") if p.suffix in WEIGHT_SUFFIXES)
        if (found := next((p for p in others if shard_of(p) and p.suffix in _PARTS), None)) is not None:
            return self._shards(found)
        if error := adapter_alone(self.folder, ADAPTER_FILES):
            raise error
        if inner := self._inner():
            raise QwenchError(
                f"the weights are not in the model folder itself, but in a sub-folder: `{self.folder}`",
                f"give the sub-folder: {inner}",
            )
        if others:
            raise QwenchError(
                f"no model.safetensors or pytorch_model.bin in the model folder, only `{others[0].name}`: "
                f"`{self.folder}`",
                f"give the file itself: {others[0]}",
            )
        raise QwenchError(
            f"no model.safetensors in the model folder: `{self.folder}`", "check the folder, or its download"
        )

    def _inner(self) -> Path | None:
        """The sub-folder that modules.json names for the encoder, where it holds weights."""
        for module in modules_of(self.folder):
            place = self.folder / (module.get("path") or ".")
            if place != self.folder and any((place / name).is_file() for row in FORMATS for name in row[:2]):
                return place
        return None

    def _shards(self, first: Path) -> Reader:
        """Parts without an index, all of them or none."""
        files = siblings(first)
        if missing := [f for f in files if not f.is_file()]:
            raise QwenchError(
                f"{len(missing)} of the model's {len(files)} parts are not there, such as `{missing[0].name}`: "
                f"`{self.folder}`",
                AGAIN,
            )
        self.problems.append(f"there is no weight index; all {len(files)} parts are read")
        return _PARTS[first.suffix](files)

    def _indexed(self, index: Path, kind: type[SafetensorsReader] | type[TorchReader]) -> Reader:
        wanted: dict[str, str] = read_json(index)["weight_map"]
        names = sorted(set(wanted.values()))
        for name in names:
            if not inside(name):
                raise QwenchError(f"the weight index names a file outside the folder, `{name}`: `{index}`", AGAIN)
            if not os.path.isfile(self.folder / name):
                raise QwenchError(f"the weight index names a file that is missing: `{self.folder / name}`", AGAIN)
        reader = kind([self.folder / name for name in names])
        for name, file in wanted.items():
            info = reader.infos.get(name)
            if info is None or info.file.name != Path(file).name:
                raise QwenchError(f"the weight index says `{name}` is in `{file}`, and it is not: `{index}`", AGAIN)
        unlisted = [n for n in reader.infos if n not in wanted]
        if unlisted:
            self.problems.append(
                f"the weight index lacks {len(unlisted)} tensors of its files, such as `{unlisted[0]}`"
            )
        return reader

    def config(self) -> dict[str, Any]:
        """config.json, or what a GGUF file says in its place; empty where there is none.

        Of quantised tensors it says what `reader` gives: nothing of how they are stored.

        Raises:
            QwenchError: it cannot be read.
        """
        if isinstance(self.reader, GgufReader):
            return self.reader.config()
        config = read_json(self.folder / "config.json", {})
        return without(config) if self.quantised else config

    @property
    def infos(self) -> dict[str, TensorInfo]:
        """Its tensors by name."""
        return self.reader.infos

    @property
    def quantised(self) -> Unquantised | None:
        """The reader, where it makes matrices of codes and scales."""
        return self.reader if isinstance(self.reader, Unquantised) else None

    def left_out(self) -> list[str]:
        """Names of weight files in the folder that are not part of what is read."""
        used = {f.name for f in self.files}
        found = (p for p in self.folder.iterdir() if p.is_file() and p.suffix in WEIGHT_SUFFIXES)
        return sorted(p.name for p in found if p.name not in used) if self.path.is_dir() else []


def gguf_parts(path: Path) -> list[Path]:
    """All parts of a GGUF model, given any of them.

    Raises:
        QwenchError: one is not there.
    """
    files = siblings(path) if shard_of(path) else [path]
    if gone := [file for file in files if not file.is_file()]:
        raise QwenchError(f"{len(gone)} of the model's {len(files)} parts are not there, such as `{gone[0]}`", AGAIN)
    return files


def apart(source: Source, out: Path) -> None:
    """The output may be neither the input nor inside it.

    Raises:
        QwenchError: it is.
    """
    inside = source.folder.resolve()
    target = out.resolve()
    if source.path.is_dir() and (target == inside or inside in target.parents):
        raise QwenchError(f"the output lies in the input: `{out}`", "write it elsewhere; the input is never changed")
    if target in inside.parents or any(target == f.resolve() for f in source.files):
        raise QwenchError(f"the input lies in the output: `{out}`", "write it elsewhere; the input is never changed")
