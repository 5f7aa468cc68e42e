"""ColorMagic: three operations that turn colours of a cell and its neighbours; make the grid one colour."""

from __future__ import annotations

import random
from itertools import combinations, product
from typing import Any

from .base import Game, Refused, Row, Solver, Step, between, choice, heard, over, sample, shuffled
from .parse import Form

COLORS = "RBY"
#: steps along COLORS of the cell itself and of its neighbours
EFFECT = {"alpha": (1, 2), "beta": (2, 1), "gamma": (0, 1)}
Grid = tuple[int, ...]


def near(size: int, cell: int) -> list[int]:
    """Cells that share an edge with a cell, from 0."""
    x, y = divmod(cell, size)
    steps = ((x - 1, y), (x + 1, y), (x, y - 1), (x, y + 1))
    return [a * size + b for a, b in steps if 0 <= a < size and 0 <= b < size]


def turned(size: int, effect: tuple[int, int], cell: int, times: int = 1) -> Grid:
    """What an operation adds to every cell, modulo 3."""
    found = [0] * (size * size)
    found[cell] = effect[0] * times % 3
    for other in near(size, cell):
        found[other] = effect[1] * times % 3
    return tuple(found)


def plus(a: Grid, b: Grid) -> Grid:
    """Cell by cell, modulo 3."""
    return tuple((x + y) % 3 for x, y in zip(a, b, strict=True))


class ColorMagic(Game):
    """See the module; quirk `color.beta_is_alpha`: two operations are the same, numbers are 2, 1, 3 in all rows."""

    name, kind = "ColorMagic", "so"
    LEVELS = {"easy": {"size": 3, "moves": 2}, "medium": {"size": 4, "moves": 3}, "hard": {"size": 5, "moves": 4}}
    QUIRKS = ("color.beta_is_alpha",)
    FORMS = (Form("move", "My Move:_INT.INT"),)
    NO_FORM = "Invalid format. Use 'My Move: OPERATION POSITION'"
    FIELDS = {"graph": dict, "numbers": dict}
    DRAWN = ("numbers",)

    @classmethod
    def draw(cls, rng: random.Random, size: int, moves: int) -> Row:
        """See Game."""
        grid = (0,) * (size * size)
        while len(set(grid)) == 1:
            grid = (between(rng, 0, 2),) * (size * size)
            for _ in range(moves):
                grid = plus(grid, turned(size, EFFECT[choice(rng, list(EFFECT))], between(rng, 0, size * size - 1)))
        rows = [[COLORS[grid[x * size + y]] for y in range(size)] for x in range(size)]
        numbers = dict(zip(EFFECT, shuffled(rng, (1, 2, 3)), strict=True))
        return {"scale": size, "graph": {"size": size, "initial_state": rows}, "numbers": numbers}

    def begin(self) -> None:
        """See Game."""
        graph = self.row["graph"]
        self.size = int(graph["size"])
        self.grid: Grid = tuple(COLORS.index(c) for row in graph["initial_state"] for c in row)
        same = self.quirk("color.beta_is_alpha")
        numbers = {"alpha": 2, "beta": 1, "gamma": 3} if same else self.row.get("numbers", {})
        self.effect = {int(n): EFFECT["alpha" if same and name == "beta" else name] for name, n in numbers.items()}
        if sorted(self.effect) != [1, 2, 3] or len(self.grid) != self.size**2:
            raise ValueError("the operations have no numbers 1 to 3, or the grid is no square")

    def shown(self) -> str:
        """The grid in lines."""
        letters = [COLORS[c] for c in self.grid]
        return "\n".join(" ".join(letters[i : i + self.size]) for i in range(0, len(letters), self.size))

    def tell(self) -> str:
        """See Game."""
        return (
            f"A grid of {self.size} rows and {self.size} columns has cells of the colours R, B and Y, numbered 1 to "
            f"{self.size**2} from left to right and top to bottom. Three operations have the numbers 1, 2, 3; which "
            "is which you must find out:\n"
            "- one turns the cell R to B, B to Y, Y to R, and its neighbours above, below, left and right the other "
            "way, R to Y, Y to B, B to R;\n"
            "- one turns the cell the other way, and the neighbours R to B, B to Y, Y to R;\n"
            "- one leaves the cell, and turns the neighbours R to B, B to Y, Y to R.\n"
            f"Make all cells one colour. The grid is\n{self.shown()}\n"
            "- `My Move: 2 5` does operation 2 at cell 5. I reply with the grid, after Win when all cells are alike."
        )

    def play(self, kind: str, said: list[Any]) -> Step:
        """See Game."""
        number, cell = said
        if number not in self.effect or not 1 <= cell <= self.size**2:
            raise Refused("Invalid operation or position")
        self.grid = plus(self.grid, turned(self.size, self.effect[number], cell - 1))
        result = f"My Move: {number} {cell}"
        return over(result, f"Win\n{self.shown()}", True) if len(set(self.grid)) == 1 else heard(result, self.shown())

    def legal(self, rng: random.Random, most: int = 64) -> list[str]:
        """See Game."""
        return sample(rng, [f"My Move: {n} {c}" for n in (1, 2, 3) for c in range(1, self.size**2 + 1)], most)

    def solve(self, rng: random.Random, rounds: int) -> Solver:
        """A cheapest sum of at most four operations and cells, met in the middle; a number is told by what it does."""
        size, grid = self.size, self.grid
        known: dict[int, str] = (
            dict.fromkeys((1, 2), "alpha") | {3: "gamma"} if self.quirk("color.beta_is_alpha") else {}
        )
        todo = _plan(size, grid, not known)
        while True:
            (name, cell), times = next(((k, t) for k, t in todo.items() if t), (("gamma", 0), 1))
            # Alpha twice is beta once.
            wanted = "beta" if name == "alpha" and times == 2 else name
            numbers = [
                n for n in (1, 2, 3) if known.get(n) in (wanted, None) and (n in known or wanted not in known.values())
            ]
            numbers = numbers or [n for n in (1, 2, 3) if known.get(n) == name]
            reply = yield f"My Move: {numbers[0]} {cell + 1}"
            now = tuple(COLORS.index(c) for c in reply.split() if c in COLORS)
            done = tuple((b - a) % 3 for a, b in zip(grid, now, strict=True))
            did = next(n for n, e in EFFECT.items() if turned(size, e, cell) == done)
            known[numbers[0]], grid = did, now
            if len(known) == 2:
                known[({1, 2, 3} - set(known)).pop()] = (set(EFFECT) - set(known.values())).pop()
            at = ("gamma" if did == "gamma" else "alpha", cell)
            todo[at] = (todo.get(at, 0) - (2 if did == "beta" else 1)) % 3

    def verdict(self, turns: Any) -> bool:
        """See Game."""
        return any("win" in reply.lower() for _, reply in turns)


