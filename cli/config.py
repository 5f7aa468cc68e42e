"""`qwench config`: every setting, its value and where it comes from."""

import inspect
import os
from collections.abc import Callable
from typing import Any

from ..ops import settings
from . import out
from .options import Json

EPILOG = """\b
examples:
  qwench config
  qwench config --json
  QWENCH_HOME=/tmp/q qwench config
"""

#: options of one call, which a config file has no use for
NEVER = ("json", "quiet", "verbose", "dry_run", "query", "paths", "index", "out", "nul", "rebuild", "prune", "ctx")


def parameters(command: Callable[..., Any]) -> dict[str, Any]:
    """Name -> default of the settings of a command that a config file may give."""
    found = inspect.signature(command).parameters
    return {n: p.default for n, p in found.items() if n not in NEVER and p.default is not inspect.Parameter.empty}


def config(json: Json = False) -> None:
    """Show every setting, its value and origin; folders too.

    Flags win over QWENCH_* variables, those over the config file, and that over the defaults.
    """
    from .main import COMMANDS

    streams = out.start(json)
    found = settings.read_config()
    rows = []
    for name, command, *_ in COMMANDS:
        for key, default in parameters(command).items():
            value, origin = _origin(name, key, default, found)
            rows.append({"setting": f"{name}.{key}", "value": value, "origin": origin})
    folders = {kind: str(settings.folder(kind)) for kind in ("config", "cache", "state")}
    if json:
        streams.document({"schema": 1, "file": str(settings.config_file()), "folders": folders, "settings": rows})
        return
    width = max(len(r["setting"]) for r in rows)
    for r in rows:
        streams.data(f"{r['setting']:{width}}  {r['value']!s:32}  {r['origin']}")
    for kind, path in folders.items():
        streams.data(f"{kind + ' folder':{width}}  {path}")


def variables(command: str, key: str) -> tuple[str, ...]:
    """The environment variables of a setting, the stronger one first."""
    # A shell has no names with hyphens.
    own, shared = f"QWENCH_{command.upper().replace('-', '_')}_{key.upper()}", f"QWENCH_{key.upper()}"
    # `search` takes its model from the index; a shared default would only contradict it.
    return (own,) if (command, key) == ("search", "model") else (own, shared)


def from_environment(command: str, keys: set[str]) -> dict[str, str]:
    """Settings of a command that QWENCH_* variables give, as text."""
    found = {}
    for key in keys - {"include", "exclude"}:
        for name in variables(command, key):
            if os.environ.get(name):
                found.setdefault(key, os.environ[name])
    return found


def _origin(command: str, key: str, default: Any, found: dict[str, Any]) -> tuple[Any, str]:
    for name in variables(command, key):
        if os.environ.get(name):
            return os.environ[name], name
    if key in found.get(command, {}):
        return found[command][key], str(settings.config_file())
    if key in found and (command, key) != ("search", "model"):
        return found[key], str(settings.config_file())
    return default, "default"
