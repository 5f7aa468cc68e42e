"""MahjongDetective: how many tiles of each value, told by triplets and straights as tiles are added."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

from .base import Game, Refused, Row, Solver, Step, answer, between, heard, spaced
from .beliefs import entropy
from .parse import Form

#: vectors that are gone through when what is left is enumerated
MOST = 12000


def totals(counts: list[int] | tuple[int, ...]) -> tuple[int, int]:
    """(triplets, straights) of counts by value; tiles of one value differ."""
    straights = sum(a * b * c for a, b, c in zip(counts, counts[1:], counts[2:], strict=False))
    return sum(math.comb(c, 3) for c in counts), straights


class MahjongDetective(Game):
    """See the module; quirk `mahjong.values`: the row lists tiles, a 0 among them is none and yet counts as value n."""

    name, kind = "MahjongDetective", "da"
    LEVELS = {"easy": {"n": 3}, "medium": {"n": 6}, "hard": {"n": 9}}
    QUIRKS = ("mahjong.values",)
    FORMS = (Form("add", "My Query:_+_INT"), Form("answer", "My Answer:_INTS"))
    FIELDS = {"answer": list}

    @classmethod
    def draw(cls, rng: random.Random, n: int) -> Row:
        """See Game."""
        return {"scale": n, "answer": [between(rng, 0, n) for _ in range(n)]}

    def begin(self) -> None:
        """See Game."""
        given = [int(v) for v in self.row["answer"]]
        self.n, self.added = len(given), [0] * len(given)
        self.zeros = 0
        if self.quirk("mahjong.values"):
            self.zeros = given.count(0)
            given = [given.count(v) for v in range(1, self.n + 1)]
        self.counts = given

    def tell(self) -> str:
        """See Game."""
        triplets, straights = totals(self.counts)
        return (
            f"Tiles have values from 1 to {self.n}. I hide some tiles: for every value between 0 and {self.n} of them. "
            "A triplet is three different tiles of one value; a straight is three tiles of values v, v+1, v+2. Tiles "
            "of one value are told apart, so all ways to take them count.\n"
            f"At first there are {triplets} triplets and {straights} straights.\n"
            "- `My Query: + 2` adds a tile of value 2; I reply with the numbers of triplets and straights then.\n"
            f"- `My Answer: {spaced([1] * self.n)}` names how many tiles of each value there are now, from value 1 on, "
            "with the tiles you added. I reply Correct or Incorrect."
        )

    def play(self, kind: str, said: list[Any]) -> Step:
        """See Game."""
        if kind == "add":
            if not 1 <= said[0] <= self.n:
                raise Refused("Invalid")
            self.added[said[0] - 1] += 1
            return heard(f"Add: {said[0]}", spaced(totals(self._now())))
        wanted = self._now()
        wanted[-1] += self.zeros
        most = self.n if self.quirk("mahjong.values") else self.n + sum(self.added)
        if len(said[0]) != self.n or any(v > most for v in said[0]):
            raise Refused("Invalid", "form" if len(said[0]) != self.n else "range")
        return answer(f"Answer: {spaced(said[0])}", said[0] == wanted)

    def _now(self) -> list[int]:
        return [a + b for a, b in zip(self.counts, self.added, strict=True)]

    def legal(self, rng: random.Random, most: int = 64) -> list[str]:
        """See Game."""
        answers = {spaced(between(rng, 0, self.n) for _ in range(self.n)) for _ in range(most - self.n)}
        return [f"My Query: + {v}" for v in range(1, self.n + 1)] + [f"My Answer: {a}" for a in sorted(answers)]

    def solve(self, rng: random.Random, rounds: int) -> Solver:
        """A tile added tells how many there were of it, but for none or one; the rest is enumerated."""
        values = self.quirk("mahjong.values")
        domains = [list(range(self.n + 1)) for _ in range(self.n)]
        told: list[tuple[tuple[int, ...], tuple[int, int]]] = [] if values else [((0,) * self.n, totals(self.counts))]
        added = [0] * self.n
        while True:
            left = self._fitting(domains, told, values) if math.prod(map(len, domains)) <= MOST else None
            if left and len(left) == 1:
                now = [a + b for a, b in zip(left[0], added, strict=True)]
                if values:
                    now[-1] += self.n - sum(left[0])
                yield f"My Answer: {spaced(now)}"
                continue
            at = self._next(domains, left, added)
            added[at] += 1
            reply = tuple(map(int, (yield f"My Query: + {at + 1}").split()))
            if told:
                rise = reply[0] - told[-1][1][0]
                domains[at] = [c for c in domains[at] if math.comb(c + added[at] - 1, 2) == rise]
            told.append((tuple(added), reply))

    def _fitting(self, domains: list[list[int]], told: list[Any], values: bool) -> list[tuple[int, ...]]:
        def fits(counts: tuple[int, ...]) -> bool:
            plus = ([c + a for c, a in zip(counts, added, strict=True)] for added, _ in told)
            return all(totals(now) == reply for now, (_, reply) in zip(plus, told, strict=True))

        return [c for c in itertools.product(*domains) if (not values or sum(c) <= self.n) and fits(c)]

    def _next(self, domains: list[list[int]], left: list[tuple[int, ...]] | None, added: list[int]) -> int:
        """The value to add: the one that tells most, where that can be counted."""
        if not left:
            # The middle first: its straights tell of four neighbours.
            return max(range(self.n), key=lambda v: (len(domains[v]), -abs(2 * v - self.n + 1)))

        def told(at: int) -> float:
            now = [[c + a + (i == at) for i, (c, a) in enumerate(zip(counts, added, strict=True))] for counts in left]
            return entropy(Counter(map(totals, map(tuple, now))).values())

        return max(range(self.n), key=told)

    def spam(self) -> Iterator[str]:
        """See Game."""
        return (f"My Answer: {spaced(c)}" for c in itertools.product(range(self.n + 1), repeat=self.n))

    def faults(self) -> list[tuple[str, str]]:
        """See Game."""
        if self.quirk("mahjong.values") and self.zeros:
            return [("undecidable", "a zero among the tiles counts in the answer and in no reply")]
        return []
