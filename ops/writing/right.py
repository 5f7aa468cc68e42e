"""Whether an answer is the wanted one, by its text alone."""

from __future__ import annotations

import re
from typing import Any

#: digits, with commas between thousands or without, a fraction, an exponent; no part of a word or a list
_NUMBER = re.compile(r"(?<![\w.,])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?(?![\d\w]|,\d|\.\d)")


def right(said: str, wanted: Any) -> bool:
    """Whether an answer is the wanted one.

    A number is compared with the last number of the answer (of its last \\boxed{}, when there is one); any other
    text must occur in it as whole words, without regard to case.
    """
    boxed = re.findall(r"\\boxed\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}", said)
    number = _number(str(wanted))
    if number is not None:
        last = _NUMBER.findall((boxed[-1] if boxed else said).replace("\u2212", "-"))
        return bool(last) and _number(last[-1]) == number
    words = re.escape(str(wanted).strip())
    return bool(words) and re.search(rf"(?<!\w){words}(?!\w)", boxed[-1] if boxed else said, re.IGNORECASE) is not None


def _number(text: str) -> float | None:
    """A number, with commas between thousands or without; `(1,2,3)` and `3,14` are none."""
    bare = text.strip().rstrip(".").replace("\u2212", "-")
    return float(bare.replace(",", "")) if _NUMBER.fullmatch(bare) else None
