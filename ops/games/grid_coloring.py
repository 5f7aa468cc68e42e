"""GridColoring: cells are coloured at random; find a rectangle whose corners have four colours."""

from __future__ import annotations

import random
import re
from collections import Counter
from itertools import combinations, product
from typing import Any

from .base import Game, Refused, Row, Solver, Step, between, heard, over, sample
from .graphs import inside
from .parse import Form

Cell = tuple[int, int]


class GridColoring(Game):
    """See the module; quirk `coloring.one_colour`: all cells begin with one colour, and bad answers go on."""

    name, kind = "GridColoring", "sg"
    LEVELS = {"easy": {"size": 30}, "medium": {"size": 20}, "hard": {"size": 10}}
    QUIRKS = ("coloring.one_colour",)
    FORMS = (Form("answer", "My Answer:_INT.INT.INT.INT"), Form("color", "My Choice:_INT.INT"))
    NO_FORM = "Invalid format. Use 'My Choice: x y' or 'My Answer: x1 x2 y1 y2'"
    FIELDS = {"colored_cells": dict, "scale": int, "turns": (int, float)}
    OPPONENTS = ("random", "greedy")

    @classmethod
    def draw(cls, rng: random.Random, size: int) -> Row:
        """See Game."""
        cells = list(product(range(1, size + 1), repeat=2))
        while True:
            some = sorted(sample(rng, cells, between(rng, size, 2 * size - 1)))
            colors = {c: between(rng, 1, 2 * size) for c in some}
            if len(set(colors.values())) >= 3 and not any(_four(colors, r) for r in _rectangles(colors)):
                colored = {f"({x}, {y})": color for (x, y), color in colors.items()}
                return {"scale": size, "colored_cells": colored, "turns": 10}

    def begin(self) -> None:
        """See Game."""
        self.size, self.chosen = self.row["scale"], 0
        self.colors: dict[Cell, int] = {}
        for text, color in self.row["colored_cells"].items():
            x, y = map(int, re.findall(r"\d+", text))
            self.colors[x, y] = int(color)

    def tell(self) -> str:
        """See Game."""
        shown = ", ".join(f"({x},{y}) {color}" for (x, y), color in sorted(self.colors.items()))
        return (
            f"A grid has {self.size} rows and {self.size} columns. Some cells are coloured; row, column and colour: "
            f"{shown}. Find rows x1 and x2 and columns y1 and y2 whose four crossings are coloured with four "
            "different colours.\n"
            "- `My Choice: 1 2` has the cell in row 1, column 2, which has no colour yet, coloured by me with one of "
            f"the colours 1 to {2 * self.size}. I reply with it.\n"
            "- `My Answer: 1 2 3 4` says that rows 1 and 2 and columns 3 and 4 do it. I reply Win when it is right; "
            "else you have lost."
        )

    def play(self, kind: str, said: list[Any]) -> Step:
        """See Game."""
        if kind == "color":
            cell = (said[0], said[1])
            if not inside(self.size, *cell) or cell in self.colors:
                reason = "rule" if cell in self.colors else "range"
                raise Refused("Invalid move: Cell already colored or out of bounds", reason)
            self.chosen += 1
            self.colors[cell] = self._color()
            result = f"My Choice: {said[0]} {said[1]}"
            if self.chosen >= 10 and self.quirk("coloring.one_colour"):
                return heard(result, "Maximum moves reached")
            return heard(result, f"Cell ({cell[0]},{cell[1]}) colored with color {self.colors[cell]}")
        x1, x2, y1, y2 = said
        corners = list(product((x1, x2), (y1, y2)))
        result = f"My Answer:{x1} {x2} {y1} {y2}"
        if not all(inside(self.size, *c) for c in corners):
            wrong = "Coordinates out of bounds"
        elif x1 == x2 or y1 == y2:
            wrong = "Not a valid rectangle"
        elif not all(c in self.colors for c in corners):
            wrong = "Not all cells are colored"
        elif len({self.colors[c] for c in corners}) < 4:
            wrong = "Colors must be different"
        else:
            return over(result, "Win", True, True)
        if self.quirk("coloring.one_colour"):
            raise Refused(wrong)
        return over(result, wrong, False, True)

    def _color(self) -> int:
        if self.opponent == "greedy":
            # The colour there is most of repeats most easily.
            return Counter(self.colors.values()).most_common(1)[0][0]
        return between(self.rng, 1, 2 * self.size)

    def legal(self, rng: random.Random, most: int = 64) -> list[str]:
        """See Game."""
        cells = [c for c in product(range(1, self.size + 1), repeat=2) if c not in self.colors]
        found = [f"My Choice: {x} {y}" for x, y in sample(rng, cells, most)]
        answers = [
            r for r in _rectangles(self.colors) if not self.quirk("coloring.one_colour") or _four(self.colors, r)
        ]
        return found[: most - 4] + [f"My Answer: {a} {b} {c} {d}" for a, b, c, d in sample(rng, answers, 4)]

    def solve(self, rng: random.Random, rounds: int) -> Solver:
        """The rectangle of most corners with different colours; its other corners are coloured, or another is taken."""
        colors = dict(self.colors)
        while True:
            best = max(_near(colors, self.size), key=lambda r: (r[0], rng.random()))[1]
            missing = [c for c in product(best[:2], best[2:]) if c not in colors]
            if not missing:
                yield f"My Answer: {best[0]} {best[1]} {best[2]} {best[3]}"
                continue
            cell = missing[0]
            told = yield f"My Choice: {cell[0]} {cell[1]}"
            colors[cell] = int(told.rpartition(" ")[2]) if told[-1].isdigit() else 0

    def verdict(self, turns: Any) -> bool:
        """See Game."""
        answers = [reply for result, reply in turns if str(result).startswith("My Answer:")]
        return bool(answers) and answers[0] == "Win"

    def faults(self) -> list[tuple[str, str]]:
        """See Game."""
        return []


def _four(colors: dict[Cell, int], r: tuple[int, int, int, int]) -> bool:
    return len({colors[c] for c in product(r[:2], r[2:])}) == 4


def _rectangles(colors: dict[Cell, int]) -> list[tuple[int, int, int, int]]:
    """Rows and columns whose crossings are all coloured."""
    rows: dict[int, set[int]] = {}
    for x, y in colors:
        rows.setdefault(x, set()).add(y)
    found = []
    for x1, x2 in combinations(sorted(rows), 2):
        found += [(x1, x2, y1, y2) for y1, y2 in combinations(sorted(rows[x1] & rows[x2]), 2)]
    return found


def _near(colors: dict[Cell, int], size: int) -> list[tuple[int, tuple[int, int, int, int]]]:
    """(coloured corners, rectangle) of those whose coloured corners all differ; from pairs of coloured cells."""
    found = []
    cells = sorted(colors)
    for (x1, y1), (x2, y2) in combinations(cells, 2):
        if x1 != x2 and y1 != y2:
            named = [(x1, x2, min(y1, y2), max(y1, y2))]
        elif x1 == x2:
            other = [x for x in range(1, size + 1) if x != x1][:1] + [x for x, y in cells if x != x1 and y in (y1, y2)][
                :3
            ]
            named = [(min(x1, x), max(x1, x), y1, y2) for x in other]
        else:
            named = []
        for r in named:
            there = [colors[c] for c in product(r[:2], r[2:]) if c in colors]
            if len(set(there)) == len(there):
                found.append((len(there), r))
    return found or [(0, (1, 2, 1, 2))]
