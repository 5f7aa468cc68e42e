"""Bytes of files that other programs wrote become plain values: JSON, TOML, YAML, each failing in one sentence."""

from __future__ import annotations

import json
import re
from itertools import islice
from typing import Any

from .errors import QwenchError
from .fields import AGAIN, shown

#: objects and lists inside one another; no file of a model comes near
DEEPEST = 100
#: objects and lists in a file; the merges of the largest tokenizers are some 500,000
MOST_JSON = 4_000_000
#: and in a recipe with its aliases followed
MOST_YAML = 100_000
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")


def parse_json(data: bytes | str, file: str, hint: str | None = AGAIN) -> Any:
    """JSON as plain values.

    Args:
        file: what it is, for the sentence.

    Raises:
        QwenchError: see `json_value`.
    """
    try:
        return json_value(data)
    except ValueError as error:
        raise QwenchError(f"cannot be read as JSON ({error}): `{file}`", hint) from error


def json_value(data: bytes | str) -> Any:
    """JSON as plain values.

    Raises:
        ValueError: no JSON in UTF-8, nested too deep, a number of thousands of digits, half of a surrogate pair, or a
            key that an object has twice with two values.
    """
    try:
        text = data if isinstance(data, str) else data.decode("utf-8")
        found = json.loads(text, object_pairs_hook=single)
        if _SURROGATE.search(text):
            json.dumps(found, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise ValueError("nested too deep") from None
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from None
    except ValueError as error:
        raise ValueError(str(error).split("; use sys")[0]) from None
    if too_deep(found):
        raise ValueError("nested too deep")
    return found


def parse_toml(data: bytes, file: str, hint: str | None = None) -> dict[str, Any]:
    """TOML as plain values.

    Raises:
        QwenchError: it is none, or nested too deep.
    """
    import tomllib

    try:
        return tomllib.loads(decoded(data, file, hint))
    except RecursionError:
        raise QwenchError(f"cannot be read as TOML (nested too deep): `{file}`", hint) from None
    except ValueError as error:
        raise QwenchError(f"cannot be read as TOML ({str(error).split('; use sys')[0]}): `{file}`", hint) from error


def parse_yaml(data: bytes, file: str, hint: str | None = None) -> Any:
    """YAML as plain values, by PyYAML's safe loader.

    Raises:
        QwenchError: it is none, has a key twice, is nested too deep, or its aliases stand for too much.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """Keys that are there twice are an error, as YAML says."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            names = [k.value for k, _ in getattr(node, "value", ()) if isinstance(k, yaml.ScalarNode)]
            if twice := next((n for n in names if names.count(n) > 1), None):
                raise yaml.constructor.ConstructorError(None, None, f"the key {shown(twice)} is there twice")
            return super().construct_mapping(node, deep)

    try:
        text, depth, deep = decoded(data, file, hint), 0, False
        # The parser gives one event at a time; the composer behind it is recursive, and slow before it fails.
        for event in yaml.parse(text, Loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if deep := depth > DEEPEST:
                break
        found = None if deep else yaml.load(text, Loader)
        deep = deep or too_deep(found, MOST_YAML)
    except QwenchError:
        raise
    except RecursionError:
        deep = True
    except Exception as error:  # PyYAML's constructors raise whatever they meet
        raise QwenchError(f"cannot be read as YAML ({' '.join(str(error).split())[:200]}): `{file}`", hint) from error
    if deep:
        raise QwenchError(f"cannot be read as YAML (nested too deep, or too much by its aliases): `{file}`", hint)
    return found


def decoded(data: bytes, file: str, hint: str | None = AGAIN) -> str:
    """UTF-8.

    Raises:
        QwenchError: it is not.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise QwenchError(f"cannot be read as text (byte {error.start} is not UTF-8): `{file}`", hint) from None


def single(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, for `object_pairs_hook`; ValueError where a key is there twice with two values."""
    found = dict(pairs)
    if len(found) < len(pairs):
        for key, value in pairs:
            if found[key] != value:
                raise ValueError(f"the key {shown(key)} is there twice, with two values")
    return found


def too_deep(value: Any, most: int = MOST_JSON) -> bool:
    """Objects and lists are nested more than DEEPEST deep, are more than `most`, or one holds itself."""
    level, left = [value] if isinstance(value, dict | list) else [], most
    for _ in range(DEEPEST + 1):
        if not level:
            return False
        inner = (v for outer in level for v in (outer.values() if isinstance(outer, dict) else outer))
        # A few lines of YAML whose aliases name one another stand for billions of lists.
        level = list(islice((v for v in inner if isinstance(v, dict | list)), left + 1))
        left -= len(level)
        if left < 0:
            return True
    return True
