"""`qwench config`: every setting, its value and where it comes from."""

import inspect
import json as json_
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import typer

from ..ops.base import settings
from ..ops.base.errors import QwenchError
from . import out
from .commands import Command
from .options import Json

EPILOG = """\b
examples:
  qwench config
  qwench config --json
  QWENCH_HOME=/tmp/q qwench config
"""

#: options of one call, which a config file has no use for
NEVER = ("json", "quiet", "verbose", "dry_run", "query", "paths", "index", "out", "nul", "rebuild", "prune", "ctx")


#: settings that a command takes from nobody else: a shared `model` would contradict the index that `search` reads,
#: and turn `bench-kernels` into another command
OWN = {(("search",), "model"), (("bench-kernels",), "model")}


def parameters(command: Callable[..., Any]) -> dict[str, Any]:
    """Name -> default of the settings of a command that a config file may give."""
    found = inspect.signature(command).parameters
    return {n: p.default for n, p in found.items() if n not in NEVER and p.default is not inspect.Parameter.empty}


def repeats(command: Callable[..., Any], key: str) -> bool:
    """Whether a setting of a command can be given several times."""
    return _is_list(typing.get_type_hints(command)[key])


def _is_list(kind: Any) -> bool:
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return any(map(_is_list, typing.get_args(kind)))
    return kind is list or typing.get_origin(kind) is list


def config(ctx: typer.Context, json: Json = False) -> None:
    """Show every setting, its value and origin; folders too.

    Flags win over QWENCH_* variables, those over the config file, and that over the defaults.
    """
    streams = out.start(json)
    found = settings.read_config()
    rows = []
    for command in ctx.obj:
        for key, default in parameters(command.run).items():
            value, origin = setting(command.path, key, found) or (default, "default")
            rows.append({"setting": ".".join((*command.path, key)), "value": value, "origin": origin})
    folders = {kind: str(settings.folder(kind)) for kind in ("config", "cache", "state")}
    if json:
        streams.document({"schema": 1, "file": str(settings.config_file()), "folders": folders, "settings": rows})
        return
    width = max(len(r["setting"]) for r in rows)
    for r in rows:
        streams.data(f"{r['setting']:{width}}  {r['value']!s:32}  {r['origin']}")
    for kind, path in folders.items():
        streams.data(f"{kind + ' folder':{width}}  {path}")


def variables(path: tuple[str, ...], key: str) -> list[str]:
    """The environment variables of a setting, the strongest first: the command's, its group's, everybody's."""
    # A shell has no names with hyphens.
    spelt = ["_".join(["QWENCH", *path[:n], key]).upper().replace("-", "_") for n in range(len(path), -1, -1)]
    return spelt[:1] if (path, key) in OWN else spelt


def setting(path: tuple[str, ...], key: str, found: Mapping[str, Any]) -> tuple[Any, str] | None:
    """(value, where from) that the environment or the config file `found` gives a command, None when neither does."""
    for name in variables(path, key):
        if os.environ.get(name):
            return os.environ[name], name
    tables = [found]
    for word in path:
        below = tables[-1].get(word)
        tables.append(below if isinstance(below, dict) else {})
    for table in tables[:0:-1] if (path, key) in OWN else tables[::-1]:
        if key in table and not isinstance(table[key], dict):
            return table[key], str(settings.config_file())
    return None


def defaults(commands: Iterable[Command], found: Mapping[str, Any]) -> dict[str, Any]:
    """What click takes for flags that are not given, as its `default_map`: by word of the path, then by parameter."""
    tree: dict[str, Any] = {}
    for command in commands:
        node = tree
        for word in command.path:
            node = node.setdefault(word, {})
        for key in parameters(command.run):
            if given := setting(command.path, key, found):
                node[key] = many(*given) if repeats(command.run, key) else given[0]
    return tree


def many(value: Any, origin: str) -> list[str]:
    """The values of a flag that can be repeated: of a variable one, or a JSON list of them.

    Raises:
        QwenchError: a list that cannot be read.
    """
    if not isinstance(value, str):
        return [str(v) for v in value] if isinstance(value, list) else [str(value)]
    if not value.lstrip().startswith("["):
        return [value]
    try:
        return [str(v) for v in json_.loads(value)]
    except ValueError as error:
        raise QwenchError(f"not a list ({error}): `{origin}`", 'write one value, or ["a", "b"]') from error


def unknown(commands: Iterable[Command], found: Mapping[str, Any]) -> list[str]:
    """Keys and sections of the config file that no command knows."""
    paths = {c.path: set(parameters(c.run)) for c in commands}
    said = []

    def look(table: Mapping[str, Any], path: tuple[str, ...]) -> None:
        below = {p for p in paths if p[: len(path)] == path}
        known = set().union(*(paths[p] for p in below))
        for key, value in sorted(table.items()):
            place = ".".join((*path, key))
            if isinstance(value, dict):
                if any(p[: len(path) + 1] == (*path, key) for p in below):
                    look(value, (*path, key))
                else:
                    said.append(f"section `{place}`")
            elif key not in known:
                said.append(f"key `{place}`")

    look(found, ())
    return said
