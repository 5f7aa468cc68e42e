"""BitGuessing: a hidden number that one subtracts from, told by its one-bits."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from .base import Game, Refused, Row, Solver, Step, answer, between, heard, sample
from .beliefs import best_split
from .parse import Form


class BitGuessing(Game):
    """See the module; quirk `bits.no_start`: the first count is not told, and subtracting nothing is allowed."""

    name, kind = "BitGuessing", "da"
    LEVELS = {"easy": {"bound": 50}, "medium": {"bound": 150}, "hard": {"bound": 500}}
    QUIRKS = ("bits.no_start",)
    FORMS = (Form("minus", "My Operation:_INT"), Form("answer", "My Answer:_INT"))
    FIELDS = {"answer": int}

    @classmethod
    def draw(cls, rng: random.Random, bound: int) -> Row:
        """See Game."""
        return {"scale": bound, "answer": between(rng, 1, bound)}

    def begin(self) -> None:
        """See Game."""
        level = self.LEVELS.get(self.row.get("level", ""), self.LEVELS["hard"])
        bound = self.row.get("scale")
        self.bound: int = bound if isinstance(bound, int) and bound > 0 else level["bound"]
        self.now = self.row["answer"]
        if self.now < 0:
            raise ValueError("the number is below 0")

    def tell(self) -> str:
        """See Game."""
        return (
            f"I hide a number from 1 to {self.bound}. In binary it has {self.now.bit_count()} ones.\n"
            "- `My Operation: 3` subtracts 3 from it, which changes it for good; I reply with the number of ones it "
            "has then. You subtract at least 1, and no more than there is.\n"
            "- `My Answer: 7` says that the number is 7 now. I reply Correct or Incorrect."
        )

    def play(self, kind: str, said: list[Any]) -> Step:
        """See Game."""
        if kind == "answer":
            return answer(f"Answer: {said[0]}", said[0] == self.now)
        if said[0] > self.now:
            raise Refused("Invalid", result=f"Operation: {said[0]}")
        if said[0] < 1 and not self.quirk("bits.no_start"):
            raise Refused("Invalid")
        self.now -= said[0]
        return heard(f"Operation: {said[0]}", self.now.bit_count())

    def legal(self, rng: random.Random, most: int = 64) -> list[str]:
        """See Game."""
        answers = [f"My Answer: {v}" for v in sample(rng, range(self.bound + 1), most // 2)]
        return [f"My Operation: {v}" for v in sample(rng, range(1, self.now + 1), most // 2)] + answers

    def solve(self, rng: random.Random, rounds: int) -> Solver:
        """All numbers that fit, and the subtraction that tells most, never more than the least of them."""
        left = list(range(1, self.bound + 1))
        ones = int((yield "My Operation: 0")) if self.quirk("bits.no_start") else self.now.bit_count()
        left = [v for v in left if v.bit_count() == ones]
        while True:
            if len(left) == 1 or left[0] < 1:
                told = yield f"My Answer: {left[0]}"
                left = left[1:] or left
                if told == "Correct":
                    return
                continue
            minus = best_split(left, range(1, left[0] + 1), lambda v, x: (v - x).bit_count(), rng, 200)
            ones = int((yield f"My Operation: {minus}"))
            left = [v - minus for v in left if (v - minus).bit_count() == ones]

    def spam(self) -> Iterator[str]:
        """See Game."""
        return (f"My Answer: {v}" for v in range(1, self.bound + 1))

    def verdict(self, turns: Any) -> bool:
        """See Game."""
        return any(reply == "Correct" for _, reply in turns)
