"""AssiutChess: a queen hunts a king that nobody sees, and that says which way it stepped."""

from __future__ import annotations

import random
import re
from functools import cache
from typing import Any

from .base import Game, Refused, Row, Solver, Step, between, choice, heard, over, sample
from .graphs import around, inside
from .parse import Form

Cell = tuple[int, int]
DISCOUNT, SWEEPS = 0.93, 30


def attacks(queen: Cell, cell: Cell) -> bool:
    """Whether a queen may go to another cell."""
    dx, dy = cell[0] - queen[0], cell[1] - queen[1]
    return (dx or dy) != 0 and (dx == 0 or dy == 0 or abs(dx) == abs(dy))


def steps(size: int, queen: Cell, king: Cell) -> list[Cell]:
    """Where the king may step."""
    return [c for c in around(size, king) if c != queen and not attacks(queen, c)]


def direction(old: Cell, new: Cell) -> str:
    """A king's step in words."""
    up = {-1: "Up", 0: "", 1: "Down"}[new[0] - old[0]]
    side = {-1: "Left", 0: "", 1: "Right"}[new[1] - old[1]]
    return "-".join(part for part in (up, side) if part)


class AssiutChess(Game):
    """See the module; quirks `assiut.own_square` (the king's square is refused at first), `assiut.plays_on`."""

    name, kind, title = "AssiutChess", "sg", "AssiutGuess"
    LEVELS = {"easy": {"n": 4}, "medium": {"n": 6}, "hard": {"n": 7}}
    QUIRKS = ("assiut.own_square", "assiut.plays_on")
    FORMS = (Form("move", "My Choice:_INT.INT"),)
    NO_FORM = "Invalid format. Use 'My Choice: x y'"
    FIELDS = {"initial_position": str, "scale": int, "turns": (int, float)}
    OPPONENTS = ("random", "greedy")

    @classmethod
    def draw(cls, rng: random.Random, n: int) -> Row:
        """See Game."""
        return {"scale": n, "initial_position": f"({between(rng, 1, n)}, {between(rng, 1, n)})", "turns": 20}

    def begin(self) -> None:
        """See Game."""
        self.size = self.row["scale"]
        x, y = map(int, re.findall(r"\d+", self.row["initial_position"]))
        if not inside(self.size, x, y):
            raise ValueError("the king is not on the board")
        self.king: Cell = (x, y)
        self.queen: Cell | None = None

    def tell(self) -> str:
        """See Game."""
        return (
            f"A king hides on a board of {self.size} rows and {self.size} columns. You place a queen, and then move "
            "it as queens move, along rows, columns and diagonals; nothing blocks it. After each of your moves the "
            "king steps to one of the up to eight squares around it that the queen does not attack, and I name the "
            "direction: Up is to a smaller row, Right to a greater column, and Down-Right is both. You win when your "
            "queen lands on the king, or when the king has no step: then I reply Done.\n"
            "- `My Choice: 2 3` places or moves the queen to row 2, column 3. It must move."
        )

    def play(self, kind: str, said: list[Any]) -> Step:
        """See Game."""
        cell = (said[0], said[1])
        if self.queen is None:
            taken = cell == self.king and self.quirk("assiut.own_square")
            if not inside(self.size, *cell) or taken:
                raise Refused("Invalid initial position")
        elif not inside(self.size, *cell) or not attacks(self.queen, cell):
            raise Refused("Invalid queen move")
        self.queen = cell
        result = f"My Choice: {cell[0]} {cell[1]}"
        ways = [] if cell == self.king else steps(self.size, cell, self.king)
        if not ways:
            return over(result, "Done", True)
        old, self.king = self.king, self._flee(ways)
        return heard(result, direction(old, self.king))

    def _flee(self, ways: list[Cell]) -> Cell:
        """The greedy king keeps as many steps as it can."""
        if self.opponent == "greedy":
            room = {c: len(steps(self.size, self.queen, c)) for c in ways}
            ways = [c for c in ways if room[c] == max(room.values())]
        return choice(self.rng, ways)

    def _moves(self) -> list[Cell]:
        cells = [(x, y) for x in range(1, self.size + 1) for y in range(1, self.size + 1)]
        return cells if self.queen is None else [c for c in cells if attacks(self.queen, c)]

    def legal(self, rng: random.Random, most: int = 64) -> list[str]:
        """See Game."""
        found = [c for c in self._moves() if not (self.quirk("assiut.own_square") and c == self.king)]
        return [f"My Choice: {x} {y}" for x, y in sample(rng, found, most)]

    def solve(self, rng: random.Random, rounds: int) -> Solver:
        """The move of the greatest value over all squares the king may be on, by the values for a king that is seen."""
        value = worth(self.size)
        kings = [(x, y) for x in range(1, self.size + 1) for y in range(1, self.size + 1)]
        queen: Cell | None = None
        belief = {king: 1 / len(kings) for king in kings}
        visits: dict[Cell, int] = {}
        while True:
            moves = kings if queen is None else [c for c in _board(self.size) if attacks(queen, c)]
            best = max(moves, key=lambda q: sum(w * value[q, k] for k, w in belief.items()) - 0.02 * visits.get(q, 0))
            reply = yield f"My Choice: {best[0]} {best[1]}"
            if reply == "Done":
                queen = best  # by the reference's rules play goes on
                continue
            seen, belief = belief, {}
            for king, weight in seen.items():
                ways = [] if king == best else steps(self.size, best, king)
                for to in ways:
                    if direction(king, to) == reply:
                        belief[to] = belief.get(to, 0.0) + weight / len(ways)
            total = sum(belief.values())
            belief = {k: w / total for k, w in belief.items()}
            queen, visits[best] = best, visits.get(best, 0) + 1

    def verdict(self, turns: Any) -> bool:
        """See Game."""
        return next((reply == "Done" for result, reply in turns if result == "Invalid" or reply == "Done"), False)


def _board(size: int) -> list[Cell]:
    return [(x, y) for x in range(1, size + 1) for y in range(1, size + 1)]


@cache
def worth(size: int) -> dict[tuple[Cell, Cell], float]:
    """Value of having just moved the queen, by queen and king, for a king that is seen and steps at random."""
    board = _board(size)
    pairs = [(q, k) for q in board for k in board]
    after = {(q, k): [] if q == k else steps(size, q, k) for q, k in pairs}
    reach = {q: [c for c in board if attacks(q, c)] for q in board}
    value = {pair: 0.0 if ways else 1.0 for pair, ways in after.items()}
    for _ in range(SWEEPS):
        best = {(q, k): max(value[to, k] for to in reach[q]) for q, k in pairs}
        new = {
            (q, k): DISCOUNT * sum(best[q, to] for to in ways) / len(ways) if ways else 1.0
            for (q, k), ways in after.items()
        }
        moved = max(abs(new[p] - value[p]) for p in pairs)
        value = new
        if moved < 1e-4:
            break
    return value
