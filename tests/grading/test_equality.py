"""Boxes, the rules of equality, and the worker: PolyMath's own verdicts, and hostile answers that end in time."""

from __future__ import annotations

import json
import random
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from qwench.ops.grading.boxes import boxes, picked
from qwench.ops.grading.equality import quick
from qwench.ops.grading.numbers import number, plain_digits
from qwench.ops.grading.worker import Workers

VECTORS = [json.loads(line) for line in (Path(__file__).parent / "polymath_grader_vectors.jsonl").open("rb")]


@pytest.fixture(scope="module")
def workers():
    pytest.importorskip("math_verify")
    with Workers(["compat", "math-verify"], most=1, limit=20) as found:
        yield found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"so \boxed{18} and \boxed{19}", ["18", "19"]),
        (r"$\boxed\{\}$ \boxed{7}", ["7"]),
        ("boxed{3", []),
        (r"\boxed {5}", ["5"]),
        (r"\fbox{4}", []),
        (r"\boxed{x = 3}", ["x=3"]),
        (r"\boxed{\{1\}}", [r"\{1\}"]),
        (r"\boxed{a\}b}", ["a\\"]),
        (r"\boxed{\frac{1}{2}}", [r"\frac{1}{2}"]),
        (r"\boxed{\boxed{3}+1}", [r"\boxed{3}+1", "3"]),
        (r"\boxed{1 \boxed{2}", ["2"]),
        (r"} \boxed{}", [""]),
    ],
)
def test_boxes_by_hand(text, expected):
    assert boxes(text) == expected
    assert picked(boxes(text), "first") == (expected[0] if expected else None)
    assert picked(boxes(text), "last") == (expected[-1] if expected else None)


@given(st.text(alphabet="{}b \\", max_size=40).map(lambda t: t.replace("b", "boxed{")))
def test_boxes_are_what_counting_braces_finds(text):
    """The plain way: from every box count braces up to the one that matches."""
    text = text.replace(" ", "")
    expected = []
    for start in range(len(text)):
        if text.startswith("boxed{", start):
            depth = 1
            for at in range(start + 6, len(text)):
                depth += (text[at] == "{") - (text[at] == "}")
                if not depth:
                    expected.append(text[start + 6 : at])
                    break
    assert boxes(text) == expected


def test_boxes_of_a_bomb_take_no_time():
    begun = time.monotonic()
    assert boxes("boxed{" * 200_000) == []
    assert len(boxes("boxed{" * 1000 + "}" * 1000)) == 1000
    assert time.monotonic() - begun < 5


def test_numbers():
    assert number("1,000") == 1000 and number("18%") == 0.18 and number("18\\%") == 0.18 and number("1e3") == 1000
    assert number("18元") is None and number("") is None and number("%") is None
    assert plain_digits("١٨०+x") == "180+x"


def test_vectors_are_all_there():
    assert len(VECTORS) == 61
    assert sum(v["reference"] for v in VECTORS) == 43
    assert sum(v["ours"] != v["reference"] for v in VECTORS) == 7
    assert all(v["ours"] for v in VECTORS if v["ours"] != v["reference"])


def test_the_references_verdicts(workers):
    calls = [(n, ("compat", v["pred"].replace(" ", ""), v["gold"], True)) for n, v in enumerate(VECTORS)]
    found = {reply.key: reply.found for reply in workers.run(calls)}
    assert {n: v["ours"] for n, v in enumerate(VECTORS)} == {n: found[n] and found[n]["equal"] for n in found}


def test_the_cheap_rules_say_the_same(workers):
    decided = {n: quick(v["pred"], v["gold"]) for n, v in enumerate(VECTORS)}
    assert sum(d is not None for d in decided.values()) > 25
    assert all(d in (None, VECTORS[n]["ours"]) for n, d in decided.items())


