"""FindBiggest: two treasures on a grid; directions to the nearest one are wrong half of the time."""

from __future__ import annotations

import random
from typing import Any

from .base import Game, Refused, Row, Solver, Step, choice, heard, over, sample
from .beliefs import merged
from .graphs import AROUND, around, inside
from .parse import Form

Cell = tuple[int, int]
NAMES = {(a, b): {-1: "N", 0: "", 1: "S"}[a] + {-1: "W", 0: "", 1: "E"}[b] for a, b in AROUND}
#: a treasure of this value is taken without seeing the other
ENOUGH = 94


def direction(at: Cell, to: Cell) -> str:
    """From one cell to another, of the eight winds."""
    return NAMES[(to[0] > at[0]) - (to[0] < at[0]), (to[1] > at[1]) - (to[1] < at[1])]


def nearest(at: Cell, cells: Any) -> Cell:
    """In steps along rows and columns; the first named where two are as near."""
    return min(cells, key=lambda c: abs(c[0] - at[0]) + abs(c[1] - at[1]))


class FindBiggest(Game):
    """See the module; quirk `biggest.collect_anywhere`: COLLECT anywhere in a message with a form is the action."""

    name, kind = "FindBiggest", "so"
    LEVELS = {"easy": {"size": 3}, "medium": {"size": 4}, "hard": {"size": 5}}
    QUIRKS = ("biggest.collect_anywhere",)
    FORMS = (Form("collect", "My Choice:_<COLLECT>"), Form("go", "My Choice:_INT.INT"))
    NO_FORM = "Invalid format. Use 'My Choice: X Y' or 'My Choice: COLLECT'"
    FIELDS = {"graph": dict}
    luck = True

    @classmethod
    def draw(cls, rng: random.Random, size: int) -> Row:
        """See Game."""
        cells = sample(rng, [(x, y) for x in range(1, size + 1) for y in range(1, size + 1) if (x, y) != (1, 1)], 2)
        values = sample(rng, range(30, 100), 2)
        treasures = [{"x": x, "y": y, "value": v} for (x, y), v in zip(cells, values, strict=True)]
        return {"scale": size, "graph": {"grid_size": size, "treasures": treasures}}

    def begin(self) -> None:
        """See Game."""
        graph = self.row["graph"]
        self.size, self.at, self.lied = int(graph["grid_size"]), (1, 1), False
        self.treasure: dict[Cell, int] = {(int(t["x"]), int(t["y"])): int(t["value"]) for t in graph["treasures"]}
        if len(self.treasure) != 2:
            raise ValueError("there are not two treasures")

    def tell(self) -> str:
        """See Game."""
        n = self.size
        return (
            f"Two treasures of different values, 30 to 99, lie on a grid of {n} rows and {n} columns, neither in row "
            "1, column 1, where you stand. Collect the greater one; you collect only once.\n"
            "- `My Choice: 1 2` goes to row 1, column 2, one of the up to eight cells around you. I reply TREASURE v "
            "with its value v, or EMPTY d: the direction d from there to the nearest treasure, in steps along rows "
            "and columns (N is a smaller row, E a greater column, also NE, SE, SW, NW). Half of the time d is wrong, "
            "but never twice running.\n"
            "- `My Choice: COLLECT` takes what lies where you stand. I reply Win, Lose for the smaller one, or Fail."
        )

    def step(self, text: str) -> Step:
        """See Game."""
        if self.quirk("biggest.collect_anywhere") and "COLLECT" in text.rpartition("</think>")[2]:
            # The word is looked for once some form has been found.
            from .parse import read

            try:
                if read(text.rpartition("</think>")[2], self.FORMS, True):
                    return super().step("My Choice: COLLECT")
            except ValueError:
                pass
        return super().step(text)

    def play(self, kind: str, said: list[Any]) -> Step:
        """See Game."""
        if kind == "collect":
            result = "My Choice: COLLECT"
            if self.at not in self.treasure:
                return over(result, "Fail", False)
            best = self.treasure[self.at] == max(self.treasure.values())
            return over(result, "Win" if best else "Lose", best)
        cell = (said[0], said[1])
        far = max(abs(cell[0] - self.at[0]), abs(cell[1] - self.at[1]))
        if not inside(self.size, *cell) or far > 1 or (far == 0 and not self.quirk("biggest.collect_anywhere")):
            raise Refused("INVALID_MOVE", "rule" if inside(self.size, *cell) else "range")
        self.at = cell
        result = f"My Choice: {cell[0]} {cell[1]}"
        if cell in self.treasure:
            return heard(result, f"TREASURE {self.treasure[cell]}")
        true = direction(cell, nearest(cell, self.treasure))
        self.lied = not self.lied and self.rng.random() < 0.5
        shown = choice(self.rng, [d for d in NAMES.values() if d != true]) if self.lied else true
        return heard(result, f"EMPTY {shown}")

    def legal(self, rng: random.Random, most: int = 64) -> list[str]:
        """See Game."""
        return [f"My Choice: {x} {y}" for x, y in around(self.size, self.at)] + ["My Choice: COLLECT"]

    def solve(self, rng: random.Random, rounds: int) -> Solver:
        """Weights of pairs of cells and whether the last direction was wrong; a step to where a treasure is likely."""
        n, at = self.size, (1, 1)
        cells = [(x, y) for x in range(1, n + 1) for y in range(1, n + 1) if (x, y) != (1, 1)]
        belief = merged(((a, b, False), 1.0) for a in cells for b in cells if a != b)
        found: dict[Cell, int] = {}
        while True:
            goal = self._goal(at, found, belief, rounds)
            if goal == at:
                yield "My Choice: COLLECT"
                return
            options = around(n, at)
            near = min(max(abs(c[0] - goal[0]), abs(c[1] - goal[1])) for c in options)
            to = max(
                (c for c in options if max(abs(c[0] - goal[0]), abs(c[1] - goal[1])) == near),
                key=lambda c: (_holds(belief, c) if c not in found else 0.0, rng.random()),
            )
            at = to
            kind, _, told = (yield f"My Choice: {to[0]} {to[1]}").partition(" ")
            rounds -= 1
            if kind == "TREASURE":
                found[to] = int(told)
                belief = merged((s, w) for s, w in belief.items() if to in s[:2])
            else:
                belief = merged(_heard(belief, to, told))

    def _goal(self, at: Cell, found: dict[Cell, int], belief: dict[Any, float], rounds: int) -> Cell:
        best = max(found, key=lambda c: found[c], default=None)
        if best is not None:
            back = max(abs(best[0] - at[0]), abs(best[1] - at[1]))
            if len(found) == 2 or found[best] >= ENOUGH or back + 1 >= rounds:
                return best
        weights = {c: _holds(belief, c) for c in {c for s in belief for c in s[:2]} if c not in found}
        return max(sorted(weights), key=lambda c: weights[c] / (0.6 + max(abs(c[0] - at[0]), abs(c[1] - at[1]))))

    def verdict(self, turns: Any) -> bool:
        """See Game."""
        return bool(turns) and turns[-1][0] == "My Choice: COLLECT" and turns[-1][1] == "Win"


def _holds(belief: dict[Any, float], cell: Cell) -> float:
    return sum(w for (a, b, _), w in belief.items() if cell in (a, b))


def _heard(belief: dict[Any, float], at: Cell, told: str) -> Any:
    for (a, b, lied), weight in belief.items():
        if at in (a, b):
            continue
        if direction(at, nearest(at, (a, b))) == told:
            yield (a, b, False), weight * (1.0 if lied else 0.5)
        elif not lied:
            yield (a, b, True), weight * 0.5 / 7
