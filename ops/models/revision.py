"""The revision of a model folder: a hash over exactly the files that make its vectors, and over nothing else in it."""

from __future__ import annotations

import hashlib
import json
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from ..base.errors import QwenchError
from ..checkpoint.reader import FORMATS
from ..checkpoint.safetensors_reader import SafetensorsReader
from .modules import TRANSFORMER_FILES

BLOCK = 4096
#: blocks that are read of each large tensor
BLOCKS = 4
CONFIGS = ("config.json", "modules.json", "tokenizer_config.json", *TRANSFORMER_FILES)
#: what a tokenizer is made from where there is no tokenizer.json
OLDER = ("vocab.txt", "vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json")


def revision_of(folder: Path) -> str:
    """Hash over what a folder computes with: configs and tokenizers whole, of weights every tensor in samples."""
    digest = hashlib.blake2b(digest_size=16)
    for path, weight in sources(folder):
        digest.update(f"{path.relative_to(folder).as_posix()}:{path.stat().st_size}:".encode())
        if weight:
            _add_weights(digest, path)
        else:
            digest.update(path.read_bytes())
    return digest.hexdigest()


def former_revision(folder: Path) -> str | None:
    """The revision that earlier versions gave the folder, so that their indexes stay good: a hash over all of its
    .json and .safetensors files. None where more than those is computed with, which that hash did not see."""
    if any(path.suffix not in (".json", ".safetensors") for path, _ in sources(folder)):
        return None
    return sampled(sorted(p for p in folder.rglob("*") if p.suffix in (".safetensors", ".json") and p.is_file()))


def sources(folder: Path) -> list[tuple[Path, bool]]:
    """(file, whether it holds weights) of all files that are read to make vectors, modules in sub-folders included."""
    places = [folder]
    with suppress(OSError, ValueError, TypeError, AttributeError):
        listed = json.loads((folder / "modules.json").read_text("utf-8"))
        places += [folder / str(module.get("path") or ".") for module in listed]
    found: dict[Path, bool] = {}
    for place in dict.fromkeys(places):
        names = [*CONFIGS, "tokenizer.json"]
        if not (place / "tokenizer.json").is_file():
            names += [*OLDER, *sorted(p.name for p in place.glob("*.model"))]
        found |= {place / name: False for name in names if (place / name).is_file()}
        found |= weights_of(place)
    return list(found.items())


def weights_of(place: Path) -> dict[Path, bool]:
    """File -> whether it holds weights (an index does not), of those that loading reads."""
    for single, index, _ in FORMATS:
        if (place / single).is_file():
            return {place / single: True}
        if (place / index).is_file():
            shards: set[str] = set()
            with suppress(OSError, ValueError, KeyError, AttributeError):
                shards = set(map(str, json.loads((place / index).read_text("utf-8"))["weight_map"].values()))
            return {place / index: False} | {p: True for s in sorted(shards) if (p := place / s).is_file()}
    return {}


def _add_weights(digest: hashlib.blake2b, path: Path) -> None:
    """Samples of every tensor; of a PyTorch file its own checksums, one a tensor; spread over the file where neither
    can be read."""
    size = path.stat().st_size
    if path.suffix == ".safetensors":
        with suppress(QwenchError), path.open("rb") as file:
            for info in SafetensorsReader([path]).infos.values():
                digest.update(f"{info.name}:{info.dtype}:{info.shape}:".encode())
                _add_spread(digest, file, info.offset, info.nbytes, BLOCKS)
            return
    with suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        digest.update("".join(f"{i.filename}:{i.file_size}:{i.CRC}:" for i in archive.infolist()).encode())
    with path.open("rb") as file:
        _add_spread(digest, file, 0, size, 64)


def _add_spread(digest: hashlib.blake2b, file: BinaryIO, start: int, size: int, blocks: int) -> None:
    if size <= blocks * BLOCK:
        file.seek(start)
        digest.update(file.read(size))
        return
    for i in range(blocks):
        file.seek(start + (size - BLOCK) * i // (blocks - 1))
        digest.update(file.read(BLOCK))


def sampled(paths: list[Path], samples: int = 64) -> str:
    """Hash over names, sizes and evenly spread blocks of some files."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}:".encode())
        with path.open("rb") as file:
            _add_spread(digest, file, 0, size, samples)
    return digest.hexdigest()
