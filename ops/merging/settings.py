"""Parameter values that change over layers and parts, as flags and as mergekit's YAML spell them."""

from __future__ import annotations

import math
import re
from typing import Any

from ..base.errors import QwenchError

#: short names of parts -> what occurs in the names of their tensors
GROUPS = {"attn": "self_attn", "mlp": "mlp", "norm": "norm", "embed": "embed_tokens", "head": "lm_head"}
Setting = Any
_PAIR = re.compile(r"([^=,]+)=([^=]+?)(?=,[^=,]+=|$)")


def scalar(text: str) -> float | int | bool | str:
    """A number, true or false, else the text."""
    low = text.strip().lower()
    if low in ("true", "false"):
        return low == "true"
    for kind in (int, float):
        try:
            return kind(low)
        except ValueError:
            continue
    return text.strip()


def parse_setting(text: str) -> Setting:
    """`0.5`, a gradient over the layers `0,0.5,1`, or groups `attn=0.3,mlp=0.7` with an optional `*=0.5` for the rest.

    A group is a name of GROUPS or any part of a tensor's name; its value may itself be a gradient.

    Raises:
        QwenchError: none of these (code 2).
    """
    if "=" not in text:
        values = [scalar(v) for v in text.split(",")]
        if any(v == "" for v in values):
            raise QwenchError(f"not a value: `{text}`", "give a number, a gradient 0,0.5,1 or attn=0.3,mlp=0.7", code=2)
        return values[0] if len(values) == 1 else values
    found = [(m[1].strip(), m[2]) for m in _PAIR.finditer(text)]
    if not found:
        raise QwenchError(f"not a value: `{text}`", "give a number, a gradient 0,0.5,1 or attn=0.3,mlp=0.7", code=2)
    rest = [{"value": parse_setting(v)} for k, v in found if k in ("*", "rest")]
    parts = [{"filter": GROUPS.get(k, k), "value": parse_setting(v)} for k, v in found if k not in ("*", "rest")]
    return [*parts, *rest]


def is_setting(value: Any) -> bool:
    """A value of mergekit's YAML that `evaluate` can read: nothing else is in it, and no infinity."""
    if isinstance(value, dict):
        filtered = value.get("filter") is None or isinstance(value["filter"], str)
        return set(value) <= {"filter", "value"} and filtered and is_setting(value.get("value"))
    if isinstance(value, list):
        conditions = [e for e in value if isinstance(e, dict)]
        if conditions and len(conditions) < len(value):
            return False
        return bool(value) and all(is_setting(e) and not isinstance(e, list) for e in value)
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, str | bool) or (isinstance(value, int) and abs(value) < 1 << 63)


def evaluate(setting: Setting, name: str, at: float) -> Any:
    """The value for a tensor, None when no condition of the setting meets it (mergekit's rules).

    Args:
        name: of the tensor.
        at: 0 for the first layer of its slice and tensors outside the layers, 1 for the last.
    """
    if isinstance(setting, dict):
        setting = [setting]
    if not isinstance(setting, list):
        return setting
    if all(not isinstance(e, dict) for e in setting):
        if not setting:
            return None
        numbers = [_number(e) for e in setting]
        if any(n is None for n in numbers):
            return setting[int(at * (len(setting) - 1))]
        place = at * (len(setting) - 1)
        first = int(place)
        share = place - first
        return (1 - share) * numbers[first] + share * numbers[min(first + 1, len(setting) - 1)]
    for condition in setting:
        wanted = condition.get("filter")
        if wanted is None or wanted == "*" or wanted in name:
            return evaluate(condition["value"], name, at)
    return None


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
