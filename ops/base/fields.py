"""Values out of files that other programs wrote, checked where they are read: what does not fit is one sentence.

`read_json` (checkpoint/sidecars), the GGUF header and mergekit's recipes give `Fields`: a dict whose known keys are
checked against a table of kinds at the moment they are asked for, so that a field nobody needs cannot stop a command.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import QwenchError

AGAIN = "download or copy the model again"


@dataclass(frozen=True, slots=True)
class Kind:
    """What a value must be: in words ("must be ..."), as a test, and for objects (or a list of them) its own fields."""

    words: str
    fits: Callable[[Any], bool]
    inner: Mapping[str, Kind] | None = None


def whole(least: int = 0, most: int | None = (1 << 31) - 1) -> Kind:
    """A whole number from `least` to `most`; true and false are none."""
    words = f"a whole number {'above 0' if least == 1 else f'of at least {least}'}"
    if most is not None and most != (1 << 31) - 1:
        words += f" and at most {most}"
    return Kind(
        words,
        lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= least and (most is None or v <= most),
    )


def number(least: float | None = None, above: float | None = None) -> Kind:
    """A finite number of at least `least`, or above `above`."""
    words = "a number"
    if above is not None or least is not None:
        words += f" above {above:g}" if above is not None else f" of at least {least:g}"

    def fits(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float) or not -1e300 < value < 1e300:
            return False
        return (above is None or value > above) and (least is None or value >= least)

    return Kind(words, fits)


def one_of(*values: Any) -> Kind:
    """One of some values."""
    return Kind("one of " + ", ".join(map(shown, values)), lambda v: isinstance(v, type(values[0])) and v in values)


def listed(kind: Kind) -> Kind:
    """A list of values of one kind."""
    inner = kind.inner
    return Kind(f"a list, each {kind.words}", lambda v: isinstance(v, list | tuple) and all(map(kind.fits, v)), inner)


def mapped(kind: Kind) -> Kind:
    """An object whose values are of one kind."""
    return Kind(
        f"an object, each value {kind.words}", lambda v: isinstance(v, dict) and all(map(kind.fits, v.values()))
    )


def table(inner: Mapping[str, Kind] | None = None) -> Kind:
    """An object, with known fields."""
    return Kind("an object", lambda v: isinstance(v, dict), inner or {})


def either(*kinds: Kind) -> Kind:
    """Of one of some kinds."""
    inner = next((k.inner for k in kinds if k.inner is not None), None)
    return Kind(" or ".join(k.words for k in kinds), lambda v: any(k.fits(v) for k in kinds), inner)


TEXT = Kind("text", lambda v: isinstance(v, str))
FLAG = Kind("true or false", lambda v: isinstance(v, bool))


class Fields(dict[str, Any]):
    """An object of a file. `[key]` and `.get` check known keys; null is as good as absent there.

    Args:
        value: the object; objects with known fields inside it become Fields too.
        file: what it was read from, for the sentence.
        kinds: key -> what it must be; `*.key` stands for any first word, as in `llama.block_count`.
        at: where in the file it is, such as `rope_scaling.`.
        hint: the next step.
    """

    def __init__(
        self,
        value: Mapping[str, Any] | Iterable[Any] = (),
        file: str = "",
        kinds: Mapping[str, Kind] | None = None,
        at: str = "",
        hint: str | None = AGAIN,
    ) -> None:
        super().__init__(value)
        self.file, self.kinds, self.at, self.hint = file, kinds or {}, at, hint
        for key, found in self.items() if self.kinds else ():
            if isinstance(found, dict | list) and (kind := self.kind(key)) and kind.inner is not None:
                self[key] = fielded(found, file, kind.inner, f"{at}{key}", hint)

    def kind(self, key: str) -> Kind | None:
        """What a key's value must be, None for a key that is not known."""
        if not isinstance(key, str):
            return None
        return self.kinds.get(key) or self.kinds.get("*." + key.partition(".")[2])

    def __getitem__(self, key: str) -> Any:
        """The value.

        Raises:
            QwenchError: it is missing, null, or does not fit.
        """
        found = super().get(key)
        if found is None and not (key in self and self.kind(key) is None):
            raise QwenchError(f"`{self.file}` does not say `{self.at}{key}`", self.hint)
        return self._checked(key, found)

    def get(self, key: str, default: Any = None) -> Any:
        """The value, `default` where it is missing, and for a known key where it is null.

        Raises:
            QwenchError: it does not fit.
        """
        found = super().get(key, default)
        if found is None and self.kind(key) is not None:
            return default
        return found if found is default else self._checked(key, found)

    def _checked(self, key: str, found: Any) -> Any:
        kind = self.kind(key)
        if kind is not None and not kind.fits(found):
            raise unfit(self.file, f"{self.at}{key}", kind, found, self.hint)
        return found

    def __or__(self, other: Any) -> Fields:
        return Fields({**self, **other}, self.file, self.kinds, self.at, self.hint)

    def copy(self) -> Fields:
        """A shallow copy that checks as this one does."""
        return Fields(self, self.file, self.kinds, self.at, self.hint)


def fielded(value: Any, file: str, inner: Mapping[str, Kind], at: str = "", hint: str | None = AGAIN) -> Any:
    """An object as Fields; the objects of a list likewise; anything else as it is."""
    if isinstance(value, dict):
        return Fields(value, file, inner, f"{at}." if at else "", hint)
    if isinstance(value, list):
        return [Fields(v, file, inner, f"{at}[{i}].", hint) if isinstance(v, dict) else v for i, v in enumerate(value)]
    return value


def unfit(file: str, key: str, kind: Kind, value: Any, hint: str | None = AGAIN) -> QwenchError:
    """The error for a value of another kind."""
    return QwenchError(f"`{file}`: `{key}` must be {kind.words}, and is `{shown(value)}`", hint)


def shown(value: Any) -> str:
    """A value in a few plain characters."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list | tuple) and len(value) > 8:
        return f"a list of {len(value)}"
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 200:
        return "a number of very many digits"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else text[:57] + "..."
