"""BitQuery: an array of small numbers, found by AND, OR and XOR of two of them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import combinations, product
from typing import Any

from .base import Game, Refused, Row, Solver, Step, answer, heard, last_answer, pick, sample, spaced
from .parse import Form

OPS = {"AND": lambda a, b: a & b, "OR": lambda a, b: a | b, "XOR": lambda a, b: a ^ b}


class BitQuery(Game):
    """See the module; quirks `bitquery.range` (values above n - 1 that no answer may name), `bitquery.newlines`."""

    name, kind = "BitQuery", "ip"
    LEVELS = {"easy": {"n": 4}, "medium": {"n": 8}, "hard": {"n": 12}}
    QUIRKS = ("bitquery.range", "bitquery.newlines")
    FORMS = (
        Form("query", "My Query:_<AND|OR|XOR>.INT.INT", "My Query:_<AND|OR|XOR>_INT_INT"),
        Form("answer", "My Answer:_INTS"),
    )
    NO_FORM = "Invalid format. Use 'My Query: OPERATION i j' or 'My Answer: a1 a2 ... an'"
    FIELDS = {"answer": (list, str)}

    @classmethod
    def draw(cls, rng: random.Random, n: int) -> Row:
        """See Game."""
        return {"scale": n, "answer": [pick(rng, n) for _ in range(n)]}

    def begin(self) -> None:
        """See Game."""
        self.values = [int(v) for v in self.row["answer"]]
        self.n = len(self.values)

    def tell(self) -> str:
        """See Game."""
        return (
            f"An array has {self.n} places, 1 to {self.n}, each with a number from 0 to {self.n - 1}; numbers may "
            "repeat. Find all of them.\n"
            "- `My Query: AND 1 2` asks for the bitwise AND of places 1 and 2; OR and XOR go alike. I reply with the "
            "number. The two places must differ.\n"
            f"- `My Answer: {spaced([0] * self.n)}` names all numbers in order, on one line. I reply Correct or "
            "Incorrect."
        )

    def play(self, kind: str, said: list[Any]) -> Step:
        """See Game."""
        if kind == "query":
            name, i, j = said[0].upper(), said[1], said[2]
            if not (1 <= i <= self.n and 1 <= j <= self.n):
                raise Refused("Invalid position")
            if i == j:
                raise Refused("Cannot query same position", "rule")
            return heard(f"Query: {name} {i} {j}", OPS[name](self.values[i - 1], self.values[j - 1]))
        told = said[0]
        if len(told) != self.n:
            raise Refused(f"Answer must contain {self.n} numbers", "form")
        if any(v >= self.n for v in told):
            raise Refused(f"Numbers must be between 0 and {self.n - 1}")
        return answer(f"Answer: {spaced(told)}", told == self.values)

    def legal(self, rng: random.Random, most: int = 64) -> list[str]:
        """See Game."""
        asks = [f"My Query: {op} {i} {j}" for op in OPS for i, j in combinations(range(1, self.n + 1), 2)]
        answers = [f"My Answer: {spaced(pick(rng, self.n) for _ in range(self.n))}" for _ in range(most // 2)]
        return sample(rng, asks, most // 2) + list(dict.fromkeys(answers))

    def solve(self, rng: random.Random, rounds: int) -> Solver:
        """a + b = (a xor b) + 2 (a and b): three sums give the first three numbers, and XOR the rest."""

        found: dict[str, int] = {}
        for ask in ("XOR 1 2", "AND 1 2", "XOR 1 3", "AND 1 3", "AND 2 3"):
            found[ask] = int((yield f"My Query: {ask}"))
        third = found["XOR 1 2"] ^ found["XOR 1 3"]
        one_two = found["XOR 1 2"] + 2 * found["AND 1 2"]
        one_three = found["XOR 1 3"] + 2 * found["AND 1 3"]
        two_three = third + 2 * found["AND 2 3"]
        first = (one_two + one_three - two_three) // 2
        values = [first, one_two - first, one_three - first]
        for i in range(4, self.n + 1):
            values.append(first ^ int((yield f"My Query: XOR 1 {i}")))
        yield f"My Answer: {spaced(values)}"

    def spam(self) -> Iterator[str]:
        """See Game."""
        return (f"My Answer: {spaced(v)}" for v in product(range(self.n), repeat=self.n))

    def verdict(self, turns: Any) -> bool:
        """See Game."""
        return last_answer(turns, "Answer", "Correct", "1")

    def faults(self) -> list[tuple[str, str]]:
        """See Game."""
        if any(v >= self.n for v in self.values):
            return [("unsolvable", f"a value is above {self.n - 1}, which no answer may name")]
        return []
