"""`qwench reliability measure` and `fit`: files by hand, what changes nothing, the line."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from qwench.ops import reliability as op
from qwench.ops.base.errors import QwenchError
from qwench.ops.base.events import Produced, Warned
from qwench.ops.grading.reliability.extract import Extraction
from qwench.ops.grading.reliability.measures import floor

from tests.base.test_stats import MATHS, OTHERS
from tests.grading.test_votes import OPTIONS, ORACLE


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
