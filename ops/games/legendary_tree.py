"""LegendaryTree: a labelled tree, told by how many paths between two sets go through a vertex."""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator
from functools import cache
from itertools import product
from typing import Any

from .base import Game, Refused, Row, Solver, Step, answer, choice, heard, pick, shuffled, spaced
from .beliefs import best_split
from .graphs import neighbours
from .parse import Form, number

Query = tuple[tuple[int, ...], int, int]  # vertices of S, bits of T, v
#: trees that candidates of a question are weighed on
LOOKED = 250


class LegendaryTree(Game):
    """See the module; quirks `tree.directed_edges` (2-1 is no edge), `tree.never_ends` (a right one ends nothing)."""

    name, kind = "LegendaryTree", "ip"
    LEVELS = {"easy": {"n": 5}, "medium": {"n": 6}, "hard": {"n": 7}}
    QUIRKS = ("tree.directed_edges", "tree.never_ends")
    FORMS = (
        Form("query", r"My Query:_INTS<[ \t]*\|[ \t]*>INTS<[ \t]*\|[ \t]*>INT", r"My Query: <[\d ]+> | <[\d ]+> | INT"),
        Form(
            "answer",
            r"My Answer:_<[0-9]+-[0-9]+(?:[ \t,]+[0-9]+-[0-9]+)*>",
            r"My Answer: <\d-\d(?: \d-\d)*>",
        ),
    )
    NO_FORM = "Please use correct format"
    FIELDS = {"answer": list}

    @classmethod
    def draw(cls, rng: random.Random, n: int) -> Row:
        """See Game."""
        edges = tree_of([pick(rng, n) + 1 for _ in range(n - 2)])
        return {"scale": n, "answer": sorted(f"{min(e)}{max(e)}" for e in edges)}

    def begin(self) -> None:
        """See Game."""
        self.wanted = [tuple(map(int, e.split("-") if "-" in e else (e[0], e[1:]))) for e in self.row["answer"]]
        self.n = len(self.wanted) + 1
        self.through = _through(self.wanted, self.n)

    def tell(self) -> str:
        """See Game."""
        return (
            f"A tree has the vertices 1 to {self.n}. Find its {self.n - 1} edges.\n"
            "- `My Query: 1 2 | 3 4 | 5` asks how many pairs of a vertex of {1, 2} and a vertex of {3, 4} have vertex "
            "5 on the path between them, its ends included. I reply with the number. The two sets are not empty and "
            "share no vertex.\n"
            f"- `My Answer: {' '.join(f'{v}-{v + 1}' for v in range(1, self.n))}` names all edges. I reply Correct or "
            "Incorrect."
        )

    def play(self, kind: str, said: list[Any]) -> Step:
        """See Game."""
        if kind == "answer":
            return self._answer(said[0])
        s, t, v = _ints(said[0]), _ints(said[-3 if len(said) == 5 else 1]), said[-1]
        if not s or not t:
            raise Refused("Sets cannot be empty", "form")
        if not all(1 <= u <= self.n for u in [*s, *t]):
            raise Refused(f"Vertices must be in range [1,{self.n}]")
        if set(s) & set(t):
            raise Refused("Sets must be disjoint", "rule")
        if not 1 <= v <= self.n:
            raise Refused(f"Vertex {v} not in tree")
        query: Query = (tuple(dict.fromkeys(s)), sum(1 << u for u in set(t)), v)
        return heard(f"{set(s)}|{set(t)}|{v}", count(self.through, query))

    def _answer(self, text: str) -> Step:
        strict = self.quirk("tree.directed_edges")
        edges = [tuple(number(part, strict) for part in e.split("-")) for e in text.replace(",", " ").split()]
        if len(edges) != len(self.wanted):
            return answer(str([f"{a}-{b}" for a, b in edges]), False)
        named = sorted(f"{a}{b}" for a, b in edges)
        if strict:
            right = named == sorted(f"{a}{b}" for a, b in self.wanted)
        else:
            right = {frozenset(e) for e in edges} == {frozenset(e) for e in self.wanted}
        if right and self.quirk("tree.never_ends"):
            return Step(str(named), "Correct", answered=True)
        return answer(str(named), right)

    def legal(self, rng: random.Random, most: int = 64) -> list[str]:
        """See Game."""
        asks = [_said(q) for q in _queries(self.n, rng, most // 2)]
        answers = [_edges(tree_of([pick(rng, self.n) + 1 for _ in range(self.n - 2)])) for _ in range(most // 2)]
        return list(dict.fromkeys(asks + answers))

    def solve(self, rng: random.Random, rounds: int) -> Solver:
        """All trees there are, and of some questions the one that tells most of them apart."""
        trees = range(len(_all(self.n)))
        everything = _all(self.n)
        while True:
            if len(trees) <= 2 or rounds <= 1:
                at = choice(rng, trees)
                told = yield _edges(everything[at][0])
                # A right answer that does not end the game is given to its end.
                trees = [at] if told == "Correct" else [t for t in trees if t != at] or list(trees)
                rounds -= 1
                continue
            asked = best_split(trees, _queries(self.n, rng, 30), lambda t, q: count(everything[t][1], q), rng, LOOKED)
            told = int((yield _said(asked)))
            rounds -= 1
            trees = [t for t in trees if count(everything[t][1], asked) == told]

    def spam(self) -> Iterator[str]:
        """See Game."""
        return (_edges(tree_of(list(code))) for code in product(range(1, self.n + 1), repeat=self.n - 2))

    def faults(self) -> list[tuple[str, str]]:
        """See Game."""
        return [("never ends", "a right answer does not end the game")] if self.quirk("tree.never_ends") else []


def tree_of(code: list[int]) -> list[tuple[int, int]]:
    """Edges of the tree of a Prufer sequence."""
    n = len(code) + 2
    degree = [0, *(1 + code.count(v) for v in range(1, n + 1))]
    leaves = [v for v in range(1, n + 1) if degree[v] == 1]
    heapq.heapify(leaves)
    edges = []
    for v in code:
        leaf = heapq.heappop(leaves)
        edges.append((min(leaf, v), max(leaf, v)))
        degree[v] -= 1
        if degree[v] == 1:
            heapq.heappush(leaves, v)
    a, b = heapq.heappop(leaves), heapq.heappop(leaves)
    return [*edges, (min(a, b), max(a, b))]


def _through(edges: list[tuple[int, int]], n: int) -> list[list[int]]:
    """[v][s]: bits of the vertices that s reaches without v; none for v itself."""
    nearby = neighbours(edges)
    table = [[0] * (n + 1) for _ in range(n + 1)]
    for v in range(1, n + 1):
        for start in nearby.get(v, ()):
            bits, waiting, seen = 0, [(start, v)], []
            while waiting:
                at, came = waiting.pop()
                bits |= 1 << at
                seen.append(at)
                waiting += [(to, at) for to in nearby[at] if to != came]
            for s in seen:
                table[v][s] = bits
    return table


def count(through: list[list[int]], query: Query) -> int:
    """Pairs whose path contains the vertex."""
    s, t, v = query
    row, size = through[v], t.bit_count()
    return sum(size - (t & row[u]).bit_count() for u in s)


@cache
def _all(n: int) -> list[tuple[list[tuple[int, int]], list[list[int]]]]:
    trees = (tree_of(list(code)) for code in product(range(1, n + 1), repeat=n - 2))
    return [(edges, _through(edges, n)) for edges in trees]


def _queries(n: int, rng: random.Random, most: int) -> list[Query]:
    found = []
    for _ in range(most):
        order = shuffled(rng, range(1, n + 1))
        cut = 1 + pick(rng, n - 1)
        end = cut + 1 + pick(rng, n - cut)
        found.append((tuple(sorted(order[:cut])), sum(1 << u for u in order[cut:end]), 1 + pick(rng, n)))
    return found


def _said(query: Query) -> str:
    s, t, v = query
    return f"My Query: {spaced(s)} | {spaced(u for u in range(t.bit_length()) if t >> u & 1)} | {v}"


def _edges(edges: list[tuple[int, int]]) -> str:
    return "My Answer: " + " ".join(f"{a}-{b}" for a, b in sorted(edges))


def _ints(value: Any) -> list[int]:
    return [number(part, True) for part in value.split()] if isinstance(value, str) else value
