"""GeoGame: points taken in turn; an even sum of squared distances wins."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

from .base import Game, Refused, Row, Solver, Step, choice, heard, over, sample
from .parse import Form

Point = list[int]


def color(point: Point) -> int:
    """A squared distance is odd just where the colours of its ends differ."""
    return sum(point) % 2


class GeoGame(Game):
    """See the module; by the reference's rules the last reply says nothing of who has won."""

    name, kind = "GeoGame", "sg"
    LEVELS = {"easy": {"points": 4}, "medium": {"points": 6}, "hard": {"points": 8}}
    FORMS = (Form("take", "My Choice:_INT"),)
    FIELDS = {"starting_point": list, "available_points": list, "turns": (int, float)}
    OPPONENTS = ("random", "greedy", "best")
    luck = True

    @classmethod
    def draw(cls, rng: random.Random, points: int) -> Row:
        """See Game."""
        while True:
            start, *rest = sample(rng, [[x, y] for x in range(11) for y in range(11)], points + 1)
            if any(color(p) == color(start) for p in rest):
                return {"scale": points, "starting_point": start, "available_points": rest, "turns": points // 2}

    def begin(self) -> None:
        """See Game."""
        self.points = [[int(v) for v in p] for p in self.row["available_points"]]
        self.start = [int(v) for v in self.row["starting_point"]]
        self.taken: list[int] = []

    def tell(self) -> str:
        """See Game."""
        points = ", ".join(f"{i}: ({p[0]},{p[1]})" for i, p in enumerate(self.points, 1))
        return (
            f"From the point ({self.start[0]},{self.start[1]}) we take these points in turn, you first and I last: "
            f"{points}. After each taking, the squared distance between the point before and the new one is added to "
            "a sum. You win when the sum is even at the end, when all points are taken.\n"
            "- `My Choice: 2` takes point 2, which nobody has taken. I reply with the point that I take."
        )

    def play(self, kind: str, said: list[Any]) -> Step:
        """See Game."""
        if not 1 <= said[0] <= len(self.points) or said[0] in self.taken:
            raise Refused("Invalid", "range" if not 1 <= said[0] <= len(self.points) else "rule")
        self.taken.append(said[0])
        free = [i for i in range(1, len(self.points) + 1) if i not in self.taken]
        result = f"Choice: {said[0]}"
        if not free:
            return over(result, "My Choice: 0", self._even(self.taken))
        if self.opponent != "random":
            # Of the start's colour as long as there are any: the last point decides.
            free = [i for i in free if color(self.points[i - 1]) == color(self.start)] or free
        mine = choice(self.rng, free)
        self.taken.append(mine)
        won = self._even(self.taken)
        if len(self.taken) < len(self.points):
            return heard(result, f"My Choice: {mine}")
        if self.quirk("loop.words"):
            return over(result, f"My Choice: {mine}", won)
        return over(result, f"My Choice: {mine} You {'win' if won else 'lose'}!", won)

    def _even(self, taken: list[int]) -> bool:
        way = [self.start, *(self.points[i - 1] for i in taken)]
        return sum((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2 for a, b in pairwise(way)) % 2 == 0

    def legal(self, rng: random.Random, most: int = 64) -> list[str]:
        """See Game."""
        return [f"My Choice: {i}" for i in range(1, len(self.points) + 1) if i not in self.taken]

    def solve(self, rng: random.Random, rounds: int) -> Solver:
        """Points of the other colour while there are any: the sum is even when the last has the start's."""
        free = set(range(1, len(self.points) + 1))
        while True:
            other = [i for i in sorted(free) if color(self.points[i - 1]) != color(self.start)]
            mine = choice(rng, other or sorted(free))
            told = yield f"My Choice: {mine}"
            free -= {mine, int(told.split()[2])}

    def verdict(self, turns: Any) -> bool:
        """See Game."""
        taken: list[int] = []
        for result, reply in turns:
            if result == "Invalid":
                return False
            taken += [int(str(result).split()[1]), int(reply.split()[2])]
        return self._even([i for i in taken if i])
