"""Algebra, for the worker process alone: it may take for ever, eat the memory or end the process.

Nothing here evaluates a text as Python: LaTeX goes through the grammar of latex2sympy2_extended, and what that refuses
through sympy's expression parser only where it is made of numbers, operators, single letters and a few known names.
"""

from __future__ import annotations

import re
from contextlib import suppress
from functools import lru_cache
from typing import Any

from .equality import equal
from .numbers import close

#: what reads formulas, for the output of a run
PARSER = "latex2sympy2_extended"
#: names beside single letters that an expression may hold
NAMES = ("sqrt", "pi", "sin", "cos", "tan", "log", "ln", "exp")
_TIDY = {"basic_latex": True, "units": False, "nits": False, "boxed": "all", "equations": False}
_EXPRESSION = re.compile(r"[0-9A-Za-z+\-*/^(),.!\s]{1,400}")
#: `1\,000`, which the grammar reads as 1 times 0
_THOUSANDS = re.compile(r"(?<=\d)\\[,!;:](?=\d{3})")
_WORD = re.compile(r"[A-Za-z]+")
_MEMBER = re.compile(r"[A-Za-z)!]\s*\.|\.\s*[A-Za-z(]")


class Unread(Exception):
    """No formula."""


@lru_cache(4096)
def parsed(text: str) -> Any:
    """A formula as an object of sympy's.

    Raises:
        Unread: neither parser takes it.
    """
    from latex2sympy2_extended import NormalizationConfig, latex2sympy

    text = _THOUSANDS.sub("", text)
    for malformed in (False, True):  # the second mends `\frac12` and `\sqrt2`
        tidy = NormalizationConfig(malformed_operators=malformed, **_TIDY)
        with suppress(Exception):  # the grammar and what builds objects raise whatever they meet
            return latex2sympy(text, normalization_config=tidy)
    return _expression(text)


def _expression(text: str) -> Any:
    from sympy.parsing import sympy_parser as p

    if not _EXPRESSION.fullmatch(text) or _MEMBER.search(text):
        raise Unread
    if any(len(word) > 1 and word not in NAMES for word in _WORD.findall(text)):
        raise Unread
    try:
        steps = (*p.standard_transformations, p.implicit_multiplication, p.convert_xor)
        return p.parse_expr(text, transformations=steps)
    except Exception as error:
        raise Unread from error


def same(prediction: str, gold: str) -> bool:
    """Whether algebra finds two texts equal; one that cannot be read is taken as text."""
    try:
        a, b = parsed(prediction), parsed(gold)
    except Unread:
        return False
    if _quiet(lambda: a == b or str(a) == str(b)):
        return True
    return _equations(a, b) or _matrices(a, b) or _expressions(a, b)


def _expressions(a: Any, b: Any) -> bool:
    from sympy import Expr, simplify

    if not isinstance(a, Expr) or not isinstance(b, Expr):
        return False
    if (x := _value(a)) is not None and (y := _value(b)) is not None:
        return close(x.real, y.real) and close(x.imag, y.imag)
    # `equals` tries numbers for the symbols: False is proved, None is not.
    found = _quiet(lambda: a.equals(b))
    return bool(_quiet(lambda: simplify(a - b) == 0) if found is None else found)


def _quiet(found: Any) -> Any:
    """What a step gives, None where it fails; sympy raises whatever it meets."""
    try:
        return found()
    except Exception:
        return None


def _value(x: Any) -> complex | None:
    return None if x.free_symbols else _quiet(lambda: complex(x.evalf()))


def _equations(a: Any, b: Any) -> bool:
    from sympy import Equality

    if not (isinstance(a, Equality) and isinstance(b, Equality)):
        return False
    x, y = a.lhs - a.rhs, b.lhs - b.rhs
    return _expressions(x, y) or _expressions(-x, y)


def _matrices(a: Any, b: Any) -> bool:
    from sympy import MatrixBase

    if not (isinstance(a, MatrixBase) and isinstance(b, MatrixBase)) or a.shape != b.shape:
        return False
    return bool(_quiet(lambda: all(round(x.evalf(), 3) == round(y.evalf(), 3) for x, y in zip(a, b, strict=True))))


def compat(prediction: str, gold: str, ratio: bool = True) -> dict[str, Any]:
    """The rules of `equality` with algebra: equal; and read, whether the right answer is a formula."""
    found = equal(prediction, gold, same, ratio=ratio)
    try:
        parsed(gold)
    except Unread:
        return {"equal": found, "read": False}
    return {"equal": found, "read": True}


def lenient(prediction: str, gold: str) -> dict[str, Any]:
    """Math-Verify's verdict on the content of a box; no time limit of its own, which would need the main thread."""
    from math_verify import LatexExtractionConfig, parse, verify

    def read(text: str) -> list[Any]:
        return parse(text, [LatexExtractionConfig(boxed_match_priority=0)], parsing_timeout=None)

    ours, theirs = read(f"\\boxed{{{prediction}}}"), read(f"${gold.strip().strip('$')}$")
    found = verify(theirs, ours, float_rounding=6, timeout_seconds=None)
    return {"equal": bool(found), "read": bool(theirs)}


def warm() -> None:
    """Import what the first call would import."""
    import math_verify  # noqa: F401

    compat("x+1", "1+y")
