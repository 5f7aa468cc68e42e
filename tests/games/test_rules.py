"""Rules: the reference's replies to the letter, the fixed rules by hand, and facts of the games by other means."""

from __future__ import annotations

import itertools
import math
import random
from functools import cache

import numpy as np
import pytest
from qwench.ops.games import (
    bit_query,
    cactus_search,
    circle_finding,
    color_magic,
    geo_game,
    mahjong_detective,
    permutation_discovery,
    rotary_lock,
    rpd,
    wordle,
    xorbreaking,
)
from qwench.ops.games.base import pick, shuffled
from qwench.ops.games.graphs import distances, neighbours
from qwench.ops.games.registry import game
from qwench.ops.games.score import replay, row_of, rules_of

from .play import NAMES, opened, oracles, played, row, said


def test_the_references_replies_results_ends_and_verdicts() -> None:
    games = oracles()
    assert {g["task"] for g in games} == set(NAMES)
    for record in games:
        found = replay(record, row_of(record, {}), rules_of(record, "reference"))
        assert [str(d) for d in found.differences] == []


def test_a_changed_reply_is_found() -> None:
    record = oracles()[0]
    record["turns"][0]["feedback"] = "WWWW"
    found = replay(record, row_of(record, {}), rules_of(record, "reference"))
    assert [(d.round, d.what, d.expected, d.found) for d in found.differences] == [(1, "feedback", "WWWW", "RGGW")]


def test_fixed_rules_repair_the_defects() -> None:
    def one(name: str, fields: dict, *messages: str):
        return said(opened(name, fields), *messages)[-1]

    devices = {f"{x},{y}": "-" for x in (1, 2) for y in (1, 2)} | {"1,2": "R", "2,2": "G"}
    candy = {"graph": {"size": 2, "devices": devices, "target": "Y"}}
    assert one("RainbowCandy", candy, "My Move: E", "My Move: S").solved
    field = {"graph": {"size": 3, "grid": [[".", "N", "."], [".", "X", "."], [".", ".", "G"]]}}
    assert one("MagneticField", field, "My Move: R").feedback == "1 2"
    steps = said(opened("MahjongDetective", {"answer": [0, 2, 2]}), "My Query: + 2", "My Answer: 0 3 2")
    assert (steps[0].feedback, steps[1].solved) == ("1 0", True)
    assert one("MinMax", {"answer": "35289", "min_pos": 3, "max_pos": 5}, "My Answer: ! 3 5").solved
    train = said(opened("TrainPursuit", {"n": 5, "k": 2, "answer": 2}), "My Answer: 4", "My Answer: 4")
    assert [s.feedback for s in train] == ["Incorrect", "Correct"] and not train[0].done
    turns = ("My Query: 1 1", "My Query: 2 -1", "My Query: 0 1", "My Answer: 6 10")
    assert one("RotaryLock", {"n": 3, "m": 6, "answer": [0, 6, 12]}, *turns).solved
    grid = {"scale": [1, 2], "initial_grid": {"(1, 1)": 1, "(1, 2)": 2}, "turns": 1}
    step = one("GridGame", grid, "My Choice: 1 1")
    assert step.solved and "You win!" in step.feedback
    king = {"scale": 4, "initial_position": "(2, 2)", "turns": 20}
    assert one("AssiutChess", king, "My Choice: 2 2").solved
    tree = {"answer": ["12", "23", "34"]}
    assert one("LegendaryTree", tree, "My Answer: 4-3 2-1 3-2").solved
    zero = {"list": [1, 0, 1, 0], "k": 2, "answer": 4}
    assert not one("ZeroFinding", zero, "My Answer: 2").done
    pair = said(opened("XORBreaking", {"initial_number": 21, "turns": 20}), "Breaking into: 12 25")
    assert not pair[0].valid


