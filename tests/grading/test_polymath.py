"""`qwench polymath score` and `prompts`: strings to the byte, every number of a table by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from qwench.ops import polymath as op
from qwench.ops.base.errors import QwenchError
from qwench.ops.base.events import Produced
from qwench.ops.grading.languages import LANGUAGES
from qwench.ops.grading.polymath.levels import WEIGHTS, dw_acc
from qwench.ops.grading.polymath.strings import HASHES, digest, joiners_of, prompt, strings

ENGLISH = "We add both numbers and then divide the result by two, which is all there is to it."
GERMAN = "Wir addieren beide Zahlen und teilen das Ergebnis durch zwei, und das ist alles."


def test_strings_are_the_published_ones():
    assert {kind: digest(strings()[kind]) for kind in HASHES} == HASHES
    for table in strings().values():
        assert sorted(table) == sorted(LANGUAGES)
    assert all(note.count(r"\boxed\{\}") == 1 for note in strings()["notes"].values())
    assert "\u200c" in strings()["forcing_en"]["te"] and strings()["forcing_prefer"]["te"].endswith(
        "\u0e15\u0e2d\u0e1a\u3002"
    )


def test_joining():
    note, sentence = strings()["notes"]["de"], strings()["forcing_en"]["de"]
    assert prompt("Q", "de") == f"Q\n{note}"
    assert prompt("Q", "de", "forcing_en") == f"Q\n{note} {sentence}"
    assert prompt("Q", "de", "forcing_en", joiners_of((r"\n\n", " "))) == f"Q\n\n{note} {sentence}"
    assert prompt("Q", "de", "forcing_en", joiners_of(("|",))) == f"Q|{note}|{sentence}"
    with pytest.raises(QwenchError):
        joiners_of(("a", "b", "c"))


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ((100, 0, 0, 0), 6.7),
        ((0, 100, 0, 0), 13.3),
        ((0, 0, 100, 0), 26.7),
        ((0, 0, 0, 100), 53.3),
        ((80, 60, 40, 20), 34.7),
        ((98.4, 88.0, 61.6, 40.8), 56.5),
        ((98.4, 88.0, None, 40.8), None),
    ],
)
def test_dw_acc(levels, expected):
    found = dw_acc(dict(zip(WEIGHTS, levels, strict=True)))
    assert (None if found is None else round(found, 1)) == expected


def line(index: int, answer: str, gold: str = "7", thinking: str = "", **more: object) -> dict:
    return {"idx": index, "question": "?", "answer": gold, "thinking_pred": thinking, "answer_pred": answer, **more}


def tree(folder: Path, middle: str = "medium") -> Path:
    """18 x 4 x 2 answers, right or wrong by a rule that the tests know."""
    for number, language in enumerate(LANGUAGES):
        for place, level in enumerate(WEIGHTS):
            first = r"$\boxed{7}$ $\boxed{8}$" if number % 2 else r"$\boxed{8}$ $\boxed{7}$"
            second = ("no box", r"\boxed{7.0}", r"$x=1$ \boxed{6}", r"\boxed{\frac{14}{2}}")[place]
            text = {"de": GERMAN}.get(language, ENGLISH)
            rows = [line(0, first), line(1, f"{text} {second}", thinking=ENGLISH if language == "fr" else "")]
            path = folder / (middle if level == "medium" else level) / f"{language}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def scored(*dirs: Path, **options: object) -> dict:
    pytest.importorskip("math_verify")
    pytest.importorskip("langdetect")
    grade = {
        n: options.pop(n) for n in ("grader", "detector", "box", "ratio_rule", "grade_timeout", "zh") if n in options
    }
    asked = op.ScoreOptions(tuple(map(str, dirs)), grade=op.GradeOptions(**{"grade_timeout": 30, **grade}), **options)
    return list(op.score(asked))[-1].result


def test_every_number_by_hand(tmp_path: Path):
    result = scored(tree(tmp_path / "hand"), boot=200)
    (model,) = result["models"]
    for number, language in enumerate(LANGUAGES):
        row = model["languages"][language]
        # The first answer is right in odd languages, where 7 is the first box; the second is at medium and top.
        accuracy = {level: 50.0 * (number % 2) + 50.0 * (level in ("medium", "top")) for level in WEIGHTS}
        assert {level: cell["accuracy"] for level, cell in row["levels"].items()} == accuracy
        assert row["dw_acc"] == round(sum(WEIGHTS[n] * a for n, a in accuracy.items()) / 15, 2)
        assert row["dw_acc_interval"][0] <= row["dw_acc"] <= row["dw_acc_interval"][1]
        # The first answer is too short to tell, and the second is English, but for the German one.
        assert row["answer_consistency"] == (100.0 if language in ("en", "de") else 50.0)
        assert row["thinking_consistency"] == (0.0 if language == "fr" else None)
        assert row["thinking_compat"] == (50.0 if language == "fr" else 100.0)
        assert row["without_box"] == 12.5 and row["several_boxes"] == 50.0 and row["cut"] is None
        assert row["levels"]["low"]["verdicts"] == {"right" if number % 2 else "wrong": 1, "unparsed": 1}
        assert row["levels"]["low"]["missing"] == 123
    total = model["total"]
    assert total["complete"] and total["dw_acc"] == pytest.approx(
        np.mean([r["dw_acc"] for r in model["languages"].values()]), abs=0.01
    )
    assert model["several_boxes"] == 72
    # Right in all languages: the second question at medium and top; in none: the second at low and high.
    assert model["agreement"]["questions"] == 8
    assert model["agreement"]["all_right"] == 25.0 and model["agreement"]["none_right"] == 25.0
    pair = next(p for p in model["agreement"]["pairs"] if (p["a"], p["b"]) == ("en", "zh"))
    assert pair["difference"] == 50.0 and pair["only_b"] == 4 and pair["only_a"] == 0 and pair["p"] == 2 / 16
    assert pair["p_holm"] >= pair["p"]
    # The last box turns the first answers round.
    last = scored(tmp_path / "hand", box="last", detector="none", boot=0)["models"][0]["languages"]
    assert last["en"]["dw_acc"] == model["languages"]["zh"]["dw_acc"] and last["en"]["dw_acc_interval"] is None


def test_middle_is_medium_and_folders_above(tmp_path: Path):
    tree(tmp_path / "a" / "one")
    tree(tmp_path / "a" / "two", "middle")
    one, two = scored(tmp_path / "a", boot=50)["models"]
    assert one.pop("model") == "one" and two.pop("model") == "two"
    del one["folder"], two["folder"]
    assert one == two
    shutil.copytree(tmp_path / "a" / "two" / "middle", tmp_path / "a" / "two" / "medium")
    with pytest.raises(QwenchError, match="both"):
        scored(tmp_path / "a" / "two")


def test_a_missing_level_leaves_no_dw_acc(tmp_path: Path):
    folder = tree(tmp_path / "hand")
    (folder / "top" / "en.jsonl").unlink()
    model = scored(folder, boot=20, detector="none", write_score=True)["models"][0]
    assert model["languages"]["en"]["dw_acc"] is None and model["languages"]["zh"]["dw_acc"] is not None
    assert not model["total"]["complete"] and model["total"]["dw_acc"] is None
    assert model["total"]["missing"] == ["en/top"]
    written = json.loads((folder / "score.json").read_text())
    assert written["en"]["benchmark_weighted_acc"] is None and written["en"]["top"]["accuracy"] is None
    assert written["zh"]["middle"] == {"accuracy": 100.0, "thinking_lang_cons": None, "answer_lang_cons": None}
    assert written["zh"]["benchmark_weighted_acc"] == model["languages"]["zh"]["dw_acc"].__round__(1)


def test_two_runs_are_compared_by_question(tmp_path: Path):
    ours, theirs = tree(tmp_path / "ours"), tree(tmp_path / "theirs")
    path = theirs / "top" / "en.jsonl"
    path.write_text(json.dumps(line(0, r"\boxed{7}")) + "\n" + json.dumps(line(1, r"\boxed{7}")) + "\n")
    found = scored(ours, compare=str(theirs), detector="none", boot=100)["compare"]
    row = next(r for r in found["languages"] if r["lang"] == "en")
    assert row["difference"] == 12.5 and row["only_b"] == 1 and row["p"] == 1.0
    assert row["dw_acc"] == round(50 * 8 / 15, 2)
    assert all(r["difference"] == 0 for r in found["languages"] if r["lang"] != "en")
    for folder, control in ((ours, "none"), (theirs, "forcing_en")):
        rows = [line(i, r"\boxed{7}", control=control) for i in range(2)]
        (folder / "low" / "en.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    with pytest.raises(QwenchError, match="--control"):
        scored(ours, compare=str(theirs), detector="none", boot=0)


def test_samples_and_pass_at_k(tmp_path: Path):
    rows = [line(i, rf"\boxed{{{7 if s < i else 0}}}", sample=s) for i in range(3) for s in range(4)]
    (tmp_path / "m" / "low").mkdir(parents=True)
    (tmp_path / "m" / "low" / "en.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    cell = scored(tmp_path / "m", detector="none", boot=0)["models"][0]["languages"]["en"]["levels"]["low"]
    assert cell["accuracy"] == 25.0 and cell["samples"] == 4
    assert cell["pass_at_k"] == round(100 * 2 / 3, 2)


def test_graders_differ_and_timeouts_are_counted(tmp_path: Path):
    rows = [
        line(0, r"\boxed{50}", "0.5"),
        line(1, r"\boxed{9^{9^{9^{9}}}}", "x"),
        line(2, r"\boxed{\frac{١}{٢}}", "0.5"),
    ]
    rows += [line(3, "was cut", finish="length"), line(4, r"\boxed{text here}", "some words")]
    (tmp_path / "m" / "low").mkdir(parents=True)
    (tmp_path / "m" / "low" / "en.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    model = scored(tmp_path / "m", grader="both", detector="none", boot=0, grade_timeout=3)["models"][0]
    verdicts = model["languages"]["en"]["levels"]["low"]["verdicts"]
    assert verdicts == {"right": 2, "wrong": 1, "truncated": 1, "timeout": 1}
    assert model["timeouts"] + model["died"] in (1, 2) and model["digits"] >= 1
    assert [d["question"] for d in model["disagreements"]] == [0]
    assert model["languages"]["en"]["cut"] == 100.0


def test_bad_lines_are_wrong_and_said(qwench, tmp_path: Path):
    pytest.importorskip("math_verify")
    bad = [{"idx": 0, "answer": "1"}, {"idx": 1, "answer": "1", "answer_pred": None}, {"idx": 2, "answer_pred": "x"}]
    bad += [{"idx": 3, "answer": "1", "answer_pred": 1}, {"idx": 4, "answer": 1, "answer_pred": r"\boxed{1}"}]
    (tmp_path / "m" / "low").mkdir(parents=True)
    path = tmp_path / "m" / "low" / "en.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in bad) + '{"idx": 5, "ans')
    done = qwench("polymath", "score", tmp_path / "m", "--json", "--detector", "none")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    cell = found["models"][0]["languages"]["en"]["levels"]["low"]
    assert cell["verdicts"] == {"right": 1, "failed": 4} and cell["accuracy"] == 20.0
    assert sum("counted as wrong" in w["message"] for w in found["warnings"]) == 4
    assert any("line 6" in w["message"] for w in found["warnings"])
    done = qwench("polymath", "score", tmp_path / "m", "--keep-going", "--detector", "none")
    assert done.returncode == 0 and "line 2 has no `answer_pred`" in done.stderr
    path.write_text(json.dumps(line(0, "a")) + "\n" + json.dumps(line(0, "b")) + "\n")
    done = qwench("polymath", "score", tmp_path / "m")
    assert done.returncode == 1 and "line 2 answers question 0 again" in done.stderr


def test_usage(qwench, tmp_path: Path):
    for arguments, told in (
        (("run", "x", "--langs", "en,xx", "--out", tmp_path / "o"), "no language `xx`"),
        (("run", "x", "--levels", "lowest", "--out", tmp_path / "o"), "no level `lowest`"),
        (("run", "x", "--control", "force", "--out", tmp_path / "o"), "unknown --control"),
        (("score", tmp_path, "--grader", "mine"), "unknown --grader"),
        (("score", tmp_path, "--ratio-rule", "off", "--grader", "math-verify"), "--ratio-rule would do nothing"),
    ):
        done = qwench("polymath", *arguments)
        assert done.returncode == 2 and told in done.stderr, done.stderr
    done = qwench("polymath", "score", tmp_path / "nowhere")
    assert done.returncode == 1 and "is not there" in done.stderr


def test_prompts(qwench):
    done = qwench("polymath", "prompts", "--lang", "sw,en", "--control", "forcing_raw")
    assert done.returncode == 0
    rows = [text.split("\t") for text in done.stdout.splitlines()]
    assert [row[:2] for row in rows] == [[lang, kind] for kind in ("note", "forcing_raw") for lang in ("sw", "en")]
    assert rows[0][2] == strings()["notes"]["sw"]
    assert len([e for e in op.prompts() if isinstance(e, Produced)]) == 72
    assert json.loads(qwench("polymath", "prompts", "--check", "--json").stdout)["right"] is True
