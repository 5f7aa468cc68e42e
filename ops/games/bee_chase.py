"""BeeChase: three bees catch a runner on a graph of rings and chords."""

from __future__ import annotations

import random
from itertools import product
from typing import Any

from .base import Game, Refused, Row, Solver, Step, before, between, choice, heard, over, sample, shuffled, spaced
from .graphs import distances, neighbours
from .parse import Form


class BeeChase(Game):
    """See the module."""

    name, kind = "BeeChase", "sg"
    LEVELS = {"easy": {"n": 10}, "medium": {"n": 20}, "hard": {"n": 40}}
    FORMS = (Form("bees", "My Choice:_INT.INT.INT"),)
    NO_FORM = "Invalid format. Use 'My Choice: X Y Z'"
    FIELDS = {"graph": list, "turns": (int, float)}
    OPPONENTS = ("random", "greedy")

    @classmethod
    def draw(cls, rng: random.Random, n: int) -> Row:
        """See Game."""
        edges = [[v, v % n + 1] for v in range(1, n + 1)]
        degree = dict.fromkeys(range(1, n + 1), 2)
        for v in shuffled(rng, range(1, n + 1)):
            to = (v - 1 + between(rng, 2, 3)) % n + 1
            if degree[v] < 3 and degree[to] < 3:
                edges.append([v, to])
                degree[v] += 1
                degree[to] += 1
        return {"scale": n, "graph": edges, "turns": n}

    def begin(self) -> None:
        """See Game."""
        self.near = neighbours([(int(a), int(b)) for a, b in self.row["graph"]])
        self.bees: list[int] = []
        self.runner = 0

    def tell(self) -> str:
        """See Game."""
        edges = " ".join(f"{a}-{b}" for a, b in self.row["graph"])
        return (
            f"You lead three bees on a graph with these edges: {edges}. First you place the bees on any vertices; "
            "then a runner appears on a vertex without a bee. After that, in each round every bee stays or goes along "
            "one edge, and when one is on the runner you win. Else the runner must go along an edge to a vertex "
            "without a bee; when it cannot, you win.\n"
            "- `My Choice: 1 2 3` places the bees, or says where the first, second and third are next. I reply with "
            "the runner's vertex, or You win!"
        )

    def play(self, kind: str, said: list[Any]) -> Step:
        """See Game."""
        result = f"My Choice: {spaced(said)}"
        if not self.bees:
            if not all(v in self.near for v in said):
                raise Refused("Invalid initial placement")
            free = [v for v in sorted(self.near) if v not in said]
            if not free:
                raise Refused("No valid position for Nastya", "rule")
            self.bees, self.runner = said, choice(self.rng, free)
            return heard(result, self.runner)
        if not all(to == at or to in self.near[at] for at, to in zip(self.bees, said, strict=True)):
            raise Refused("Invalid bee movement", "rule")
        self.bees = said
        ways = [] if self.runner in said else [v for v in self.near[self.runner] if v not in said]
        if not ways:
            return over(result, "You win!", True)
        if self.opponent == "greedy":
            away = {v: min(distances(v, self.near.__getitem__)[b] for b in said) for v in ways}
            ways = [v for v in ways if away[v] == max(away.values())]
        self.runner = choice(self.rng, ways)
        return heard(result, self.runner)

    def _moves(self) -> list[tuple[int, ...]]:
        return list(product(*([at, *self.near[at]] for at in self.bees)))

    def legal(self, rng: random.Random, most: int = 64) -> list[str]:
        """See Game."""
        if self.bees:
            return [f"My Choice: {spaced(m)}" for m in sample(rng, self._moves(), most)]
        vertices = sorted(self.near)
        return [f"My Choice: {spaced(choice(rng, vertices) for _ in range(3))}" for _ in range(most)]

    def solve(self, rng: random.Random, rounds: int) -> Solver:
        """Bees spread out, then moved to be near to where the runner may be next."""
        vertices = sorted(self.near)
        far = {v: distances(v, self.near.__getitem__) for v in vertices}

        def spread(triple: list[int]) -> int:
            return sum(min(far[b][v] for b in triple) for v in vertices)

        bees = tuple(min((sample(rng, vertices, 3) for _ in range(200)), key=spread))
        runner = int((yield f"My Choice: {spaced(bees)}"))
        while True:
            options = product(*([at, *self.near[at]] for at in bees))

            def worth(triple: tuple[int, ...], runner: int = runner) -> tuple[float, float]:
                if runner in triple:
                    return -1.0, 0.0
                ways = [v for v in self.near[runner] if v not in triple]
                if not ways:
                    return -1.0, 0.0
                nearest = sum(min(far[b][v] for b in triple) for v in ways) / len(ways)
                return nearest, sum(far[b][runner] for b in triple)

            bees = min(options, key=worth)
            runner = int((yield f"My Choice: {spaced(bees)}"))

    def verdict(self, turns: Any) -> bool:
        """See Game."""
        return before(turns, "win", "invalid")
