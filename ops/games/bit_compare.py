"""BitCompare: a hidden permutation of 0..n-1; two ORs are compared, and the pair of greatest XOR is wanted."""

from __future__ import annotations

import random
from collections.abc import Generator, Iterator
from itertools import combinations
from typing import Any

from .base import Game, Refused, Row, Solver, Step, answer, heard, pick, sample, shuffled, spaced
from .parse import Form


class BitCompare(Game):
    """See the module."""

    name, kind = "BitCompare", "ip"
    LEVELS = {"easy": {"n": 5}, "medium": {"n": 7}, "hard": {"n": 9}}
    FORMS = (Form("query", "My Query:_INT.INT.INT.INT"), Form("answer", "My Answer:_INT.INT"))
    NO_FORM = "Your response must be either 'My Query: a b c d' or 'My Answer: i j'"
    FIELDS = {"list": list}

    @classmethod
    def draw(cls, rng: random.Random, n: int) -> Row:
        """See Game."""
        values = shuffled(rng, range(n))
        best = max(combinations(range(n), 2), key=lambda pair: values[pair[0]] ^ values[pair[1]])
        return {"scale": n, "list": values, "answer": list(best)}

    def begin(self) -> None:
        """See Game."""
        self.p = [int(v) for v in self.row["list"]]
        self.n = len(self.p)
        self.best = max(a ^ b for a, b in combinations(self.p, 2))

    def tell(self) -> str:
        """See Game."""
        return (
            f"A list p has {self.n} places, 0 to {self.n - 1}, and holds each of the numbers 0 to {self.n - 1} once. "
            "Find two places i and j for which p[i] XOR p[j] is as great as it can be.\n"
            "- `My Query: 0 1 2 3` compares (p[0] OR p[1]) with (p[2] OR p[3]); places may repeat. I reply <, = or >.\n"
            "- `My Answer: 0 3` names the two places. I reply Correct or Incorrect."
        )

    def play(self, kind: str, said: list[Any]) -> Step:
        """See Game."""
        asks = kind == "query"
        if any(i >= self.n for i in said):
            raise Refused("All positions must be valid indices" if asks else "Positions must be valid indices")
        p = [self.p[i] for i in said]
        if asks:
            left, right = p[0] | p[1], p[2] | p[3]
            return heard(spaced(said), "<" if left < right else ">" if left > right else "=")
        return answer(spaced(said), p[0] ^ p[1] == self.best)

    def legal(self, rng: random.Random, most: int = 64) -> list[str]:
        """See Game."""
        pairs = [f"My Answer: {i} {j}" for i, j in combinations(range(self.n), 2)]
        asks = [f"My Query: {spaced(pick(rng, self.n) for _ in range(4))}" for _ in range(most // 2)]
        return list(dict.fromkeys(asks)) + sample(rng, pairs, most // 2)

    def solve(self, rng: random.Random, rounds: int) -> Solver:
        """The greatest M, then its partner: the second greatest, or the least of those with the greatest M | x."""
        full = (1 << (self.n - 1).bit_length()) - 1
        beaten: dict[int, list[int]] = {i: [] for i in range(self.n)}
        ring = list(range(self.n))
        while len(ring) > 1:
            a, b = ring.pop(0), ring.pop(0)
            told = yield f"My Query: {a} {a} {b} {b}"
            winner, loser = (a, b) if told == ">" else (b, a)
            beaten[winner].append(loser)
            ring.append(winner)
        top = ring[0]
        if (self.n - 1) & (self.n - 2) == 0 and full ^ (self.n - 1) == self.n - 2:
            partner = yield from _extreme(beaten[top], ">")
        else:
            rest = [i for i in range(self.n) if i != top]
            best = [rest[0]]
            for i in rest[1:]:
                told = yield f"My Query: {top} {i} {top} {best[0]}"
                best = [i] if told == ">" else [*best, i] if told == "=" else best
            partner = yield from _extreme(best, "<")
        yield f"My Answer: {top} {partner}"

    def spam(self) -> Iterator[str]:
        """See Game."""
        return (f"My Answer: {i} {j}" for i, j in combinations(range(self.n), 2))


def _extreme(places: list[int], sign: str) -> Generator[str, str, int]:
    """The place of the greatest or least value."""
    best = places[0]
    for i in places[1:]:
        if (yield f"My Query: {i} {i} {best} {best}") == sign:
            best = i
    return best
