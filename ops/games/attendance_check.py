"""AttendanceCheck: one of n students is absent; counts of ranges may be lies, but never three alike in a row."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from .base import Game, Refused, Row, Solver, Step, answer, between, heard, sample
from .beliefs import by_answer, least_left, merged
from .parse import Form

State = tuple[int, str]  # who is absent, the last two replies: T and L


def chance(last: str) -> float:
    """Of a true reply after these."""
    return {"TT": 0.0, "LL": 1.0}.get(last, 0.5)


class AttendanceCheck(Game):
    """See the module."""

    name, kind = "AttendanceCheck", "da"
    LEVELS = {"easy": {"low": 5, "high": 9}, "medium": {"low": 10, "high": 14}, "hard": {"low": 15, "high": 19}}
    FORMS = (Form("query", "My Query:_INT.INT"), Form("answer", "My Answer:_INT"))
    NO_FORM = "Invalid format. Use 'My Query: l r' or 'My Answer: a'"
    FIELDS = {"answer": list}

    @classmethod
    def draw(cls, rng: random.Random, low: int, high: int) -> Row:
        """See Game."""
        n = between(rng, low, high)
        absent = between(rng, 1, n)
        return {"scale": n, "answer": [int(s != absent) for s in range(1, n + 1)]}

    def begin(self) -> None:
        """See Game."""
        self.n, self.absent = len(self.row["answer"]), self.row["answer"].index(0) + 1
        self.last = ""

    def tell(self) -> str:
        """See Game."""
        return (
            f"Of {self.n} students, 1 to {self.n}, exactly one is absent. When you ask about a range, everybody there "
            "raises a hand, but the count I tell may be a lie: it is the number of students of the range or one less, "
            "and only one of the two is true. I am never honest three times in a row, and never dishonest three times "
            "in a row.\n"
            "- `My Query: 1 4` asks for the count of students 1 to 4.\n"
            "- `My Answer: 3` says that student 3 is absent. I reply Correct or Incorrect, always truly."
        )

    def play(self, kind: str, said: list[Any]) -> Step:
        """See Game."""
        if kind == "answer":
            if not 1 <= said[0] <= self.n:
                raise Refused("Invalid student number")
            return answer(f"Answer:{said[0]}", said[0] == self.absent)
        low, high = said
        if not 1 <= low <= high <= self.n:
            raise Refused("Invalid range")
        honest = self.rng.random() < chance(self.last)
        self.last = (self.last + "LT"[honest])[-2:]
        missing = (low <= self.absent <= high) == honest
        return heard(f"Query:{low},{high}", high - low + 1 - missing)

    def legal(self, rng: random.Random, most: int = 64) -> list[str]:
        """See Game."""
        asks = [f"My Query: {a} {b}" for a in range(1, self.n + 1) for b in range(a, self.n + 1)]
        answers = [f"My Answer: {s}" for s in range(1, self.n + 1)]
        return answers + sample(rng, asks, most - len(answers))

    def solve(self, rng: random.Random, rounds: int) -> Solver:
        """Weights of (absent, last replies); asking goes on while it makes winning in the rounds left more likely."""
        belief: dict[State, float] = merged(((s, ""), 1.0) for s in range(1, self.n + 1))
        asks = [(a, b) for a in range(1, self.n + 1) for b in range(a, self.n + 1) if b - a < self.n - 1]

        def replies(state: State, ask: tuple[int, int]) -> Iterator[tuple[bool, State, float]]:
            absent, last = state
            true = chance(last)
            inside = ask[0] <= absent <= ask[1]
            for honest, share in ((True, true), (False, 1 - true)):
                if share:
                    yield inside == honest, (absent, (last + "LT"[honest])[-2:]), share

        while True:
            named = by_answer(belief, lambda s: s[0])
            best = max(named, key=lambda s: (named[s], -s))
            some = sample(rng, asks, 40)
            _, ask = (
                (0, None)
                if named[best] > 0.5 or rounds <= 1
                else least_left(belief, some, replies, lambda s: s[0], rounds)
            )
            if ask is None:
                if (yield f"My Answer: {best}") == "Correct":
                    return
                belief = merged((s, w) for s, w in belief.items() if s[0] != best)
            else:
                told = int((yield f"My Query: {ask[0]} {ask[1]}")) == ask[1] - ask[0]
                after = ((to, w * p) for s, w in belief.items() for r, to, p in replies(s, ask) if r == told)
                belief = merged(after)
            rounds -= 1

    def spam(self) -> Iterator[str]:
        """See Game."""
        return (f"My Answer: {s}" for s in range(1, self.n + 1))

    def verdict(self, turns: Any) -> bool:
        """See Game."""
        answers = [str(result) for result, _ in turns if str(result).startswith("Answer:")]
        return bool(answers) and answers[-1] == f"Answer:{self.absent}"
