"""MedianQuery: a permutation of 1..n; the places of its two middle values, from the middle values of chosen places."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from itertools import combinations, permutations
from typing import Any

from .base import Game, Refused, Row, Solver, Step, answer, choice, heard, pick, sample, shuffled, spaced
from .parse import Form

#: permutations up to this many places are all gone through; beyond, a chain of swaps draws some that fit
EXACT, DRAWN = 8, 80


class MedianQuery(Game):
    """See the module."""

    name, kind = "MedianQuery", "ip"
    LEVELS = {"easy": {"n": 6}, "medium": {"n": 8}, "hard": {"n": 15}}
    FORMS = (Form("query", "My Query:_INT.INTS", "My Query:_INT.INTS"), Form("answer", "My Answer:_INT.INT"))
    NO_FORM = "Your response must be either 'My Query: k x1...xk' or 'My Answer: i j'"
    FIELDS = {"list": list}

    @classmethod
    def draw(cls, rng: random.Random, n: int) -> Row:
        """See Game."""
        values = shuffled(rng, range(1, n + 1))
        return {"scale": n, "list": values, "answer": [values.index(n // 2) + 1, values.index(n // 2 + 1) + 1]}

    def begin(self) -> None:
        """See Game."""
        self.p = [int(v) for v in self.row["list"]]
        self.n = len(self.p)
        self.wanted = {self.p.index(self.n // 2) + 1, self.p.index(self.n // 2 + 1) + 1}

    def tell(self) -> str:
        """See Game."""
        low = self.n // 2
        return (
            f"A list has {self.n} places, 1 to {self.n}, and holds each of the numbers 1 to {self.n} once. Find the "
            f"two places that hold {low} and {low + 1}.\n"
            "- `My Query: 4 1 2 3 5` asks about 4 different places, 1, 2, 3 and 5; how many is even and at least 4, "
            "and comes first. I reply with the two middle ones of their numbers, the smaller first.\n"
            "- `My Answer: 6 4` names the two places, in any order. I reply Correct or Incorrect."
        )

    def play(self, kind: str, said: list[Any]) -> Step:
        """See Game."""
        if kind == "answer":
            if not all(1 <= p <= self.n for p in said):
                raise Refused("Position indices must be valid")
            return answer(spaced(said), set(said) == self.wanted)
        size, places = said
        if size != len(places):
            raise Refused("Length k must match the number of positions", "form")
        if size % 2 or not 4 <= size <= self.n:
            raise Refused("Invalid subsequence length")
        if len(set(places)) != size:
            raise Refused("Positions must be distinct", "rule")
        if not all(1 <= p <= self.n for p in places):
            raise Refused("Invalid position indices")
        return heard(spaced([size, *places]), spaced(middle(self.p, [p - 1 for p in places])))

    def legal(self, rng: random.Random, most: int = 64) -> list[str]:
        """See Game."""
        pairs = [f"My Answer: {i} {j}" for i, j in combinations(range(1, self.n + 1), 2)]
        asks = [_said(places) for places in _questions(self.n, rng, most // 2)]
        return list(dict.fromkeys(asks)) + sample(rng, pairs, most // 2)

    def solve(self, rng: random.Random, rounds: int) -> Solver:
        """Permutations that fit, and the question that leaves the pair least open."""
        told: list[tuple[tuple[int, ...], tuple[int, int]]] = []
        wrong: set[frozenset[int]] = set()
        states = list(permutations(range(1, self.n + 1))) if self.n <= EXACT else _chain(self.n, told, wrong, rng, None)
        while True:
            pairs = Counter(_pair(s, self.n) for s in states)
            best, share = pairs.most_common(1)[0]
            if share >= 0.85 * len(states) or rounds <= 2:
                reply = yield f"My Answer: {spaced(sorted(p + 1 for p in best))}"
                if reply == "Correct":
                    return
                wrong.add(best)
            else:
                looked = states if len(states) <= DRAWN else sample(rng, states, DRAWN)
                asked = min(_questions(self.n, rng, 40), key=lambda q: _open(looked, q, self.n))
                low, high = map(int, (yield _said(asked)).split())
                told.append((asked, (low, high)))
            rounds -= 1
            if self.n <= EXACT:
                states = [s for s in states if _fits(s, told, wrong, self.n)]
            else:
                states = _chain(self.n, told, wrong, rng, states)

    def spam(self) -> Iterator[str]:
        """See Game."""
        return (f"My Answer: {i} {j}" for i, j in combinations(range(1, self.n + 1), 2))


def middle(values: Any, places: Any) -> tuple[int, int]:
    """The two middle ones of the values at places from 0."""
    found = sorted([values[p] for p in places])
    return found[len(found) // 2 - 1], found[len(found) // 2]


def _pair(values: Any, n: int) -> frozenset[int]:
    return frozenset((values.index(n // 2), values.index(n // 2 + 1)))


def _fits(values: Any, told: Any, wrong: Any, n: int) -> bool:
    return all(middle(values, q) == reply for q, reply in told) and _pair(values, n) not in wrong


def _open(states: Any, question: Any, n: int) -> float:
    """Expected number of pairs left, by the squares of how often each comes with a reply."""
    groups: dict[Any, Counter[Any]] = {}
    for s in states:
        groups.setdefault(middle(s, question), Counter())[_pair(s, n)] += 1
    return -sum(sum(c * c for c in g.values()) / sum(g.values()) for g in groups.values())


def _questions(n: int, rng: random.Random, most: int) -> list[tuple[int, ...]]:
    sizes = range(4, n + 1, 2)
    return [tuple(sorted(sample(rng, range(n), choice(rng, sizes)))) for _ in range(most)]


def _said(places: tuple[int, ...]) -> str:
    return f"My Query: {len(places)} {spaced(p + 1 for p in places)}"


def _chain(n: int, told: Any, wrong: Any, rng: random.Random, before: Any) -> list[tuple[int, ...]]:
    """Permutations that fit, by swaps that may leave the fit a little and come back (simulated annealing at first)."""

    inside = [set(q) for q, _ in told]

    def cost(query: int) -> int:
        q, reply = told[query]
        low, high = middle(now, q)
        return abs(low - reply[0]) + abs(high - reply[1])

    now = list(choice(rng, before)) if before else shuffled(rng, range(1, n + 1))
    costs = [cost(query) for query in range(len(told))]
    found, step = [], 0
    while len(found) < DRAWN and step < 20000:
        step += 1
        i, j = pick(rng, n), pick(rng, n)
        now[i], now[j] = now[j], now[i]
        new = [cost(q) if (i in inside[q]) != (j in inside[q]) else costs[q] for q in range(len(told))]
        worse = sum(new) - sum(costs)
        if worse <= 0 or rng.random() < 0.25**worse:
            costs = new
        else:
            now[i], now[j] = now[j], now[i]
        if step > 60 and step % 6 == 0 and not any(costs) and _pair(now, n) not in wrong:
            found.append(tuple(now))
    return found or [tuple(now)]
