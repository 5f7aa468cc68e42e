"""Settings with an account of who read what, so that none is lost without a word."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..base.errors import QwenchError

#: a value of a setting that changes what a model computes -> it changes nothing
Neutral = Callable[[Any], bool]


class Account:
    """A mapping that notes which of its keys were read.

    Args:
        said: the settings.
        where: what they are of, in words: `config.json`.
    """

    def __init__(self, said: Mapping[str, Any], where: str) -> None:
        self.said, self.where = said, where
        self.read: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        """As of a dict; a null is as good as nothing."""
        self.read.add(key)
        value = self.said.get(key)
        return default if value is None else value

    def need(self, key: str) -> Any:
        """A setting without which nothing goes.

        Raises:
            QwenchError: it is not there.
        """
        if (value := self.get(key)) is None:
            raise QwenchError(f"{self.where} does not say `{key}`", "add it, or get the model in another format")
        return value

    def close(self, changes: Mapping[str, Neutral], silent: Callable[[str], bool], goal: str) -> list[str]:
        """Names of settings that nobody read and that are left behind.

        Args:
            changes: settings that change what the model computes -> whether a value of theirs changes nothing.
            silent: settings that say nothing of the model, such as who made it.
            goal: where they cannot go, in words.

        Raises:
            QwenchError: one that changes the model was not read.
        """
        left = []
        for key in self.said:
            if key in self.read or silent(key) or (value := self.said.get(key)) is None:
                continue
            if key not in changes:
                left.append(key)
            elif not changes[key](value):
                raise QwenchError(
                    f"{self.where} sets `{key}` to {_short(value)}, which cannot be said in {goal}",
                    "keep the model in the format it is in",
                )
        return left


def one_of(*values: Any) -> Neutral:
    """Only these change nothing."""
    return lambda value: value in values


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else text[:77] + "..."
