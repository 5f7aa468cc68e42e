"""GuessMax: the greatest of an array without each of some sets of places, from greatest values of chosen places."""

from __future__ import annotations

import json
import random
from typing import Any

from .base import Game, Refused, Row, Solver, Step, answer, between, heard, pick, sample, spaced
from .parse import Form

PLACES = 50


class GuessMax(Game):
    """See the module."""

    name, kind = "GuessMax", "ip"
    LEVELS = {"easy": {"k": 7}, "medium": {"k": 10}, "hard": {"k": 16}}
    FORMS = (Form("query", "My Query:_INTS", last=True), Form("answer", "My Answer:_INTS", last=True))
    NO_FORM = "Response must be either 'My Query: ...' or 'My Answer: ...'"
    FIELDS = {"array": list, "subsets": dict}

    @classmethod
    def draw(cls, rng: random.Random, k: int) -> Row:
        """See Game."""
        top = between(rng, 1, PLACES)
        array = [between(rng, 1, 39) for _ in range(PLACES)]
        array[top - 1] = between(rng, 41, 50)
        free = sample(rng, [p for p in range(1, PLACES + 1) if p != top], 2 * k)
        sets = [sorted(free[2 * i : 2 * i + 2]) for i in range(k)]
        holds = pick(rng, k)
        sets[holds] = sorted([*sets[holds], top])
        row: Row = {"scale": k, "array": array, "subsets": {f"S{i}": s for i, s in enumerate(sets, 1)}}
        return row | {"answer": [_without(array, s) for s in sets]}

    def begin(self) -> None:
        """See Game."""
        self.array = [int(v) for v in self.row["array"]]
        self.sets = [[int(p) for p in s] for s in self.row["subsets"].values()]
        self.passwords = [_without(self.array, s) for s in self.sets]

    def tell(self) -> str:
        """See Game."""
        sets = "; ".join(f"S{i}: {spaced(s)}" for i, s in enumerate(self.sets, 1))
        return (
            f"An array has {len(self.array)} places, 1 to {len(self.array)}. For each of {len(self.sets)} sets of "
            "places, its password is the greatest number outside the set. (Were the array 3 9 5, the set 2 would have "
            f"password 5, and the set 1 password 9.) The sets are {sets}.\n"
            "- `My Query: 1 2 3` asks for the greatest number at these places. I reply with it.\n"
            f"- `My Answer: {spaced([9] * len(self.sets))}` names all passwords in order, on one line. I reply "
            "Correct or Incorrect."
        )

    def play(self, kind: str, said: list[Any]) -> Step:
        """See Game."""
        told = said[0]
        if kind == "answer":
            if len(told) != len(self.sets):
                raise Refused(f"Your answer must contain {len(self.sets)} numbers", "form")
            return answer(told, told == self.passwords)
        if not told:
            raise Refused("Query must include at least one position", "form")
        if not all(1 <= p <= len(self.array) for p in told):
            raise Refused(f"Positions must be between 1 and {PLACES}")
        return heard(f"Query: {told}", max(self.array[p - 1] for p in told))

    def legal(self, rng: random.Random, most: int = 64) -> list[str]:
        """See Game."""
        found = []
        for _ in range(most // 2):
            places = sorted(sample(rng, range(1, PLACES + 1), between(rng, 1, PLACES)))
            found.append(f"My Query: {spaced(places)}")
            found.append(f"My Answer: {spaced(between(rng, 1, 50) for _ in self.sets)}")
        return list(dict.fromkeys(found))

    def solve(self, rng: random.Random, rounds: int) -> Solver:
        """The greatest of all, where it is by halves, and what is left without the sets that hold it."""
        everywhere = list(range(1, len(self.array) + 1))
        top = int((yield f"My Query: {spaced(everywhere)}"))
        left = everywhere

        def holders(place: int) -> tuple[int, ...]:
            return tuple(i for i, s in enumerate(self.sets) if place in s)

        while len(kinds := sorted({holders(p) for p in left})) > 1:
            half = set(kinds[: len(kinds) // 2] if kinds[0] else kinds[: 1 + len(kinds) // 2])
            asked = [p for p in left if holders(p) in half and holders(p)] or [p for p in left if holders(p) in half]
            found = int((yield f"My Query: {spaced(asked)}")) == top
            left = [p for p in left if (p in asked) == found]
        passwords = [top] * len(self.sets)
        for i in kinds[0]:
            rest = [p for p in everywhere if p not in self.sets[i]]
            passwords[i] = int((yield f"My Query: {spaced(rest)}"))
        yield f"My Answer: {spaced(passwords)}"

    def spam(self) -> Any:
        """See Game."""
        return (f"My Answer: {spaced([v] * len(self.sets))}" for v in range(50, 0, -1))

    def verdict(self, turns: Any) -> bool:
        """See Game."""
        found = [reply for result, reply in turns if isinstance(result, list) or _is_list(result)]
        return bool(found) and found[-1] == "Correct"


def _without(array: list[int], places: list[int]) -> int:
    return max(v for p, v in enumerate(array, 1) if p not in places)


def _is_list(result: Any) -> bool:
    try:
        return isinstance(json.loads(result), list)
    except (ValueError, TypeError, RecursionError):
        return False
