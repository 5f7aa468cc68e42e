"""ZigzagGraph: a token on a complete bipartite graph; your edges must fall in weight, the opponent's rise."""

from __future__ import annotations

import random
from itertools import product
from typing import Any

from .base import Game, Refused, Row, Solver, Step, before, choice, heard, over, sample, shuffled
from .parse import Form


class ZigzagGraph(Game):
    """See the module; quirk `zigzag.no_loss`: nobody notices that the player cannot move."""

    name, kind = "ZigzagGraph", "sg"
    LEVELS = {"easy": {"n": 5}, "medium": {"n": 8}, "hard": {"n": 12}}
    QUIRKS = ("zigzag.no_loss",)
    FORMS = (Form("go", "My Choice:_INT"),)
    NO_FORM = "Invalid format. Use 'My Choice: X'"
    FIELDS = {"edge_weights": dict, "turns": (int, float)}
    OPPONENTS = ("random", "greedy")
    luck = True

    @classmethod
    def draw(cls, rng: random.Random, n: int) -> Row:
        """See Game."""
        weights = shuffled(rng, range(1, n * n + 1))
        edges = product(range(1, n + 1), range(n + 1, 2 * n + 1))
        named = {f"{i}-{j}": w for (i, j), w in zip(edges, weights, strict=True)}
        return {"scale": n, "edge_weights": named, "turns": 2 * n}

    def begin(self) -> None:
        """See Game."""
        self.weight: dict[int, dict[int, int]] = {}
        for edge, w in self.row["edge_weights"].items():
            i, j = map(int, edge.split("-"))
            self.weight.setdefault(i, {})[j] = int(w)
            self.weight.setdefault(j, {})[i] = int(w)
        self.at, self.last, self.used = 0, 0, set[int]()

    def tell(self) -> str:
        """See Game."""
        left = sorted({int(e.split("-")[0]) for e in self.row["edge_weights"]})
        right = sorted(set(self.weight) - set(left))
        lines = [f"to {' '.join(f'{j:3}' for j in right)}"]
        lines += [f"{i:2} {' '.join(f'{self.weight[i][j]:3}' for j in right)}" for i in left]
        table = "\n".join(lines)
        return (
            f"A graph has the vertices {left[0]} to {left[-1]} on the left and {right[0]} to {right[-1]} on the "
            "right, and an edge between any left and any right one. The weights, left vertices down and right ones "
            f"across:\n{table}\n"
            "You put a token on a vertex; then we move it in turn along an edge to a vertex where it has not been, I "
            "first. Each of your edges must weigh less than the last edge used, each of mine more; my first may be "
            "any. Who cannot move loses.\n"
            "- `My Choice: 3` puts or moves the token to vertex 3. I reply with the vertex that I move to."
        )

    def _mine(self) -> list[int]:
        """Where the player may go."""
        if not self.at:
            return sorted(self.weight)
        return [v for v, w in self.weight[self.at].items() if v not in self.used and w < self.last]

    def play(self, kind: str, said: list[Any]) -> Step:
        """See Game."""
        to = said[0]
        if to not in self.weight or to in self.used or (self.at and to not in self.weight[self.at]):
            raise Refused("Invalid move", "range" if to not in self.weight else "rule")
        if self.at and self.weight[self.at][to] >= self.last:
            raise Refused("Invalid weight sequence", "rule")
        result = f"My Choice: {to}"
        if self.at:
            self.last = self.weight[self.at][to]
        self.used.add(to)
        ways = [v for v, w in self.weight[to].items() if v not in self.used and w > self.last]
        if not ways:
            self.at = to
            return over(result, "You win!", True)
        mine = self._rival(to, ways)
        self.last, self.at = self.weight[to][mine], mine
        self.used.add(mine)
        if not self._mine() and not self.quirk("zigzag.no_loss"):
            return over(result, f"My Choice: {mine} You lose!", False)
        return heard(result, f"My Choice: {mine}")

    def _rival(self, at: int, ways: list[int]) -> int:
        if self.opponent == "random":
            return choice(self.rng, ways)

        def left(v: int) -> int:
            return sum(w < self.weight[at][v] for u, w in self.weight[v].items() if u not in self.used)

        return min(ways, key=left)

    def legal(self, rng: random.Random, most: int = 64) -> list[str]:
        """See Game."""
        return [f"My Choice: {v}" for v in sample(rng, self._mine(), most)]

    def solve(self, rng: random.Random, rounds: int) -> Solver:
        """A look ahead over the opponent's random moves, deeper the fewer there are; heavy edges leave it few."""
        at, last, used = 0, 0, frozenset[int]()
        while True:
            ways = sorted(self.weight) if not at else self._ways(at, last, used, False)
            depth = 4 if len(self.weight) <= 10 else 3 if len(used) >= 10 else 2 if used else 1
            to = max(ways, key=lambda v: (self._value(at, v, last, used, depth), self.weight[at][v] if at else 0))
            last = self.weight[at][to] if at else 0
            told = int((yield f"My Choice: {to}").split()[2])
            used |= {to, told}
            last, at = self.weight[to][told], told

    def _ways(self, at: int, last: int, used: frozenset[int], rise: bool) -> list[int]:
        return [v for v, w in self.weight[at].items() if v not in used and (w > last if rise else w < last)]

    def _value(self, at: int, to: int, last: int, used: frozenset[int], depth: int) -> float:
        """Chance to win after a move, against random replies."""
        last = self.weight[at][to] if at else 0
        used = used | {to}
        replies = self._ways(to, last, used, True)
        if not replies:
            return 1.0
        total = 0.0
        for reply in replies:
            weight = self.weight[to][reply]
            mine = self._ways(reply, weight, used | {reply}, False)
            if not mine:
                continue
            if depth <= 1:
                # The more of the weights are above the edge, the more replies there are.
                total += 0.5 + 0.4 * max(self.weight[reply][v] for v in mine) / (len(self.weight) / 2) ** 2
            else:
                total += max(self._value(reply, v, weight, used | {reply}, depth - 1) for v in mine)
        return total / len(replies)

    def verdict(self, turns: Any) -> bool:
        """See Game."""
        return before(turns, "win", "invalid")
