"""FindTheImpostors: some players are impostors; of three of them one hears who has the majority."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import combinations
from typing import Any

from .base import Game, Refused, Row, Solver, Step, choice, heard, last_answer, pick, sample
from .beliefs import best_split
from .parse import Form, number


class FindTheImpostors(Game):
    """See the module; quirk `impostors.strict_commas`: no blanks, and players beyond the last count as crew."""

    name, kind = "FindTheImpostors", "ip"
    LEVELS = {
        "easy": {"n": 6, "low": 2, "high": 4},
        "medium": {"n": 9, "low": 3, "high": 6},
        "hard": {"n": 12, "low": 4, "high": 8},
    }
    QUIRKS = ("impostors.strict_commas",)
    FORMS = (
        Form("query", r"My Query:_INT<[ \t]*,[ \t]*>INT<[ \t]*,[ \t]*>INT", "My Query:_INT<,>INT<,>INT"),
        Form("answer", r"My Answer:_<[0-9]+(?:[ \t]*,[ \t]*[0-9]+)*>", r"My Answer:_<\d+(?:,\d+)*>"),
    )
    NO_FORM = "Invalid format"
    FIELDS = {"answer": str}

    @classmethod
    def draw(cls, rng: random.Random, n: int, low: int, high: int) -> Row:
        """See Game."""
        while True:
            crew = "".join(str(pick(rng, 2)) for _ in range(n))
            if low <= crew.count("0") <= high:
                return {"scale": n, "answer": crew, "range": [low, high]}

    def begin(self) -> None:
        """See Game."""
        self.n = len(self.row["answer"])
        self.bad = {p for p, c in enumerate(self.row["answer"], 1) if c == "0"}
        levels = {level["n"]: [level["low"], level["high"]] for level in self.LEVELS.values()}
        self.low, self.high = self.row.get("range") or levels.get(self.n, [1, self.n - 1])

    def tell(self) -> str:
        """See Game."""
        return (
            f"Among {self.n} players, 1 to {self.n}, {self.low} to {self.high} are impostors. Find all of them.\n"
            "- `My Query: 1,2,3` asks about three different players. I reply 0 when at least two of them are "
            "impostors, else 1.\n"
            "- `My Answer: 2,5,6` names all impostors, and nothing else. I reply 1 when that is right, else 0."
        )

    def play(self, kind: str, said: list[Any]) -> Step:
        """See Game."""
        strict = self.quirk("impostors.strict_commas")
        if kind == "query":
            asked = said[::2]
            if len(set(asked)) < 3:
                raise Refused("-1", "rule")
            if not strict and not all(1 <= p <= self.n for p in asked):
                raise Refused("Invalid format")
            few = len(self.bad & set(asked)) < 2
            return heard(f"Query:{','.join(map(str, sorted(asked)))}", int(few))
        told = [number(part, strict) for part in said[0].split(",")]
        if not strict and (not all(1 <= p <= self.n for p in told) or len(set(told)) < len(told)):
            raise Refused("Invalid format")
        right = set(told) == self.bad
        result = f"Answer:{','.join(map(str, sorted(told)))}"
        # With a number twice the reference says that it is right, and goes on.
        done = right and sorted(told) == sorted(self.bad)
        return Step(result, str(int(right)), done=done, solved=done, answered=True)

    def legal(self, rng: random.Random, most: int = 64) -> list[str]:
        """See Game."""
        asks = [f"My Query: {','.join(map(str, t))}" for t in combinations(range(1, self.n + 1), 3)]
        answers = []
        for _ in range(most // 2):
            size = self.low + pick(rng, self.high - self.low + 1)
            answers.append(f"My Answer: {_list(sorted(sample(rng, range(1, self.n + 1), size)))}")
        return sample(rng, asks, most // 2) + list(dict.fromkeys(answers))

    def solve(self, rng: random.Random, rounds: int) -> Solver:
        """All sets of impostors as bits, and the three players that tell most of them apart."""
        masks = [m for m in range(1 << self.n) if self.low <= m.bit_count() <= self.high]
        triples = [sum(1 << p for p in t) for t in combinations(range(self.n), 3)]
        while True:
            if len(masks) <= 2 or rounds <= 1:
                guess = choice(rng, masks)
                told = yield f"My Answer: {_list([p + 1 for p in range(self.n) if guess >> p & 1])}"
                masks = [m for m in masks if m != guess] or masks
                rounds -= 1
                if told == "1":
                    return
                continue
            asked = best_split(masks, triples, lambda m, t: (m & t).bit_count() >= 2, rng, 250)
            told = yield f"My Query: {_list([p + 1 for p in range(self.n) if asked >> p & 1])}"
            rounds -= 1
            masks = [m for m in masks if ((m & asked).bit_count() >= 2) == (told == "0")]

    def spam(self) -> Iterator[str]:
        """See Game."""
        sizes = range(self.low, self.high + 1)
        return (f"My Answer: {_list(s)}" for size in sizes for s in combinations(range(1, self.n + 1), size))

    def verdict(self, turns: Any) -> bool:
        """See Game."""
        return last_answer(turns, "Answer", "1")


def _list(players: Any) -> str:
    return ",".join(map(str, players))
