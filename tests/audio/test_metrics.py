"""What a judge is worth, against numbers made by hand and by another way."""

from __future__ import annotations

import numpy as np
import pytest
from qwench.ops.audio.metrics import agreement, quadratic_kappa, ranking, stability

GOLD, SAID = [1, 1, 3, 3, 5, 5, 5, 3], [1, 3, 3, 5, 5, 5, 1, 3]


def test_the_numbers_of_eight_rows() -> None:
    found = agreement(SAID, GOLD)
    assert (found["accuracy"], found["error"], round(found["kappa"], 4)) == (0.625, 1.0, 0.3846)
    assert found["majority"] == 3 / 8 and found["confusion"]["5"] == {"5": 2, "1": 1}


def test_a_row_without_a_score_is_wrong_and_no_number() -> None:
    found = agreement([None, *SAID[1:]], GOLD)
    assert (found["parsed"], found["accuracy"]) == (7, 0.5) and found["accuracy_parsed"] == pytest.approx(4 / 7)
    assert found["error"] == pytest.approx(8 / 7) and found["confusion"]["1"] == {"none": 1, "3": 1}
    assert agreement([], [])["accuracy"] is None and agreement([None], [3])["kappa"] is None


def test_kappa_is_that_of_the_matrix() -> None:
    random = np.random.default_rng(0)
    p, g = random.integers(1, 6, 200), random.integers(1, 6, 200)
    weights = np.subtract.outer(np.arange(5), np.arange(5)) ** 2 / 16
    seen = np.histogram2d(p, g, bins=[np.arange(0.5, 6)] * 2)[0] / 200
    chance = np.outer(seen.sum(1), seen.sum(0))
    assert quadratic_kappa(p.tolist(), g.tolist()) == pytest.approx(
        1 - (weights * seen).sum() / (weights * chance).sum()
    )


def test_the_order_inside_a_question() -> None:
    found = ranking([5, 3, 1, 2, 2, None], [5, 3, 1, 1, 5, 3], ["a", "a", "a", "b", "b", "b"])
    assert (found["pairs"], found["right"], found["unscored"]) == (6, 3 + 0.5 + 0.5 + 0.5, 2)
    assert ranking([3, 3], [5, 5], "aa")["share"] is None
    assert ranking([1, 5], [5, 1], "aa")["share"] == 0 and ranking([1, 5], [5, 1], "ab")["share"] is None


def test_draws_of_a_row() -> None:
    found = stability([[5, 3, 3], [5, 5, 5], [None, 1, 1], [1, 3]])
    assert found["changed"] == 0.5
    assert found["spread"] == pytest.approx((np.std([5, 3, 3]) + 0 + 0 + 1) / 4)
