"""PolyMath's list of rules by which an answer equals the right one; what needs algebra is asked of `symbolic`.

Order and limits are those of the benchmark's scorer (QwenLM/PolyMath fbf4e41), so that its numbers can be compared.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from .numbers import close, number

#: both texts -> whether algebra finds them equal
Symbolic = Callable[[str, str], bool]
#: brackets in brackets, and sides of equations of sides: no answer comes near
DEEPEST = 12
_LETTER = re.compile(r"\b([A-E])\b")
_MATRIX = re.compile(r"\\begin\{[pb]matrix\}(.*)\\end\{[pb]matrix\}", re.DOTALL)
_BRACES = str.maketrans("", "", "{}()")


class Later(Exception):
    """The cheap rules do not decide."""


def equal(prediction: str, gold: str, symbolic: Symbolic, *, ratio: bool = True, depth: int = 0) -> bool:
    """Whether a prediction equals the right answer.

    Args:
        prediction: the box, without blanks.
        ratio: a number also equals a hundredth and the hundredfold of the right one, as per cent.
    """
    if prediction.strip().lower() == gold.strip().lower():
        return True
    if gold in ("A", "B", "C", "D", "E"):
        letters = _LETTER.findall(prediction.upper())
        if letters and letters[-1] == gold:
            return True
    ours, theirs = number(prediction), number(gold)
    if ours is not None and theirs is not None:
        return any(close(ours, t) for t in ((theirs, theirs / 100, theirs * 100) if ratio else (theirs,)))
    if not prediction.strip():
        return False
    if _bare(prediction, gold):
        return True
    if depth < DEEPEST and _parts(prediction, gold, symbolic, ratio, depth + 1):
        return True
    return symbolic(prediction, gold)


def _bare(prediction: str, gold: str) -> bool:
    """Equal without brackets around them, and without braces and parentheses anywhere."""
    square = prediction[:1] == "[" and prediction[-1:] == "]" and gold[:1] != "("
    round_ = prediction[:1] == "(" and prediction[-1:] == ")" and gold[:1] != "["
    if square or round_:
        prediction, gold = prediction.strip("[]()"), gold.strip("[]()")
    return prediction.translate(_BRACES).lower() == gold.translate(_BRACES).lower()


def _parts(prediction: str, gold: str, symbolic: Symbolic, ratio: bool, depth: int) -> bool:
    """Equal part by part: in brackets, in matrices, on the sides of equations."""

    def all_equal(ours: list[str], theirs: list[str]) -> bool:
        return len(ours) == len(theirs) and all(
            equal(a, b, symbolic, ratio=ratio, depth=depth) for a, b in zip(ours, theirs, strict=True)
        )

    if all(len(t) > 2 and t[0] in "([" and t[-1] in ")]" for t in (prediction, gold)):
        ours, theirs = prediction[1:-1].split(","), gold[1:-1].split(",")
        if len(ours) > 1 and all_equal(ours, theirs):
            return True
    ours_m, theirs_m = (_MATRIX.fullmatch(t.strip().strip("$")) for t in (prediction, gold))
    if ours_m and theirs_m and all_equal(_cells(ours_m[1]), _cells(theirs_m[1])):
        return True
    equations = [t.split("=") for t in (prediction, gold)]
    if all(len(sides) == 2 for sides in equations):
        a, b = (f"{left.strip()}-({right.strip()})" for left, right in equations)
        return symbolic(a, b) or symbolic(f"-({a})", b)
    for sides, other, ours_first in ((equations[0], gold, True), (equations[1], prediction, False)):
        if len(sides) == 2 and len(sides[0].strip()) <= 2 and "=" not in other:
            pair = (sides[1], other) if ours_first else (other, sides[1])
            if equal(*pair, symbolic, ratio=ratio, depth=depth):
                return True
    return False


def _cells(matrix: str) -> list[str]:
    """Cells by row, a mark between the rows."""
    rows = [row.split("&") for row in matrix.split("\\\\") if row.strip()]
    return [cell.strip() for row in rows for cell in (*row, "\\\\")]


def quick(prediction: str, gold: str, ratio: bool = True) -> bool | None:
    """What the rules say without algebra, None where they need it; no rule before it takes long."""

    def later(a: str, b: str) -> bool:
        raise Later

    try:
        return equal(prediction, gold, later, ratio=ratio)
    except Later:
        return None
