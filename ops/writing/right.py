"""Whether an answer is the wanted one, by its text alone."""

from __future__ import annotations

import re
from typing import Any


def right(said: str, wanted: Any) -> bool:
    """Whether an answer is the wanted one.

    A number is compared with the last number of the answer (of its last \\boxed{}, when there is one); any other
    text must occur in it as whole words, without regard to case.
    """
    boxed = re.findall(r"\\boxed\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}", said)
    number = _number(str(wanted))
    if number is not None:
        last = re.findall(r"-?\d[\d,]*(?:\.\d+)?", boxed[-1] if boxed else said)
        return bool(last) and _number(last[-1]) == number
    words = re.escape(str(wanted).strip())
    return bool(words) and re.search(rf"(?<!\w){words}(?!\w)", boxed[-1] if boxed else said, re.IGNORECASE) is not None


def _number(text: str) -> float | None:
    try:
        return float(text.strip().rstrip(".").replace(",", ""))
    except ValueError:
        return None
