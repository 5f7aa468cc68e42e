"""KnightBattle: two knights, each with a square of its own to reach; one may also take the other."""

from __future__ import annotations

import random
from typing import Any

from .base import Game, Refused, Row, Solver, Step, between, choice, heard, over
from .graphs import distances, inside
from .parse import Form

Cell = tuple[int, int]
JUMPS = tuple((a, b) for a in (-2, -1, 1, 2) for b in (-2, -1, 1, 2) if abs(a) != abs(b))
#: the last move that the reference's evaluator counts
FOURTEEN = 14


def jumps(size: int, at: Cell) -> list[Cell]:
    """Where a knight may go."""
    return [(at[0] + a, at[1] + b) for a, b in JUMPS if inside(size, at[0] + a, at[1] + b)]


class KnightBattle(Game):
    """See the module; quirk `knight.fourteen`: a win at move 15 is none."""

    name, kind = "KnightBattle", "sg"
    LEVELS = {"easy": {"n": 6}, "medium": {"n": 8}, "hard": {"n": 15}}
    QUIRKS = ("knight.fourteen",)
    FORMS = (Form("move", "My Move:_INT.INT"),)
    NO_FORM = "Invalid format. Use 'My Move: x y'"
    FIELDS = {"scale": int, "answer": dict, "turns": (int, float)}
    OPPONENTS = ("random", "greedy")
    luck = True

    @classmethod
    def draw(cls, rng: random.Random, n: int) -> Row:
        """See Game."""
        white_target, black_target = [n // 2, n // 2], [n // 2 + 1, n // 2]
        while True:
            white, black = ([between(rng, 1, n), between(rng, 1, n)] for _ in range(2))
            if white != black and white != white_target and black != black_target:
                break
        places = {"white_start": white, "black_start": black, "white_target": white_target}
        return {"scale": n, "answer": places | {"black_target": black_target}, "turns": 15}

    def begin(self) -> None:
        """See Game."""
        self.size, places = self.row["scale"], self.row["answer"]
        self.white, self.black, self.goal, self.other = (
            (int(places[name][0]), int(places[name][1]))
            for name in ("white_start", "black_start", "white_target", "black_target")
        )

    def tell(self) -> str:
        """See Game."""
        w, b, t, o = self.white, self.black, self.goal, self.other
        return (
            f"Two knights stand on a board of {self.size} rows and {self.size} columns: yours, white, at {w[0]} "
            f"{w[1]} (row and column), and mine, black, at {b[0]} {b[1]}. We move in turn as knights do in chess, you "
            f"first. You win when you land on my knight, or stand on {t[0]} {t[1]} and my knight does not attack you "
            f"there. I win when I land on yours, or stand on {o[0]} {o[1]} and yours does not attack me there. After "
            "15 of your moves it is a draw, which is no win.\n"
            f"- `My Move: {' '.join(map(str, jumps(self.size, w)[0]))}` moves your knight there. I reply with the "
            "square that I move to, or with who has won."
        )

    def _won(self, mover: Cell, enemy: Cell, goal: Cell) -> bool:
        return mover == enemy or (mover == goal and goal not in jumps(self.size, enemy))

    def play(self, kind: str, said: list[Any]) -> Step:
        """See Game."""
        to = (said[0], said[1])
        if to not in jumps(self.size, self.white):
            raise Refused("Invalid knight move", "rule" if inside(self.size, *to) else "range")
        self.white, result = to, f"Move: {to[0]},{to[1]}"
        if self._won(to, self.black, self.goal):
            return over(result, "White wins!", True)
        ways = jumps(self.size, self.black)
        if not ways:
            return heard(result, "Black has no valid moves")
        if self.opponent == "greedy":
            ways = _good(self.size, ways, self.white, self.other) or ways
        self.black = choice(self.rng, ways)
        if self._won(self.black, self.white, self.other):
            return over(result, f"Black wins with {self.black[0]},{self.black[1]}", False)
        return heard(result, f"{self.black[0]} {self.black[1]}")

    def legal(self, rng: random.Random, most: int = 64) -> list[str]:
        """See Game."""
        return [f"My Move: {x} {y}" for x, y in jumps(self.size, self.white)]

    def solve(self, rng: random.Random, rounds: int) -> Solver:
        """Take black, else the target when it is safe, else near to the target where black does not attack."""
        white, black = self.white, self.black
        while True:
            ways = jumps(self.size, white)
            white = choice(rng, _good(self.size, ways, black, self.goal) or ways)
            told = yield f"My Move: {white[0]} {white[1]}"
            if told[0].isdigit():
                x, y = map(int, told.split())
                black = (x, y)

    def verdict(self, turns: Any) -> bool:
        """See Game."""
        black = self._start("black_start")
        for number, (result, reply) in enumerate(turns, 1):
            if not str(result).startswith("Move: ") or number > FOURTEEN:
                return False
            x, y = map(int, str(result)[6:].split(","))
            if self._won((x, y), black, self.goal):
                return True
            if not reply[:1].isdigit():
                return False
            bx, by = map(int, reply.split())
            black = (bx, by)
        return False

    def _start(self, name: str) -> Cell:
        x, y = self.row["answer"][name]
        return int(x), int(y)


def _good(size: int, ways: list[Cell], enemy: Cell, goal: Cell, guard: Cell | None = None) -> list[Cell]:
    """The best of a knight's moves, by a look at what the enemy may do next.

    Args:
        guard: the enemy's target, attacked where it could go there at once.
    """
    if enemy in ways:
        return [enemy]
    attacked = set(jumps(size, enemy))
    safe = [c for c in ways if c not in attacked]
    if goal in safe:
        return [goal]
    far = distances(goal, lambda c: jumps(size, c))
    if guard is not None and guard in attacked:
        held = [c for c in safe if guard in jumps(size, c)]
        safe = held or safe
    if not safe:
        return []
    # Where the enemy can come to attack the goal it has to be stepped on later.
    best = min(far.get(c, 99) for c in safe)
    return [c for c in safe if far.get(c, 99) == best]
