"""VladikMaze: a maze with dangers in which left and right, or up and down, may be swapped."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from .base import Game, Row, Solver, Step, between, choice, heard, over, pick, shuffled
from .graphs import SCREEN, way
from .parse import Form

Cell = tuple[int, int]
SWAPPED = {"L": "R", "R": "L", "U": "D", "D": "U"}
COLUMNS = 4
Case = tuple[bool, bool]  # L and R are swapped, U and D are


class VladikMaze(Game):
    """See the module; quirk `vladik.some_swap`: one pair is surely swapped, and drawn as play begins."""

    name, kind = "VladikMaze", "so"
    LEVELS = {
        "easy": {"n": 4, "low": 3, "high": 5},
        "medium": {"n": 5, "low": 4, "high": 6},
        "hard": {"n": 6, "low": 5, "high": 8},
    }
    QUIRKS = ("vladik.some_swap",)
    FORMS = (Form("move", "My Move:_<[UDLR]>"),)
    NO_FORM = "Invalid format. Use 'My Move: X' where X is U, D, L, or R"
    FIELDS = {"grids": list, "swaps": dict}
    DRAWN = ("swaps",)

    @classmethod
    def draw(cls, rng: random.Random, n: int, low: int, high: int) -> Row:
        """See Game."""
        grid = [["."] * COLUMNS for _ in range(n)]
        cells = [(x, y) for x in range(n) for y in range(COLUMNS) if x or y]
        fx, fy = choice(rng, cells)
        grid[fx][fy] = "F"
        wanted = between(rng, low, high)
        for x, y in shuffled(rng, [c for c in cells if c != (fx, fy)]):
            if wanted:
                grid[x][y] = "*"
                if _way(grid, (1, 1)) is None:
                    grid[x][y] = "."
                else:
                    wanted -= 1
        return {"scale": n, "grids": grid, "swaps": {"LR": bool(pick(rng, 2)), "UD": bool(pick(rng, 2))}}

    def begin(self) -> None:
        """See Game."""
        self.grid, self.at = self.row["grids"], (1, 1)
        self.grid[0][0].lower()
        if len({len(row) for row in self.grid}) != 1:
            raise ValueError("the rows of the grid differ in length")
        swaps = self.row.get("swaps")
        if swaps is None:
            sure, other = choice(self.rng, ("LR", "UD")), bool(pick(self.rng, 2))
            swaps = {"LR": sure == "LR" or other, "UD": sure == "UD" or other}
        self.case: Case = (bool(swaps["LR"]), bool(swaps["UD"]))

    def tell(self) -> str:
        """See Game."""
        lines = "\n".join(" ".join(row) for row in self.grid)
        return (
            f"Get from row 1, column 1 of a grid to F, past the dangers *:\n{lines}\n"
            "The buttons L and R may be swapped, and so may U and D; you must find out.\n"
            "- `My Move: R` presses the button R; the others are L, U and D. I reply with your row and column; they "
            "stay the same where you would leave the grid. On a danger you lose."
        )

    def _to(self, at: Cell, d: str, case: Case) -> Cell:
        d = SWAPPED[d] if case[0 if d in "LR" else 1] else d
        to = (at[0] + SCREEN[d][0], at[1] + SCREEN[d][1])
        return to if 1 <= to[0] <= len(self.grid) and 1 <= to[1] <= len(self.grid[0]) else at

    def _what(self, cell: Cell) -> str:
        return self.grid[cell[0] - 1][cell[1] - 1]

    def play(self, kind: str, said: list[Any]) -> Step:
        """See Game."""
        d = said[0].upper()
        self.at, result = self._to(self.at, d, self.case), f"My Move: {d}"
        what = self._what(self.at)
        if what == "*":
            return over(result, "-1 -1 You lose!", False)
        if what == "F":
            return over(result, f"{self.at[0]} {self.at[1]} You win!", True)
        return heard(result, f"{self.at[0]} {self.at[1]}")

    def legal(self, rng: random.Random, most: int = 64) -> list[str]:
        """See Game."""
        return [f"My Move: {d}" for d in SCREEN]

    def solve(self, rng: random.Random, rounds: int) -> Solver:
        """Moves that are safe in all cases, to where one tells the cases apart; then the shortest way."""
        cases: list[Case] = [(a, b) for a in (False, True) for b in (False, True)]
        if self.quirk("vladik.some_swap"):
            cases.remove((False, False))
        at = (1, 1)
        while True:
            d = self._next(at, cases, rng)
            told = yield f"My Move: {d}"
            to = tuple(map(int, told.split()[:2]))
            cases = [c for c in cases if self._to(at, d, c) == to]
            at = (to[0], to[1])

    def _next(self, at: Cell, cases: list[Case], rng: random.Random) -> str:
        def ends(cell: Cell, d: str) -> set[Cell]:
            return {self._to(cell, d, c) for c in cases}

        def steps(cell: Cell) -> Iterator[Cell]:
            for d in SCREEN:
                to = ends(cell, d)
                if len(to) == 1 and self._what(next(iter(to))) != "*":
                    yield next(iter(to))

        def splits(cell: Cell) -> list[str]:
            tells = [d for d in SCREEN if len(ends(cell, d)) > 1]
            return [d for d in tells if all(self._what(c) != "*" for c in ends(cell, d))]

        found = way(at, lambda c: self._what(c) == "F" or bool(splits(c)), steps)
        if found and len(found) == 1 and splits(at):
            return splits(at)[0]
        if found and len(found) > 1:
            return next(d for d in SCREEN if ends(at, d) == {found[1]})
        # Nothing is safe in every case: the move that loses in the fewest.
        return min(
            SCREEN, key=lambda d: (sum(self._what(self._to(at, d, c)) == "*" for c in cases), ends(at, d) == {at})
        )

    def verdict(self, turns: Any) -> bool:
        """See Game."""
        return bool(turns) and "win" in turns[-1][1]

    def faults(self) -> list[tuple[str, str]]:
        """See Game."""
        return [] if _way(self.grid, (1, 1)) else [("unsolvable", "there is no way to F")]


def _way(grid: list[list[str]], start: Cell) -> list[Cell] | None:
    def steps(cell: Cell) -> Iterator[Cell]:
        for a, b in SCREEN.values():
            x, y = cell[0] + a, cell[1] + b
            if 1 <= x <= len(grid) and 1 <= y <= len(grid[0]) and grid[x - 1][y - 1] != "*":
                yield x, y

    return way(start, lambda c: grid[c[0] - 1][c[1] - 1] == "F", steps)
