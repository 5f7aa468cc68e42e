"""PizzaSlice: corners of a polygon are eaten in turn, each with its triangle; who eats less wins."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from functools import cache
from typing import Any

from .base import Game, Refused, Row, Solver, Step, before, choice, heard, over
from .parse import Form

#: corners up to which play is computed to its end
EXACT = 9


def doubled(a: Any, b: Any, c: Any) -> Any:
    """Twice the area of a triangle."""
    return abs((b[0] - a[0]) * (c[1] - a[1]) - (c[0] - a[0]) * (b[1] - a[1]))


class PizzaSlice(Game):
    """See the module; quirk `pizza.degenerate`: polygons may have equal corners and empty triangles."""

    name, kind = "PizzaSlice", "sg"
    LEVELS = {"easy": {"n": 6}, "medium": {"n": 8}, "hard": {"n": 12}}
    QUIRKS = ("pizza.degenerate",)
    FORMS = (Form("eat", "My Choice:_INT"),)
    NO_FORM = "Invalid format. Use 'My Choice: X'"
    FIELDS = {"points": dict, "turns": (int, float)}
    OPPONENTS = ("random", "greedy", "best")
    luck = True

    @classmethod
    def draw(cls, rng: random.Random, n: int) -> Row:
        """See Game."""
        while True:
            angles = sorted(360 * rng.random() for _ in range(n))
            gaps = [(b - a) % 360 for a, b in zip(angles, [*angles[1:], angles[0] + 360], strict=True)]
            if min(gaps) < 12:
                continue
            turns = [math.radians(a) for a in angles]
            points = [[round(50 + 40 * math.cos(t)), round(50 + 40 * math.sin(t))] for t in turns]
            if convex(points):
                named = {str(i): p for i, p in enumerate(points, 1)}
                return {"scale": n, "points": named, "turns": (n - 2) // 2}

    def begin(self) -> None:
        """See Game."""
        self.points = {
            int(i): [Fraction(str(v)) if isinstance(v, float) else v for v in p] for i, p in self.row["points"].items()
        }
        self.left = sorted(self.points)
        self.eaten = [0, 0]

    def tell(self) -> str:
        """See Game."""
        corners = ", ".join(f"{i}: ({p[0]},{p[1]})" for i, p in self.points.items())
        return (
            f"A pizza is a polygon with these corners, in order around it: {corners}. We eat corners in turn, you "
            "first. Who eats a corner eats the triangle of it and its two neighbours that are still there, and the "
            "corner is gone. When two corners are left it is over. You win when you have eaten less area than I; when "
            "it is the same you lose.\n"
            "- `My Choice: 2` eats corner 2. I reply with the corner that I eat, and at the end with who has won."
        )

    def _area(self, left: Any, v: int) -> Any:
        at = left.index(v)
        return doubled(self.points[left[at - 1]], self.points[v], self.points[left[(at + 1) % len(left)]])

    def _eat(self, v: int, who: int) -> None:
        self.eaten[who] += self._area(self.left, v)
        self.left.remove(v)

    def play(self, kind: str, said: list[Any]) -> Step:
        """See Game."""
        if said[0] not in self.left:
            raise Refused("Invalid vertex choice", "rule" if said[0] in self.points else "range")
        result, reply = f"My Choice: {said[0]}", ""
        self._eat(said[0], 0)
        if len(self.left) > 2:
            mine = self._rival()
            self._eat(mine, 1)
            reply = f"My Choice: {mine}"
        if len(self.left) > 2:
            return heard(result, reply)
        won = self.eaten[0] < self.eaten[1]
        return over(result, f"{reply} You {'win' if won else 'lose'}!".strip(), won)

    def _rival(self) -> int:
        if self.opponent == "random":
            return choice(self.rng, self.left)
        if self.opponent == "best" and len(self.left) <= EXACT:
            value = _values(self, True)
            left, ahead = tuple(self.left), self.eaten[0] - self.eaten[1]
            return min(left, key=lambda v: value(_without(left, v), ahead - self._area(left, v), 0))
        return min(self.left, key=lambda v: self._area(self.left, v))

    def legal(self, rng: random.Random, most: int = 64) -> list[str]:
        """See Game."""
        return [f"My Choice: {v}" for v in self.left]

    def solve(self, rng: random.Random, rounds: int) -> Solver:
        """Against a random eater computed to the end for few corners, before that the smallest triangle."""
        left, ahead = tuple(sorted(self.points)), 0
        value = _values(self, self.opponent == "best")
        while True:
            if len(left) <= EXACT:
                mine = max(left, key=lambda v: value(_without(left, v), ahead + self._area(left, v), 1))
            else:
                mine = min(left, key=lambda v: self._area(left, v))
            ahead += self._area(left, mine)
            left = _without(left, mine)
            told = int((yield f"My Choice: {mine}").split()[2])
            ahead -= self._area(left, told)
            left = _without(left, told)

    def verdict(self, turns: Any) -> bool:
        """See Game."""
        return before(turns, "win", "invalid", "lose")

    def faults(self) -> list[tuple[str, str]]:
        """See Game."""
        different = {tuple(p) for p in self.points.values()}
        if len(different) < len(self.points):
            return [("structure", "corners are equal, and triangles empty")]
        points = list(self.points.values())
        return [] if self.quirk("pizza.degenerate") or convex(points) else [("structure", "the polygon is not convex")]


def convex(points: Any) -> bool:
    """Whether corners in order turn one way, all of them strictly."""
    n = len(points)
    signs = set()
    for i in range(n):
        a, b, c = points[i], points[(i + 1) % n], points[(i + 2) % n]
        cross = (b[0] - a[0]) * (c[1] - b[1]) - (b[1] - a[1]) * (c[0] - b[0])
        signs.add((cross > 0) - (cross < 0))
    return len(signs) == 1 and 0 not in signs


def _without(left: tuple[int, ...], v: int) -> tuple[int, ...]:
    return tuple(x for x in left if x != v)


def _values(game: PizzaSlice, best: bool) -> Any:
    """Chance that the player eats less, by corners left, what it is ahead by, and whose turn it is."""

    @cache
    def area(left: tuple[int, ...], v: int) -> Any:
        return game._area(left, v)

    @cache
    def value(left: tuple[int, ...], ahead: Any, who: int) -> float:
        if len(left) <= 2:
            return float(ahead < 0)
        if who == 0:
            return max(value(_without(left, v), ahead + area(left, v), 1) for v in left)
        after = [value(_without(left, v), ahead - area(left, v), 0) for v in left]
        return min(after) if best else sum(after) / len(after)

    return value
