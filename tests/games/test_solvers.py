"""What solvers believe and plan, against everything there is on small sizes."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest
from qwench.ops.games import color_magic, legendary_tree, magnetic_field, median_query, pizza_slice, safepath_finder
from qwench.ops.games.base import pick
from qwench.ops.games.beliefs import best_split, entropy, least_left, merged, sharpest

from .play import opened, row


def test_chances_of_traps_against_all_layouts() -> None:
    size, traps = 4, 3
    cells = [c for c in itertools.product(range(1, 5), repeat=2) if c not in ((1, 1), (4, 4))]
    diagonal = {(2, 2), (3, 3)}
    rng = random.Random(1)
    for _ in range(8):
        layout = set(rng.sample(cells, traps - 1)) | {rng.choice(sorted(diagonal))}
        seen = [c for c in [(1, 1), *rng.sample(cells, 2)] if c not in layout]
        told = {c: len(layout & set(safepath_finder.around(size, c))) for c in seen}
        safe = {(1, 1), (4, 4), *seen}
        weights, total = Counter(), 0
        for other in itertools.combinations(cells, traps):
            fits = all(len(set(other) & set(safepath_finder.around(size, c))) == n for c, n in told.items())
            if fits and not safe & set(other):
                # One trap was drawn on the diagonal: as many ways as it has traps there.
                ways = len(diagonal & set(other))
                total += ways
                weights.update(dict.fromkeys(other, ways))
        if total:
            found = safepath_finder.trap_chances(size, traps, told, safe)
            assert all(found[c] == pytest.approx(weights[c] / total) for c in found)


def test_paths_of_a_tree_against_networkx() -> None:
    nx = pytest.importorskip("networkx")
    rng = random.Random(2)
    for _ in range(40):
        n = rng.choice((5, 6, 7))
        edges = legendary_tree.tree_of([pick(rng, n) + 1 for _ in range(n - 2)])
        tree = nx.Graph(edges)
        assert nx.is_tree(tree) and len(tree) == n
        table = legendary_tree._through(edges, n)
        for s, bits, v in legendary_tree._queries(n, rng, 10):
            t = [u for u in range(1, n + 1) if bits >> u & 1]
            paths = sum(v in nx.shortest_path(tree, a, b) for a in s for b in t)
            assert legendary_tree.count(table, (s, bits, v)) == paths


def test_plans_make_a_grid_one_colour() -> None:
    for number in range(6):
        made = opened("ColorMagic", row("ColorMagic", "medium", number))
        for inverse in (True, False):
            grid = made.grid
            for (name, cell), times in color_magic._plan(made.size, grid, inverse).items():
                grid = color_magic.plus(grid, color_magic.turned(made.size, color_magic.EFFECT[name], cell, times))
            assert len(set(grid)) == 1


def test_the_last_slices_against_all_orders() -> None:
    """With four corners left: mine, then a random one of three."""
    made = opened("PizzaSlice", row("PizzaSlice", "easy"))
    value = pizza_slice._values(made, False)
    for left in itertools.combinations(sorted(made.points), 4):
        best = 0.0
        for mine in left:
            rest = tuple(v for v in left if v != mine)
            ate = made._area(left, mine)
            best = max(best, sum(ate < made._area(rest, other) for other in rest) / 3)
        assert value(left, 0, 0) == pytest.approx(best)


def test_permutations_that_are_drawn_fit() -> None:
    rng = random.Random(3)
    values = list(range(1, 16))
    rng.shuffle(values)
    told = [(q, median_query.middle(values, q)) for q in median_query._questions(15, rng, 4)]
    found = median_query._chain(15, told, set(), rng, None)
    assert len(set(found)) > 5
    assert all(median_query.middle(p, q) == reply for p in found for q, reply in told)


def test_pushes_go_on_stop_and_go_round() -> None:
    names = {c: c for c in "NESW"}
    grid = [list("ES."), list("NW."), list("..G")]
    assert magnetic_field.moved(grid, (3, 1), "U", names) is None  # round and round
    line = [list(".E."), list("..X"), list("..G")]
    assert magnetic_field.moved(line, (1, 1), "R", names) == (1, 3)
    assert magnetic_field.moved(line, (1, 3), "D", names) is None
    wall = [list(".N."), list("..."), list("..G")]
    assert magnetic_field.moved(wall, (1, 1), "R", names) == (1, 2)
    assert magnetic_field.moved(wall, (1, 1), "R", names, wall_loses=True) is None


def test_beliefs() -> None:
    assert entropy([1, 1, 1, 1]) == pytest.approx(2) and entropy([5]) == 0
    assert best_split(range(8), [1, 4, 7], lambda s, q: s < q) == 4
    even = merged((s, 1.0) for s in range(4))

    def below(state: int, question: int):
        yield state < question, state, 1.0

    assert sharpest(even, [1, 2], below, lambda s: s) == 2
    # Three rounds name three of four; a question and two names find it surely.
    assert least_left(even, [1, 2], below, lambda s: s, 3) == (1.0, 2)
    assert least_left(even, [1, 2], below, lambda s: s, 1) == (0.25, None)
