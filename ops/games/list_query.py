"""ListQuery: a sorted linked list laid over places; its least value is wanted."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from .base import Game, Refused, Row, Solver, Step, answer, heard, sample, shuffled
from .parse import Form


class ListQuery(Game):
    """See the module."""

    name, kind = "ListQuery", "ip"
    LEVELS = {"easy": {"n": 5, "below": 100}, "medium": {"n": 9, "below": 200}, "hard": {"n": 11, "below": 500}}
    FORMS = (Form("query", "My Query:_INT"), Form("answer", "My Answer:_INT"))
    NO_FORM = "Your response must be either 'My Query: [POSITION]' or 'My Answer: [VALUE]'"
    FIELDS = {"list": dict, "answer": int}

    @classmethod
    def draw(cls, rng: random.Random, n: int, below: int) -> Row:
        """See Game."""
        values = sorted(sample(rng, range(below), n))
        places = shuffled(rng, range(1, n + 1))
        nodes = {
            str(p): {"value": v, "next": places[i + 1] if i + 1 < n else -1}
            for i, (p, v) in enumerate(zip(places, values, strict=True))
        }
        return {"scale": n, "list": dict(sorted(nodes.items(), key=lambda x: int(x[0]))), "answer": values[0]}

    def begin(self) -> None:
        """See Game."""
        self.nodes = {int(p): (int(node["value"]), int(node["next"])) for p, node in self.row["list"].items()}
        self.seen: list[int] = []

    def tell(self) -> str:
        """See Game."""
        n = len(self.nodes)
        return (
            f"A linked list lies on the places 1 to {n}. Each place holds a value and the place of the next node, -1 "
            "at the end; along the list values grow. You are not told where it begins. Find the least value.\n"
            "- `My Query: 3` asks what is at place 3. I reply with value=V, next=P.\n"
            "- `My Answer: 42` names the least value. I reply Correct or Incorrect."
        )

    def play(self, kind: str, said: list[Any]) -> Step:
        """See Game."""
        if kind == "answer":
            return answer(str(said[0]), said[0] == self.row["answer"])
        if said[0] not in self.nodes:
            raise Refused(f"Position {said[0]} is not valid")
        value, following = self.nodes[said[0]]
        self.seen.append(value)
        return heard("Query", f"value={value}, next={following}")

    def legal(self, rng: random.Random, most: int = 64) -> list[str]:
        """See Game."""
        return [f"My Query: {p}" for p in self.nodes] + [f"My Answer: {v}" for v in sorted(set(self.seen))]

    def solve(self, rng: random.Random, rounds: int) -> Solver:
        """The head is the place nobody points at: places not pointed at are asked until all of them are known."""
        values: list[int] = []
        open_ = set(self.nodes)
        while open_:
            asked = sample(rng, sorted(open_), 1)[0]
            value, _, following = (yield f"My Query: {asked}").partition(", next=")
            values.append(int(value.removeprefix("value=")))
            open_ -= {asked, int(following)}
        yield f"My Answer: {min(values)}"

    def spam(self) -> Iterator[str]:
        """See Game."""
        return (f"My Answer: {v}" for v in range(500))

    def verdict(self, turns: Any) -> bool:
        """See Game."""
        return bool(turns) and str(turns[-1][0]).isdigit() and turns[-1][1] == "Correct"
