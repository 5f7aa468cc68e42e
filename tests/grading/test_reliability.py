"""`qwench reliability`: votes and measures by hand, floors by enumeration, the line, rationales that survive a kill."""

from __future__ import annotations

import itertools
import json
import math
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qwench.ops import reliability as op
from qwench.ops.base.errors import QwenchError
from qwench.ops.base.events import Produced, Warned
from qwench.ops.grading.reliability.extract import Extraction, answer_of, label_of, options_of
from qwench.ops.grading.reliability.instructions import INSTRUCTIONS, SYSTEM, body, evaluation, synthesis, training
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

from tests.base.test_stats import MATHS, OTHERS
from tests.writing.stub import Stub, counting, serving

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


def rows_of(rows, k=4, **more):
    out = [
        {"id": f"q{n}", "label": label, "samples": ["" if s == "-" else f"The answer is {s}" for s in samples], **more}
        for n, (samples, label) in enumerate(rows)
    ]
    assert all(len(row["samples"]) == k for row in out)
    return out


def write(path: Path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def measure(*files, **options):
    how = {n: options.pop(n) for n in ("extract", "cue_line", "compare") if n in options}
    names = ("format", "task_field", "first", "keep_going")
    reading = {n: options.pop(n) for n in names if n in options}
    asked = op.MeasureOptions(
        tuple(map(str, files)),
        reading=op.Reading(**reading, extraction=Extraction(**how)),
        **{"bootstrap": 300, **options},
    )
    events = list(op.measure(asked))
    return events[-1].result, events


def test_a_file_by_hand(tmp_path: Path):
    result, events = measure(write(tmp_path / "a.jsonl", rows_of(ORACLE)), rows=True)
    (cell,) = result["cells"]
    assert cell["ece"] == pytest.approx(0.45) and cell["n"] == 5 and result["k"] == 4
    assert cell["floor"] is None and cell["truncated"] is None
    assert cell["ece_interval"][0] <= 0.45 <= cell["ece_interval"][1] + 0.2
    produced = [e.row for e in events if isinstance(e, Produced)]
    assert [row["prediction"] for row in produced] == ["a", "a", "b", "c", "f"]
    assert {e.kind for e in events if isinstance(e, Warned)} == {"few"}
    assert [p["k"] for p in cell["curve"]] == [1, 2, 3, 4]
    assert cell["curve"][-1]["ece"] == pytest.approx(0.45) and cell["curve"][0]["confidence"] == 1
    assert sum(b["n"] for b in cell["diagram"]) == 5


def test_what_changes_nothing(tmp_path: Path):
    """Order of questions; order of samples but for ties; doubling; other names of options."""
    dice = random.Random(3)
    rows = []
    for n in range(40):
        letters = "".join(dice.choice("ABBBC") for _ in range(5))
        if Counter(Counter(letters).values())[max(Counter(letters).values())] == 1:
            rows.append({"id": n, "label": "B", "question": OPTIONS, "samples": [f"({c})" for c in letters]})
    base, _ = measure(write(tmp_path / "a.jsonl", rows))

    def told(rows, name="b.jsonl"):
        return measure(write(tmp_path / name, rows))[0]["cells"][0]

    first = base["cells"][0]
    keys = ("accuracy", "confidence", "ece", "brier", "calibrated_ece", "auroc", "floor")
    shuffled = [row | {"samples": dice.sample(row["samples"], 5)} for row in rows]
    assert [told(shuffled)[n] for n in keys] == [first[n] for n in keys]
    other = dice.sample(rows, len(rows))
    assert [told(other)[n] for n in keys] == [pytest.approx(first[n]) for n in keys]
    swap = str.maketrans("ABC", "CAB")
    named = [row | {"label": "A", "samples": [s.translate(swap) for s in row["samples"]]} for row in rows]
    assert [told(named)[n] for n in keys] == [first[n] for n in keys]
    twice = [row | {"id": f"{row['id']}-{i}"} for row in rows for i in range(2)]
    doubled = told(twice)
    assert doubled["ece"] == pytest.approx(first["ece"]) and doubled["accuracy"] == first["accuracy"]
    width = [c["ece_interval"][1] - c["ece_interval"][0] for c in (doubled, first)]
    assert width[0] < width[1]
    assert first["options"] == 3 and first["floor"] == pytest.approx(floor(5, 3))


def test_one_sample_and_equal_samples(tmp_path: Path):
    rows = [{"id": n, "label": "5", "samples": ["5" if n % 4 else "6"] * 3} for n in range(40)]
    result, events = measure(write(tmp_path / "a.jsonl", rows))
    cell = result["cells"][0]
    assert cell["confidence"] == 1 and cell["ece"] == pytest.approx(1 - cell["accuracy"])
    assert cell["auroc"] == 0.5 and "greedy" in [e.kind for e in events if isinstance(e, Warned)]
    one, _ = measure(tmp_path / "a.jsonl", first=1)
    assert one["cells"][0]["confidence"] == 1 and one["k"] == 1
    all_right = [row | {"samples": ["5", "5", "6"]} for row in rows]
    assert measure(write(tmp_path / "b.jsonl", all_right))[0]["cells"][0]["auroc"] is None
    votes_one = [{"id": 1, "label": "18", "samples": ["The answer is 18", "The answer is 18.0", "The answer is 7"]}]
    assert measure(write(tmp_path / "c.jsonl", votes_one))[0]["cells"][0]["confidence"] == pytest.approx(2 / 3)


def test_two_conditions(tmp_path: Path):
    a = [{"id": n, "label": "1", "samples": ["1" if (n * 7 + s) % 3 else "2" for s in range(5)]} for n in range(60)]
    b = [{"id": n, "label": "1", "samples": ["1" if (n * 5 + s) % 4 else "3" for s in range(5)]} for n in range(60)]
    result, _ = measure(f"direct={write(tmp_path / 'a.jsonl', a)}", f"steps={write(tmp_path / 'b.jsonl', b)}")
    direct, steps = result["cells"]
    (pair,) = result["pairs"]
    assert (pair["a"], pair["b"], pair["paired"]) == ("direct", "steps", True)
    assert pair["d_acc"] == pytest.approx(steps["accuracy"] - direct["accuracy"])
    assert pair["d_rel"] == pytest.approx(direct["ece"] - steps["ece"])
    assert pair["d_conf"] == pytest.approx(steps["confidence"] - direct["confidence"])
    for name in ("d_acc", "d_rel", "d_conf"):
        assert pair[f"{name}_interval"][0] <= pair[name] + 0.05 and pair["p"] <= 1
    # The same file twice: no difference, and no width.
    same_file, _ = measure(f"x={tmp_path / 'a.jsonl'}", f"y={tmp_path / 'a.jsonl'}")
    (none,) = same_file["pairs"]
    assert none["d_acc_interval"] == [0, 0] and none["d_rel_interval"] == [0, 0] and none["p"] == 1
    result, events = measure(
        f"x={tmp_path / 'a.jsonl'}", f"y={write(tmp_path / 'c.jsonl', [r | {'id': r['id'] + 9} for r in b])}"
    )
    assert result["pairs"][0]["paired"] is False and result["pairs"][0]["p"] is None
    assert any("51 of 60 and 60 questions in common" in e.message for e in events if isinstance(e, Warned))


def test_logs_of_a_harness(tmp_path: Path):
    rows = [
        {
            "doc_id": n,
            "target": "#### 5" if n else "5",
            "resps": [["The answer is 5", "The answer is 6"]],
            "filter": name,
        }
        for name in ("strict", "flexible")
        for n in range(3)
    ]
    rows = [row | {"target": "5"} for row in rows]
    path = tmp_path / "samples_gsm8k_2026-01-02T03-04-05.123.jsonl"
    result, _ = measure(write(path, rows))
    assert result["cells"][0]["task"] == "gsm8k" and result["cells"][0]["n"] == 3 and result["k"] == 2
    assert result["cells"][0]["accuracy"] == 1 and result["cells"][0]["tied"] == 1
    with pytest.raises(QwenchError, match="likelihoods"):
        measure(write(path, [{"doc_id": 0, "target": "5", "resps": [[[-1.0, False]]], "filter": "none"}]))


def test_bad_input(tmp_path: Path):
    good = {"id": 1, "label": "5", "samples": ["5", "6"]}
    for rows, told in (
        ([good, good], "line 2 has the id `1` of"),
        ([good, {"id": 2, "samples": ["5", "6"]}], "line 2: there is no label"),
        ([good, {"id": 2, "label": "5", "samples": []}], "line 2: there are no samples"),
        ([good, {"id": 2, "label": "D", "samples": ["A", "B"], "options": ["x", "y"]}], "not among the options A, B"),
        ([good, {"id": 2, "label": "5", "samples": ["5"]}], "from 1 to 2 samples"),
        ([good, {"id": 2, "label": "5", "samples": [5, 6]}], "a sample is no text"),
    ):
        with pytest.raises(QwenchError, match=told):
            measure(write(tmp_path / "a.jsonl", rows))
    assert measure(tmp_path / "a.jsonl", keep_going=True)[0]["cells"][0]["n"] == 1
    uneven = write(tmp_path / "a.jsonl", [good, {"id": 2, "label": "5", "samples": ["5"]}])
    assert measure(uneven, first=1)[0]["k"] == 1
    incomplete = write(tmp_path / "a.jsonl", [good, {"id": 2, "label": "5", "failed": "the server is gone"}])
    assert measure(incomplete)[0]["incomplete"] == 1
    two = [{"id": 1, "label": "A", "samples": ["A", "A"], "options": ["x", "y"]}]
    three = [{"id": 1, "label": "A", "samples": ["A", "A"], "options": ["x", "y", "z"]}]
    files = (f"p={write(tmp_path / 'p.jsonl', two)}", f"q={write(tmp_path / 'q.jsonl', three)}")
    with pytest.raises(QwenchError, match="other numbers of options"):
        measure(*files)
    assert measure(*files, force=True)[0]["pairs"]


def test_the_command(qwench, tmp_path: Path):
    rows = [{"id": n, "label": "5", "samples": ["The answer is 5", "no idea", "nothing", "hm"]} for n in range(40)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    done = qwench("reliability", "measure", "-", "--extract", "cue", input=text)
    assert done.returncode == 0 and "75% of the samples cannot be read, such as 'no idea'" in done.stderr
    done = qwench("reliability", "measure", "-", "--json", "--max-ece", "0.1", input=text)
    assert done.returncode == 3
    cell = json.loads(done.stdout)["cells"][0]
    assert cell["accuracy"] == 0 and cell["unparsed"] == 0.75 and cell["ece"] == 0.75
    done = qwench("reliability", "measure", "-", "--extract", "boxed", input=text)
    assert done.returncode == 3 and "no sample can be read" in done.stderr
    done = qwench("reliability", "measure", "-", "--dry-run", input=text)
    assert done.returncode == 0 and "40 of 4 samples" in done.stdout
    picture = tmp_path / "p.svg"
    done = qwench("reliability", "measure", "-", "--rows", "--plot", picture, input=text)
    assert len(done.stdout.splitlines()) == 40 and "<svg" in picture.read_text()
    assert qwench("reliability", "measure", "-", "--extract", "mine", input=text).returncode == 2


def fitted(where: Path, rows, **options):
    return list(op.fit(op.FitOptions(write(where / "t.jsonl", rows), **options)))[-1].result


def test_the_line(tmp_path: Path):
    rows = [
        {"task": str(n), "d_acc": x, "d_rel": y}
        for n, (x, y) in enumerate(((0, 0.02), (0.1, 0.08), (0.2, 0.2), (0.4, 0.3)))
    ]
    found = fitted(tmp_path, rows)
    assert (found["ols"]["slope"], found["ols"]["intercept"]) == (pytest.approx(0.72), pytest.approx(0.024))
    assert found["pearson"] == pytest.approx(0.984495, abs=1e-6)
    assert found["theil_sen"]["slope"] == pytest.approx(0.716667, abs=1e-6)
    assert found["confidence"]["slope"] == pytest.approx(1 - 0.72) and found["confidence"]["assumed"]
    assert found["leave_one_out"]["task"] in "0123" and found["from_one"] == pytest.approx(-0.28)
    rows = [row | {"d_rel": row["d_acc"], "d_conf": 0.0, "difficulty": 1 - row["d_acc"]} for row in rows]
    found = fitted(tmp_path, rows)
    assert found["ols"]["slope"] == pytest.approx(1) and found["mechanical"] is True
    assert found["confidence"]["slope"] == 0 and found["confidence"]["identity"] == pytest.approx(0)
    assert found["difficulty"]["d_acc"]["slope"] == pytest.approx(-1)


def test_the_published_points(tmp_path: Path):
    rows = [{"task": f"m{n}", "group": "maths", "d_acc": x, "d_rel": y} for n, (x, y) in enumerate(MATHS)]
    rows += [{"task": f"o{n}", "group": "other", "d_acc": x, "d_rel": y} for n, (x, y) in enumerate(OTHERS)]
    found = fitted(tmp_path, rows)
    assert found["ols"]["slope"] == pytest.approx(0.746, abs=2e-3) and found["mechanical"] is False
    assert found["ols"]["slope_interval"] == pytest.approx([0.63, 0.96], abs=0.03)
    found = fitted(tmp_path, rows, without_group=("maths",))
    assert found["n"] == 14 and found["ols"]["slope"] == pytest.approx(0.905, abs=3e-3)
    assert found["mechanical"] is True and found["ols"]["slope_interval"] == pytest.approx([0.35, 1.15], abs=0.12)


def test_no_line(tmp_path: Path):
    rows = [{"task": str(n), "d_acc": 0.1, "d_rel": n / 10} for n in range(5)]
    for some, told in (
        (rows, "same d_acc"),
        (rows[:3], "a line through 3 tasks"),
        ([{"task": "x", "d_acc": 1}], "no number `d_rel`"),
    ):
        with pytest.raises(QwenchError, match=told):
            fitted(tmp_path, some)
    with pytest.raises(QwenchError, match="no task is of the group"):
        fitted(tmp_path, rows, without_group=("maths",))


def test_measures_are_fitted(qwench, tmp_path: Path):
    rows = {"a": [], "b": []}
    for t in range(5):
        for n in range(30):
            for name, good in (("a", 4), ("b", 4 + t)):
                samples = ["1" if (n * 7 + s * 3 + t) % 10 < good else "2" for s in range(10)]
                rows[name].append({"id": n, "task": f"t{t}", "label": "1", "samples": samples})
    files = [f"{name}={write(tmp_path / f'{name}.jsonl', some)}" for name, some in rows.items()]
    done = qwench("reliability", "measure", *files, "--json", "--bootstrap", "50")
    assert done.returncode == 0, done.stderr
    done = qwench("reliability", "fit", "-", "--plot", tmp_path / "p.png", input=done.stdout)
    assert done.returncode == 0 and done.stdout.startswith("5 tasks") and (tmp_path / "p.png").exists(), done.stderr


def test_instructions_to_the_byte():
    assert sorted(n for n, text in INSTRUCTIONS.items() if text.endswith(" ")) == [
        "cb",
        "paws",
        "qqp",
        "wic",
        "winogrande",
    ]
    assert INSTRUCTIONS["cb"] == INSTRUCTIONS["anli"] + " " and INSTRUCTIONS["paraphrase"] + " " == INSTRUCTIONS["qqp"]
    assert len(INSTRUCTIONS) == 19 and "is is true" in INSTRUCTIONS["creak"] and "Follwing" in INSTRUCTIONS["sst2"]
    text = body("Q?", INSTRUCTIONS["math"], True, "training", True)
    assert text == (
        "Solve the following math problems.\n"
        'Add a line "The answer is n" at the end where n is the answer value.\n\n'
        "Here is the question:\nQ?\n\nAnswer: Let's think step by step."
    )
    assert training(text, "reference") == f"Human: {text}\n\nAssistant: "
    arc = body("Q?", INSTRUCTIONS["arc"], False, "synthesis", True)
    assert 'Give your answer ending with "The answer is x" where x is your choice.' in arc
    assert arc.endswith("Answer: Let's think step by step.\n")
    assert synthesis(arc, "reference") == [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": arc},
    ]
    plain = body("Q?", INSTRUCTIONS["arc"], False, "evaluation", False)
    assert plain.endswith("Answer:")
    assert evaluation(plain, "reference")[1]["content"] == f"Human:{plain}\n\nAssistant: "
    assert body("Q?", "I", False, "evaluation", True).endswith("Answer:\nLet's think step by step.")
    assert evaluation(plain, "reference")[0]["content"] == SYSTEM and len(evaluation(plain, "template")) == 1


def brain(body: dict) -> str:
    """Right at a third of the seeds; a question with 3 never."""
    text = str(body.get("prompt") or body["messages"][-1]["content"])
    if "Here is the question" not in text:
        return counting(body)
    time.sleep(0.03)
    number = int(text.split("What is ")[1].split()[0])
    right = 2 * number if body["seed"] % 3 == 0 and number != 3 else 99
    return f"Adding {number} twice. The answer is {right}."


def questions(path: Path, count: int = 8) -> str:
    return write(path, [{"id": f"q{n}", "question": f"What is {n} + {n}?", "label": str(2 * n)} for n in range(count)])


def lines(path: Path) -> list[dict]:
    return [json.loads(text) for text in path.read_text().splitlines()]


def test_rationales_are_the_same_after_a_kill(qwench, tmp_path: Path):
    where = questions(tmp_path / "q.jsonl")
    with serving(Stub(brain)) as stub:
        how = ["reliability", "rationales", where, "--engine", stub.address, "--api", "chat", "--instruction", "math"]
        how += ["--tries", "5", "--concurrency", "2", "--keep-failed"]
        done = qwench(*how, "--out", tmp_path / "want.jsonl", "--json")
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        command = [sys.executable, "-m", "qwench.cli.main", *map(str, how), "--out", str(tmp_path / "out.jsonl"), "-q"]
        journal = tmp_path / ".out.jsonl.job"
        for least in (2, 5):
            child = subprocess.Popen(command, stderr=subprocess.PIPE)
            while child.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < least):
                time.sleep(0.005)
            child.send_signal(signal.SIGKILL)
            assert child.wait() == -signal.SIGKILL, child.stderr.read()
            assert not (tmp_path / "out.jsonl").exists()
        done = qwench(*how, "--out", tmp_path / "out.jsonl", "--json")
        assert done.returncode == 0 and json.loads(done.stdout)["done"] >= 4, done.stderr
        done = qwench(*how, "--out", tmp_path / "out.jsonl", "--style", "template")
        assert done.returncode == 1 and 'style was "reference", is "template"' in done.stderr
        train = [*how[:-1], "--out", tmp_path / "train.jsonl", "--rows", "both", "--unsolved"]
        done = qwench(*train, "--prompts", tmp_path / "eval.jsonl")
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "want.jsonl").read_bytes()
    rows = lines(tmp_path / "want.jsonl")
    assert len(rows) == 8 and report["questions"] == 8
    solved = [row for row in rows if row["model_solution"] is not None]
    assert report["solved"] == len(solved) and report["tries"] == sum(row["tries"] for row in rows)
    failed = rows[3]
    assert failed["model_solution"] is None and len(failed["failed_tries"]) == 5
    assert all(f"The answer is {row['label']}." in row["model_solution"] for row in solved)
    trained = lines(tmp_path / "train.jsonl")
    with_, without = ([r for r in trained if r["condition"] == c] for c in ("with", "without"))
    assert [r["id"] for r in with_] == [r["id"] for r in solved] and [r["id"] for r in without] == [
        r["id"] for r in rows
    ]
    assert without[3]["completion"] == "The answer is 6" and without[3]["prompt"].endswith("Answer:\n\nAssistant: ")
    assert with_[0]["completion"] == solved[0]["model_solution"] and with_[0]["prompt"].startswith("Human: Solve")
    asked = lines(tmp_path / "eval.jsonl")
    assert [r["condition"] for r in asked[:2]] == ["with", "without"] and asked[0]["id"] == asked[1]["id"] == "q0"
    assert asked[0]["messages"][1]["content"].startswith("Human:Solve")


