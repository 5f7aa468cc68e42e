"""How a recipe names a model: `path@revision+adapter@revision`, as mergekit spells it, whatever is in a path."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

from ..base.errors import QwenchError
from ..base.fields import Kind

NAME = Kind("a name", lambda v: isinstance(v, str) and v.strip() not in ("", "+") and "\0" not in v)
_WAYS = "write model: NAME, NAME@REVISION or NAME+ADAPTER"


@dataclass(frozen=True, slots=True)
class Reference:
    """A model, with an adapter where one is named.

    Attributes:
        model: folder, file, hub id or packaged name.
        revision: of a hub id.
        lora: adapter, with its own `@revision`.
    """

    model: str
    revision: str | None = None
    lora: str | None = None


def parse(text: str) -> Reference:
    """A reference from its text; what is there on this machine is a path, pluses and at signs included.

    Raises:
        QwenchError: a revision of a local folder, or an empty name.
    """
    name, lora = text, None
    if not _there(text) and not _there(text.rpartition("@")[0]):
        cuts = [i for i, letter in enumerate(text) if letter == "+"]
        cut = next((i for i in reversed(cuts) if _there(text[:i])), cuts[0] if cuts else None)
        if cut is not None:
            name, lora = text[:cut], text[cut + 1 :]
    model, revision = name, None
    if not _there(name) and "@" in name:
        model, revision = name.rsplit("@", 1)
        if _there(model):
            raise QwenchError(
                f"a revision is for a model of the hub, and this is a local one: `{text}`", f"name it alone: {model}"
            )
    if not model or revision == "" or lora == "":
        raise QwenchError(f"not a model: `{text}`", "write ORG/NAME, ORG/NAME@REVISION or MODEL+ADAPTER", code=2)
    return Reference(model, revision, lora)


def spell(value: Any) -> str | None:
    """The text of a model in a recipe: a string, or mergekit's mapping of model, revision and lora.

    Raises:
        QwenchError: neither, or with keys that are not understood.
    """
    if value is None or NAME.fits(value):
        return value
    if not isinstance(value, dict) or "model" not in value:
        raise _odd(value)
    if unknown := [k for k in value if k not in ("model", "lora", "override_architecture")]:
        raise QwenchError(f"the recipe names a model with a key that is not supported: `{unknown[0]}`")
    if value.get("override_architecture"):
        raise QwenchError(
            "the recipe sets `override_architecture`, which is not supported", "set it in its config.json"
        )
    text, lora = _path(value["model"]), value.get("lora")
    return text if lora is None else f"{text}+{_path(lora)}"


def _path(value: Any) -> str:
    if NAME.fits(value):
        return value
    if not isinstance(value, dict) or not NAME.fits(value.get("path")) or value.keys() - {"path", "revision"}:
        raise _odd(value)
    revision = value.get("revision")
    if revision is not None and not NAME.fits(revision):
        raise _odd(value)
    return value["path"] if revision is None else f"{value['path']}@{revision}"


def _odd(value: Any) -> QwenchError:
    text = json.dumps(value, default=str)[:100]
    return QwenchError(f"the recipe names a model in a way that is not understood: `{text}`", _WAYS)


def _there(text: str) -> bool:
    return bool(text) and os.path.exists(os.path.expanduser(text))