def _plan(size: int, grid: Grid, inverse: bool) -> dict[tuple[str, int], int]:
    """Times of (alpha or gamma, cell) that make the grid one colour, with the fewest moves.

    Args:
        inverse: alpha twice is one move.
    """
    cells = range(size * size)
    items = [(name, cell, times) for name, cell, times in product(("alpha", "gamma"), cells, (1, 2))]
    cost = {("alpha", 1): 1, ("alpha", 2): 1 if inverse else 2, ("gamma", 1): 1, ("gamma", 2): 2}
    vector = {item: turned(size, EFFECT[item[0]], item[1], item[2]) for item in items}
    halves: dict[Grid, tuple[int, tuple[Any, ...]]] = {(0,) * len(grid): (0, ())}
    pairs = [((i,), vector[i]) for i in items] + [
        ((i, j), plus(vector[i], vector[j])) for i, j in combinations(items, 2)
    ]
    for chosen, total in pairs:
        price = sum(cost[i[0], i[2]] for i in chosen)
        if total not in halves or price < halves[total][0]:
            halves[total] = price, chosen
    best: tuple[int, tuple[Any, ...]] = (99, ())
    for color in range(3):
        need = tuple((color - c) % 3 for c in grid)
        for total, (price, chosen) in halves.items():
            if price < best[0]:
                rest = halves.get(tuple((n - t) % 3 for n, t in zip(need, total, strict=True)))
                if rest is not None and price + rest[0] < best[0]:
                    best = price + rest[0], chosen + rest[1]
    found: dict[tuple[str, int], int] = {}
    for name, cell, times in best[1]:
        found[name, cell] = (found.get((name, cell), 0) + times) % 3
    return found