def test_rationales_usage(qwench, tmp_path: Path):
    where = questions(tmp_path / "q.jsonl", 1)
    for more, told in (
        ((), "--out takes a file"),
        (("--out", tmp_path / "o.jsonl", "--rows", "some"), "unknown --rows"),
        (("--out", tmp_path / "o.jsonl", "--unsolved"), "--rows asks for none"),
        (("--out", tmp_path / "o.jsonl", "--rows", "both", "--keep-failed"), "no place for"),
    ):
        done = qwench("reliability", "rationales", where, *more)
        assert done.returncode == 2 and told in done.stderr, done.stderr


def test_sample_is_piped_into_measure(qwench, tmp_path: Path):
    where = questions(tmp_path / "q.jsonl", 4)
    answers = Stub(
        lambda body: f"The answer is {4 if body['seed'] % 2 else 6}." if "What is" in str(body) else counting(body)
    )
    with serving(answers) as stub:
        done = qwench("sample", where, "--engine", stub.address, "--api", "chat", "--n", "5", "--temperature", "1")
        assert done.returncode == 0, done.stderr
    done = qwench("reliability", "measure", "-", "--json", input=done.stdout)
    assert done.returncode == 0, done.stderr
    cell = json.loads(done.stdout)["cells"][0]
    assert cell["n"] == 4 and cell["k"] == 5 and cell["unparsed"] == 0 and cell["truncated"] == 0
    assert cell["accuracy"] <= 0.5
