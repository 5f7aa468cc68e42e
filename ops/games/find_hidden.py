"""FindHidden: a number among n; of two replies in a row one at least is true."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from .base import Game, Refused, Row, Solver, Step, answer, between, heard, sample, shuffled, spaced
from .beliefs import by_answer, least_left, merged, sharpest
from .parse import Form

State = tuple[int, bool]  # the number, whether the next reply must be true


class FindHidden(Game):
    """See the module."""

    name, kind = "FindHidden", "da"
    LEVELS = {"easy": {"low": 19, "high": 20}, "medium": {"low": 30, "high": 30}, "hard": {"low": 40, "high": 40}}
    FORMS = (
        Form("query", "My Query:_INT.INTS", last=True),
        Form("answer", "My Answer:_INT", last=True),
    )
    NO_FORM = "Invalid format. Use 'My Query: k n1 n2...' or 'My Answer: x'"
    FIELDS = {"answer": int, "scale": int}

    @classmethod
    def draw(cls, rng: random.Random, low: int, high: int) -> Row:
        """See Game."""
        n = between(rng, low, high)
        return {"scale": n, "answer": between(rng, 1, n)}

    def begin(self) -> None:
        """See Game."""
        self.n, self.must = self.row["scale"], True

    def tell(self) -> str:
        """See Game."""
        return (
            f"I hide a number from 1 to {self.n}. My replies to questions may be false, but of two in a row at least "
            "one is true, and the first is.\n"
            "- `My Query: 3 1 5 7` asks whether the number is among 3 numbers, 1, 5 and 7; how many comes first. I "
            "reply YES or NO.\n"
            "- `My Answer: 5` says that it is 5. I reply Correct or Incorrect, always truly."
        )

    def play(self, kind: str, said: list[Any]) -> Step:
        """See Game."""
        reference = self.quirk("parse.first")
        if kind == "answer":
            if not reference and not 1 <= said[0] <= self.n:
                raise Refused(f"Numbers must be between 1 and {self.n}")
            return answer(str(said[0]), said[0] == self.row["answer"])
        size, told = said
        if size != len(told):
            raise Refused("Number of elements doesn't match the specified size", "form")
        if not reference and not all(1 <= v <= self.n for v in told):
            raise Refused(f"Numbers must be between 1 and {self.n}")
        true = self.must or self.rng.random() < 0.5
        self.must = not true
        yes = (self.row["answer"] in told) == true
        return heard(f"Query:{','.join(map(str, told))}", "YES" if yes else "NO")

    def legal(self, rng: random.Random, most: int = 64) -> list[str]:
        """See Game."""
        found = [f"My Answer: {v}" for v in sample(rng, range(1, self.n + 1), most // 2)]
        for _ in range(most // 2):
            some = sorted(sample(rng, range(1, self.n + 1), between(rng, 1, self.n)))
            found.append(f"My Query: {len(some)} {spaced(some)}")
        return list(dict.fromkeys(found))

    def solve(self, rng: random.Random, rounds: int) -> Solver:
        """Weights of (number, was the last reply a lie): halves of the weight, and the likeliest when it is likely."""
        belief: dict[State, float] = merged(((v, True), 1.0) for v in range(1, self.n + 1))

        def replies(state: State, asked: frozenset[int]) -> Iterator[tuple[bool, State, float]]:
            number, must = state
            inside = number in asked
            if must:
                yield inside, (number, False), 1.0
            else:
                yield inside, (number, False), 0.5
                yield not inside, (number, True), 0.5

        while True:
            named = by_answer(belief, lambda s: s[0])
            best = max(named, key=lambda v: (named[v], -v))
            asked = None
            if named[best] < 0.6 and rounds > 1:
                some = [_half(named, belief, rng) for _ in range(16)]
                if rounds > 4:
                    asked = sharpest(belief, some, replies, lambda s: s[0])
                else:
                    asked = least_left(belief, some, replies, lambda s: s[0], rounds)[1]
            if asked is None:
                if (yield f"My Answer: {best}") == "Correct":
                    return
                belief = merged((s, w) for s, w in belief.items() if s[0] != best)
            else:
                told = (yield f"My Query: {len(asked)} {spaced(sorted(asked))}") == "YES"
                belief = merged((to, w * p) for s, w in belief.items() for r, to, p in replies(s, asked) if r == told)
            rounds -= 1

    def spam(self) -> Iterator[str]:
        """See Game."""
        return (f"My Answer: {v}" for v in range(1, self.n + 1))


def _half(named: dict[int, float], belief: dict[State, float], rng: random.Random) -> frozenset[int]:
    """Numbers of about half the weight; of each kind of state as well."""
    found, sums = set(), [[0.0, 0.0], [0.0, 0.0]]
    for number in sorted(shuffled(rng, list(named)), key=lambda v: -named[v]):
        must = belief.get((number, True), 0.0) > belief.get((number, False), 0.0)
        side = sums[must]
        at = int(side[0] > side[1] or (side[0] == side[1] and rng.random() < 0.5))
        side[at] += named[number]
        if at == 0:
            found.add(number)
    return frozenset(found or {next(iter(named))})
