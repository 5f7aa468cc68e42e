"""Folders and the config file: flags > QWENCH_* variables > config.toml > defaults."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .errors import QwenchError
from .parse import parse_toml


def folder(kind: str) -> Path:
    """Where qwench keeps its own files: kind is config, cache or state.

    QWENCH_HOME holds all of them; otherwise the XDG variables and their defaults apply.
    """
    if home := os.environ.get("QWENCH_HOME"):
        return Path(home).expanduser() / kind
    default = {"config": "~/.config", "cache": "~/.cache", "state": "~/.local/state"}[kind]
    return Path(os.environ.get(f"XDG_{kind.upper()}_HOME") or default).expanduser() / "qwench"


def config_file() -> Path:
    """The config file, whether it is there or not."""
    return folder("config") / "config.toml"


def read_config() -> dict[str, Any]:
    """The config file's content, empty where there is none.

    Raises:
        QwenchError: it cannot be read or is not TOML.
    """
    path = config_file()
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        message = f"the config file cannot be read ({error.strerror}): `{path}`"
        raise QwenchError(message, "correct it, or move it away") from error
    return parse_toml(data, str(path), "correct it, or move it away")
