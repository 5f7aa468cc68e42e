"""XORBreaking: numbers are broken into two of which XOR gives them back; who cannot break loses."""

from __future__ import annotations

import random
from typing import Any

from .base import Game, Refused, Row, Solver, Step, before, between, choice, heard, over
from .parse import Form


def breakable(p: int) -> bool:
    """A number of one bit has no two smaller ones."""
    return p.bit_count() > 1


class XORBreaking(Game):
    """See the module; quirk `xor.any_choice`: nobody looks whether the chosen number was offered."""

    name, kind = "XORBreaking", "sg"
    LEVELS = {"easy": {"bound": 10**5}, "medium": {"bound": 10**7}, "hard": {"bound": 10**8}}
    QUIRKS = ("xor.any_choice",)
    FORMS = (
        Form("go", "Choosing:_INT.Breaking into:_INT.INT"),
        Form("first", "Breaking into:_INT.INT"),
    )
    NO_FORM = "Invalid format. Use 'Breaking into: p1 p2'"
    FIELDS = {"initial_number": int, "turns": (int, float)}
    OPPONENTS = ("random", "greedy", "best")
    luck = True

    @classmethod
    def draw(cls, rng: random.Random, bound: int) -> Row:
        """See Game."""
        p = 1
        # An even count of bits can be won against any opponent.
        while not breakable(p) or p.bit_count() % 2:
            p = between(rng, 2, bound)
        return {"scale": bound, "initial_number": p, "turns": 20}

    def begin(self) -> None:
        """See Game."""
        self.pair: tuple[int, int] | None = None
        self.first = self.row["initial_number"]

    def tell(self) -> str:
        """See Game."""
        return (
            f"Break the number {self.first} into two numbers p1 and p2 with p1 XOR p2 = {self.first}, both greater "
            "than 0 and smaller than it. Then I choose one of the two and break it in the same way, you choose one of "
            "mine, and so on, for 20 rounds at most. Who cannot break a number loses. (13 breaks into 10 and 7; a "
            "power of two cannot be broken.)\n"
            "- `Breaking into: 10 7` is your first message.\n"
            "- `Choosing: 10 Breaking into: 8 2` chooses 10 of the two I gave and breaks it into 8 and 2."
        )

    def play(self, kind: str, said: list[Any]) -> Step:
        """See Game."""
        if self.pair is None:
            number, (a, b) = self.first, said[-2:]
        elif kind == "first":
            raise Refused("Invalid format. Use 'Choosing: p Breaking into: p1 p2'", "form")
        else:
            number, a, b = said
            if number not in self.pair and not self.quirk("xor.any_choice"):
                raise Refused("Invalid break", "rule")
        if a ^ b != number or not (0 < a < number and 0 < b < number):
            raise Refused("Invalid break", "rule")
        result = f"Breaking into: {a} {b}" if self.pair is None else f"Choosing: {number} Breaking into: {a} {b}"
        mine = self._rival(a, b)
        if not breakable(mine):
            return over(result, f"Choosing: {mine} Cannot break further. You win!", True)
        self.pair = parts(mine) if self.opponent == "best" else (mine & -mine, mine & (mine - 1))
        reply = f"Choosing: {mine} Breaking into: {self.pair[0]} {self.pair[1]}"
        if not any(map(breakable, self.pair)) and not self.quirk("xor.any_choice"):
            return over(result, f"{reply} You lose!", False)
        return heard(result, reply)

    def _rival(self, a: int, b: int) -> int:
        """The opponent's choice; 1 only where both are."""
        if self.opponent != "random":
            even = [p for p in (a, b) if breakable(p) and p.bit_count() % 2 == 0]
            return (even or [p for p in (a, b) if breakable(p)] or [a])[0]
        return choice(self.rng, [p for p in (a, b) if p != 1] or [1])

    def legal(self, rng: random.Random, most: int = 64) -> list[str]:
        """See Game."""
        found = []
        for p in (self.first,) if self.pair is None else self.pair:
            if breakable(p):
                for _ in range(most // 2):
                    a = between(rng, 1, p - 1)
                    a = a if 0 < a ^ p < p else p & -p
                    begin = "" if self.pair is None else f"Choosing: {p} "
                    found.append(f"{begin}Breaking into: {a} {a ^ p}")
        return list(dict.fromkeys(found))

    def solve(self, rng: random.Random, rounds: int) -> Solver:
        """An even count of bits breaks into two odd ones, and wins; an odd one so that the opponent may err often."""
        told, number, begin = "", self.first, ""
        while True:
            a, b = parts(number) if number.bit_count() % 2 == 0 else _hopeful(number, rng)
            told = yield f"{begin}Breaking into: {a} {b}"
            pair = list(map(int, told.split()[-2:]))
            even = [p for p in pair if breakable(p) and p.bit_count() % 2 == 0]
            number = (even or sorted(pair, key=int.bit_count, reverse=True))[0]
            begin = f"Choosing: {number} "

    def verdict(self, turns: Any) -> bool:
        """See Game."""
        return before(turns, "win", "invalid")

    def faults(self) -> list[tuple[str, str]]:
        """See Game."""
        if not breakable(self.first):
            return [("unsolvable", "the first number cannot be broken")]
        if self.first.bit_count() % 2:
            return [("lost against perfect play", "the number has an odd count of bits")]
        return []


def _hopeful(p: int, rng: random.Random) -> tuple[int, int]:
    """Of an odd count of bits: an odd part that may be chosen, and an even one of many bits for the other case."""
    ways = [(1 << i, p ^ 1 << i) for i in range(p.bit_length()) if p >> i & 1]
    tried = (between(rng, 1, p - 1) for _ in range(200))
    ways += [(a, a ^ p) for a in tried if 0 < a ^ p < p]

    def hope(way: tuple[int, int]) -> tuple[bool, int]:
        odd, even = sorted(way, key=lambda part: part.bit_count() % 2, reverse=True)
        return odd != 1, even.bit_count()

    return max(ways, key=hope)


def parts(p: int) -> tuple[int, int]:
    """The lowest bit and the rest."""
    return p & -p, p & (p - 1)
