"""Statistics against numbers by hand, scipy, and properties."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from qwench.ops.base import stats

X, Y = [0, 0.1, 0.2, 0.4], [0.02, 0.08, 0.2, 0.3]
# d_acc and d_rel of 18 tasks, read from the published figure of arXiv 2505.24147.
MATHS = [(0.851, 0.555), (0.552, 0.483), (0.509, 0.544), (0.457, 0.437)]
OTHERS = [(0.135, 0.217), (0.077, 0.109), (0.016, 0.032), (-0.002, 0.033), (-0.034, 0.054), (-0.034, 0.054)]
OTHERS += [(-0.107, -0.019), (-0.092, -0.031), (-0.072, -0.013), (-0.072, -0.013)]
OTHERS += [(-0.019, -0.016), (-0.019, -0.016), (-0.010, 0.007), (-0.010, 0.007)]


@pytest.mark.parametrize(("right", "n"), [(0, 10), (10, 10), (3, 10), (81, 263), (1, 1), (62, 125)])
def test_wilson_is_scipys(right, n):
    expected = scipy.stats.binomtest(right, n).proportion_ci(method="wilson")
    assert stats.wilson(right, n) == pytest.approx((expected.low, expected.high))


def test_wilson_by_hand():
    assert stats.wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998, table I
    assert stats.wilson(0, 0) is None
    assert stats.wilson(0, 7).low == 0 and stats.wilson(7, 7).high == 1
    assert stats.wilson(2.5, 5) == pytest.approx((1 - stats.wilson(2.5, 5).high, stats.wilson(2.5, 5).high))


def test_mcnemar_by_hand():
    assert stats.mcnemar(0, 0) == 1
    assert stats.mcnemar(5, 0) == 2 / 32
    assert stats.mcnemar(1, 5) == 2 * (1 + 6) / 64
    assert stats.mcnemar(3, 3) == 1
    assert stats.mcnemar(10, 2) == pytest.approx(scipy.stats.binomtest(2, 12).pvalue)


def test_holm_by_hand():
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.9, 0.8]) == [1.0, 1.0]
    assert stats.holm([]) == []


def test_the_line_and_theil_sen_by_hand():
    assert stats.line(X, Y) == pytest.approx((0.72, 0.024, 0.984495), abs=1e-6)
    line, _ = stats.theil_sen(X, Y)
    assert line.slope == pytest.approx(0.716667, abs=1e-6)


def test_the_published_points():
    # The points are read to about .002, and some lie under others: so near are the lines.
    x, y = zip(*MATHS, *OTHERS, strict=True)
    assert stats.line(x, y) == pytest.approx((0.7457, 0.0468, 0.9684), abs=2e-3)
    other = stats.line(*zip(*OTHERS, strict=True))
    assert (other.slope, other.r) == pytest.approx((0.9052, 0.8754), abs=2e-3)
    line, interval = stats.theil_sen(x, y)
    assert line.slope == pytest.approx(0.8142, abs=2e-3)
    assert interval == pytest.approx((0.600, 0.954), abs=5e-3)


@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=3, max_size=12))
def test_lines_are_scipys(points):
    x, y = (np.array(v, float) for v in zip(*points, strict=True))
    line, interval = stats.theil_sen(x, y)
    if np.ptp(x) == 0:
        assert math.isnan(line.slope) and interval is None and math.isnan(stats.line(x, y).slope)
        return
    expected = scipy.stats.linregress(x, y)
    assert stats.line(x, y)[:2] == pytest.approx((expected.slope, expected.intercept), abs=1e-9)
    expected = scipy.stats.theilslopes(y, x, 0.95)
    assert line[:2] == pytest.approx(expected[:2])
    assert interval.low <= line.slope <= interval.high
    if not math.isnan(expected.low_slope):  # scipy's has none where ties leave no variance
        assert interval == pytest.approx((expected.low_slope, expected.high_slope))


@given(st.lists(st.integers(0, 4), min_size=2, max_size=12), st.randoms())
def test_ranks_auroc_and_phi(scores, random):
    labels = [random.random() < 0.5 for _ in scores]
    assert stats.ranks(scores).tolist() == scipy.stats.rankdata(scores).tolist()
    pairs = [(a > b) + (a == b) / 2 for a, la in zip(scores, labels, strict=True) if la
             for b, lb in zip(scores, labels, strict=True) if not lb]  # fmt: skip
    assert stats.auroc(scores, labels) == (pytest.approx(sum(pairs) / len(pairs)) if pairs else None)


def test_phi_by_hand():
    a, b = [1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 1]
    assert stats.phi(a, b) == pytest.approx((2 * 2 - 1 * 1) / math.sqrt(3 * 3 * 3 * 3))
    assert stats.phi([1, 1], [0, 1]) is None


def test_bootstrap_covers_the_mean_and_is_repeatable():
    values = np.random.default_rng(1).normal(3, 2, 400)
    found = stats.bootstrap_mean(values, 2000, seed=5)
    half = 1.96 * values.std() / 20
    assert found == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)
    assert found == stats.bootstrap_mean(values, 2000, seed=5) != stats.bootstrap_mean(values, 2000, seed=6)
    assert stats.bootstrap_mean([], 100) is None and stats.bootstrap_mean([1.0], 0) is None
    assert stats.bootstrap_mean([2.0] * 9) == (2, 2)
    assert 2.0 in stats.bootstrap_mean([2.0] * 9)


def test_clusters_are_drawn_together_and_widen_the_interval():
    values, names = np.repeat([0.0, 1.0] * 10, 20), np.repeat(np.arange(20), 20).tolist()
    for rows in stats.resamples(400, 20, 0, clusters=names):
        counts = np.bincount(rows, minlength=400).reshape(20, 20)
        assert (counts == counts[:, :1]).all() and counts[:, 0].sum() == 20
    alone, together = stats.bootstrap_mean(values), stats.bootstrap_mean(values, clusters=names)
    assert together.high - together.low > 3 * (alone.high - alone.low)


def test_strata_keep_their_sizes():
    names = ["low"] * 3 + ["top"] * 5
    for rows in stats.resamples(8, 20, 0, strata=names):
        assert sorted(names[i] for i in rows) == names


def test_resamples_without_a_value_are_left_out():
    values = iter([1.0, math.nan, 3.0, math.nan])
    assert stats.bootstrap(lambda rows: next(values), 2, 4) == pytest.approx((1.05, 2.95))
    assert stats.percentiles([math.nan, math.nan, 1.0]) is None


def test_pass_at_by_enumeration():
    from itertools import combinations

    for n in range(1, 7):
        for right in range(n + 1):
            for k in range(1, n + 1):
                draws = list(combinations([1] * right + [0] * (n - right), k))
                assert stats.pass_at(n, right, k) == pytest.approx(sum(map(any, draws)) / len(draws))
    with pytest.raises(ValueError):
        stats.pass_at(3, 1, 4)
