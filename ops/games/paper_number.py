"""PaperNumber: given numbers are written on papers until all are written in order."""

from __future__ import annotations

import random
from typing import Any

from .base import Game, Refused, Row, Solver, Step, between, heard, over
from .parse import Form


class PaperNumber(Game):
    """See the module."""

    name, kind = "PaperNumber", "sg"
    LEVELS = {"easy": {"k": 5, "turns": 10}, "medium": {"k": 10, "turns": 20}, "hard": {"k": 15, "turns": 30}}
    FORMS = (Form("write", "My Choice:_INT"),)
    NO_FORM = "Invalid format. Use 'My Choice: X'"
    FIELDS = {"scale": int, "initial_value": int, "max_number": int, "turns": (int, float), "numbers": list}
    DRAWN = ("numbers",)
    luck = True

    @classmethod
    def draw(cls, rng: random.Random, k: int, turns: int) -> Row:
        """See Game."""
        most = between(rng, 5, 9)
        first, *numbers = [between(rng, 1, most) for _ in range(turns)]
        return {"scale": k, "initial_value": first, "max_number": most, "turns": turns, "numbers": numbers}

    def begin(self) -> None:
        """See Game."""
        self.k, self.most, self.turns = self.row["scale"], self.row["max_number"], int(self.row["turns"])
        self.value, self.papers = self.row["initial_value"], [0] * self.k
        self.played = 0
        if self.k < 1 or self.most < 1:
            raise ValueError("there are no papers, or no numbers")

    def tell(self) -> str:
        """See Game."""
        return (
            f"There are {self.k} blank papers in a row, 1 to {self.k}. In each of {self.turns} rounds I give a number "
            f"from 1 to {self.most}, all equally likely, and you must write it on one paper, over what is there if "
            "you like. You win as soon as all papers are written and no number is smaller than the one on the paper "
            "before it.\n"
            f"The first number is {self.value}.\n"
            "- `My Choice: 2` writes the number on paper 2. I reply with the next number, or Win."
        )

    def play(self, kind: str, said: list[Any]) -> Step:
        """See Game."""
        if not 1 <= said[0] <= self.k:
            raise Refused(f"Invalid position. Choose between 1 and {self.k}")
        self.papers[said[0] - 1] = self.value
        result = f"Position: {said[0]}"
        if all(self.papers) and self.papers == sorted(self.papers):
            return over(result, "Win", True)
        self.played += 1
        if self.played >= self.turns:
            return over(result, "Game Over - Max turns reached", False)
        numbers = self.row.get("numbers")
        told = numbers and self.played <= len(numbers)
        self.value = int(numbers[self.played - 1]) if told else between(self.rng, 1, self.most)
        return heard(result, self.value)

    def legal(self, rng: random.Random, most: int = 64) -> list[str]:
        """See Game."""
        return [f"My Choice: {p}" for p in range(1, self.k + 1)][:most]

    def solve(self, rng: random.Random, rounds: int) -> Solver:
        """Papers written stay in order; a number goes where its share of numbers fits, or over the nearest."""
        papers, value = [0] * self.k, self.row["initial_value"]
        while True:
            at = _place(papers, value, self.most)
            papers[at] = value
            told = yield f"My Choice: {at + 1}"
            value = int(told)

    def verdict(self, turns: Any) -> bool:
        """See Game."""
        papers, value = [0] * self.k, self.row["initial_value"]
        for result, reply in turns:
            if not str(result).startswith("Position: "):
                return False
            papers[int(str(result)[10:]) - 1] = value
            if all(papers) and papers == sorted(papers):
                return True
            value = int(reply) if reply.isdigit() else 0
        return False


def _place(papers: list[int], value: int, most: int) -> int:
    """The paper for a number: blank and in order, else one of the same number, else the nearest in order."""
    k = len(papers)
    low = max((i for i, v in enumerate(papers) if v and v < value), default=-1)
    high = min((i for i, v in enumerate(papers) if v > value), default=k)
    same = [i for i, v in enumerate(papers) if v == value]
    blank = [i for i in range(low + 1, high) if not papers[i]]
    if blank:
        below = papers[low] if low >= 0 else 1
        above = papers[high] if high < k else most
        # Between what is written the numbers to come are spread evenly.
        share = (value - below + 0.5) / (above - below + 1)
        wanted = low + 1 + share * (high - low - 1) - 0.5
        return min(blank, key=lambda i: abs(i - wanted))
    if same:
        return same[0]
    # It takes the place of a number next to it in order, where that leaves gaps better filled.
    around = [i for i in (low, high) if 0 <= i < k and papers[i]]
    open_left, open_right = papers[: max(low, 0)].count(0), papers[high + 1 :].count(0)

    def cost(i: int) -> float:
        room = open_left if i == low else open_right
        width = (value - 1) if i == low else (most - value)
        return abs(papers[i] - value) - 0.1 * room + 0.05 * width

    return min(around, key=cost) if around else 0
