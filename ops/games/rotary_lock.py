"""RotaryLock: rings with one arc each; where the others stand to ring 0, told by how much they leave open."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice, product
from typing import Any

from .base import Game, Refused, Row, Solver, Step, answer, between, choice, heard, pick, spaced
from .beliefs import entropy
from .parse import Form


class RotaryLock(Game):
    """See the module; quirk `rotary.absolute`: answers are compared with positions, not with those to ring 0."""

    name, kind = "RotaryLock", "da"
    LEVELS = {"easy": {"n": 3}, "medium": {"n": 4}, "hard": {"n": 5}}
    QUIRKS = ("rotary.absolute",)
    FORMS = (
        Form("turn", "My Query:_INT.NUM", "My Query:_INT.<-?1>"),
        Form("answer", "My Answer:_INTS"),
    )
    NO_FORM = "Invalid format. Use 'My Query: x d' or 'My Answer: p1 p2...'"
    FIELDS = {"answer": list, "n": int, "m": int}
    luck = True

    @classmethod
    def draw(cls, rng: random.Random, n: int) -> Row:
        """See Game."""
        return {"scale": n, "n": n, "m": 6, "answer": [0] + [pick(rng, 6 * n) for _ in range(n - 1)]}

    def begin(self) -> None:
        """See Game."""
        self.n, self.m = self.row["n"], self.row["m"]
        self.size = self.n * self.m
        self.at = [int(p) for p in self.row["answer"]]
        if len(self.at) != self.n:
            raise ValueError("there is not one position for every ring")

    def open(self) -> int:
        """Sections that no arc covers."""
        return self.size - len({(p + i) % self.size for p in self.at for i in range(self.m)})

    def tell(self) -> str:
        """See Game."""
        example = spaced(range(1, self.n))
        return (
            f"A lock has {self.n} rings, 0 to {self.n - 1}, of {self.size} sections each, numbered round from 0. On "
            f"every ring an arc covers {self.m} sections in a row. A section is open when no ring's arc covers it; now "
            f"{self.open()} are open.\n"
            "- `My Query: 2 1` turns ring 2 by one section to higher numbers, `My Query: 2 -1` the other way; I reply "
            "with the number of open sections.\n"
            f"- `My Answer: {example}` says how far the arcs of rings 1 to {self.n - 1} begin after the arc of ring "
            f"0, as the rings stand now, each from 0 to {self.size - 1}. I reply Correct or Incorrect."
        )

    def play(self, kind: str, said: list[Any]) -> Step:
        """See Game."""
        if kind == "turn":
            ring, by = said[0], int(said[1])
            if ring >= self.n or by not in (1, -1):
                raise Refused("Invalid ring number or direction")
            self.at[ring] = (self.at[ring] + by) % self.size
            return heard(f"Rotation:{ring},{by}", self.open())
        told = said[0]
        if len(told) != self.n - 1:
            raise Refused("Wrong number of positions", "form")
        if any(p >= self.size for p in told):
            raise Refused("Position out of range")
        zero = 0 if self.quirk("rotary.absolute") else self.at[0]
        right = told == [(p - zero) % self.size for p in self.at[1:]]
        return answer(f"Answer:{','.join(map(str, told))}", right)

    def legal(self, rng: random.Random, most: int = 64) -> list[str]:
        """See Game."""
        turns = [f"My Query: {ring} {by}" for ring in range(self.n) for by in (1, -1)]
        answers = [spaced(between(rng, 0, self.size - 1) for _ in range(self.n - 1)) for _ in range(most - len(turns))]
        return turns + list(dict.fromkeys(f"My Answer: {a}" for a in answers))

    def solve(self, rng: random.Random, rounds: int) -> Solver:
        """Keep all positions that fit, turn the ring that tells most; in the last rounds name what is left."""
        import numpy as np

        # Ring 0 stands still for the reference's rules, which compare with it where it began.
        opens = _opens(self.n, self.m)
        states = np.stack([g.ravel() for g in np.indices((self.size,) * (self.n - 1), dtype=np.int16)], axis=1)
        if not self.quirk("rotary.absolute"):
            states = states[opens[tuple(states.T)] == self.open()]
        turns = [(ring, by) for ring in range(1, self.n) for by in (1, -1)]
        while True:
            if (len(states) <= rounds and (len(states) <= 2 or len(states) == rounds)) or rounds <= 1:
                guess = choice(rng, states)
                rounds -= 1
                if (yield f"My Answer: {spaced(guess.tolist())}") == "Correct":
                    return
                states = states[(states != guess).any(axis=1)]
                continue
            looked = states if len(states) < 40000 else states[:: len(states) // 40000 + 1]
            told = []
            for ring, by in turns:
                moved = looked.copy()
                moved[:, ring - 1] = (moved[:, ring - 1] + by) % self.size
                told.append(entropy(np.bincount(opens[tuple(moved.T)]).tolist()))
            best = max(told)
            # A turn of a step tells little by itself: among the best, going on where one went.
            ring, by = choice(rng, [t for t, value in zip(turns, told, strict=True) if value > best - 1e-9])
            reply = yield f"My Query: {ring} {by}"
            rounds -= 1
            states[:, ring - 1] = (states[:, ring - 1] + by) % self.size
            states = states[opens[tuple(states.T)] == int(reply)]

    def spam(self) -> Iterator[str]:
        """See Game."""
        places = product(range(self.size), repeat=self.n - 1)
        return (f"My Answer: {spaced(p)}" for p in islice(places, 10000))


def _opens(n: int, m: int) -> Any:
    """Open sections by positions of rings 1.. to ring 0: an array of n - 1 axes."""
    import numpy as np

    size = n * m
    arcs = np.array([sum(1 << (p + i) % size for i in range(m)) for p in range(size)], dtype=np.int64)
    covered = arcs[0]
    for ring in range(n - 1):
        covered = covered | arcs.reshape([-1 if axis == ring else 1 for axis in range(n - 1)])
    return size - np.bitwise_count(covered).astype(np.int64)
