"""Wordle: a string of letters, told position by position; it need not be a word."""

from __future__ import annotations

import random
from collections import Counter
from string import ascii_uppercase as LETTERS
from typing import Any

from .base import Game, Refused, Row, Solver, Step, choice, last, shuffled
from .parse import Form


def marks(target: str, guess: str) -> str:
    """R right place, G elsewhere, W no more of it; places that are right use up their letters first."""
    left = Counter(t for t, g in zip(target, guess, strict=True) if t != g)
    found = []
    for t, g in zip(target, guess, strict=True):
        if t == g:
            found.append("R")
        elif left[g] > 0:
            left[g] -= 1
            found.append("G")
        else:
            found.append("W")
    return "".join(found)


class Wordle(Game):
    """See the module; quirk `wordle.lengths`: only strings of 4, 8 and 12 letters can be won."""

    name, kind = "Wordle", "ip"
    LEVELS = {"easy": {"length": 4}, "medium": {"length": 8}, "hard": {"length": 12}}
    QUIRKS = ("wordle.lengths",)
    FORMS = (Form("guess", "My Guess:_WORD"),)
    NO_FORM = "Your response must end with 'My Guess: [YOUR WORD]'"
    FIELDS = {"answer": str}

    @classmethod
    def draw(cls, rng: random.Random, length: int) -> Row:
        """See Game."""
        return {"scale": length, "answer": "".join(choice(rng, LETTERS) for _ in range(length))}

    def begin(self) -> None:
        """See Game."""
        self.target = self.row["answer"].upper()
        if not self.target.isascii() or not self.target.isalpha():
            raise ValueError("the answer is not made of letters")

    def tell(self) -> str:
        """See Game."""
        length = len(self.target)
        return (
            f"Find a string of {length} letters A to Z. It was drawn letter by letter: it need not be a word, and "
            f"letters may repeat.\n- `My Guess: {LETTERS[:length]}` guesses. I reply with a mark for each place: R, "
            "the letter is right; G, it is in the string, at another place; W, there is no such letter, or no more of "
            "them than marked otherwise."
        )

    def play(self, kind: str, said: list[Any]) -> Step:
        """See Game."""
        guess = said[0].upper()
        if len(guess) != len(self.target):
            raise Refused("The word you guess must have correct length.", "range", guess)
        right = guess == self.target
        return Step(guess, marks(self.target, guess), done=right, solved=right)

    def legal(self, rng: random.Random, most: int = 64) -> list[str]:
        """See Game."""
        return [f"My Guess: {''.join(choice(rng, LETTERS) for _ in self.target)}" for _ in range(most)]

    def solve(self, rng: random.Random, rounds: int) -> Solver:
        """Untested letters wherever a place or a count leaves room, then guesses that fit everything told."""
        size = len(self.target)
        may = [set(LETTERS) for _ in range(size)]
        least, most = Counter(), dict.fromkeys(LETTERS, size)
        untested = shuffled(rng, LETTERS)
        while True:
            known = sum(least.values())
            if known >= size or not untested:
                guess = _fitting(may, least, most, rng)
            else:
                guess = _probe(may, least, untested, size - known, rng)
            reply = yield f"My Guess: {guess}"
            untested = [c for c in untested if c not in guess]
            _learn(guess, reply, may, least, most)

    def verdict(self, turns: Any) -> bool:
        """See Game."""
        return last(turns, "R" * 4, "R" * 8, "R" * 12)

    def faults(self) -> list[tuple[str, str]]:
        """See Game."""
        if self.quirk("wordle.lengths") and len(self.target) not in (4, 8, 12):
            return [("unsolvable", "the evaluator knows strings of 4, 8 and 12 letters alone")]
        return []


def _learn(guess: str, reply: str, may: list[set[str]], least: Counter[str], most: dict[str, int]) -> None:
    there = Counter(g for g, r in zip(guess, reply, strict=True) if r in "RG")
    for at, (letter, mark) in enumerate(zip(guess, reply, strict=True)):
        if mark == "R":
            may[at] = {letter}
        else:
            may[at].discard(letter)
        if mark == "W":
            most[letter] = there[letter]
    for letter, count in there.items():
        least[letter] = max(least[letter], count)
    for letter in guess:
        if most[letter] == 0:
            for places in may:
                places.discard(letter)


def _probe(may: list[set[str]], least: Counter[str], untested: list[str], unknown: int, rng: random.Random) -> str:
    """Letters that are there at places not yet ruled out, and letters nobody has tried at the others."""
    size = len(may)
    guess: list[str | None] = [None] * size
    fixed = Counter(next(iter(p)) for p in may if len(p) == 1)
    fresh = list(untested)
    loose = [c for c, n in least.items() for _ in range(n - fixed[c])]
    # Where nothing is left to learn of a place, it serves to try a letter.
    room = max(size - min(len(fresh), size), 0)
    for letter in loose:
        places = [i for i in range(size) if guess[i] is None and len(may[i]) > 1 and letter in may[i]]
        if places and (room > 0 or len(fresh) < size // 2 or unknown * 2 < size or size <= 4):
            guess[choice(rng, places)] = letter
            room -= 1
    order = sorted((i for i in range(size) if guess[i] is None), key=lambda i: len(may[i]) == 1)
    for i in order:
        if fresh:
            guess[i] = fresh.pop()
        else:
            guess[i] = choice(rng, sorted(may[i]))
    return "".join(c or "A" for c in guess)


def _fitting(may: list[set[str]], least: Counter[str], most: dict[str, int], rng: random.Random) -> str:
    """A string that fits all that was told: the places of fewest letters first, with a step back where none is left."""
    size = len(may)
    order = sorted(range(size), key=lambda i: len(may[i]))
    guess: dict[int, str] = {}
    used: Counter[str] = Counter()

    def place(depth: int) -> bool:
        if depth == size:
            return True
        need = sum(max(n - used[c], 0) for c, n in least.items())
        if need > size - depth:
            return False
        at = order[depth]
        letters = shuffled(rng, sorted(may[at]))
        for letter in sorted(letters, key=lambda c: used[c] >= least[c]):
            if used[letter] < most[letter]:
                used[letter] += 1
                guess[at] = letter
                if place(depth + 1):
                    return True
                used[letter] -= 1
        return False

    place(0)
    return "".join(guess.get(i, "A") for i in range(size))
