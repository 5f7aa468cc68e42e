"""Votes, measures and extraction by hand; floors by enumeration."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qwench.ops.base.errors import QwenchError
from qwench.ops.grading.reliability.extract import Extraction, answer_of, label_of, options_of
from qwench.ops.grading.reliability.measures import (
    bins,
    calibrated,
    deviation,
    ece,
    floor,
    majority_of_guesses,
    measured,
    vote,
)

ORACLE = [("aaaa", "a"), ("aaba", "b"), ("bbaa", "b"), ("c--c", "c"), ("deff", "f")]


def same(a, b):
    return a == b


def votes(rows):
    return [vote([None if s == "-" else s for s in samples], label, same) for samples, label in rows]


def test_votes_by_hand():
    found = votes(ORACLE)
    assert [v.confidence for v in found] == [1, 0.75, 0.5, 0.5, 0.5]
    assert [v.right for v in found] == [True, False, True, True, True]
    told = measured(found)
    assert told["accuracy"] == 0.8 and told["confidence"] == 0.65
    assert told["ece"] == pytest.approx(0.45) and told["brier"] == pytest.approx(0.2625)
    assert told["gap"] == pytest.approx(-0.15) and told["unparsed"] == 0.1 and told["tied"] == 0.4
    assert vote([None, None, None, "a"], "a", same).right is False
    assert vote([None, "a"], "a", same).prediction == "a"


def error(pairs, how="exact"):
    confidence, right = zip(*pairs, strict=True)
    return ece(np.array(confidence), np.array(right, bool), how)


def test_the_identity_and_its_counterexample():
    assert error([(1, 1), (1, 0), (0.8, 1), (0.8, 0)]) == pytest.approx(0.4)
    assert error([(0.5, 1), (0.5, 1), (1, 0), (1, 1)]) == pytest.approx(0.5)


def test_the_trap_of_equal_bins():
    assert error([(0.2, 0), (0.3, 1)]) == pytest.approx(0.45)
    # Edges (j + .5)/k part what ten bins of numpy's histogram merge.
    assert np.histogram([0.2, 0.3], 10, (0, 1))[0].max() == 2 or np.histogram([0.2, 0.3], 10, (0, 1))[0].sum() == 2
    assert bins(np.arange(1, 11) / 10, "equal:10").tolist() == list(range(10))
    assert bins(np.array([0.3, 0.6, 0.9, 1.0]), "mass:2").tolist() == [0, 0, 1, 1]
    for wrong in ("equal:0", "equal:x", "some"):
        with pytest.raises(QwenchError):
            bins(np.array([0.5]), wrong)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 10), st.booleans()), min_size=1, max_size=40))
def test_ece_is_that_of_bins_between_the_values(pairs):
    """As netcal and torchmetrics count with edges (j + .5)/k: |accuracy - confidence| of every bin by its share."""
    confidence, right = np.array([c / 10 for c, _ in pairs]), np.array([r for _, r in pairs])
    edges = (np.arange(11) + 0.5) / 10
    which = np.digitize(confidence, edges)
    expected = sum(
        (which == b).mean() * abs(right[which == b].mean() - confidence[which == b].mean()) for b in set(which)
    )
    assert ece(confidence, right) == pytest.approx(expected)
    assert ece(confidence, right, "equal:10") == pytest.approx(expected)


def test_guessers():
    for k, m in ((1, 2), (2, 3), (3, 3), (5, 2), (4, 4), (6, 3)):
        draws = list(itertools.product(range(m), repeat=k))
        expected = sum(max(Counter(d).values()) for d in draws) / len(draws) / k
        assert majority_of_guesses(k, m) == pytest.approx(expected)
    assert majority_of_guesses(10, 2) == 638 / 1024
    for m, confidence, low in ((3, 0.492659, 0.159), (4, 0.419750, 0.170), (5, 0.375559, 0.176), (10, 0.274869, 0.175)):
        assert majority_of_guesses(10, m) == pytest.approx(confidence, abs=6e-7)
        assert floor(10, m) == pytest.approx(low, abs=6e-4)
    assert majority_of_guesses(5, 2) == 0.6875 and majority_of_guesses(20, 2) == pytest.approx(0.588099, abs=1e-6)


def test_the_ece_of_a_calibrated_model():
    assert deviation(25, 0.6) == pytest.approx(0.077356, abs=1e-6)
    assert calibrated(np.repeat(np.arange(1, 11) / 10, 25)) == pytest.approx(0.060651, abs=1e-6)
    for n, c in ((1, 0.5), (7, 0.3), (12, 0.9), (10, 0.1)):
        exact = sum(math.comb(n, i) * c**i * (1 - c) ** (n - i) * abs(i / n - c) for i in range(n + 1))
        assert deviation(n, c) == pytest.approx(exact)
    drawn = np.random.default_rng(0).binomial(25, 0.6, 20000)
    assert np.abs(drawn / 25 - 0.6).mean() == pytest.approx(deviation(25, 0.6), rel=0.02)


def read(text, label, options=None, question="", **how):
    extraction = Extraction(**how)
    extraction.check()
    return answer_of(text, label_of(label, options_of(options, question), extraction.compare), extraction)


OPTIONS = "Which? (A) red (B) light blue (C) green"


@pytest.mark.parametrize(
    ("text", "label", "how", "expected"),
    [
        ("The answer is 1,234.", "5", {}, 1234),
        ("the answer is: $18.0.", "18", {}, 18),
        ("The answer is 3. No, wait. The answer is 4.", "4", {}, 4),
        ("First line 7.\nThe answer is 12", "12", {"cue_line": "last"}, 12),
        ("The answer is 12\nThat is all", "12", {"cue_line": "last", "extract": "cue"}, None),
        ("no number here", "5", {}, None),
        ("so 3 and then 5", "5", {}, 5),
        (r"\boxed{5} and 7", "5", {}, 5),
        ("so 3 and then 5", "5", {"extract": "cue"}, None),
        ("a\nx = 9", "9", {"extract": "last-line"}, 9),
        ("Result: <6>", "6", {"extract": r"regex:<(\d+)>"}, 6),
        ("6", "6", {"extract": "whole"}, 6),
        ("it is 6", "6", {"extract": "whole"}, None),
        ("The answer is (B)", "B", {}, "B"),
        ("The answer is B.", "(B)", {}, "B"),
        ("The answer is light blue", "B", {}, "B"),
        ("I think (A), but rather (C)", "C", {}, "C"),
        ("The answer is a good one", "A", {}, None),
        ("The answer is Paris.", "paris", {}, "paris"),
        ("The answer is Paris.", "Paris", {"compare": "exact"}, "Paris"),
        ("I say Paris", "Paris", {}, None),
    ],
)
def test_extraction(text, label, how, expected):
    question = OPTIONS if label.strip("()") in "ABC" else ""
    assert read(text, label, question=question, **how) == expected


def test_options():
    assert options_of(None, OPTIONS) == {"A": "red", "B": "light blue", "C": "green"}
    assert options_of(["yes", "no"], "") == {"A": "yes", "B": "no"}
    assert options_of(["(A) yes", "(B) no"], "") == {"A": "yes", "B": "no"}
    assert options_of(None, "see (B)") == {}
    with pytest.raises(QwenchError, match="not among the options"):
        label_of("D", options_of(None, OPTIONS), None)
    with pytest.raises(QwenchError):
        Extraction("regex:(").check()
