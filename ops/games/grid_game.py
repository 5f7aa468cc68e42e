"""GridGame: cells of a grid are taken in turn, each beside a taken one; the smaller sum wins."""

from __future__ import annotations

import random
import re
from itertools import product
from typing import Any

from .base import Game, Refused, Row, Solver, Step, choice, heard, over, sample, shuffled
from .parse import Form

Cell = tuple[int, int]


class GridGame(Game):
    """See the module; quirk `gridsum.inverted`: the closing line says the contrary."""

    name, kind, title = "GridGame", "sg", "GridSum"
    LEVELS = {"easy": {"rows": 3}, "medium": {"rows": 5}, "hard": {"rows": 8}}
    QUIRKS = ("gridsum.inverted",)
    FORMS = (Form("take", "My Choice:_INT.INT"),)
    NO_FORM = "Invalid format. Use 'My Choice: x y'"
    FIELDS = {"scale": list, "initial_grid": dict, "turns": (int, float)}
    OPPONENTS = ("random", "greedy")
    luck = True

    @classmethod
    def draw(cls, rng: random.Random, rows: int) -> Row:
        """See Game."""
        values = shuffled(rng, range(1, 4 * rows + 1))
        cells = product(range(1, rows + 1), range(1, 5))
        grid = {f"({x}, {y})": v for (x, y), v in zip(cells, values, strict=True)}
        return {"scale": [rows, 4], "initial_grid": grid, "turns": 2 * rows}

    def begin(self) -> None:
        """See Game."""
        self.grid: dict[Cell, int] = {}
        for text, value in self.row["initial_grid"].items():
            x, y = map(int, re.findall(r"\d+", text))
            self.grid[x, y] = int(value)
        self.taken: set[Cell] = set()
        self.sums = [0, 0]

    def tell(self) -> str:
        """See Game."""
        rows, columns = self.row["scale"]
        lines = (" ".join(f"{self.grid[x, y]:2}" for y in range(1, columns + 1)) for x in range(1, rows + 1))
        shown = "\n".join(lines)
        return (
            f"We take cells of this grid in turn, you first, until none is left:\n{shown}\n"
            "The first cell may be any; each later one must share an edge with a taken cell. Each of us adds up the "
            "numbers taken. You win when your sum is smaller than mine; when they are alike you lose.\n"
            "- `My Choice: 1 2` takes the cell in row 1, column 2. I reply with the row and column of the cell I "
            "take, and at the end with who has won."
        )

    def _open(self) -> list[Cell]:
        free = [c for c in self.grid if c not in self.taken]
        return [c for c in free if any(n in self.taken for n in _near(c))] if self.taken else free

    def play(self, kind: str, said: list[Any]) -> Step:
        """See Game."""
        cell = (said[0], said[1])
        if cell not in self.grid or cell in self.taken:
            raise Refused("Invalid cell choice", "rule" if cell in self.taken else "range")
        if cell not in self._open():
            raise Refused("Cell must be adjacent to a previous selection", "rule")
        result = f"My Choice: {cell[0]} {cell[1]}"
        self._take(cell, 0)
        reply = ""
        if ways := self._open():
            mine = min(ways, key=self.grid.__getitem__) if self.opponent == "greedy" else choice(self.rng, ways)
            self._take(mine, 1)
            reply = f"My Choice: {mine[0]} {mine[1]}"
        if len(self.taken) < len(self.grid):
            return heard(result, reply)
        a, b = self.sums
        won = a < b
        if self.quirk("gridsum.inverted"):
            closing = f"You lose! Your sum ({a}) < My sum ({b})" if won else f"You win! Your sum ({a}) >= My sum ({b})"
        else:
            closing = f"You win! Your sum ({a}) < My sum ({b})" if won else f"You lose! Your sum ({a}) >= My sum ({b})"
        return over(result, f"{reply}\n{closing}".strip(), won)

    def _take(self, cell: Cell, who: int) -> None:
        self.taken.add(cell)
        self.sums[who] += self.grid[cell]

    def legal(self, rng: random.Random, most: int = 64) -> list[str]:
        """See Game."""
        return [f"My Choice: {x} {y}" for x, y in sample(rng, self._open(), most)]

    def solve(self, rng: random.Random, rounds: int) -> Solver:
        """The smallest cell, a little less so where it opens cells that are small."""
        taken: set[Cell] = set()
        mean = sum(self.grid.values()) / len(self.grid)
        while True:
            free = [c for c in self.grid if c not in taken]
            ways = [c for c in free if not taken or any(n in taken for n in _near(c))]

            def cost(cell: Cell, known: frozenset[Cell] = frozenset(taken)) -> float:
                opened = [n for n in _near(cell) if n in self.grid and n not in known]
                return self.grid[cell] + 0.15 * sum(mean - self.grid[n] for n in opened if self.grid[n] < mean)

            mine = min(ways, key=cost)
            told = yield f"My Choice: {mine[0]} {mine[1]}"
            taken.add(mine)
            x, y = map(int, told.split()[2:4])
            taken.add((x, y))

    def verdict(self, turns: Any) -> bool:
        """See Game."""
        sums = [0, 0]
        for result, reply in turns:
            if result == "Invalid":
                return False
            for who, text in enumerate((str(result), reply)):
                found = re.match(r"My Choice: (\d+) (\d+)", text)
                if found:
                    sums[who] += self.grid[int(found[1]), int(found[2])]
        return sums[0] < sums[1]


def _near(cell: Cell) -> list[Cell]:
    x, y = cell
    return [(x - 1, y), (x + 1, y), (x, y - 1), (x, y + 1)]
