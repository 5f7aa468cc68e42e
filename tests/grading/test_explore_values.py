"""The arithmetic of MARGE: cuts, values, hits, verdicts; numbers of the published description, and properties."""

from __future__ import annotations

import random
from itertools import combinations, product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qwench.ops.base.errors import QwenchError
from qwench.ops.grading.explore.states import STEPS, Units, cuts, even
from qwench.ops.grading.explore.values import advantages, informative, informative_of, picked, variance, wanted
from qwench.ops.grading.explore.verify import Verifier
from qwench.ops.models.tokenizer import TextTokenizer

from tests import tiny


def test_advantages():
    found = advantages([1, 1, 0, 0, 0, 0, 0, 0])
    assert found == pytest.approx([1.732051] * 2 + [-0.577350] * 6, abs=1e-6)
    assert advantages([1] * 8) is None and advantages([0] * 8) is None and advantages([]) is None


def test_even_parts():
    assert even(13, 5) == [0, 3, 6, 9, 11] and even(12, 5) == [0, 3, 6, 8, 10]
    assert even(5, 5) == [0, 1, 2, 3, 4] and even(3, 5) == [0, 1, 2] and even(0, 5) == []


@pytest.mark.parametrize(
    ("v", "n", "want"), [(0.5, 8, 0.9921875), (0.3, 8, 0.942286), (0.05, 8, 0.336580), (0.25, 4, 0.679688)]
)
def test_informative(v: float, n: int, want: float):
    assert informative(v, n) == pytest.approx(want, abs=1e-6)
    assert informative(1 - v, n) == pytest.approx(want, abs=1e-6)


@given(st.integers(0, 6), st.integers(0, 6), st.integers(1, 6))
def test_informative_of_counts_is_the_enumeration(right: int, wrong: int, n: int):
    groups = list(combinations([1] * right + [0] * wrong, n))
    want = sum(len(set(g)) > 1 for g in groups) / len(groups) if groups else None
    assert informative_of(right, wrong, n) == (pytest.approx(want) if want is not None else None)


def test_variance_is_unbiased():
    values = [variance(sum(draw), 3 - sum(draw)) for draw in product((0, 1), repeat=3)]
    assert sum(values) / len(values) == pytest.approx(0.25) and variance(1, 0) is None


def test_which_hit():
    assert wanted("guided", 0.5, 0.5, 0.99) is True and wanted("guided", 0.625, 0.5, 0.99) is False
    assert wanted("wrong", 0.1, 0.5, 0.99) is False and wanted("random", 0.0, 0.5, 0.99) is None
    for value, why in ((0.0, "too hard"), (1.0, "too easy"), (0.995, "too easy")):
        with pytest.raises(LookupError, match=why):
            wanted("guided", value, 0.5, 0.99)
    right = [True, None, False, False]
    assert {picked("guided", right, False, [None] * 4, random.Random(n)) for n in range(40)} == {2, 3}
    assert picked("likeliest", right, None, [-3.0, 0.0, -1.0, -2.0], random.Random(0)) == 2
    assert picked("guided", [None, None], None, [None, None], random.Random(0)) is None


def byte_units(tmp_path_factory: pytest.TempPathFactory) -> Units:
    folder = tmp_path_factory.mktemp("bytes")
    tiny.byte_tokenizer(folder)
    return Units(TextTokenizer.load(folder))


@pytest.fixture(scope="module")
def units(tmp_path_factory: pytest.TempPathFactory) -> Units:
    return byte_units(tmp_path_factory)


@settings(deadline=None, max_examples=60)
@given(st.text(min_size=1, max_size=30), st.sampled_from(["tokens", "lines", "steps"]), st.integers(1, 9))
def test_no_cut_parts_a_character(units: Units, text: str, split: str, parts: int):
    ids = units.encode(text)
    assert units.decode(ids) == text
    found = cuts(units, ids, split, parts, 1)
    assert found[0].at == 0 and [c.at for c in found] == sorted({c.at for c in found})
    for cut in found:
        assert units.decode(ids[: cut.at]) + units.decode(ids[cut.at :]) == text
        assert cut.at < len(ids)


def test_a_cut_inside_a_character_moves_left(units: Units):
    ids = units.encode("aé" * 3)  # bytes: 1 + 2, three times
    found = cuts(units, ids, "tokens", 9, 1)
    assert [(c.at, units.decode(ids[: c.at])) for c in found] == [
        (0, ""), (1, "a"), (3, "aé"), (4, "aéa"), (6, "aéaé"), (7, "aéaéa")
    ]  # fmt: skip


