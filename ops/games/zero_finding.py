"""ZeroFinding: the k-th zero of hidden bits, from sums of ranges."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from .base import Game, Refused, Row, Solver, Step, answer, between, heard, last, sample
from .parse import Form


class ZeroFinding(Game):
    """See the module; quirk `zero.any_correct`: naming any other zero in the last round counts as won."""

    name, kind = "ZeroFinding", "da"
    LEVELS = {
        "easy": {"n": 10, "low": 2, "high": 5},
        "medium": {"n": 50, "low": 10, "high": 13},
        "hard": {"n": 100, "low": 20, "high": 23},
    }
    QUIRKS = ("zero.any_correct",)
    FORMS = (
        Form("query", "My Query:_INT.INT"),
        Form("answer", "My Answer:_INT"),
        Form("final", "My Final Answer:_INT"),
    )
    FIELDS = {"list": list, "k": int, "answer": int}

    @classmethod
    def draw(cls, rng: random.Random, n: int, low: int, high: int) -> Row:
        """See Game."""
        zeros = sorted(sample(rng, range(1, n + 1), between(rng, low, high)))
        k = between(rng, 1, len(zeros))
        return {"scale": n, "list": [int(p not in zeros) for p in range(1, n + 1)], "k": k, "answer": zeros[k - 1]}

    def begin(self) -> None:
        """See Game."""
        self.bits = [int(b) for b in self.row["list"]]
        self.n = len(self.bits)
        if not 1 <= self.row["answer"] <= self.n:
            raise ValueError("the answer is not a place")

    def tell(self) -> str:
        """See Game."""
        return (
            f"A list of {self.n} places, 1 to {self.n}, holds zeros and ones. Find the place of zero number "
            f"{self.row['k']}, counted from the left as the list is at first.\n"
            "- `My Query: 1 5` asks for the sum of places 1 to 5. I reply with it.\n"
            "- `My Final Answer: 4` says that the zero is at place 4. I reply Correct, and you have won, or "
            "Incorrect.\n"
            "- `My Answer: 2` names another zero. I reply Correct, and it turns into a one, or Incorrect."
        )

    def play(self, kind: str, said: list[Any]) -> Step:
        """See Game."""
        low, high = said[0], said[-1]
        if not 1 <= low <= high <= self.n:
            raise Refused("Invalid")
        target = self.row["answer"]
        if kind == "query":
            return heard(f"Query: {low} {high}", sum(self.bits[low - 1 : high]))
        if kind == "final":
            return answer(f"Final: {low}", low == target)
        other = low != target and self.bits[low - 1] == 0
        if other:
            self.bits[low - 1] = 1
        return heard(f"Answer: {low}", "Correct" if other else "Incorrect")

    def legal(self, rng: random.Random, most: int = 64) -> list[str]:
        """See Game."""
        found = [f"{verb} {p}" for verb in ("My Answer:", "My Final Answer:") for p in range(1, self.n + 1)]
        asks = []
        for _ in range(most // 2):
            a, b = sorted((between(rng, 1, self.n), between(rng, 1, self.n)))
            asks.append(f"My Query: {a} {b}")
        return list(dict.fromkeys(asks)) + sample(rng, found, most // 2)

    def solve(self, rng: random.Random, rounds: int) -> Solver:
        """By halves: of places 1 to m the zeros are m less their sum."""
        low, high = 1, self.n
        while low < high:
            m = (low + high) // 2
            if m - int((yield f"My Query: 1 {m}")) >= self.row["k"]:
                high = m
            else:
                low = m + 1
        yield f"My Final Answer: {low}"

    def spam(self) -> Iterator[str]:
        """See Game."""
        return (f"My Final Answer: {p}" for p in range(1, self.n + 1))

    def verdict(self, turns: Any) -> bool:
        """See Game."""
        return last(turns, "Correct")