@pytest.mark.parametrize(
    ("prediction", "gold", "ratio", "equal"),
    [
        ("0.5", "50", False, False),
        ("0.5", "50", True, True),
        ("(1,2,3)", "(1,2)", True, False),
        ("((1,2),(3,4))", "((1,2),(3,4))", True, True),
        ("x=3=3", "3", True, False),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{bmatrix}1&2\\3&4.0\end{bmatrix}", True, True),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{bmatrix}1&2\\3&5\end{bmatrix}", True, False),
        (r"\frac12", "0.5", True, True),
        (r"1\,000", "1000", True, True),
        (r"\sin(x)^2+\cos(x)^2", "1", True, True),
        ("x+y", "x-y", True, False),
        ("__import__('os').system('true')", "0", True, False),
        ("x.__class__", "x", True, False),
    ],
)
def test_more_verdicts(workers, prediction, gold, ratio, equal):
    assert workers.call("compat", prediction, gold, ratio).found["equal"] is equal


@pytest.mark.parametrize(
    ("prediction", "gold", "equal"),
    [
        ("18", "18", True),
        ("1800", "18", False),
        (r"50\%", "0.5", True),
        (r"\frac{1}{2}", "$0.5$", True),
        ("", "0", False),
    ],
)
def test_math_verify(workers, prediction, gold, equal):
    assert workers.call("math-verify", prediction, gold).found["equal"] is equal


def test_nothing_is_evaluated_as_python(workers, tmp_path):
    target = tmp_path / "made"
    text = f"open('{target}','w').close()"
    for grader in ("compat", "math-verify"):
        workers.call(grader, text, "5", *([True] if grader == "compat" else []))
    assert not target.exists()


def test_late_and_dead_workers_are_replaced_in_any_thread():
    found = []

    def work():
        with Workers(["wait"], most=2, limit=0.5) as some:
            found.extend(some.run((n, ("wait", s)) for n, s in enumerate((0, 9, -1, 0, 9, 0))))
            found.append(some.call("wait", 0))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    troubles = {reply.key: reply.trouble for reply in found}
    assert troubles == {0: None, 1: "late", 2: "died", 3: None, 4: "late", 5: None, None: None}


def test_a_power_tower_is_late_and_no_wrong_answer(workers):
    with Workers(["compat"], most=1, limit=1) as short:
        assert short.call("compat", "9^{9^{9^{9}}}", "x", True).trouble in ("late", "died")
        assert short.call("compat", r"\frac{1}{2}", "0.5", True).found["equal"]


ALPHABET = [
    *("\\frac{", "}", "{", "\\boxed{", "^", "_", "(", ")", "[", "]", ",", "=", "!", "9", "x", "\\sqrt", "\\sum", "$"),
    *(
        "\\begin{pmatrix}",
        "\\end{pmatrix}",
        "\\\\",
        "&",
        "\0",
        "\u202e",
        "\ud800",
        "٣",
        "é",
        "\n",
        "%",
        "..",
        "e",
        "\\int",
    ),
    *("\\binom", "nan", "1e999", "__class__", "lambda:0", "factorial", "\\left(", "\\right.", "||", ":", "<", "≤", "−"),
]


def hostile(random: random.Random) -> str:
    """What a model, or somebody else, might put into a box."""
    kind = random.randrange(12)
    if kind == 0:
        return random.choice("9x({[!^-\\") * random.choice((10, 1000, 100_000))
    if kind == 1:
        return "".join(chr(random.randrange(0x3000)) for _ in range(random.randrange(200)))
    return "".join(random.choice(ALPHABET) for _ in range(random.randrange(1, 25)))


def survive(count: int, limit: float) -> dict[str, int]:
    """Grade so many hostile pairs; how many replies were in trouble."""
    source = random.Random(5)
    pairs = [(hostile(source), source.choice((hostile(source), "5", "x^2"))) for _ in range(count)]
    with Workers(["compat", "math-verify"], most=2, limit=limit) as some:
        calls = []
        for n, pair in enumerate(pairs):
            grader = ("compat", "math-verify")[n % 2]
            if grader == "math-verify" or quick(*pair) is None:
                calls.append((n, (grader, *pair, *([True] if grader == "compat" else []))))
        replies = list(some.run(calls))
    assert sorted(r.key for r in replies) == [key for key, _ in calls]
    return {t: sum(r.trouble == t for r in replies) for t in (None, "late", "died", "failed")}


def test_hostile_answers(workers):
    told = survive(60, 1.0)
    assert told["died"] + told["late"] < 40 and told[None] > 20


@pytest.mark.slow
def test_ten_thousand_hostile_answers(workers):
    told = survive(10_000, 1.0)
    print(told)
    assert told[None] > 8000
