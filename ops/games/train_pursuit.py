"""TrainPursuit: a train on a ring moves on by a known number after each message."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from .base import Game, Refused, Row, Solver, Step, answer, between, choice, ends_in, heard, over, sample
from .parse import Form


class TrainPursuit(Game):
    """See the module; quirk `train.early_end`: a wrong answer that names the train's next place ends the game, lost."""

    name, kind = "TrainPursuit", "da"
    LEVELS = {"easy": {"low": 2, "high": 5}, "medium": {"low": 6, "high": 7}, "hard": {"low": 8, "high": 9}}
    QUIRKS = ("train.early_end",)
    FORMS = (Form("query", "My Query:_INT.INT"), Form("answer", "My Answer:_INT"))
    FIELDS = {"answer": int, "n": int, "k": int}

    @classmethod
    def draw(cls, rng: random.Random, low: int, high: int) -> Row:
        """See Game."""
        n = between(rng, low, high)
        return {"scale": n, "n": n, "k": between(rng, 1, min(4, n - 1)), "answer": between(rng, 1, n)}

    def begin(self) -> None:
        """See Game."""
        self.n, self.k, self.at = self.row["n"], self.row["k"], self.row["answer"]
        if not 1 <= self.at <= self.n:
            raise ValueError("the train is not on the ring")

    def tell(self) -> str:
        """See Game."""
        return (
            f"A train stands at one of the stations 1 to {self.n} of a ring line. After each question and each wrong "
            f"answer it moves on by exactly {self.k}, from {self.n} on to 1.\n"
            "- `My Query: 1 2` asks whether it is at one of the stations 1 to 2 now. I reply Yes or No, then it "
            "moves.\n"
            "- `My Answer: 2` says that it is at station 2 now. I reply Correct or Incorrect."
        )

    def play(self, kind: str, said: list[Any]) -> Step:
        """See Game."""
        low, high = said[0], said[-1]
        if not 1 <= low <= high <= self.n:
            raise Refused("Invalid")
        old, on = self.at, (self.at - 1 + self.k) % self.n + 1
        if kind == "query":
            self.at = on
            return heard(f"Query: {low} {high}", "Yes" if low <= old <= high else "No")
        if low != old:
            self.at = on
            if low == on and self.quirk("train.early_end"):
                return over(f"Answer: {low}", "Incorrect", False, True)
        return answer(f"Answer: {low}", low == old)

    def legal(self, rng: random.Random, most: int = 64) -> list[str]:
        """See Game."""
        asks = [f"My Query: {a} {b}" for a in range(1, self.n + 1) for b in range(a, self.n + 1)]
        return [f"My Answer: {s}" for s in range(1, self.n + 1)] + sample(rng, asks, most - self.n)

    def solve(self, rng: random.Random, rounds: int) -> Solver:
        """Stations it may be at, halved and moved on with the train."""
        left = set(range(1, self.n + 1))
        while True:
            asks = [(a, b) for a in range(1, self.n + 1) for b in range(a, self.n + 1)]
            if len(left) <= 2:
                next_ = {(s - 1 + self.k) % self.n + 1 for s in left}
                # By the reference's rules a wrong answer must not name where the train goes next.
                safe = [s for s in left if not self.quirk("train.early_end") or s not in next_ or len(left) == 1]
                if safe:
                    guess = choice(rng, sorted(safe))
                    if (yield f"My Answer: {guess}") == "Correct":
                        return
                    left = {(s - 1 + self.k) % self.n + 1 for s in left - {guess}}
                    continue
            a, b = min(asks, key=lambda r: abs(2 * sum(r[0] <= s <= r[1] for s in left) - len(left)))
            told = (yield f"My Query: {a} {b}") == "Yes"
            left = {(s - 1 + self.k) % self.n + 1 for s in left if (a <= s <= b) == told}

    def spam(self) -> Iterator[str]:
        """See Game."""
        return (f"My Answer: {s}" for s in range(1, self.n + 1))

    def verdict(self, turns: Any) -> bool:
        """See Game."""
        return ends_in(turns, "Answer", "Correct")