@pytest.mark.parametrize("characters", [False, True])
def test_headers_keep_their_colons(units: Units, characters: bool):
    units = Units(None) if characters else units
    text = " a\n" + "".join(f"Step {n}: b\n" for n in range(2, 12))
    ids = units.encode(text)
    found = [units.decode(ids[: c.at]) for c in cuts(units, ids, "steps", 5, 1)]
    assert [p.rpartition("\n")[2] for p in found[1:]] == [f"Step {n}:" for n in range(2, 12)]
    assert len(cuts(units, ids, "steps", 5, 3)) == 1 + 4
    assert STEPS.endswith("Step 1:")


def test_lines_end_with_their_breaks(units: Units):
    ids = units.encode("one\ntwo\n\nthree\n")
    assert [units.decode(ids[: c.at]) for c in cuts(units, ids, "lines", 5, 1)] == [
        "",
        "one\n",
        "one\ntwo\n",
        "one\ntwo\n\n",
    ]


@pytest.mark.parametrize(
    ("text", "gold", "verdict"),
    [
        (r"so \boxed{\frac{1}{2}}", "0.5", "right"),
        (r"\boxed{1} or rather \boxed{2}", "2", "right"),
        (r"\boxed{1} or rather \boxed{2}", "1", "wrong"),
        (r"\boxed{7} and \boxed{7", "7", "unparsed"),
        ("nothing here", "7", "unparsed"),
        ("3 + 4 = 7.", "7", "right"),
        ("The answer is 1,200 apples, of 3.", "1200", "right"),
        ("Final answer: the final answer is $8$. I hope it is correct. 9", "8", "right"),
        (r"\boxed{50}", "0.5", "wrong"),
        ("-3", "3", "wrong"),
    ],
)
def test_numbers(text: str, gold: str, verdict: str):
    with Verifier("number") as verifier:
        assert verifier.verdict(text, verifier.gold(gold), "stop") == verdict
        assert verifier.verdict(text, verifier.gold(gold), "length") == "truncated"


def test_percent_only_where_it_is_asked_for():
    with Verifier("number", percent=True) as verifier:
        assert verifier.verdict(r"\boxed{50}", "0.5", "stop") == "right"
        assert verifier.verdict(r"\boxed{0.5}", "50", "stop") == "right"
    with pytest.raises(QwenchError, match="no rule of"):
        Verifier("choice", percent=True)


def test_other_verifiers(tmp_path: Path):
    with Verifier("choice") as verifier:
        assert verifier.verdict("It is (B).", verifier.gold("B"), "stop") == "right"
        assert verifier.verdict("a b c", "B", "stop") == "unparsed"
    with Verifier("exact") as verifier:
        assert verifier.verdict("The answer is Paris.", "paris", "stop") == "right"
        assert verifier.verdict(" ", "paris", "stop") == "unparsed"
    program = tmp_path / "judge.py"
    program.write_text(
        "import json, sys, time\nv = json.load(sys.stdin)\nt = v['text']\n"
        "time.sleep(9 if t == 'hang' else 0)\nsys.exit(7 if t == 'fail' else t != v['answer'])\n"
    )
    import sys

    with Verifier(f"command:{sys.executable} {program}", limit=1.5) as verifier:
        told = [verifier.verdict(t, "x", "stop") for t in ("x", "y", "fail", "hang")]
    assert told == ["right", "wrong", "timeout", "timeout"]
    for name, why in (("nope", "unknown verifier"), ("command:no-such-program", "no such program")):
        with pytest.raises(QwenchError, match=why):
            Verifier(name)


def test_gold_that_cannot_be_read():
    with Verifier("number") as verifier:
        assert verifier.gold("work\n#### 42") == "42" and verifier.gold(42) == "42"
        for given in (None, "", True, [1]):
            with pytest.raises(QwenchError, match="there is no answer"):
                verifier.gold(given)
        with pytest.raises(QwenchError, match="cannot be read by the verifier number"):
            verifier.gold("x")


def test_algebra_where_it_is_there():
    pytest.importorskip("math_verify")
    with Verifier("boxed", limit=20) as verifier:
        assert verifier.verdict(r"\boxed{\frac{x}{2}}", "x/2", "stop") == "right"
        assert verifier.verdict("no box, 7", "7", "stop") == "unparsed"
        assert verifier.verdict(r"\boxed{0.5}", "50", "stop") == "wrong"
