"""MinMax: the places of the least and the greatest digit, from comparisons."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import permutations
from typing import Any

from .base import Game, Refused, Row, Solver, Step, answer, between, heard, last_answer, sample, shuffled
from .parse import Form


class MinMax(Game):
    """See the module; quirk `minmax.no_bang`: `My Answer: ! i j`, which some prompts teach, is refused."""

    name, kind = "MinMax", "ip"
    LEVELS = {"easy": {"n": 5}, "medium": {"n": 6}, "hard": {"n": 7}}
    QUIRKS = ("minmax.no_bang",)
    FORMS = (
        Form("query", "My Query:_INT.INT"),
        Form("answer", r"My Answer:_<(?:![ \t]*)?>INT.INT", "My Answer:_INT.INT"),
    )
    NO_FORM = "Invalid format. Use 'My Query: i j' or 'My Answer: i j'"
    FIELDS = {"answer": str, "min_pos": int, "max_pos": int}

    @classmethod
    def draw(cls, rng: random.Random, n: int) -> Row:
        """See Game."""
        rest = [between(rng, 3, 7) for _ in range(n - 2)]
        digits = shuffled(rng, [between(rng, 1, 2), between(rng, 8, 9), *rest])
        places = {"min_pos": digits.index(min(digits)) + 1, "max_pos": digits.index(max(digits)) + 1}
        return {"scale": n, "answer": "".join(map(str, digits)), **places}

    def begin(self) -> None:
        """See Game."""
        self.digits = [int(d) for d in self.row["answer"]]
        self.n = len(self.digits)

    def tell(self) -> str:
        """See Game."""
        return (
            f"A hidden list has {self.n} numbers at the places 1 to {self.n}. One of them is the least and one the "
            "greatest. Find their places.\n"
            "- `My Query: 1 2` compares the numbers at two different places. I reply <, = or >.\n"
            "- `My Answer: 3 5` says that the least is at place 3 and the greatest at place 5. I reply 1 when both "
            "are right, else 0."
        )

    def play(self, kind: str, said: list[Any]) -> Step:
        """See Game."""
        i, j = said[-2:]
        asks, strict = kind == "query", self.quirk("minmax.no_bang")
        if (asks or not strict) and not (1 <= i <= self.n and 1 <= j <= self.n):
            raise Refused(f"Positions must be between 1 and {5 if strict else self.n}")
        if asks:
            if i == j:
                raise Refused("Cannot compare same positions", "rule")
            a, b = self.digits[i - 1], self.digits[j - 1]
            return heard(f"Query: {i} {j}", "<" if a < b else ">" if a > b else "=")
        right = (i, j) == (self.row["min_pos"], self.row["max_pos"])
        return answer(f"Answer: {i} {j}", right, "1", "0")

    def legal(self, rng: random.Random, most: int = 64) -> list[str]:
        """See Game."""
        pairs = list(permutations(range(1, self.n + 1), 2))
        found = [f"My Query: {i} {j}" for i, j in pairs] + [f"My Answer: {i} {j}" for i, j in pairs]
        return sample(rng, found, most)

    def solve(self, rng: random.Random, rounds: int) -> Solver:
        """Pairs first, then the smaller ones and the greater ones among themselves."""
        low, high = [], []
        places = list(range(1, self.n + 1))
        while len(places) > 1:
            i, j = places.pop(), places.pop()
            told = yield f"My Query: {i} {j}"
            low.append(j if told == ">" else i)
            high.append(i if told == ">" else j)
        if places:
            # The one left over is compared as one of the smaller; where it is not the least it may be the greatest.
            low.append(places[0])
        least = low.pop(0)
        while low:
            i = low.pop(0)
            told = yield f"My Query: {i} {least}"
            if places and i == places[0] and told != "<":
                high.append(i)
            least = i if told == "<" else least
        greatest = high.pop(0)
        while high:
            i = high.pop(0)
            greatest = i if (yield f"My Query: {i} {greatest}") == ">" else greatest
        yield f"My Answer: {least} {greatest}"

    def spam(self) -> Iterator[str]:
        """See Game."""
        return (f"My Answer: {i} {j}" for i, j in permutations(range(1, self.n + 1), 2))

    def verdict(self, turns: Any) -> bool:
        """See Game."""
        return last_answer(turns, "Answer", "1")

    def faults(self) -> list[tuple[str, str]]:
        """See Game."""
        if self.quirk("minmax.no_bang") and "My Answer: !" in self.row.get("prompt", ""):
            return [("refused form", "the prompt teaches `My Answer: ! i j`, which is refused")]
        return []
