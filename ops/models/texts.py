"""What turns messages into text and text into tokens, without the weights: a model that runs elsewhere."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..base.errors import QwenchError
from ..checkpoint.reader import Source
from ..checkpoint.sidecars import read_json
from .hub import HUB_ID, PACKAGED, resolve
from .hub_errors import hub_error
from .load_decoder import texts_of
from .template import ChatTemplate, chat_files
from .tokenizer import TextTokenizer

#: of a repository, all that is needed here
FILES = [
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "*.model",
    "chat_template.jinja",
    "generation_config.json",
    "config.json",
]


@dataclass(frozen=True, slots=True)
class Texts:
    """Tokenizer and template of a model.

    Attributes:
        context: in tokens, by the model's config; 0 where there is none.
        config: config.json, or what stands for it; empty where there is none.
    """

    name: str
    tokenizer: TextTokenizer
    template: ChatTemplate
    context: int
    config: dict[str, Any] = field(default_factory=dict)


def texts_at(name: str) -> Texts:
    """By name: a folder with or without weights, a .gguf file, a packaged model, or a hub id.

    Raises:
        QwenchError: no such thing, or one without a tokenizer.
    """
    path = Path(name).expanduser()
    hub = not path.exists() and name not in PACKAGED and HUB_ID.fullmatch(name)
    return _read(name, _from_hub(name, here=False) if hub else path if path.is_dir() else resolve(name).path)


def texts_here(name: str) -> Texts | None:
    """The same where it is on this machine already, else None; the network is not asked."""
    path = Path(name).expanduser()
    with suppress(QwenchError, OSError, ValueError):
        if path.is_dir():
            return _read(name, path)
        if path.is_file() or name in PACKAGED:
            return _read(name, resolve(name).path)
        if HUB_ID.fullmatch(name):
            return _read(name, _from_hub(name, here=True))
    return None


def _read(name: str, path: Path) -> Texts:
    if path.is_file():
        source = Source(path)
        tokenizer, files = texts_of(source)
        config = source.config()
    else:
        tokenizer, files = TextTokenizer.load(path), chat_files(path)
        config = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    config = config if isinstance(config, dict) else {}
    found = config.get("max_position_embeddings")
    return Texts(name, tokenizer, ChatTemplate.read(files), found if isinstance(found, int) else 0, config)


def _from_hub(name: str, here: bool) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=FILES, local_files_only=here))
    except Exception as error:  # the hub library, its HTTP client and the system below them
        raise hub_error(name, None, error) from error
