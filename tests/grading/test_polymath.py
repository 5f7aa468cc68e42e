"""`qwench polymath`: strings to the byte, every number of a table by hand, runs that go on after a kill."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from qwench.ops import polymath as op
from qwench.ops.base.errors import QwenchError
from qwench.ops.base.events import Produced, Warned
from qwench.ops.base.runtime import Runtime
from qwench.ops.grading.languages import LANGUAGES
from qwench.ops.grading.polymath.levels import WEIGHTS, dw_acc
from qwench.ops.grading.polymath.strings import HASHES, digest, joiners_of, prompt, strings
from qwench.ops.jobs.job import JobOptions
from qwench.ops.writing.session import ChatOptions

from tests.tiny import byte_decoder
from tests.writing.stub import Stub, counting, serving

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


def data(folder: Path, count: int = 3) -> Path:
    """Questions of two languages and two levels, as the benchmark keeps them."""
    for language in ("en", "sw"):
        for level in ("low", "top"):
            rows = [
                {"id": f"{level}-{language}-{n + 1}", "question": f"{n} + {n} = ?", "answer": str(2 * n)}
                for n in range(count)
            ]
            (folder / language).mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(rows), folder / language / f"{level}.parquet")
    return folder


def asked(where: Path, out: Path, **options: object) -> list:
    chat = {n: options.pop(n) for n in ("model", "max_tokens", "runtime", "think_budget") if n in options}
    questions = op.QuestionOptions(
        str(where), **{n: options.pop(n) for n in ("langs", "levels", "limit") if n in options}
    )
    job = JobOptions(force=options.pop("force", False), dry_run=options.pop("dry_run", False))
    own = ChatOptions(**{"seed": 1, "slots": 2, "max_tokens": 4, **chat})
    return list(op.run(op.RunOptions(str(out), questions=questions, chat=own, job=job, **options)))


def lines(path: Path) -> list[dict]:
    return [json.loads(text) for text in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return byte_decoder(tmp_path_factory.mktemp("model") / "small", max_position_embeddings=400)


def test_a_tree_that_the_reference_reads(small: Path, tmp_path: Path):
    runtime = Runtime(device="cpu", engine="torch")
    where = data(tmp_path / "data")
    events = asked(where, tmp_path / "out", model=str(small), runtime=runtime, samples=2, level_names="middle")
    folder = tmp_path / "out" / "small"
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*.jsonl")) == [
        f"{level}/{lang}.jsonl" for level in ("low", "top") for lang in ("en", "sw")
    ]
    rows = lines(folder / "low" / "sw.jsonl")
    assert [(r["idx"], r["sample"]) for r in rows] == [(i, s) for i in range(3) for s in range(2)]
    assert list(rows[0])[:5] == ["idx", "question", "answer", "thinking_pred", "answer_pred"]
    assert {
        "id",
        "prompt_sha",
        "finish",
        "prompt_tokens",
        "thinking_tokens",
        "answer_tokens",
        "seconds",
        "seed",
        "control",
    } < set(rows[0])
    assert rows[0]["prompt_tokens"] >= len(prompt("0 + 0 = ?", "sw").encode())
    assert len({r["seed"] for r in rows}) == 6 and rows[0]["id"] == "low-sw-1"
    assert events[-1].result["samples"] == 24
    # More of the data later: what is there stays.
    shutil.rmtree(folder)
    asked(where, tmp_path / "out2", model=str(small), runtime=runtime, limit=1, langs=("en",))
    assert len(lines(tmp_path / "out2" / "small" / "low" / "en.jsonl")) == 1
    result = asked(where, tmp_path / "out2", model=str(small), runtime=runtime, levels=("low",))[-1].result
    assert result["done"] == 1 and result["rows"] == 6
    asked(where, tmp_path / "out2", model=str(small), runtime=runtime, levels=("low",), limit=1)
    assert len(lines(tmp_path / "out2" / "small" / "low" / "en.jsonl")) == 3
    assert len(lines(tmp_path / "out2" / "small" / "top" / "en.jsonl")) == 1


def test_another_control_or_joiner_is_refused(small: Path, tmp_path: Path):
    where, runtime = data(tmp_path / "data", 1), Runtime(device="cpu", engine="torch")
    asked(where, tmp_path / "out", model=str(small), runtime=runtime)
    with pytest.raises(QwenchError, match='control was "none", is "forcing_en"'):
        asked(where, tmp_path / "out", model=str(small), runtime=runtime, control="forcing_en")
    with pytest.raises(QwenchError, match="joiner was"):
        asked(where, tmp_path / "out", model=str(small), runtime=runtime, joiner=("|",))
    events = asked(where, tmp_path / "out", model=str(small), runtime=runtime, control="forcing_prefer", force=True)
    assert "strings" in [e.kind for e in events if isinstance(e, Warned)]


def test_a_prompt_that_does_not_fit_has_its_row(small: Path, tmp_path: Path):
    where = tmp_path / "rows.jsonl"
    rows = [{"lang": "en", "level": "low", "question": "x" * n, "answer": "1"} for n in (5, 500)]
    where.write_text("".join(json.dumps(r) + "\n" for r in rows))
    result = asked(where, tmp_path / "out", model=str(small), runtime=Runtime(device="cpu", engine="torch"))[-1].result
    assert [r["finish"] for r in lines(tmp_path / "out" / "small" / "low" / "en.jsonl")][1] == "context"
    assert result["too_long"] == 1 and result["failed"] == 0


def test_data_that_is_not_as_it_should_be(tmp_path: Path):
    good = {"id": "low-en-1", "question": "?", "answer": "1"}
    for rows, told in (
        ([good, good], "line 2 has the id `low-en-1` of another row"),
        ([good, {"id": "low-en-2", "question": "?"}], "line 2 has no answer"),
        ([{"id": "low-en-1", "answer": "1"}], "line 1 has no text in its field `question`"),
        ([{"question": "?", "answer": "1"}], "line 1 does not say its language and level"),
    ):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        with pytest.raises(QwenchError, match=told):
            asked(tmp_path / "rows.jsonl", tmp_path / "out", runtime=Runtime(engine="http://127.0.0.1:9/v1"), name="x")


def test_a_dry_run_counts(qwench, small: Path, tmp_path: Path):
    where = data(tmp_path / "data")
    done = qwench("polymath", "run", where, "--model", small, "--out", tmp_path / "o", "--dry-run", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    table = [text.split() for text in done.stdout.splitlines()]
    assert table[:3] == [list(WEIGHTS), ["en", "3", "0", "0", "3"], ["sw", "3", "0", "0", "3"]]
    assert "prompts 12" in done.stdout and strings()["notes"]["en"] in done.stdout
    assert not (tmp_path / "o").exists()


def brain(body: dict) -> str:
    text = str(body.get("prompt") or body["messages"][-1]["content"])
    if " = ?" not in text:
        return counting(body)  # it is being looked at
    time.sleep(0.05)
    number = int(text.split(" + ")[0].split()[-1])
    return rf"That is \boxed{{{2 * number if body['seed'] % 3 else 0}}}."


def told(folder: Path) -> dict[str, list[dict]]:
    """All rows but for how long they took."""
    return {
        str(p.relative_to(folder)): [{k: v for k, v in row.items() if k != "seconds"} for row in lines(p)]
        for p in sorted(folder.rglob("*.jsonl"))
    }


def test_killed_at_random_it_comes_to_the_same_answers(qwench, tmp_path: Path):
    where = data(tmp_path / "data", 5)
    with serving(Stub(brain)) as stub:
        how = ["polymath", "run", where, "--engine", stub.address, "--api", "chat", "--max-tokens", "60"]
        how += ["--concurrency", "2", "--samples", "2"]
        done = qwench(*how, "--out", tmp_path / "want")
        assert done.returncode == 0, done.stderr
        command = [sys.executable, "-m", "qwench.cli.main", *map(str, how), "--out", str(tmp_path / "out"), "-q"]
        journal = tmp_path / "out" / ".tiny.job"
        for least in (3, 9):
            child = subprocess.Popen(command, stderr=subprocess.PIPE)
            while child.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < least):
                time.sleep(0.005)
            child.send_signal(signal.SIGKILL)
            assert child.wait() == -signal.SIGKILL, child.stderr.read()
            with journal.open("ab") as file:
                file.write(b'{"key": "low-en-')
        done = qwench(*how, "--out", tmp_path / "out", "--json")
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        assert result["done"] >= 5 and "cut the last row short" in str(result["warnings"])
        done = qwench(*how, "--out", tmp_path / "out", "--control", "forcing_raw")
        assert done.returncode == 1 and 'control was "none", is "forcing_raw"' in done.stderr
    assert told(tmp_path / "out") == told(tmp_path / "want")
    assert len(told(tmp_path / "out")) == 4


def test_reasoning_of_a_server_is_the_thought(tmp_path: Path):
    def thinking(handler) -> bool:
        if " = ?" not in str(handler.body):
            return False
        said = {"role": "assistant", "content": r"\boxed{0}", "reasoning_content": "nothing and nothing"}
        handler.send(200, {"choices": [{"index": 0, "finish_reason": "stop", "message": said}]})
        return True

    with serving(Stub()) as stub:
        stub.faults = [thinking] * 30
        runtime = Runtime(engine=stub.address, api="chat")
        asked(data(tmp_path / "data", 1), tmp_path / "out", model="", runtime=runtime, langs=("en",), levels=("low",))
    (row,) = lines(tmp_path / "out" / "tiny" / "low" / "en.jsonl")
    assert row["thinking_pred"] == "nothing and nothing" and row["answer_pred"] == r"\boxed{0}"
