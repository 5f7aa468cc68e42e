"""PermutationDiscovery: a permutation that is applied once more after each question."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from itertools import permutations
from typing import Any

from .base import Game, Refused, Row, Solver, Step, answer, between, ends_in, heard, shuffled, spaced
from .beliefs import best_split
from .parse import Form


def power(p: Any, i: int, times: int) -> int:
    """p applied so many times to i, from 1."""
    for _ in range(times):
        i = p[i - 1]
    return i


class PermutationDiscovery(Game):
    """See the module."""

    name, kind = "PermutationDiscovery", "da"
    LEVELS = {"easy": {"low": 3, "high": 4}, "medium": {"low": 5, "high": 5}, "hard": {"low": 6, "high": 6}}
    FORMS = (Form("query", "My Query:_INT"), Form("answer", "My Answer:_INTS"))
    FIELDS = {"p": list}

    @classmethod
    def draw(cls, rng: random.Random, low: int, high: int) -> Row:
        """See Game."""
        n = between(rng, low, high)
        p = list(range(1, n + 1))
        while p == sorted(p):
            p = shuffled(rng, p)
        return {"scale": n, "p": p, "q": list(range(1, n + 1))}

    def begin(self) -> None:
        """See Game."""
        self.p = [int(v) for v in self.row["p"]]
        self.n, self.q = len(self.p), list(range(1, len(self.p) + 1))
        if sorted(self.p) != self.q:
            raise ValueError("p is no permutation")

    def tell(self) -> str:
        """See Game."""
        return (
            f"There is a hidden permutation p of 1 to {self.n}. A second one, q, is at first 1 to {self.n} in order; "
            "after each question every q[i] becomes q[p[i]]. So question number t, from 0, hears p applied t times.\n"
            "- `My Query: 2` asks for q[2]. I reply with it, and then q changes.\n"
            f"- `My Answer: {spaced([*range(2, self.n + 1), 1])}` names p[1] to p[{self.n}]. I reply Correct or "
            "Incorrect."
        )

    def play(self, kind: str, said: list[Any]) -> Step:
        """See Game."""
        if kind == "query":
            if not 1 <= said[0] <= self.n:
                raise Refused("Invalid")
            told = self.q[said[0] - 1]
            self.q = [self.q[i - 1] for i in self.p]
            return heard(f"Query: {said[0]}", told)
        if sorted(said[0]) != list(range(1, self.n + 1)):
            raise Refused("Invalid", "form" if len(said[0]) != self.n else "range")
        return answer(f"Answer: {spaced(said[0])}", said[0] == self.p)

    def legal(self, rng: random.Random, most: int = 64) -> list[str]:
        """See Game."""
        asks = [f"My Query: {i}" for i in range(1, self.n + 1)]
        answers = [f"My Answer: {spaced(shuffled(rng, range(1, self.n + 1)))}" for _ in range(most - self.n)]
        return asks + list(dict.fromkeys(answers))

    def solve(self, rng: random.Random, rounds: int) -> Solver:
        """All permutations that fit, and the place that tells most of them apart."""
        left = [p for p in permutations(range(1, self.n + 1)) if self.quirk("parse.first") or p != tuple(sorted(p))]
        time = 0
        while True:
            if len(left) == 1 or (len(left) == 2 and time) or rounds <= 1:
                guess = left[0]
                told = yield f"My Answer: {spaced(guess)}"
                if told == "Correct":
                    return
                left = left[1:] or left
            else:
                asked = best_split(left, range(1, self.n + 1), partial(power, times=time), rng, 300)
                told = int((yield f"My Query: {asked}"))
                left = [p for p in left if power(p, asked, time) == told]
                time += 1
            rounds -= 1

    def spam(self) -> Iterator[str]:
        """See Game."""
        return (f"My Answer: {spaced(p)}" for p in permutations(range(1, self.n + 1)))

    def verdict(self, turns: Any) -> bool:
        """See Game."""
        return ends_in(turns, "Answer", "Correct")
