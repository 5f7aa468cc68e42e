"""DarkMaze: a maze whose walls are found by running into them."""

from __future__ import annotations

import random
from typing import Any

from .base import Game, Row, Solver, Step, choice, heard, over, shuffled
from .graphs import COMPASS, distances, inside, way
from .parse import Form

Cell = tuple[int, int]
OPPOSITE = {"N": "S", "S": "N", "E": "W", "W": "E"}


class DarkMaze(Game):
    """See the module; quirks `maze.one_way` (walls of one side), `maze.outside_ends` (of a step off the grid)."""

    name, kind, title = "DarkMaze", "so", "DarkMazeExplorer"
    LEVELS = {"easy": {"size": 2}, "medium": {"size": 3}, "hard": {"size": 4}}
    QUIRKS = ("maze.one_way", "maze.outside_ends")
    FORMS = (Form("move", "My Choice:_<[NESW]>"),)
    NO_FORM = "Invalid format. Use 'My Choice: X' where X is N, E, S, or W"
    FIELDS = {"maze": dict}
    luck = True

    @classmethod
    def draw(cls, rng: random.Random, size: int) -> Row:
        """See Game."""
        cells = [(x, y) for x in range(1, size + 1) for y in range(1, size + 1)]
        walls = {c: set(COMPASS) for c in cells}

        def open_(cell: Cell, d: str) -> None:
            other = (cell[0] + COMPASS[d][0], cell[1] + COMPASS[d][1])
            walls[cell].discard(d)
            walls[other].discard(OPPOSITE[d])

        there = {choice(rng, cells)}
        while len(there) < len(cells):
            edges = [
                (c, d) for c in sorted(there) for d, (a, b) in COMPASS.items()
                if inside(size, c[0] + a, c[1] + b) and (c[0] + a, c[1] + b) not in there
            ]  # fmt: skip
            cell, d = choice(rng, edges)
            open_(cell, d)
            there.add((cell[0] + COMPASS[d][0], cell[1] + COMPASS[d][1]))
        for cell in cells:
            for d in ("E", "S"):
                there_is = inside(size, cell[0] + COMPASS[d][0], cell[1] + COMPASS[d][1])
                if size > 2 and there_is and d in walls[cell] and rng.random() < 0.1:
                    open_(cell, d)
        rooms = {f"{x},{y}": {"walls": [d for d in COMPASS if d in walls[x, y]]} for x, y in cells}
        return {"scale": size, "maze": {"size": size, "rooms": rooms}}

    def begin(self) -> None:
        """See Game."""
        maze = self.row["maze"]
        self.size, self.at = int(maze["size"]), (1, 1)
        self.walls = {tuple(map(int, k.split(","))): set(room["walls"]) for k, room in maze["rooms"].items()}
        if len(self.walls) != self.size**2:
            raise ValueError("there is not a room for every cell")

    def tell(self) -> str:
        """See Game."""
        n = self.size
        return (
            f"A dark maze has {n} rows and {n} columns of rooms, with walls between some of them that you do not see. "
            f"You stand in row 1, column 1, and must get to row {n}, column {n}. N is up, to a smaller row; S is "
            "down; E is right, to a greater column; W is left.\n"
            "- `My Choice: E` goes east. I reply MOVED, or BLOCKED by a wall, or OUTSIDE where there is no room at "
            "all, or WIN at the goal. When you are blocked you stay where you are."
        )

    def play(self, kind: str, said: list[Any]) -> Step:
        """See Game."""
        d = said[0].upper()
        result = f"My Choice: {d}"
        to = (self.at[0] + COMPASS[d][0], self.at[1] + COMPASS[d][1])
        if not inside(self.size, *to):
            return heard(result, "INVALID" if self.quirk("maze.outside_ends") else "OUTSIDE")
        if d in self.walls[self.at]:
            return heard(result, "BLOCKED")
        self.at = to
        return over(result, "WIN", True) if to == (self.size, self.size) else heard(result, "MOVED")

    def legal(self, rng: random.Random, most: int = 64) -> list[str]:
        """See Game."""
        x, y = self.at
        return [f"My Choice: {d}" for d, (a, b) in COMPASS.items() if inside(self.size, x + a, y + b)]

    def solve(self, rng: random.Random, rounds: int) -> Solver:
        """The shortest way as if unknown walls were open, planned anew at each wall."""
        at, goal, shut = (1, 1), (self.size, self.size), set()
        one_way = self.quirk("maze.one_way")

        def steps(cell: Cell) -> list[Cell]:
            to = [(cell[0] + a, cell[1] + b) for a, b in order]
            return [c for c in to if inside(self.size, *c) and (cell, c) not in shut]

        while True:
            order = shuffled(rng, list(COMPASS.values()))
            found = way(at, lambda c: c == goal, steps) or [at, *steps(at)]
            to = found[1] if len(found) > 1 else at
            d = next((d for d, s in COMPASS.items() if (at[0] + s[0], at[1] + s[1]) == to), "N")
            reply = yield f"My Choice: {d}"
            if reply == "BLOCKED":
                shut |= {(at, to)} if one_way else {(at, to), (to, at)}
            elif reply == "MOVED":
                at = to

    def verdict(self, turns: Any) -> bool:
        """See Game."""
        return bool(turns) and "WIN" in turns[-1][1]

    def faults(self) -> list[tuple[str, str]]:
        """See Game."""
        found = []
        for cell, walls in self.walls.items():
            for d, (a, b) in COMPASS.items():
                to = (cell[0] + a, cell[1] + b)
                if inside(self.size, *to) and (d in walls) != (OPPOSITE[d] in self.walls[to]):
                    found = [("structure", f"a door of room {cell[0]},{cell[1]} opens one way only")]

        def steps(cell: Cell) -> list[Cell]:
            to = [(cell[0] + a, cell[1] + b) for d, (a, b) in COMPASS.items() if d not in self.walls[cell]]
            return [c for c in to if inside(self.size, *c)]

        if (self.size, self.size) not in distances((1, 1), steps):
            found.append(("unsolvable", "there is no way to the goal"))
        return found
