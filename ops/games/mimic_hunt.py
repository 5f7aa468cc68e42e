"""MimicHunt: one object among others changes its type after it was seen twice."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

from .base import Game, Refused, Row, Solver, Step, answer, between, choice, ends_in, heard, sample, shuffled, spaced
from .parse import Form


class MimicHunt(Game):
    """See the module; quirk `mimic.hidden_list`: the player is not shown the objects."""

    name, kind = "MimicHunt", "da"
    LEVELS = {"easy": {"n": 5}, "medium": {"n": 10}, "hard": {"n": 20}}
    QUIRKS = ("mimic.hidden_list",)
    FORMS = (Form("remove", "My Query:_-_INT.INTS", "My Query:_-_INTS"), Form("answer", "My Answer:_INT"))
    FIELDS = {"list": list, "answer": int}

    @classmethod
    def draw(cls, rng: random.Random, n: int) -> Row:
        """See Game."""
        return {"scale": n, "list": [between(rng, 1, 9) for _ in range(n)], "answer": between(rng, 1, n)}

    def begin(self) -> None:
        """See Game."""
        self.types = [int(t) for t in self.row["list"]]
        self.n, self.seen = len(self.types), 1
        if not 1 <= self.row["answer"] <= self.n:
            raise ValueError("the mimic is none of the objects")

    def tell(self) -> str:
        """See Game."""
        return (
            f"Here are {self.n} objects with their types: {spaced(self.row['list'])}. One of them is a mimic. It "
            "keeps a type for at most two stages in which it is seen, and then takes another one of 1 to 9; stages in "
            "which it is removed do not count.\n"
            "- `My Query: - 2 1 3` removes 2 objects for this stage only, those at places 1 and 3; I reply with the "
            "types of all others, in random order. At least one is removed, at least one stays, and places never "
            "shift.\n"
            "- `My Answer: 4` says that the mimic is at place 4. I reply Correct or Incorrect."
        )

    def play(self, kind: str, said: list[Any]) -> Step:
        """See Game."""
        if kind == "answer":
            if not 1 <= said[0] <= self.n:
                raise Refused("Invalid")
            return answer(f"Answer: {said[0]}", said[0] == self.row["answer"])
        numbers = said[0] if len(said) == 1 else [said[0], *said[1]]
        count, gone = (numbers[0], numbers[1:]) if numbers else (0, [])
        if count < 1 or len(gone) != count or len(set(gone)) != count:
            raise Refused("Invalid", "form")
        if not all(1 <= p <= self.n for p in gone) or (count == self.n and not self.quirk("mimic.hidden_list")):
            raise Refused("Invalid")
        shown = shuffled(self.rng, [t for p, t in enumerate(self.types, 1) if p not in gone])
        at = self.row["answer"]
        if at not in gone:
            if self.seen == 2:
                self.types[at - 1] = choice(self.rng, [t for t in range(1, 10) if t != self.types[at - 1]])
            self.seen = 3 - self.seen
        return heard(f"Remove: {spaced(gone)}", str(shown))

    def legal(self, rng: random.Random, most: int = 64) -> list[str]:
        """See Game."""
        found = [f"My Answer: {p}" for p in range(1, self.n + 1)][: most // 2]
        for _ in range(most - len(found)):
            gone = sorted(sample(rng, range(1, self.n + 1), between(rng, 1, self.n - 1)))
            found.append(f"My Query: - {len(gone)} {spaced(gone)}")
        return list(dict.fromkeys(found))

    def solve(self, rng: random.Random, rounds: int) -> Solver:
        """Show everything twice; then a candidate that is shown once more must change, and half of them are."""
        if self.quirk("mimic.hidden_list"):
            yield from self._blind(rng)
            return
        listed = [int(t) for t in self.row["list"]]
        #: candidate -> (times shown, its type by then)
        alive = {p: (0, listed[p - 1]) for p in range(1, self.n + 1)}
        while True:
            if len(alive) <= max(1, rounds) and (len(alive) == 1 or len(alive) >= rounds - 1):
                guess = min(alive)
                rounds -= 1
                if (yield f"My Answer: {guess}") == "Correct":
                    return
                alive.pop(guess, None)
                continue
            due = [p for p in alive if alive[p][0] >= 2 and alive[p][0] % 2 == 0]
            hidden = set(_half(due, alive)) if due else set()
            if not hidden:
                others = [p for p in range(1, self.n + 1) if p not in alive]
                hidden = {others[0] if others else (due or list(alive))[-1]}
            reply = yield f"My Query: - {len(hidden)} {spaced(sorted(hidden))}"
            rounds -= 1
            alive = _after(alive, hidden, Counter(_numbers(reply)), listed)

    def _blind(self, rng: random.Random) -> Solver:
        """Without the list: halves, each shown until it changes or has been seen three times alike."""
        alive = list(range(1, self.n + 1))
        while len(alive) > 1:
            half = alive[: len(alive) // 2]
            gone = [p for p in range(1, self.n + 1) if p not in half]
            shows: list[list[int]] = []
            while len(shows) < 3 and (not shows or shows[-1] == shows[0]):
                shows.append(sorted(_numbers((yield f"My Query: - {len(gone)} {spaced(gone)}"))))
            alive = half if shows[-1] != shows[0] else alive[len(alive) // 2 :]
        while True:
            yield f"My Answer: {alive[0]}"

    def spam(self) -> Iterator[str]:
        """See Game."""
        return (f"My Answer: {p}" for p in range(1, self.n + 1))

    def verdict(self, turns: Any) -> bool:
        """See Game."""
        return ends_in(turns, "Answer", "Correct")


def _numbers(reply: str) -> list[int]:
    return [int(part) for part in reply.strip("[]").split(",") if part.strip()]


def _half(due: list[int], alive: dict[int, tuple[int, int]]) -> list[int]:
    """Half of the candidates that must change when they are shown, of every type a half: a change tells its type."""
    ordered = sorted(due, key=lambda p: (alive[p][1], p))
    return ordered[::2] if len(ordered) > 1 else []


def _after(
    alive: dict[int, tuple[int, int]], hidden: set[int], shown: Counter[int], listed: list[int]
) -> dict[int, tuple[int, int]]:
    """Candidates that fit a stage: all others keep their types, so what is shown beside those is its type."""
    found = {}
    for p, (times, kind) in alive.items():
        others = Counter(t for at, t in enumerate(listed, 1) if at not in hidden and at != p)
        if p in hidden:
            if others == shown:
                found[p] = (times, kind)
            continue
        rest = shown - others
        if sum(rest.values()) != 1 or others - shown:
            continue
        now = next(iter(rest))
        changes = times >= 2 and times % 2 == 0
        if (now != kind) == changes:
            found[p] = (times + 1, now)
    return found
