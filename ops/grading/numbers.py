"""Numbers as answers write them."""

from __future__ import annotations

import math
import unicodedata

#: relative difference up to which two numbers are one
TOLERANCE = 1e-4


def plain_digits(text: str) -> str:
    """Decimal digits of every script as 0-9."""
    if text.isascii():
        return text
    return "".join(str(unicodedata.decimal(c)) if not c.isascii() and c.isdecimal() else c for c in text)


def number(text: str) -> float | None:
    r"""PolyMath's rule: without commas what `float` reads, `nan` too, else `%` or `\%` at its end is a hundredth."""
    text = text.replace(",", "").strip()
    try:
        return float(text)
    except ValueError:
        pass
    if not text.endswith("%"):
        return None
    try:
        return float(text[:-1].removesuffix("\\")) / 100
    except ValueError:
        return None


def close(a: float, b: float, tolerance: float = TOLERANCE) -> bool:
    """Within a relative difference; NaN is close to nothing."""
    return math.isclose(a, b, rel_tol=tolerance)