def test_messages_of_the_fixed_rules() -> None:
    fields = {"answer": "35289", "min_pos": 3, "max_pos": 5}

    def result(text: str) -> object:
        step = opened("MinMax", fields).step(text)
        return step.result if step.valid else step.reason

    assert result("I could say My Query: 1 2, but\n**my query: 2 3**") == "Query: 2 3"
    assert result("`My Answer: 3 5`.") == "Answer: 3 5"
    assert result("[My Query: 1 2]") == "Query: 1 2"
    assert result("**My Query:** 1 2") == "Query: 1 2"
    assert result("<think>My Query: 1 2</think>\nMy Query: 4 5") == "Query: 4 5"
    assert result("My Query: 1 2\n3 rounds left") == "Query: 1 2"
    for text in ("", "My Query: [i] [j]", "My Query: 1", "My Query: 1 2 3", "My Query: 1\n2", "<think>My Query: 1 2"):
        wanted = "Query: 1 2" if text.startswith("<think>") else "form"
        assert result(text) == wanted, text
    assert result("My Query: 1 99") == result(f"My Query: 1 {'9' * 10**5}") == "range"
    assert result("My Query: 2 2") == "rule"
    steps = said(opened("XORBreaking", {"initial_number": 6, "turns": 20}), "Breaking into: 2 4")
    assert steps[0].valid


def test_wordle_against_a_count_by_hand() -> None:
    assert wordle.marks("ABCA", "AABB") == "RGGW"
    rng = random.Random(1)
    for _ in range(300):
        target, guess = ("".join(rng.choices("ABC", k=6)) for _ in range(2))
        found = wordle.marks(target, guess)
        assert [m == "R" for m in found] == [a == b for a, b in zip(target, guess, strict=True)]
        for letter in "ABC":
            marked = sum(m != "W" for m, g in zip(found, guess, strict=True) if g == letter)
            assert marked == min(target.count(letter), guess.count(letter))


def test_distances_of_rays_against_points_along_them() -> None:
    rng = random.Random(2)
    for _ in range(30):
        x, y = rng.randint(-20, 20), rng.randint(5, 20)
        r = rng.randint(1, max(1, int(math.hypot(x, y)) - 1))
        qx, qy = rng.randint(-9, 9) or 1, rng.randint(-9, 9)
        length = math.hypot(qx, qy)
        along = np.linspace(0, 60, 240001)
        brute = np.hypot(x - along * qx / length, y - along * qy / length).min() - r
        assert float(circle_finding.distance((x, y, r), qx, qy)) == pytest.approx(max(brute, 0.0), abs=1e-3)


