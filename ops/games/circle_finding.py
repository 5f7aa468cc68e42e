"""CircleFinding: a circle off the origin, told by its distance from rays."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any

from .base import Game, Refused, Row, Solver, Step, answer, between, choice, heard, last, spaced
from .parse import Form

Circle = tuple[int, int, int]


def distance(circle: Circle, x: int, y: int) -> str:
    """From the ray from the origin through a point, to ten decimals."""
    length = math.hypot(x, y)
    ux, uy = x / length, y / length
    cx, cy, r = circle
    behind = cx * ux + cy * uy < 0
    return f"{math.hypot(cx, cy) - r if behind else max(0.0, abs(cx * uy - cy * ux) - r):.10f}"


class CircleFinding(Game):
    """See the module."""

    name, kind = "CircleFinding", "ip"
    LEVELS = {"easy": {"bound": 200}, "medium": {"bound": 1000}, "hard": {"bound": 1500}}
    FORMS = (Form("query", "My Query:_NUM.NUM"), Form("answer", "My Answer:_NUM.NUM.INT"))
    NO_FORM = "Your response must be either 'My Query: xq yq' or 'My Answer: xc yc rc'"
    FIELDS = {"center": list, "radius": int, "scale": int}

    @classmethod
    def draw(cls, rng: random.Random, bound: int) -> Row:
        """See Game."""
        while True:
            x, y = between(rng, -bound, bound), between(rng, -bound, bound)
            most = min(math.isqrt(x * x + y * y) - 1, bound)
            if most >= 1:
                return {"scale": bound, "center": [x, y], "radius": between(rng, 1, most)}

    def begin(self) -> None:
        """See Game."""
        x, y = self.row["center"]
        self.circle: Circle = (int(x), int(y), self.row["radius"])
        self.bound = self.row["scale"]

    def tell(self) -> str:
        """See Game."""
        return (
            f"A circle has its centre at whole numbers x and y from -{self.bound} to {self.bound} and a whole radius "
            f"r of at least 1 and at most {self.bound}. The origin is outside: r is at most the distance of the "
            "centre minus 1.\n"
            "- `My Query: 1 -2` shoots a ray from the origin (0,0) through the point (1,-2) and on. I reply with its "
            "distance from the circle, with ten decimals; 0.0000000000 when it hits. The point must not be the "
            "origin.\n"
            "- `My Answer: 3 4 2` names x, y and r. I reply Correct or Incorrect."
        )

    def play(self, kind: str, said: list[Any]) -> Step:
        """See Game."""
        if kind == "query":
            if said == [0, 0]:
                raise Refused("Query point cannot be origin (0,0)")
            if max(map(abs, said)) > 10**15:
                raise Refused(self.NO_FORM)
            return heard(spaced(said), distance(self.circle, *said))
        return answer(spaced(said), tuple(said) == self.circle)

    def legal(self, rng: random.Random, most: int = 64) -> list[str]:
        """See Game."""
        b, found = self.bound, []
        for _ in range(most // 2):
            x, y = between(rng, -b, b), between(rng, -b, b)
            found.append(f"My Query: {x or 1} {y}")
            found.append(f"My Answer: {x} {y} {between(rng, 1, b)}")
        return list(dict.fromkeys(found))

    def solve(self, rng: random.Random, rounds: int) -> Solver:
        """The four axes give the distance of centre and edge; few circles have it, and a ray or two tell them apart."""
        told: dict[tuple[int, int], str] = {}
        for ray in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            told[ray] = yield f"My Query: {ray[0]} {ray[1]}"
        left = [c for c in self._near(told) if all(distance(c, *ray) == reply for ray, reply in told.items())]
        while True:
            if len(left) <= 1:
                yield f"My Answer: {spaced(left[0] if left else (1, 1, 1))}"
                continue
            looked = left[:200]
            rays = [
                (between(rng, -self.bound, self.bound) or 1, between(rng, -self.bound, self.bound)) for _ in range(40)
            ]
            rays += [(c[0] + choice(rng, (-1, 1)) * c[2] // 2, c[1]) for c in looked[:10]]
            rays = [ray for ray in rays if ray != (0, 0)]
            ray = max(rays, key=lambda r: len({distance(c, *r) for c in looked}))
            reply = yield f"My Query: {ray[0]} {ray[1]}"
            left = [c for c in left if distance(c, *ray) == reply]

    def _near(self, told: dict[tuple[int, int], str]) -> Iterator[Circle]:
        """Circles whose edge is as far from the origin as told, by what the axes say of the signs and the sides."""
        edge = max(map(float, told.values()))
        side = {axis: min(float(told[axis]), float(told[-axis[0], -axis[1]])) for axis in ((1, 0), (0, 1))}
        for r in range(1, self.bound + 1):
            square = round((edge + r) ** 2)
            if abs((edge + r) ** 2 - square) > 1e-5:
                continue
            # A near ray that misses tells the other coordinate: its distance and the radius.
            if side[1, 0] > 0:
                ys = [round(side[1, 0] + r)]
            elif side[0, 1] > 0:
                x = round(side[0, 1] + r)
                ys = [math.isqrt(max(square - x * x, 0))]
            else:
                ys = range(min(r, self.bound) + 1)
            for y in ys:
                x = math.isqrt(max(square - y * y, 0))
                if x * x + y * y != square or max(x, y) > self.bound:
                    continue
                for cx in {x, -x}:
                    for cy in {y, -y}:
                        yield cx, cy, r

    def verdict(self, turns: Any) -> bool:
        """See Game."""
        if not last(turns, "Correct"):
            return False
        values = [int(v) for v in str(turns[-1][0]).split()]
        return all(abs(v) <= self.bound for v in values)
