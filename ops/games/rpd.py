"""RPD, the password breaker: a wrong guess changes the password by a sum without carry."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from .base import Game, Refused, Row, Solver, Step, answer, between, choice, sample
from .parse import Form


def added(x: int, y: int, k: int) -> int:
    """Digits in base k, added one by one without carry."""
    found, place = 0, 1
    while x or y:
        found += (x + y) % k * place
        x, y, place = x // k, y // k, place * k
    return found


class RPD(Game):
    """See the module; quirk `rpd.small_g`: `My Guess:`, as some prompts write it, is refused."""

    name, kind = "RPD", "da"
    LEVELS = {
        "easy": {"ranges": ((1, 10), (11, 20), (21, 30))},
        "medium": {"ranges": ((1, 20), (21, 40))},
        "hard": {"ranges": ((1, 30),)},
    }
    QUIRKS = ("rpd.small_g",)
    FORMS = (Form("guess", "My guess:_INT"),)
    FIELDS = {"k": int, "min_value": int, "max_value": int, "answer": int}

    @classmethod
    def draw(cls, rng: random.Random, ranges: tuple[tuple[int, int], ...]) -> Row:
        """See Game."""
        low, high = choice(rng, ranges)
        return {"scale": high - low + 1, "k": 2, "min_value": low, "max_value": high, "answer": between(rng, low, high)}

    def begin(self) -> None:
        """See Game."""
        self.k, self.low, self.high = self.row["k"], self.row["min_value"], self.row["max_value"]
        self.x = self.row["answer"]
        if self.k < 2 or not 0 <= self.low <= self.x <= self.high:
            raise ValueError("the password is not in its range")

    def _after(self, x: int, guess: int) -> int:
        return added(x, guess, self.k) % (self.high - self.low + 1) + self.low

    def tell(self) -> str:
        """See Game."""
        a, b, size = self.low + 1, self.low + 2, self.high - self.low + 1
        total = added(a, b, self.k)
        return (
            f"Guess a password from {self.low} to {self.high}. After a wrong guess it changes: password and guess are "
            f"written in base {self.k} and added digit by digit without carry, each digit modulo {self.k}; of the sum "
            f"z the new password is (z mod {size}) + {self.low}. Were it {a} and you guessed {b}, z would be {total} "
            f"and the new password {self._after(a, b)}.\n"
            f"- `My guess: {b}` guesses {b}. I reply Correct or Incorrect."
        )

    def play(self, kind: str, said: list[Any]) -> Step:
        """See Game."""
        if not self.low <= said[0] <= self.high:
            raise Refused("Invalid")
        right = said[0] == self.x
        if not right:
            self.x = self._after(self.x, said[0])
        return answer(f"Guess: {said[0]}", right)

    def legal(self, rng: random.Random, most: int = 64) -> list[str]:
        """See Game."""
        return [f"My guess: {g}" for g in sample(rng, range(self.low, self.high + 1), most)]

    def solve(self, rng: random.Random, rounds: int) -> Solver:
        """Passwords it may be now; the guess that leaves fewest after the best guess that follows."""
        left = frozenset(range(self.low, self.high + 1))
        guesses = range(self.low, self.high + 1)
        table = {(x, g): self._after(x, g) for x in guesses for g in guesses}

        def after(states: frozenset[int], guess: int) -> frozenset[int]:
            return frozenset(table[x, guess] for x in states if x != guess)

        seen: set[frozenset[int]] = set()
        while True:
            options = [(after(left, g), g) for g in guesses]
            near = sorted(options, key=lambda o: (o[0] in seen, len(o[0]), o[1] not in left))[:12]
            best = min(
                near, key=lambda o: (o[0] in seen, min((len(after(o[0], g)) for g in guesses), default=0), len(o[0]))
            )
            seen.add(left)
            if (yield f"My guess: {best[1]}") == "Correct":
                return
            left = best[0] or frozenset(guesses)

    def spam(self) -> Iterator[str]:
        """See Game."""
        return (f"My guess: {g}" for g in range(self.low, self.high + 1))

    def verdict(self, turns: Any) -> bool:
        """See Game."""
        return any(reply == "Correct" for _, reply in turns)

    def faults(self) -> list[tuple[str, str]]:
        """See Game."""
        if self.quirk("rpd.small_g") and "My Guess:" in self.row.get("prompt", ""):
            return [("refused form", "the prompt's example writes `My Guess:`, which is refused")]
        return []