def test_facts_of_the_games() -> None:
    rng = random.Random(3)
    for _ in range(1000):
        points = [[pick(rng, 11), pick(rng, 11)] for _ in range(7)]
        total = sum((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2 for a, b in itertools.pairwise(points))
        assert (total % 2 == 0) == (geo_game.color(points[0]) == geo_game.color(points[-1]))
    for p in range(2, 400):
        breaks = [(a, a ^ p) for a in range(1, p) if 0 < a ^ p < p]
        assert bool(breaks) == xorbreaking.breakable(p)
    for name, effect in color_magic.EFFECT.items():
        assert color_magic.turned(3, effect, 4, 3) == (0,) * 9, name
    for _ in range(50):
        p = shuffled(rng, range(1, 7))
        q, i = list(range(1, 7)), 1 + pick(rng, 6)
        for time in range(5):
            assert permutation_discovery.power(p, i, time) == q[i - 1]
            q = [q[j - 1] for j in p]
    assert rpd.added(6, 5, 2) % 10 + 1 == 4 and rpd.added(7, 5, 3) % 20 + 1 == 1
    assert {op: f(6, 3) for op, f in bit_query.OPS.items()} == {"AND": 2, "OR": 7, "XOR": 5}
    counts = [1, 3, 2, 1]
    tiles = [v for v, c in enumerate(counts) for _ in range(c)]
    threes = list(itertools.combinations(tiles, 3))
    straights = sum(tuple(sorted(t)) == (t[0], t[0] + 1, t[0] + 2) for t in map(sorted, threes))
    assert mahjong_detective.totals(counts) == (sum(len(set(t)) == 1 for t in threes), straights)


def test_an_even_count_of_bits_never_loses() -> None:
    """Every opponent that breaks in any way, up to 256."""

    @cache
    def wins(p: int) -> bool:
        for mine in xorbreaking.parts(p):
            for a in range(1, mine):
                b = a ^ mine
                if 0 < b < mine:
                    even = [x for x in (a, b) if xorbreaking.breakable(x) and x.bit_count() % 2 == 0]
                    if not even or not wins(even[0]):
                        return False
        return True

    assert all(wins(p) for p in range(3, 257) if p.bit_count() % 2 == 0)


def test_open_sections_against_a_count() -> None:
    table = rotary_lock._opens(3, 6)
    rng = random.Random(4)
    for _ in range(50):
        a, b = rng.randrange(18), rng.randrange(18)
        covered = {(p + i) % 18 for p in (0, a, b) for i in range(6)}
        assert table[a, b] == 18 - len(covered)


def test_graphs_against_networkx() -> None:
    nx = pytest.importorskip("networkx")
    for number in range(10):
        graph = row("CactusSearch", "hard", number)["graph"]
        edges = [e for path in graph["paths"] for e in itertools.pairwise(path)]
        known, near = nx.Graph(edges), neighbours(edges)
        assert distances(1, near.__getitem__) == nx.single_source_shortest_path_length(known, 1)
        assert cactus_search.is_cactus(near)
        assert all(len(block) <= 2 or known.subgraph(block).number_of_edges() == len(block)
                   for block in nx.biconnected_components(known))  # fmt: skip
    assert not cactus_search.is_cactus(neighbours([(1, 2), (2, 3), (3, 1), (1, 4), (4, 3)]))


@pytest.mark.parametrize(("name", "count"), [("BitQuery", {4: 7, 8: 11, 12: 15}), ("MinMax", {5: 7, 6: 8, 7: 10})])
def test_rounds_of_a_recipe(name: str, count: dict[int, int]) -> None:
    for level, rounds in zip(("easy", "medium", "hard"), count.values(), strict=True):
        lengths = {len(played("solver", name, level, n).turns) for n in range(5)}
        assert max(lengths) <= rounds


def test_refused_messages_by_mode() -> None:
    from qwench.ops.games.match import Match, Rules

    given = row("MinMax")
    end = Match(given, Rules())
    end.hear("nonsense")
    assert (end.ended, end.solved) == ("refused", False)
    retry = Match(given, Rules(invalid="retry", max_round=2))
    retry.hear("nonsense")
    assert retry.ended is None
    retry.hear("nonsense")
    assert retry.ended == "limit"
    free = Match(given, Rules(invalid="ignore:2", max_round=1))
    free.hear("nonsense")
    free.hear("nonsense")
    assert free.ended is None and free.left == 1
    free.hear("nonsense")
    assert free.ended == "limit"
    once = Match(given, Rules(answers="once"))
    wrong = f"My Answer: {given['max_pos']} {given['min_pos']}"
    assert once.hear(wrong)["feedback"] == "0" and once.ended == "lost"
    shown = Match(given, Rules(max_round=7)).messages[0]["content"]
    assert "You may send 7 messages in all" in shown and shown.index("7 messages") < shown.index("Ready to start")


def test_opponents_that_look_ahead_are_stronger() -> None:
    wins = {}
    for opponent in ("random", "best"):
        wins[opponent] = sum(played("random", "PizzaSlice", "easy", n, opponent=opponent).solved for n in range(20))
    assert wins["best"] < wins["random"]
    assert all(played("solver", "XORBreaking", "easy", n, opponent="best").solved for n in range(10))


def test_every_game_says_what_it_is() -> None:
    from qwench.ops.games.base import KINDS, LEVELS

    for name in NAMES:
        kind = game(name)
        assert kind.name == name and kind.kind in KINDS and tuple(kind.LEVELS) == LEVELS
        assert kind.__module__.rpartition(".")[2].replace("_", "") == name.lower()
