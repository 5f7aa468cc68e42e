"""The final answer of a text, in a form that equal answers share."""

from __future__ import annotations

import re

_BOXED = re.compile(r"\\boxed\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}")
_SAID = re.compile(r"(?:####|answer\s*(?:is|:))\s*([^\n]+)", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\w.,])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?![\d\w]|,\d|\.\d)")


def final_answer(text: str) -> str | None:
    """Of the last \\boxed{}, else of what follows `####` or "answer is", else the last number; None without any."""
    for pattern in (_BOXED, _SAID):
        if found := pattern.findall(text):
            return normalised(found[-1])
    numbers = _NUMBER.findall(text.replace("\u2212", "-"))
    return normalised(numbers[-1]) if numbers else None


def normalised(answer: object) -> str | None:
    """Without spaces, dollar signs, a last full stop, the case of letters, and thousands' commas; None for nothing."""
    text = re.sub(r"\s+", "", str(answer).replace("\u2212", "-")).strip("$*").rstrip(".").lower()
    if _NUMBER.fullmatch(text):
        return f"{float(text.replace(',', '')):.12g}"
    return text or None
