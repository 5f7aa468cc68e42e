"""TreasureHunt: visit all vertices of a hidden graph; neighbours are told by degree and flag, in a new order."""

from __future__ import annotations

import random
from itertools import combinations
from typing import Any

from .base import Game, Refused, Row, Solver, Step, before, between, choice, heard, over, shuffled
from .graphs import distances, neighbours
from .parse import Form


class TreasureHunt(Game):
    """See the module; quirk `treasure.opening`: the first message only opens the first list."""

    name, kind = "TreasureHunt", "so"
    LEVELS = {"easy": {"n": 6}, "medium": {"n": 7}, "hard": {"n": 8}}
    QUIRKS = ("treasure.opening",)
    FORMS = (Form("go", "My Choice:_INT"),)
    NO_FORM = "Invalid format. Use 'My Choice: X'"
    FIELDS = {"graph": list, "first": list}
    DRAWN = ("first",)

    @classmethod
    def draw(cls, rng: random.Random, n: int) -> Row:
        """See Game."""
        pairs = list(combinations(range(1, n + 1), 2))
        low, high = (3 * n + 1) // 2, n * (n - 1) // 2
        while True:
            edges = {tuple(sorted((v, between(rng, 1, v - 1)))) for v in range(2, n + 1)}
            wanted = between(rng, low, high)
            for pair in shuffled(rng, pairs):
                if len(edges) < wanted:
                    edges.add(pair)
            near = neighbours(edges)
            if all(len(near.get(v, ())) >= 2 for v in range(1, n + 1)):
                return {"scale": n, "graph": [list(e) for e in sorted(edges)], "first": shuffled(rng, sorted(near[1]))}

    def begin(self) -> None:
        """See Game."""
        self.near = neighbours([(int(a), int(b)) for a, b in self.row["graph"]])
        self.at, self.flagged = 1, {1}
        if len(distances(1, lambda v: self.near[v])) != len(self.near):
            raise ValueError("the graph is not connected")
        self.opened = not self.quirk("treasure.opening")
        first = self.row.get("first")
        self.order: list[int] = [] if not self.opened else [int(v) for v in first or self.near[1]]
        if self.opened and sorted(self.order) != sorted(self.near[1]):
            raise ValueError("the first list is not that of the start's neighbours")

    def shown(self) -> str:
        """The list of neighbours."""
        parts = (f" {len(self.near[v])} {int(v in self.flagged)}" for v in self.order)
        return f"R {len(self.order)}{''.join(parts)}"

    def tell(self) -> str:
        """See Game."""
        return (
            f"A hidden graph has {len(self.near)} vertices. You stand on one of them, which is flagged; every vertex "
            "you come to gets a flag. Flag all of them.\n"
            "I show the neighbours of where you stand as R d, how many they are, and then two numbers for each: how "
            "many neighbours it has itself, and 1 when it is flagged, else 0. They come in a new random order each "
            "time.\n"
            f"Now: {self.shown()}\n"
            "- `My Choice: 2` goes to the second neighbour of the list shown last. I reply with the new list, or Win."
        )

    def play(self, kind: str, said: list[Any]) -> Step:
        """See Game."""
        if not self.opened:
            self.opened = True
            self.order = shuffled(self.rng, self.near[self.at])
            return heard("Initial", self.shown())
        if not 1 <= said[0] <= len(self.order):
            raise Refused("Invalid choice number")
        self.at = self.order[said[0] - 1]
        self.flagged.add(self.at)
        result = f"My Choice: {said[0]}"
        if len(self.flagged) == len(self.near):
            return over(result, "Win", True)
        self.order = shuffled(self.rng, self.near[self.at])
        return heard(result, self.shown())

    def legal(self, rng: random.Random, most: int = 64) -> list[str]:
        """See Game."""
        return [f"My Choice: {i}" for i in range(1, max(len(self.order), 1) + 1)]

    def solve(self, rng: random.Random, rounds: int) -> Solver:
        """A neighbour without a flag that has the fewest neighbours itself, else any."""
        shown = self.shown() if self.opened else (yield "My Choice: 1")
        while True:
            numbers = list(map(int, shown.split()[2:]))
            listed = list(zip(numbers[::2], numbers[1::2], strict=True))
            open_ = [i for i, (_, flag) in enumerate(listed, 1) if not flag]
            to = min(open_, key=lambda i: listed[i - 1][0]) if open_ else choice(rng, range(1, len(listed) + 1))
            shown = yield f"My Choice: {to}"

    def verdict(self, turns: Any) -> bool:
        """See Game."""
        return before(turns, "win", "invalid")
