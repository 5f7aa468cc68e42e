"""ChemicalSynthesis: four operations on strings, which number is which unknown, until a target is among them."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

from .base import BROKEN, Game, Refused, Row, Solver, Step, between, choice, heard, over, pick, sample, shuffled
from .parse import Form

OPERATIONS = ("split", "merge", "swap", "extract")
UNUSUAL = 0.4
LETTERS = "ABCDEFGHIJ"


class ChemicalSynthesis(Game):
    """See the module; quirk `chem.fixed_numbers`: 1 split, 2 merge, 3 swap, 4 extract in every row."""

    name, kind = "ChemicalSynthesis", "so"
    LEVELS = {"easy": {"n": 4}, "medium": {"n": 5}, "hard": {"n": 6}}
    QUIRKS = ("chem.fixed_numbers",)
    FORMS = (Form("two", "My Move:_WORD.WORD.INT"), Form("one", "My Move:_WORD.INT"))
    NO_FORM = "Invalid format"
    FIELDS = {"initial_compounds": list, "target_compound": str, "numbers": dict}
    DRAWN = ("numbers",)
    luck = True

    @classmethod
    def draw(cls, rng: random.Random, n: int) -> Row:
        """See Game."""
        while True:
            target = sample(rng, LETTERS, n)
            left, compounds = shuffled(rng, target), []
            for at in range(n):
                # One letter for each, and a second where more are left than compounds to come.
                take = 2 if len(left) > n - at and rng.random() < 0.5 else 1
                letters = [left.pop() for _ in range(min(take, len(left)))] or [choice(rng, target)]
                if rng.random() < 0.7:
                    letters.append(choice(rng, LETTERS))
                compounds.append("".join(letters))
            goal = "".join(target)
            if goal not in compounds and not any(a + b == goal for a in compounds for b in compounds):
                break
        numbers = dict(zip(OPERATIONS, shuffled(rng, (1, 2, 3, 4)), strict=True))
        return {"scale": n, "initial_compounds": compounds, "target_compound": goal, "numbers": numbers}

    def begin(self) -> None:
        """See Game."""
        self.have = set(self.row["initial_compounds"])
        self.target = self.row["target_compound"]
        fixed = dict(zip(OPERATIONS, (1, 2, 3, 4), strict=True))
        numbers = fixed if self.quirk("chem.fixed_numbers") else self.row.get("numbers", fixed)
        self.operation = {int(number): name for name, number in numbers.items()}
        if sorted(self.operation) != [1, 2, 3, 4] or set(numbers) != set(OPERATIONS):
            raise ValueError("the operations have no numbers 1 to 4")

    def tell(self) -> str:
        """See Game."""
        return (
            "Compounds are strings of letters. Four operations have the numbers 1 to 4, and you must find out which is "
            "which; what is made is added, and nothing is used up. In brackets is what happens instead now and then:\n"
            "- split takes one compound: its first letter, and the rest (cut somewhere else);\n"
            "- merge takes two: the second behind the first (two neighbours swapped);\n"
            "- swap takes one: two letters change places (once or twice);\n"
            "- extract takes one: its last letter (any letter).\n"
            f"You have {' '.join(sorted(self.have))} and need {self.target}.\n"
            f"- `My Move: {min(self.have)} 3` does operation 3 to {min(self.have)}; "
            f"`My Move: {min(self.have)} {max(self.have)} 2` does operation 2 to two. I reply with all compounds there "
            "are, with Wrong type for a wrong number of compounds, or with WIN."
        )

    def play(self, kind: str, said: list[Any]) -> Step:
        """See Game."""
        *taken, number = said
        if not all(c in self.have for c in taken):
            raise Refused("Invalid compound", "rule")
        name = self.operation.get(number)
        if name is None:
            if self.quirk("chem.fixed_numbers"):
                raise Refused(BROKEN, result=None)
            raise Refused("Invalid format")
        if (name == "merge") != (kind == "two"):
            return Step("Wrong type", "Wrong type")
        self.have |= set(getattr(self, f"_{name}")(*taken))
        if self.target in self.have:
            return over(str(number), "WIN", True)
        return heard(str(number), f"Available: {' '.join(sorted(self.have))}")

    def _odd(self, length: int) -> bool:
        return self.rng.random() < UNUSUAL and length > 2

    def _split(self, c: str) -> list[str]:
        if len(c) == 1:
            return [c]
        at = between(self.rng, 1, len(c) - 1) if self._odd(len(c)) else 1
        return [c[:at], c[at:]]

    def _merge(self, a: str, b: str) -> list[str]:
        made = list(a + b)
        if self._odd(len(made)):
            at = pick(self.rng, len(made) - 1)
            made[at], made[at + 1] = made[at + 1], made[at]
        return ["".join(made)]

    def _swap(self, c: str) -> list[str]:
        made = list(c)
        if len(made) == 1:
            return [c]
        for _ in range(between(self.rng, 1, 2) if self._odd(len(made)) else 1):
            a, b = sample(self.rng, range(len(made)), 2)
            made[a], made[b] = made[b], made[a]
        return ["".join(made)]

    def _extract(self, c: str) -> list[str]:
        return [choice(self.rng, c) if self._odd(len(c)) else c[-1]]

    def legal(self, rng: random.Random, most: int = 64) -> list[str]:
        """See Game."""
        ones = [f"My Move: {c} {n}" for c in sorted(self.have) for n in range(1, 5)]
        twos = [f"My Move: {a} {b} {n}" for a in sorted(self.have) for b in sorted(self.have) for n in range(1, 5)]
        return sample(rng, ones, most // 2) + sample(rng, twos, most // 2)

    def solve(self, rng: random.Random, rounds: int) -> Solver:
        """Cover the target by the fewest pieces there are; free a missing letter, else merge two neighbours."""
        have, numbers = set(self.row["initial_compounds"]), {name: {1, 2, 3, 4} for name in OPERATIONS}
        if self.quirk("chem.fixed_numbers"):
            numbers = {name: {n} for n, name in enumerate(OPERATIONS, 1)}
        tried: dict[tuple[Any, ...], int] = {}
        while True:
            name, taken = self._plan(have, numbers, tried)
            number = min(numbers[name], key=lambda n: (_spent(tried, taken, n), n))
            tried[*taken, number] = _spent(tried, taken, number) + 1
            move = f"{' '.join(taken)} {number}"
            reply = yield f"My Move: {move}"
            if reply == "Wrong type":
                merges = len(taken) == 1
                for name in OPERATIONS:
                    if (name == "merge") != merges:
                        numbers[name].discard(number)
            else:
                now = set(reply.removeprefix("Available: ").split())
                _learn(numbers, number, taken, now - have, now)
                have = now
            _settle(numbers)

    def _plan(
        self, have: set[str], numbers: dict[str, set[int]], tried: dict[tuple[Any, ...], int]
    ) -> tuple[str, list[str]]:
        """(operation, compounds) of the next move."""

        def spent(name: str, taken: list[str]) -> int:
            return min(_spent(tried, taken, number) for number in numbers[name])

        pieces = cover(self.target, have)
        missing = [p for p in pieces if p not in have]
        if not missing:
            pairs = [list(pair) for pair in pairwise(pieces)]
            return "merge", min(pairs, key=lambda p: (spent("merge", p), len(p[0]) + len(p[1])))
        letter = missing[0]
        ways = [("split", c) for c in have if len(c) > 1 and c[0] == letter]
        ways += [("extract", c) for c in have if len(c) > 1 and c[-1] == letter]
        # Of a letter inside, extracting now and then gives it, and so does cutting before it.
        ways = ways or [(name, c) for c in have if letter in c for name in ("split", "extract")]
        name, compound = min(sorted(ways), key=lambda w: (spent(w[0], [w[1]]), len(numbers[w[0]]), len(w[1])))
        return name, [compound]

    def verdict(self, turns: Any) -> bool:
        """See Game."""
        return any("win" in reply.lower() for _, reply in turns)


def cover(target: str, have: set[str]) -> list[str]:
    """The fewest pieces that make the target one behind the other; a letter that is not there costs nine."""
    best: list[tuple[int, list[str]]] = [(0, [])]
    for end in range(1, len(target) + 1):
        ways = []
        for start in range(end):
            piece = target[start:end]
            if piece in have or end - start == 1:
                cost, before = best[start]
                ways.append((cost + (1 if piece in have else 9), [*before, piece]))
        best.append(min(ways, key=lambda w: w[0]))
    return best[-1][1]


def _spent(tried: dict[tuple[Any, ...], int], taken: list[str], number: int) -> int:
    return tried.get((*taken, number), 0)


def _learn(numbers: dict[str, set[int]], number: int, taken: list[str], made: set[str], now: set[str]) -> None:
    """What a move that was taken tells of its number: an operation fits that could have made just this."""
    source = taken[0]
    outcomes: dict[str, list[set[str]]] = {name: [] for name in OPERATIONS}
    if len(taken) == 2:
        outcomes["merge"] = [made]
    elif len(source) == 1:
        for name in ("split", "swap", "extract"):
            outcomes[name] = [set()]
    else:
        outcomes["split"] = [{source[:at], source[at:]} for at in range(1, len(source))]
        outcomes["extract"] = [{letter} for letter in source]
        outcomes["swap"] = [{word} for word in now if sorted(word) == sorted(source)]
    for name in OPERATIONS:
        if not any(made <= some <= now for some in outcomes[name]):
            numbers[name].discard(number)


def _settle(numbers: dict[str, set[int]]) -> None:
    """A number that is an operation's only one is no other's; one that only one operation may have is its own."""
    for _ in range(4):
        for name, own in numbers.items():
            if len(own) == 1:
                for other in numbers:
                    if other != name:
                        numbers[other] -= own
        for number in range(1, 5):
            holders = [name for name in OPERATIONS if number in numbers[name]]
            if len(holders) == 1:
                numbers[holders[0]] = {number}
