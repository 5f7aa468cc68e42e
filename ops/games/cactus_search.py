"""CactusSearch: a hidden vertex of a known graph; each guess hears the next vertex on a shortest way to it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from .base import Game, Refused, Row, Solver, Step, between, choice, heard, last, over, shuffled
from .graphs import distances, neighbours, way
from .parse import Form


class CactusSearch(Game):
    """See the module; quirk `cactus.any_graph`: the graph is no cactus, its vertex is drawn as play begins."""

    name, kind = "CactusSearch", "so"
    LEVELS = {"easy": {"n": 10}, "medium": {"n": 12}, "hard": {"n": 15}}
    QUIRKS = ("cactus.any_graph",)
    FORMS = (Form("guess", "My Guess:_INT"),)
    NO_FORM = "Invalid format. Use 'My Guess: X'"
    FIELDS = {"graph": dict, "target": int}
    DRAWN = ("target",)

    @classmethod
    def draw(cls, rng: random.Random, n: int) -> Row:
        """See Game."""
        names = shuffled(rng, range(1, n + 1))
        paths, used = [], 1
        while used < n:
            at, room = choice(rng, names[:used]), n - used
            if room >= 2 and rng.random() < 0.6:
                more = between(rng, 2, min(5, room))
                paths.append([at, *names[used : used + more], at])
            else:
                more = 1
                paths.append([at, names[used]])
            used += more
        return {"scale": n, "graph": {"n": n, "m": len(paths), "paths": paths}, "target": between(rng, 1, n)}

    def begin(self) -> None:
        """See Game."""
        graph = self.row["graph"]
        self.n, self.paths = int(graph["n"]), [[int(v) for v in path] for path in graph["paths"]]
        self.near = neighbours(edge for path in self.paths for edge in pairwise(path))
        target = self.row.get("target")
        self.target: int = between(self.rng, 1, self.n) if target is None else target
        if len(distances(self.target, lambda v: self.near.get(v, ()))) != self.n:
            raise ValueError("the graph is not connected")

    def tell(self) -> str:
        """See Game."""
        paths = "; ".join("-".join(map(str, path)) for path in self.paths)
        return (
            f"I hide one of the vertices 1 to {self.n} of a graph in which every edge is on at most one ring. Its "
            f"edges are those along these paths: {paths}.\n"
            "- `My Guess: 3` guesses vertex 3. I reply Win when it is the hidden one, else GO w, where w is the "
            "neighbour of your vertex that is nearer to it."
        )

    def _toward(self, guess: int, target: int) -> int:
        found = way(guess, lambda v: v == target, lambda v: self.near[v])
        assert found is not None
        return found[1]

    def play(self, kind: str, said: list[Any]) -> Step:
        """See Game."""
        if not 1 <= said[0] <= self.n:
            raise Refused(f"Invalid vertex number. Must be between 1 and {self.n}")
        result = f"My Guess: {said[0]}"
        if said[0] == self.target:
            return over(result, "Win", True)
        return heard(result, f"GO {self._toward(said[0], self.target)}")

    def legal(self, rng: random.Random, most: int = 64) -> list[str]:
        """See Game."""
        return [f"My Guess: {v}" for v in range(1, self.n + 1)][:most]

    def solve(self, rng: random.Random, rounds: int) -> Solver:
        """Of the vertices that fit, the guess with the smallest worst case."""
        left = list(range(1, self.n + 1))
        while True:
            groups = {g: Counter(self._toward(g, t) for t in left if t != g) for g in range(1, self.n + 1)}
            guess = min(groups, key=lambda g: (max(groups[g].values(), default=0), g not in left))
            told = int((yield f"My Guess: {guess}").removeprefix("GO "))
            left = [t for t in left if t != guess and self._toward(guess, t) == told]

    def spam(self) -> Iterator[str]:
        """See Game."""
        return (f"My Guess: {v}" for v in range(1, self.n + 1))

    def verdict(self, turns: Any) -> bool:
        """See Game."""
        return last(turns, "Win")

    def faults(self) -> list[tuple[str, str]]:
        """See Game."""
        return [] if is_cactus(self.near) else [("structure", "the graph is no cactus: an edge is on two rings")]


def is_cactus(near: dict[int, list[int]]) -> bool:
    """Whether every edge is on one ring at most: each edge beside a spanning tree closes a ring of tree edges."""
    start = next(iter(near))
    parent, order, waiting = {start: 0}, [], [start]
    while waiting:
        at = waiting.pop()
        order.append(at)
        for to in near[at]:
            if to not in parent:
                parent[to] = at
                waiting.append(to)
    depth = {}
    for v in order:
        depth[v] = depth.get(parent[v], -1) + 1
    used: set[int] = set()
    for a in near:
        for b in near[a]:
            if a < b and parent[a] != b and parent[b] != a:
                x, y = a, b
                while x != y:
                    x, y = (x, y) if depth[x] >= depth[y] else (y, x)
                    if x in used:
                        return False
                    used.add(x)
                    x = parent[x]
    return True
