"""MagneticField: fields push whoever stops on them; which number pushes which way must be found out."""

from __future__ import annotations

import random
from functools import cache
from itertools import permutations, product
from typing import Any

from .base import Game, Row, Solver, Step, choice, heard, over, sample, shuffled
from .graphs import COMPASS, SCREEN, distances, inside
from .parse import Form

Cell = tuple[int, int]
LOSES = "-1 -1 You lose!"


def moved(grid: list[list[str]], at: Cell, d: str, names: dict[str, str], wall_loses: bool = False) -> Cell | None:
    """Where a step ends after all pushes, None where it is lost.

    Args:
        names: what stands in a cell -> N, E, S or W.
        wall_loses: a push against the border loses.
    """
    size = len(grid)

    def stepped(cell: Cell, by: tuple[int, int]) -> Cell:
        to = (cell[0] + by[0], cell[1] + by[1])
        return to if inside(size, *to) else cell

    at, seen = stepped(at, SCREEN[d]), set()
    while True:
        what = grid[at[0] - 1][at[1] - 1]
        if what == "X":
            return None
        if what not in names:
            return at
        to = stepped(at, COMPASS[names[what]])
        if to == at:
            return None if wall_loses else at
        if at in seen:
            return None
        seen.add(at)
        at = to


class MagneticField(Game):
    """See the module; quirks `magnet.wall_loses` (a push against the border), `magnet.fixed_numbers` (1 is N...)."""

    name, kind = "MagneticField", "so"
    LEVELS = {"easy": {"size": 3}, "medium": {"size": 4}, "hard": {"size": 5}}
    QUIRKS = ("magnet.wall_loses", "magnet.fixed_numbers")
    FORMS = (Form("move", "My Move:_<[UDLR]>"),)
    NO_FORM = "Invalid format. Use 'My Move: X' where X is U, D, L, or R"
    FIELDS = {"graph": dict, "numbers": dict}
    DRAWN = ("numbers",)
    luck = True

    @classmethod
    def draw(cls, rng: random.Random, size: int) -> Row:
        """See Game."""
        while True:
            grid = [["."] * size for _ in range(size)]
            grid[-1][-1] = "G"
            inner = choice(rng, range(2, size))
            cells = [(x, y) for x in range(1, size + 1) for y in range(1, size + 1)]
            free = [c for c in cells if c not in ((1, 1), (size, size), (inner, inner))]
            taken = sample(rng, free, size - 3 + size)
            dangers = [(inner, inner), *taken[: size - 3]]
            for x, y in dangers:
                grid[x - 1][y - 1] = "X"
            for x, y in taken[size - 3 :]:
                grid[x - 1][y - 1] = choice(rng, list(COMPASS))
            if _reaches(grid, False):
                break
        numbers = dict(zip(COMPASS, shuffled(rng, (1, 2, 3, 4)), strict=True))
        graph = {"size": size, "grid": grid, "danger_zones": [list(c) for c in dangers]}
        return {"scale": size, "graph": graph, "numbers": numbers}

    def begin(self) -> None:
        """See Game."""
        self.grid = self.row["graph"]["grid"]
        self.size, self.at = len(self.grid), (1, 1)
        fixed = dict(zip(COMPASS, (1, 2, 3, 4), strict=True))
        self.numbers = fixed if self.quirk("magnet.fixed_numbers") else self.row.get("numbers", fixed)
        if sorted(self.numbers) != sorted(COMPASS) or any(len(row) != self.size for row in self.grid):
            raise ValueError("the four fields have no numbers, or the grid is no square")

    def shown(self) -> list[list[str]]:
        """The grid as the player sees it."""
        return [[str(self.numbers.get(c, c)) for c in row] for row in self.grid]

    def tell(self) -> str:
        """See Game."""
        lines = "\n".join(" ".join(row) for row in self.shown())
        return (
            f"Get from row 1, column 1 of a grid to the goal G, past the dangers X:\n{lines}\n"
            "The numbers 1 to 4 are magnetic fields. Each number pushes one way, up, right, down or left, and which "
            "one you must find out. When you stop on a field you are pushed one cell its way, again and again while "
            "you are on fields; a field that would push you off the grid leaves you on it. You lose on a danger, also "
            "in passing, and when pushes go round for ever. You win when you stop at G.\n"
            "- `My Move: R` steps right; U is up, D down, L left. A step off the grid leaves you where you are, and a "
            "field there pushes again. I reply with your row and column, or WIN, or that you lose."
        )

    def play(self, kind: str, said: list[Any]) -> Step:
        """See Game."""
        d = said[0].upper()
        to = moved(self.grid, self.at, d, {c: c for c in COMPASS}, self.quirk("magnet.wall_loses"))
        result = f"My Move: {d}"
        if to is None:
            return over(result, LOSES, False)
        self.at = to
        if self.grid[to[0] - 1][to[1] - 1] == "G":
            return over(result, "WIN", True)
        return heard(result, f"{to[0]} {to[1]}")

    def legal(self, rng: random.Random, most: int = 64) -> list[str]:
        """See Game."""
        return [f"My Move: {d}" for d in SCREEN]

    def solve(self, rng: random.Random, rounds: int) -> Solver:
        """The move of the greatest chance to win over all 24 meanings of the numbers, in the rounds there are."""
        grid, at, wall = self.shown(), (1, 1), self.quirk("magnet.wall_loses")
        meanings = [dict(zip("1234", p, strict=True)) for p in permutations(COMPASS)]
        if self.quirk("magnet.fixed_numbers"):
            meanings = [dict(zip("1234", COMPASS, strict=True))]
        #: by cell and move: where it ends -> bits of the meanings by which it does
        ends: dict[tuple[Cell, str], dict[Cell | None, int]] = {}
        for x, y, d in product(range(1, self.size + 1), range(1, self.size + 1), SCREEN):
            named = ends.setdefault(((x, y), d), {})
            for i, names in enumerate(meanings):
                end = moved(grid, (x, y), d, names, wall)
                named[end] = named.get(end, 0) | 1 << i
        worth = _worth(ends, (self.size, self.size))
        left = (1 << len(meanings)) - 1
        while True:
            d = max(SCREEN, key=lambda d: worth(at, d, left, rounds))
            end = tuple(map(int, (yield f"My Move: {d}").split()))
            rounds -= 1
            left &= ends[at, d][end[0], end[1]]
            at = (end[0], end[1])

    def verdict(self, turns: Any) -> bool:
        """See Game."""
        return bool(turns) and turns[-1][1] == "WIN"

    def faults(self) -> list[tuple[str, str]]:
        """See Game."""
        found = []
        if not _reaches(self.grid, self.quirk("magnet.wall_loses")):
            found.append(("unsolvable", "the goal cannot be reached by the rules in force"))
        if self.quirk("magnet.wall_loses") and not _reaches(self.grid, False):
            found.append(("unsolvable by the prompt", "the goal cannot be reached where a border stops a push"))
        return found


def _reaches(grid: list[list[str]], wall_loses: bool) -> bool:
    names = {c: c for c in COMPASS}
    size = len(grid)

    def steps(at: Cell) -> list[Cell]:
        ends = [moved(grid, at, d, names, wall_loses) for d in SCREEN]
        return [e for e in ends if e is not None]

    return (size, size) in distances((1, 1), steps)


def _worth(ends: dict[tuple[Cell, str], dict[Cell | None, int]], goal: Cell) -> Any:
    """(cell, move, bits of meanings, rounds) -> meanings won by the best play from there; sooner is a little better."""

    @cache
    def best(at: Cell, left: int, rounds: int) -> float:
        return max(worth(at, d, left, rounds) for d in SCREEN) if rounds else 0.0

    def worth(at: Cell, d: str, left: int, rounds: int) -> float:
        total = 0.0
        for end, bits in ends[at, d].items():
            if now := left & bits:
                if end == goal:
                    total += now.bit_count() * (1 + 0.001 * rounds)
                elif end is not None and (end, now) != (at, left):
                    total += best(end, now, rounds - 1)
        return total

    return worth
