"""A checkpoint becomes a network that rewards are read from: a model with its head, or a head over another's base."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..base.errors import QwenchError
from ..base.runtime import Runtime
from ..checkpoint.gguf_reader import GgufReader
from ..checkpoint.reader import Source
from ..checkpoint.sidecars import as_json, json_of, read_json
from ..kernels.choose import for_dtype, pick_kernels
from .device import Choice, pick_device
from .hub import Checkpoint, resolve
from .load import Head, Loaded, load_encoder, model_folder
from .load_decoder import load_decoder, texts_of, unknown
from .nets.decoder import DecoderEncoder
from .nets.parallel import base_config
from .reward_heads import LINEAR, MLP, RewardHead, mlp_head
from .template import ChatTemplate
from .texts import texts_at
from .tokenizer import TextTokenizer

#: of a folder that holds a head alone: what it is of, and its tensors
NOTE, HEAD = "reward.json", "head.safetensors"


@dataclass(frozen=True, slots=True)
class HeadNote:
    """What a folder with a head alone says of itself.

    Attributes:
        base, base_revision: the model that its hidden states come from. kind: mlp or linear.
        pool, system: how texts are read. template: hash of the chat template it was trained with.
    """

    base: str
    base_revision: str
    kind: str
    hidden_size: int
    pool: str = "last"
    system: str | None = None
    template: str = ""

    def bytes(self) -> bytes:
        """The file."""
        return as_json({"schema": 1} | {name: getattr(self, name) for name in self.__slots__})


@dataclass(frozen=True, slots=True)
class Opened:
    """What a name stands for, before its weights are read.

    Attributes:
        checkpoint: of the network. config: its config.json, or what stands for it. tensors: name -> bytes.
        note, head: of a head over another's base.
        pad: the pad token's id.
    """

    checkpoint: Checkpoint
    config: dict[str, Any]
    tensors: dict[str, int]
    tokenizer: TextTokenizer
    template: ChatTemplate
    pad: int | None
    note: HeadNote | None = None
    head: RewardHead | None = None

    @property
    def limit(self) -> int:
        """Longest text by the config."""
        return int(self.config.get("max_position_embeddings") or self.config.get("n_positions") or 512)


def open_reward(name: str, runtime: Runtime) -> Opened:
    """Find a model for rewards, and read all of it but the weights.

    Of a server's model the weights are not here, and not asked for.

    Raises:
        QwenchError: nothing there; a head whose base is another model now; see `Source`.
    """
    if runtime.server:
        texts = texts_at(name)
        elsewhere = Checkpoint(name, Path(name), "served", "")
        return Opened(elsewhere, texts.config, {}, texts.tokenizer, texts.template, None)
    folder = Path(name).expanduser()
    if (folder / NOTE).is_file():
        note, head = read_head(folder)
        opened = open_base(note.base, replace(runtime, revision=None))
        found = opened.checkpoint.revision
        if found != note.base_revision:
            raise QwenchError(
                f"the head is of another state of its base `{note.base}`: {note.base_revision[:12]}, and there is "
                f"{found[:12]}",
                "put the base back as it was, or train a head anew",
            )
        if template_hash(opened.template) != note.template:
            raise QwenchError(f"the chat template of `{note.base}` is not the one its head was trained with")
        return replace(opened, note=note, head=head)
    opened = open_base(name, runtime)
    if opened.checkpoint.path.is_file():
        raise QwenchError(
            f"GGUF files have no reward heads: `{name}`",
            f"make one over it: qwench reward train PAIRS --model {name} --out DIR",
        )
    return opened


def open_base(name: str, runtime: Runtime) -> Opened:
    """Any model, for its hidden states."""
    checkpoint = resolve(name, runtime.revision, runtime.offline)
    if checkpoint.path.is_dir():
        model_folder(checkpoint)
    source = Source(checkpoint.path, checkpoint.reader)
    tokenizer, files = texts_of(source)
    config = base_config(source.config()) if checkpoint.path.is_file() else source.config()
    tensors = {n: info.nbytes for n, info in source.infos.items()}
    pad = config.get("pad_token_id")
    if not isinstance(pad, int):
        said = json_of(files.get("tokenizer_config.json", b"{}"), "tokenizer_config.json").get("pad_token")
        said = said["content"] if isinstance(said, dict) else said
        pad = tokenizer.token_id(said) if said else None
    reader = source.reader if isinstance(source.reader, GgufReader) else checkpoint.reader
    return Opened(replace(checkpoint, reader=reader), config, tensors, tokenizer, ChatTemplate.read(files), pad)


def load_network(opened: Opened, runtime: Runtime, head: Head | None = None) -> Loaded:
    """The network of what was opened, with the head that `head` takes of its weights, or the one over it.

    Raises:
        QwenchError: see `load_encoder` and `load_decoder`; `head` names the tensor that is missing.
    """
    checkpoint = opened.checkpoint
    if checkpoint.path.is_dir():
        loaded = load_encoder(checkpoint, runtime, head=head)
    else:
        if reason := unknown(opened.config):
            raise QwenchError(f"the base cannot be run here ({reason}): `{checkpoint.name}`")
        where = pick_device(runtime.device)
        fast = pick_kernels(runtime.kernels, where.value)
        decoder, numbers = load_decoder(
            checkpoint, opened.config, where.value, runtime.dtype, runtime.quantize, 1, 0, fast.value
        )
        engine = Choice("packed", "a decoder of a GGUF file, without padding")
        loaded = Loaded(decoder, opened.config, where, numbers, engine, for_dtype(fast, numbers.value))
    if opened.note is not None and not isinstance(loaded.encoder, DecoderEncoder):
        raise QwenchError(f"the base runs on transformers, and a head needs our own decoder: `{checkpoint.name}`")
    if opened.head is None:
        return loaded
    moved = tuple(
        (w.to(loaded.device.value), b if b is None else b.to(loaded.device.value)) for w, b in opened.head.layers
    )
    return replace(loaded, head=RewardHead(moved))


def read_source_head(opened: Opened, name: str) -> RewardHead:
    """The head of a whole checkpoint, its network left alone.

    Raises:
        QwenchError: it has none.
    """
    reader = Source(opened.checkpoint.path, opened.checkpoint.reader).reader
    names = MLP if MLP[0] in reader.infos else (LINEAR,)
    if lost := [n for n in names if n not in reader.infos]:
        raise QwenchError(f"the model has no reward head to begin with, it lacks `{lost[0]}`: `{name}`")
    tensors = {n: reader.load(n).float().clone() for n in names}
    return mlp_head(tensors) if names == MLP else RewardHead(((tensors[LINEAR], None),))


def template_hash(template: ChatTemplate) -> str:
    """Of its source; the same for models without one."""
    return hashlib.sha256((template.source or "").encode()).hexdigest()


def read_head(folder: Path) -> tuple[HeadNote, RewardHead]:
    """A folder that holds a head alone.

    Raises:
        QwenchError: damaged, or a tensor is missing or of another shape.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    said = read_json(folder / NOTE)
    try:
        note = HeadNote(**{k: v for k, v in said.items() if k != "schema"})
        names = {"mlp": MLP, "linear": (LINEAR,)}[note.kind]
    except (TypeError, AttributeError, KeyError) as error:
        raise QwenchError(f"the note of a head cannot be read: `{folder / NOTE}`", "train it anew") from error
    try:
        tensors = load_file(folder / HEAD)
    except (OSError, SafetensorError) as error:
        raise QwenchError(
            f"the tensors of a head cannot be read: `{folder / HEAD}`", "copy or train it anew"
        ) from error
    for name in names:
        if name not in tensors:
            raise QwenchError(f"the head lacks a tensor: `{name}` in `{folder}`", "it would be random; train it anew")
    if set(tensors) != set(names) or tensors[names[0]].shape[-1] != note.hidden_size:
        raise QwenchError(f"the tensors of a head do not fit its note: `{folder}`", "train it anew")
    head = mlp_head(tensors) if note.kind == "mlp" else RewardHead(((tensors[LINEAR].float(), None),))
    return note, head
