"""SafepathFinder: a grid with traps, told by how many are around."""

from __future__ import annotations

import math
import random
from functools import partial
from itertools import product
from typing import Any

from .base import Game, Refused, Row, Solver, Step, choice, heard, over, sample
from .graphs import around, cheapest, distances, inside
from .parse import Form

Cell = tuple[int, int]


class SafepathFinder(Game):
    """See the module; quirk `safepath.blind_start`: the number of traps around the start is not told."""

    name, kind = "SafepathFinder", "so"
    LEVELS = {"easy": {"size": 5}, "medium": {"size": 6}, "hard": {"size": 7}}
    QUIRKS = ("safepath.blind_start",)
    FORMS = (Form("move", "My Choice:_INT.INT"),)
    NO_FORM = "Invalid format. Use 'My Choice: X Y'"
    FIELDS = {"traps": list, "scale": int}
    luck = True

    @classmethod
    def draw(cls, rng: random.Random, size: int) -> Row:
        """See Game."""
        cells = [(x, y) for x, y in product(range(1, size + 1), repeat=2) if (x, y) not in ((1, 1), (size, size))]
        while True:
            inner = choice(rng, range(2, size))
            traps = [(inner, inner), *sample(rng, [c for c in cells if c != (inner, inner)], size - 2)]
            if (size, size) in distances((1, 1), partial(_free, size, traps)):
                return {"scale": size, "traps": [list(c) for c in traps]}

    def begin(self) -> None:
        """See Game."""
        self.size, self.at = self.row["scale"], (1, 1)
        self.traps = {(int(x), int(y)) for x, y in self.row["traps"]}

    def level(self, cell: Cell) -> int:
        """Traps around a cell."""
        return len(self.traps & set(around(self.size, cell)))

    def tell(self) -> str:
        """See Game."""
        n = self.size
        return (
            f"Cross a grid of {n} rows and {n} columns from row 1, column 1 to row {n}, column {n}. {len(self.traps)} "
            "cells are traps; one of them is on the diagonal between the corners, and there is a safe way. Around "
            f"the start, in its up to eight neighbours, there are {self.level((1, 1))} traps.\n"
            "- `My Choice: 1 2` goes to row 1, column 2, one of the up to eight cells around you. I reply "
            "DANGER_LEVEL v, the number of traps around it, or Win at the goal, or Lose on a trap."
        )

    def play(self, kind: str, said: list[Any]) -> Step:
        """See Game."""
        cell = (said[0], said[1])
        if cell not in around(self.size, self.at):
            raise Refused("INVALID_MOVE", "rule" if inside(self.size, *cell) else "range")
        self.at, result = cell, f"My Choice: {cell[0]} {cell[1]}"
        if cell in self.traps:
            return over(result, "Lose", False)
        if cell == (self.size, self.size):
            return over(result, "Win", True)
        return heard(result, f"DANGER_LEVEL {self.level(cell)}")

    def legal(self, rng: random.Random, most: int = 64) -> list[str]:
        """See Game."""
        return [f"My Choice: {x} {y}" for x, y in around(self.size, self.at)]

    def solve(self, rng: random.Random, rounds: int) -> Solver:
        """The chance of a trap in every cell, counted exactly, and the way of least risk that the rounds allow."""
        n, at = self.size, (1, 1)
        told: dict[Cell, int] = {} if self.quirk("safepath.blind_start") else {at: self.level(at)}
        safe = {at, (n, n)}
        while True:
            risk = trap_chances(n, len(self.row["traps"]), told, safe)

            def steps(cell: Cell, risk: dict[Cell, float] = risk) -> list[tuple[Cell, float]]:
                return [(to, 0.02 - math.log(max(1 - risk.get(to, 0.0), 1e-9))) for to in around(n, cell)]

            found = cheapest(at, lambda c: c == (n, n), steps)
            assert found is not None
            at = found[1][1]
            reply = yield f"My Choice: {at[0]} {at[1]}"
            safe.add(at)
            told[at] = int(reply.removeprefix("DANGER_LEVEL "))

    def verdict(self, turns: Any) -> bool:
        """See Game."""
        return bool(turns) and "Win" in turns[-1][1]

    def faults(self) -> list[tuple[str, str]]:
        """See Game."""
        reached = distances((1, 1), partial(_free, self.size, self.traps))
        return [] if (self.size, self.size) in reached else [("unsolvable", "there is no safe way")]


def _free(size: int, traps: Any, cell: Cell) -> list[Cell]:
    return [to for to in around(size, cell) if to not in traps]


def trap_chances(size: int, traps: int, told: dict[Cell, int], safe: set[Cell]) -> dict[Cell, float]:
    """Chance of a trap by cell: all ways to lay traps beside the cells that told a number, the rest counted.

    One trap was drawn on the inner diagonal and the others anywhere, so that a layout counts as often as it has traps
    there.
    """
    cells = [c for c in product(range(1, size + 1), repeat=2) if c not in safe]
    edge = sorted({c for t in told for c in around(size, t) if c not in safe})
    rest = [c for c in cells if c not in edge]
    diagonal = {(i, i) for i in range(2, size)}
    rest_diagonal = sum(c in diagonal for c in rest)
    asks = {t: [c for c in around(size, t) if c in edge] for t in told}
    touching = {c: [t for t in told if c in asks[t]] for c in edge}
    weights: dict[Cell, float] = dict.fromkeys(cells, 0.0)
    total = [0.0]
    need, room = dict(told), {t: len(a) for t, a in asks.items()}
    chosen: list[Cell] = []

    def lay(at: int) -> None:
        left = traps - len(chosen)
        if left < 0:
            return
        if at == len(edge):
            if any(need.values()):
                return
            here = sum(c in diagonal for c in chosen)
            weight, off, on = _spread(left, here, len(rest), rest_diagonal)
            total[0] += weight
            for c in chosen:
                weights[c] += weight
            for c in rest:
                weights[c] += on if c in diagonal else off
            return
        cell = edge[at]
        for trap in (0, 1):
            for t in touching[cell]:
                need[t] -= trap
                room[t] -= 1
            if trap:
                chosen.append(cell)
            if all(0 <= need[t] <= room[t] for t in touching[cell]):
                lay(at + 1)
            if trap:
                chosen.pop()
            for t in touching[cell]:
                need[t] += trap
                room[t] += 1

    lay(0)
    return {c: w / total[0] for c, w in weights.items()} if total[0] else dict.fromkeys(cells, 0.5)


def _spread(left: int, here: int, rest: int, diagonal: int) -> tuple[float, float, float]:
    """(weight of all ways to lay the rest, that a given cell of it is a trap: off the diagonal, on it).

    Args:
        left: traps to lay; here: traps on the diagonal by now; rest, diagonal: cells there are, and those on it.
    """
    ways = math.comb(rest, left) if left <= rest else 0
    if not ways:
        return 0.0, 0.0, 0.0
    share = left / rest if rest else 0.0
    pair = (left - 1) / (rest - 1) if rest > 1 and left else 0.0
    on = here + 1 + (diagonal - 1) * pair
    return ways * (here + diagonal * share), ways * share * (here + diagonal * pair), ways * share * on
