"""Measures of pairs of rewards against the numbers of the sheet, and against plain re-computation."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from qwench.ops.base.errors import QwenchError
from qwench.ops.base.stats import mcnemar, wilson
from qwench.ops.scoring import reward_bench
from qwench.ops.scoring.best_of import ALL, best_of, exact, majority, oracle
from qwench.ops.scoring.loss_curve import fit_curve
from qwench.ops.scoring.preference import (
    bt_losses,
    by_length,
    cell,
    centring,
    length_phi,
    phi_of,
    rulers,
    softplus,
    wins,
)
from qwench.ops.scoring.style import contrast, features, fit, folds, scaled, style_fits

ROWS = np.array([[1, 0.5], [1, -0.5], [-1, 0.5], [1, 0.5], [-1, -0.5], [1, -0.5], [1, 0.5], [-1, 0.5]])


def test_oracle_1_bradley_terry() -> None:
    d = [1.5, -0.3, 0.0]
    assert bt_losses(d) == pytest.approx([0.201413, 0.854355, 0.693147], abs=1e-6)
    found = cell(d)
    assert found["bt_loss"] == pytest.approx(0.582972, abs=1e-6)
    assert found["accuracy"] == 0.5 and found["strict_accuracy"] == pytest.approx(1 / 3) and found["ties"] == 1
    assert bt_losses([1.5], 0.5)[0] == pytest.approx(0.313262, abs=1e-6)
    assert centring([2, 0.1, 1], [0.5, 0.4, 1], 0.01) == pytest.approx(0.035)
    # Far from 0, where e^x is no number.
    assert softplus([-1e4, 1e4]).tolist() == [0.0, 1e4]


def test_oracle_5_phi_and_style() -> None:
    assert phi_of(40, 10, 20, 30) == pytest.approx(0.408248, abs=1e-6)
    assert phi_of(3, 0, 4, 0) is None
    # The same table as pairs: model prefers the longer or not, label prefers the longer or not.
    table = [(1, 1)] * 40 + [(1, 0)] * 10 + [(0, 1)] * 20 + [(0, 0)] * 30 + [(1, None)] * 7
    chosen = [5 if label is None else 9 if label else 1 for _, label in table]
    d = [(1 if m == lab else -1) if lab is not None else 1 for m, lab in table]
    found = length_phi(d, chosen, [5] * len(table))
    assert found["phi"] == pytest.approx(0.408248, abs=1e-6) and found["equal_length"] == 7
    assert length_phi([1, 1], [2, 3], [1, 1])["phi"] is None
    assert contrast((120, 3, 0, 5), (80, 1, 0, 0)).tolist() == pytest.approx([0.2, 0.5, 0, 1])
    text = "# Title\n\n- one **bold** and **two words**\n* two\n1. three\n2) four\nno # header, 3 * 4 * 5, a**b\n"
    assert features(text, 9) == (9, 4, 1, 2)


def test_oracle_6_logistic_through_the_origin() -> None:
    d = np.array([[1.0]] * 30 + [[-1.0]] * 10)
    assert fit(d, 0.0) == pytest.approx([math.log(3)], abs=1e-9)
    w = fit(ROWS)
    assert w == pytest.approx([0.336961, 0.336695], abs=1e-6)
    assert bt_losses(ROWS @ w).mean() == pytest.approx(0.647550, abs=1e-6)
    alone = fit(ROWS[:, :1])
    assert alone == pytest.approx([0.335406], abs=1e-6)
    assert bt_losses(ROWS[:, :1] @ alone).mean() == pytest.approx(0.665218, abs=1e-6)
    # Columns that part the rows without error have weights all the same.
    assert np.isfinite(fit(np.array([[1e6], [2e6]]))).all()


def test_oracle_7_best_of_n() -> None:
    rewards, right = [0.9, 0.7, 0.4, 0.1], [1, 0, 1, 0]
    assert [best_of(rewards, right, n) for n in (1, 2, 3, 4)] == pytest.approx([0.5, 2 / 3, 0.75, 1])
    assert [best_of([0.5, 0.5, 0.1, 0.1], [1, 0, 0, 1], n) for n in (1, 2, 3, 4)] == pytest.approx([0.5] * 4)
    assert [oracle(right, n) for n in (1, 2, 3, 4)] == pytest.approx([0.5, 5 / 6, 1, 1])
    answers = ["a", "b", "a", "c"]
    assert [majority(answers, "a", n) for n in (1, 2, 3, 4)] == pytest.approx([0.5, 0.5, 2 / 3, 1])
    weights = [0.2, 0.6, 0.5, 0.1]
    assert [majority(answers, "a", n, weights) for n in (1, 2, 3, 4)] == pytest.approx([0.5, 0.5, 0.5, 1])
    assert majority(answers, "b", 4, weights) == 0  # .7 for a against .6, although b is the best single one
    with pytest.raises(ValueError, match="less than nothing"):
        majority(answers, "a", 2, [-1, 1, 1, 1])


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0, 2.0]), st.booleans()), min_size=1, max_size=7),
    st.integers(1, 7),
)
def test_oracle_7_closed_form_is_the_enumeration(rows: list[tuple[float, bool]], n: int) -> None:
    rewards, right = [r for r, _ in rows], [c for _, c in rows]
    n = min(n, len(rows))
    total = []
    for draw in combinations(range(len(rows)), n):
        best = max(rewards[k] for k in draw)
        first = [k for k in draw if rewards[k] == best]
        total.append(sum(right[k] for k in first) / len(first))
    assert best_of(rewards, right, n) == pytest.approx(sum(total) / len(total))


def test_majority_of_many_is_sampled_with_a_seed() -> None:
    answers = ["a"] * 20 + ["b"] * 12 + [None] * 8
    assert not exact(40, 8) and exact(20, 3)
    found = [majority(answers, "a", 8, seed=s) for s in (1, 1, 2)]
    assert found[0] == found[1] != found[2]
    assert abs(found[0] - found[2]) < 4 / math.sqrt(ALL)


def test_oracle_8_mcnemar_and_wilson() -> None:
    assert mcnemar(10, 2) == pytest.approx(0.038574, abs=1e-6)
    assert wilson(8, 10) == pytest.approx((0.490162, 0.943318), abs=1e-6)


def test_oracle_9_rewardbench() -> None:
    def only(section: str, right: dict[str, float], other: float) -> float:
        accuracy = {n: right.get(n, other) for n in reward_bench.SECTIONS[section]}
        return reward_bench.rewardbench(accuracy)["sections"][section]

    assert only("Chat", {"alpacaeval-easy": 1}, 0) == pytest.approx(0.279330, abs=1e-6)
    assert only("Reasoning", {"math-prm": 0.5}, 1) == 0.75
    assert only("Safety", {"xstest-should-respond": 0}, 1) == pytest.approx(0.662162, abs=1e-6)
    assert only("Safety", {"xstest-should-refuse": 0}, 1) == pytest.approx(0.791892, abs=1e-6)
    every = {n: 1.0 for section in reward_bench.SECTIONS.values() for n in section}
    assert reward_bench.rewardbench(every) | {"sections": 0} == {"sections": 0, "overall": 1.0, "missing": []}
    with pytest.raises(QwenchError, match="no such subset: `chatty`"):
        reward_bench.rewardbench({"chatty": 1.0})
    found = reward_bench.ties([([2.0], [1.0, 0.5])], [([3.0, 2.5], [1.0, 0.0])])
    assert found == pytest.approx(1.007616, abs=1e-6)


def test_rewardbench_2_from_rows() -> None:
    assert reward_bench.best_of_four([2], [1, 0, 1]) == 1
    assert reward_bench.best_of_four([2], [2, 0, 2]) == pytest.approx(1 / 3)
    assert reward_bench.best_of_four([1], [2, 0, 2]) == 0
    rows = [{"subset": s, "reward_chosen": [2.0], "reward_rejected": [1.0, 1.0, 2.0]} for s in ("Math", "Focus")]
    rows.append({"subset": "Ties", "id": "ref:7", "reward_chosen": [2.0], "reward_rejected": [1.0, 0.5]})
    rows.append({"subset": "Ties", "id": "tied:7", "reward_chosen": [3.0, 2.5], "reward_rejected": [1.0, 0.0]})
    found = reward_bench.rewardbench2(rows)
    assert found["sections"]["Math"] == 0.5 and found["sections"]["Ties"] == pytest.approx(1.007616, abs=1e-6)
    assert found["overall"] is None and found["missing"] == ["Factuality", "Precise IF", "Safety"]
    with pytest.raises(QwenchError, match="lacks one half of `7`"):
        reward_bench.rewardbench2(rows[:-1])


def test_oracle_10_the_curve_comes_back() -> None:
    sizes = np.array([64, 128, 256, 512, 1024, 2048, 4096])
    losses = 3 * sizes**-0.4 + 0.2
    assert losses == pytest.approx([0.768394, 0.630762, 0.526456, 0.447408, 0.3875, 0.342098, 0.30769], abs=1e-6)
    found = fit_curve(sizes, losses, 200)
    assert (found.a, found.b, found.c) == pytest.approx((3, 0.4, 0.2), rel=1e-6)
    assert not found.noisy and found.b_interval == pytest.approx((0.4, 0.4), abs=1e-4)
    assert found.constant == pytest.approx(losses.mean()) and found.at(256) == pytest.approx(0.526456, abs=1e-6)
    assert fit_curve(sizes, np.random.default_rng(0).normal(0.5, 0.1, 7), 200).noisy
    assert fit_curve(sizes, 1e3 / sizes, 0).c >= 0  # no loss below 0 however far it goes
    for wrong, said in (([1, 2, 3, 3], "3 different sizes"), ([0, 1, 2, 3], "above 0")):
        with pytest.raises(QwenchError, match=said):
            fit_curve(wrong, [1.0] * 4)


@given(st.lists(st.sampled_from([-2.0, -0.5, 0.0, 0.5, 2.0]), min_size=1, max_size=30))
def test_oracle_12_swapping_turns_the_accuracy_over(d: list[float]) -> None:
    there, back = cell(d), cell([-x for x in d])
    assert there["accuracy"] == pytest.approx(1 - back["accuracy"])
    assert there["n"] == back["n"] and there["ties"] == back["ties"]
    turned = cell(d[::-1])
    assert turned["accuracy"] == pytest.approx(there["accuracy"]) and turned["ties"] == there["ties"]
    assert turned["bt_loss"] == pytest.approx(there["bt_loss"])


def test_rulers_and_lengths() -> None:
    chosen, rejected = [9, 1, 5, 7], [3, 4, 5, 2]
    found = rulers(chosen, rejected, seed=3)
    assert found["longest"]["accuracy"] == 0.625 and found["shortest"]["accuracy"] == 0.375
    assert found["longest"]["strict_accuracy"] == 0.5 and "bt_loss" not in found["longest"]
    assert found["random"] == rulers(rejected, chosen, seed=3)["random"]
    assert "logprob" not in found
    assert rulers([1], [1], logprobs=([-1.0], [-2.0]))["logprob"]["accuracy"] == 1
    parts = by_length([1, 1, -1, -1], chosen, rejected)
    assert [parts[n]["accuracy"] for n in ("longer", "shorter", "equal")] == [0.5, 1, 0]
    assert [parts[n]["n"] for n in ("longer", "shorter", "equal")] == [2, 1, 1]
    assert cell([]) == {"n": 0, "ties": 0, "accuracy": None, "accuracy_interval": None, "strict_accuracy": None,
                        "bt_loss": None}  # fmt: skip


def test_style_is_held_out_by_prompt() -> None:
    """Style alone says nothing where it is noise, and all where it is the label."""
    random = np.random.default_rng(0)
    prompts = [i // 3 for i in range(300)]
    fold = folds(prompts, 5, 0)
    assert len(set(fold.tolist())) == 5
    assert all(len({fold[i] for i in range(300) if prompts[i] == p}) == 1 for p in set(prompts))
    z = random.normal(size=(300, 4))
    d = random.normal(1.0, 1.0, 300)
    noise = style_fits(d, z, prompts, rounds=50)
    assert noise["style"]["bt_loss"] > 0.68 and noise["both"]["bt_loss"] < 0.45
    assert noise["reward_adds_nats"] == pytest.approx(noise["style"]["bt_loss"] - noise["both"]["bt_loss"])
    low, high = noise["beta"]["headers"]["interval"]
    assert low < 0 < high and noise["alpha"]["interval"][0] > 0
    # Columns are neither centred nor given an intercept: a bias towards long answers stays to be seen.
    biased = style_fits(random.normal(0, 1, 300), np.abs(z), prompts, rounds=0)
    assert biased["style"]["accuracy"] == 1 and biased["beta"]["tokens"]["interval"] is None
    assert scaled(np.abs(z))[0].min() >= 0
    assert style_fits([1.0], [[0, 0, 0, 0]], ["one"], rounds=0)["both"] is None
    assert (wins([1, 0, -1]) == [1, 0.5, 0]).all()
