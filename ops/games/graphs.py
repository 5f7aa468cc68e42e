"""Ways through graphs and grids."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

N = TypeVar("N", bound=Hashable)

#: compass and screen names of the four steps, (rows down, columns right)
COMPASS = {"N": (-1, 0), "E": (0, 1), "S": (1, 0), "W": (0, -1)}
SCREEN = {"U": (-1, 0), "R": (0, 1), "D": (1, 0), "L": (0, -1)}
AROUND = tuple((a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if a or b)


def neighbours(edges: Iterable[Iterable[int]]) -> dict[int, list[int]]:
    """Lists of neighbours, in the order the edges name them."""
    found: dict[int, list[int]] = {}
    for a, b in edges:
        if b not in found.setdefault(a, []):
            found[a].append(b)
        if a not in found.setdefault(b, []):
            found[b].append(a)
    return found


def distances(start: N, steps: Callable[[N], Iterable[N]]) -> dict[N, int]:
    """Steps from the start to all that can be reached."""
    found, waiting = {start: 0}, deque([start])
    while waiting:
        at = waiting.popleft()
        for to in steps(at):
            if to not in found:
                found[to] = found[at] + 1
                waiting.append(to)
    return found


def way(start: N, goal: Callable[[N], bool], steps: Callable[[N], Iterable[N]]) -> list[N] | None:
    """A shortest way from the start, both ends included, to the first goal that is met; None where there is none."""
    came: dict[N, N] = {start: start}
    waiting = deque([start])
    while waiting:
        at = waiting.popleft()
        if goal(at):
            found = [at]
            while found[-1] != start:
                found.append(came[found[-1]])
            return found[::-1]
        for to in steps(at):
            if to not in came:
                came[to] = at
                waiting.append(to)
    return None


def cheapest(
    start: N, goal: Callable[[N], bool], steps: Callable[[N], Iterable[tuple[N, float]]]
) -> tuple[float, list[N]] | None:
    """(cost, way) of least cost, None where there is no way (Dijkstra); ties by the order in which places are met."""
    came: dict[N, N] = {start: start}
    cost, done, count = {start: 0.0}, set(), 0
    waiting = [(0.0, count, start)]
    while waiting:
        spent, _, at = heapq.heappop(waiting)
        if at in done:
            continue
        done.add(at)
        if goal(at):
            found = [at]
            while found[-1] != start:
                found.append(came[found[-1]])
            return spent, found[::-1]
        for to, price in steps(at):
            if to not in done and spent + price < cost.get(to, float("inf")):
                cost[to], came[to] = spent + price, at
                count += 1
                heapq.heappush(waiting, (spent + price, count, to))
    return None


def inside(size: int, x: int, y: int) -> bool:
    """Whether a cell is on a square grid counted from 1."""
    return 1 <= x <= size and 1 <= y <= size


def around(size: int, cell: tuple[int, int]) -> list[tuple[int, int]]:
    """The cells next to a cell, corners too."""
    return [(cell[0] + a, cell[1] + b) for a, b in AROUND if inside(size, cell[0] + a, cell[1] + b)]
