"""`qwench rerank` in the shell: pipes, rows, runs, troubles."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from qwench.ops.base.errors import QwenchError
from qwench.ops.base.events import Produced
from qwench.ops.base.runtime import Runtime
from qwench.ops.models.hub import resolve
from qwench.ops.scoring.reranker import Reranker, RerankSettings

from tests import tiny

Run = Callable[..., subprocess.CompletedProcess[str]]
LINES = ["error handling in the parser", "a poem about rivers", "错误处理", "raise ValueError(text)"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.cross_encoder(tmp_path_factory.mktemp("x") / "x")


@pytest.fixture(scope="module")
def wanted(model: Path) -> list[str]:
    return ranked(model, "error handling", LINES)


def ranked(model: Path, query: str, texts: list[str]) -> list[str]:
    """The texts best first, each scored alone."""
    reranker = Reranker(resolve(str(model)), RerankSettings(runtime=Runtime(device="cpu")))
    question = reranker.question(query)
    return sorted(texts, key=lambda t: -reranker.score(question, [t])[0].score)


def objects(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_lines_come_back_best_first(qwench: Run, model: Path, wanted: list[str]) -> None:
    done = qwench("rerank", "error handling", "-", "-m", model, input="\n".join(LINES) + "\n\n")
    assert done.stdout.splitlines() == wanted
    assert "4 ranked" in done.stderr


def test_a_query_in_chinese(qwench: Run, model: Path) -> None:
    done = qwench("rerank", "错误处理", "-m", model, "--top", "2", input="\n".join(LINES))
    assert done.stdout.splitlines() == ranked(model, "错误处理", LINES)[:2]


def test_json_keeps_the_objects(qwench: Run, model: Path, wanted: list[str]) -> None:
    rows = [{"text": t, "n": i, "score": 9, "more": {"x": [1]}} for i, t in enumerate(LINES)]
    done = qwench(
        "rerank", "error handling", "-", "-m", model, "--json", input="".join(json.dumps(r) + "\n" for r in rows)
    )
    out = objects(done)
    assert [r["text"] for r in out] == wanted
    assert [r["rank"] for r in out] == [1, 2, 3, 4]
    assert [r["score"] for r in out] == sorted((r["score"] for r in out), reverse=True)
    for row in out:
        original = rows[row["n"]]
        assert {k: row[k] for k in ("text", "n", "more")} == {k: original[k] for k in ("text", "n", "more")}
        assert row["search_score"] == 9
        assert row["tokens"] > 3
        assert row["truncated"] is False


def test_stable_keeps_the_order_and_min_score_the_good(qwench: Run, model: Path) -> None:
    done = qwench("rerank", "error handling", "-", "-m", model, "--stable", "--json", input="\n".join(LINES))
    out = objects(done)
    assert [r["text"] for r in out] == LINES
    third = sorted(r["score"] for r in out)[1]
    done = qwench(
        "rerank", "error handling", "-", "-m", model, "--stable", "--min-score", str(third), input="\n".join(LINES)
    )
    assert done.stdout.splitlines() == [r["text"] for r in out if r["score"] >= third]
    done = qwench("rerank", "error handling", "-", "-m", model, "--min-score", "1.1", input="\n".join(LINES))
    assert (done.returncode, done.stdout) == (3, "")
    assert "nothing passes" in done.stderr


def test_an_empty_input_is_no_error_but_no_answer(qwench: Run, model: Path) -> None:
    done = qwench("rerank", "q", "-", "-m", model, input="")
    assert (done.returncode, done.stdout) == (3, "")
    assert "the input is empty" in done.stderr


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    for i, text in enumerate(LINES):
        (folder / f"file {i}.md").write_text(text + " TODO\n")
    (folder / "other.md").write_text("nothing here\n")
    return folder


def test_names_of_files_from_a_pipe(project: Path, model: Path) -> None:
    exe = Path(sys.executable).parent / "qwench"
    command = f'grep -rl TODO . | sort | "{exe}" rerank "error handling" - -m "{model}" | head -n 3'
    done = subprocess.run(["bash", "-c", command], cwd=project, capture_output=True, text=True, check=True)
    texts = {text + " TODO\n": f"file {i}.md" for i, text in enumerate(LINES)}
    want = [texts[t] for t in ranked(model, "error handling", list(texts))[:3]]
    assert done.stdout.splitlines() == want
    assert "read as file names" in done.stderr
    command = f'find . -name "file*" -print0 | "{exe}" rerank "error handling" -0 -m "{model}" -q --top 3'
    done = subprocess.run(["bash", "-c", command], cwd=project, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == want
    command = f'ls | "{exe}" rerank "error handling" - -m "{model}" -q --input lines --stable'
    done = subprocess.run(["bash", "-c", command], cwd=project, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == sorted(p.name for p in project.iterdir())


def test_a_folder_is_ranked_by_passage_and_a_named_file_whole(qwench: Run, project: Path, model: Path) -> None:
    (project / "long.md").write_text("\n\n".join(f"# Part {i}\n\n" + "words of a part. " * 12 for i in range(8)))
    done = qwench("rerank", "parts", project, project / "other.md", "-m", model, "--chunk-tokens", "60", "--json")
    out = objects(done)
    parts = [r for r in out if r["path"].endswith("long.md")]
    source = (project / "long.md").read_bytes()
    assert len(parts) >= 8
    for row in parts:
        assert source[row["start_byte"] : row["end_byte"]].decode() == row["text"]
    assert [r for r in out if r["path"].endswith("other.md")][-1].keys() >= {"path", "score"}
    done = qwench("rerank", "parts", project, "-m", model, "--whole")
    assert sorted(Path(line).name for line in done.stdout.splitlines()) == sorted(p.name for p in project.iterdir())
    assert "1 document was cut to fit 128 tokens" in done.stderr


def test_many_queries_and_a_trec_run(qwench: Run, model: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"_id": f"d{i}", "text": t}) + "\n" for i, t in enumerate(LINES)))
    topics = tmp_path / "topics.tsv"
    topics.write_text("q1\terror handling\nq2\trivers\n")
    done = qwench("rerank", "--queries", topics, corpus, "-m", model, "--json")
    out = objects(done)
    assert len(out) == 8
    for name, query in (("q1", "error handling"), ("q2", "rivers")):
        assert [r["text"] for r in out if r["query_id"] == name] == ranked(model, query, LINES)
    run = tmp_path / "bm25.run"
    run.write_text("q1 Q0 d0 1 3.0 bm25\nq1 Q0 d3 2 2.0 bm25\nq2 Q0 d1 1 2.0 bm25\n")
    done = qwench("rerank", "--queries", topics, "--run", run, corpus, "-m", model, "--format", "trec")
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [r[:2] for r in rows] == [["q1", "Q0"], ["q1", "Q0"], ["q2", "Q0"]]
    best = ranked(model, "error handling", [LINES[0], LINES[3]])
    assert [r[2] for r in rows] == [f"d{LINES.index(t)}" for t in best] + ["d1"]
    assert [r[3] for r in rows] == ["1", "2", "1"]
    run.write_text("q1 Q0 d0 1 3.0 bm25\nq1 Q0 gone 2 2.0 bm25\n")
    done = qwench("rerank", "error handling", corpus, "--run", run, "-m", model)
    assert done.returncode == 1
    assert "the corpus lacks 1 documents of the query `q1`, such as `gone`" in done.stderr
    done = qwench("rerank", "error handling", corpus, "--run", run, "-m", model, "--keep-going")
    assert (done.returncode, done.stdout) == (0, "d0\n")
    run.write_text("q1 Q0 d0 1 3.0 bm25\nq1 d0 1\n")
    done = qwench("rerank", "x", corpus, "--run", run, "-m", model)
    assert (done.returncode, "line 2 has 3 columns" in done.stderr) == (1, True)


def test_csv_and_parquet_rows(qwench: Run, model: Path, tmp_path: Path, wanted: list[str]) -> None:
    import csv

    import pyarrow as pa
    import pyarrow.parquet as pq

    with open(tmp_path / "t.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["key", "body"], *([f"k{i}", t] for i, t in enumerate(LINES))])
    pq.write_table(pa.table({"key": [f"k{i}" for i in range(4)], "body": LINES}), tmp_path / "t.parquet")
    want = [f"k{LINES.index(t)}" for t in wanted]
    for name in ("t.csv", "t.parquet"):
        arguments = ("rerank", "error handling", tmp_path / name, "-m", model, "--text-field", "body")
        done = qwench(*arguments, "--id-field", "key")
        assert done.stdout.splitlines() == want
        assert [r["key"] for r in objects(qwench(*arguments, "--json"))] == want


def test_bad_rows_end_the_run_or_are_left_out(qwench: Run, model: Path) -> None:
    rows = '{"text": "good"}\n{"text": "bad\n{"body": "no text"}\n{"text": "fine"}\n'
    done = qwench("rerank", "q", "-", "-m", model, input=rows)
    assert (done.returncode, done.stdout) == (1, "")
    assert ":2` is not JSON" in done.stderr
    assert "Traceback" not in done.stderr
    done = qwench("rerank", "q", "-", "-m", model, "--keep-going", "--json", input=rows)
    assert sorted(r["text"] for r in objects(done)) == ["fine", "good"]
    done = qwench("rerank", "q", "-", "-m", model, "--text-field", "nope", input='{"text": "good"}\n')
    assert done.returncode == 1
    assert "nope" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["q", "no-such-file"], 1, "no-such-file"),
        (["", "-"], 2, "the query is empty"),
        (["word " * 300, "-"], 1, "tokens and the model takes 128"),
        (["q", "-", "--format", "xml"], 2, "unknown --format"),
        (["q", "-", "--kind", "magic"], 2, "unknown kind"),
        (["q", "-", "--long", "ago"], 2, "unknown --long"),
        (["q", "-", "--instruction", "x"], 2, "--instruction is for models with a prompt"),
        (["q", "-", "--run", "no.run"], 1, "no.run"),
        (["--queries", "no.tsv", "-"], 1, "no.tsv"),
    ],
)
def test_bad_use_is_one_sentence(qwench: Run, model: Path, arguments: list[str], code: int, said: str) -> None:
    done = qwench("rerank", *arguments, "-m", model, input="a line\n")
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_an_embedding_model_is_refused(qwench: Run) -> None:
    tiny.minilm()
    done = qwench("rerank", "q", "-", "-m", "minilm", input="a line\n")
    assert done.returncode == 1
    assert "an embedding model" in done.stderr
    assert "Qwen3-Reranker-0.6B" in done.stderr


def test_a_closed_pipe_is_no_traceback(model: Path) -> None:
    exe = Path(sys.executable).parent / "qwench"
    command = f'seq 20000 | "{exe}" rerank q - -m "{model}" | head -n 1'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert "Error" not in done.stderr


def test_memory_is_flat_over_100_000_lines(model: Path, tmp_path: Path) -> None:
    """Four times the lines take no more than their numbers; the texts are on disk."""
    exe = Path(sys.executable).parent / "qwench"
    peaks = []
    for count in (25_000, 100_000):
        lines = tmp_path / "lines"
        lines.write_text("".join(f"line {i} of many, with a few words in it\n" for i in range(count)))
        with lines.open("rb") as file, (tmp_path / "out").open("wb") as out:
            arguments = [exe, "rerank", "line 77 of many", "-", "-m", model, "--top", "1", "-q"]
            child = subprocess.Popen(arguments, stdin=file, stdout=out)
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
        assert child.returncode == 0
        assert (tmp_path / "out").read_text().startswith("line ")
        peaks.append(usage.ru_maxrss >> 10)
    assert peaks[1] - peaks[0] < 60, peaks


def test_selftest_says_right_or_wrong(qwench: Run, tmp_path: Path) -> None:
    codes = set()
    for seed in range(4):
        folder = tiny.qwen3_reranker(tmp_path / str(seed), seed=seed)
        done = qwench("rerank", "--selftest", "-m", folder, "--json")
        report = json.loads(done.stdout)
        assert report["right"] == all(r["own"] > r["other"] for r in report["rows"])
        assert done.returncode == (0 if report["right"] else 3)
        codes.add(done.returncode)
    assert 3 in codes


def test_search_with_a_reranker(qwench: Run, model: Path, tmp_path: Path) -> None:
    tiny.minilm()
    (tmp_path / "docs").mkdir()
    for i, text in enumerate(LINES):
        (tmp_path / "docs" / f"{i}.md").write_text(text)
    assert qwench("embed", tmp_path / "docs", "--out", tmp_path / "i.lance", "-m", "minilm").returncode == 0
    arguments = ("search", tmp_path / "i.lance", "error handling", "-k", "3", "--json")
    out = objects(qwench(*arguments, "--rerank", model))
    assert [r["text"] for r in out] == ranked(model, "error handling", LINES)[:3]
    plain = {r["text"]: r["score"] for r in objects(qwench(*arguments, "-k", "4"))}
    assert all(abs(r["search_score"] - plain[r["text"]]) < 1e-5 for r in out)
    hits = qwench(*arguments).stdout
    piped = objects(qwench("rerank", "error handling", "-", "-m", model, "--json", input=hits))
    assert [r["search_rank"] for r in sorted(piped, key=lambda r: r["search_rank"])] == [1, 2, 3]


def test_a_killed_run_goes_on_to_the_same_rows(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows that were scored are not scored again, and another instruction of the model is another job."""
    from qwench.ops import rerank as op

    class Killed(BaseException):
        pass

    (tmp_path / "queries.tsv").write_text("a\tpoem\nb\terror\n")
    rows = [{"text": text, "score": "mine"} for text in tiny.real_texts(9, 200)]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(op, "KEPT_WINDOW", 4)
    scored, kill, real = [], [3], Reranker.scored

    def counted(self: Reranker, question: Any, texts: list[str], *rest: Any):
        scored.append(len(texts))
        if len(scored) == kill[0]:
            raise Killed
        return real(self, question, texts, *rest)

    monkeypatch.setattr(Reranker, "scored", counted)

    def run(out: str, **more: Any) -> list[Any]:
        settings = RerankSettings(runtime=Runtime(device="cpu"), max_tokens=more.pop("max_tokens", None))
        candidates = op.CandidateOptions(paths=(str(tmp_path / "docs.jsonl"),))
        queries = str(tmp_path / "queries.tsv")
        asked = op.RerankOptions(
            model=str(model), queries=queries, candidates=candidates, settings=settings, out=out, **more
        )
        return list(op.rerank(asked))

    out, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    with pytest.raises(Killed):
        run(str(out))
    assert not out.exists()
    kill[0], scored[:] = 0, []
    events = run(str(out))
    # Three windows for each of two queries, of which two were there.
    assert len(scored) == 4 and events[-1].result["pairs"] == 18
    run(str(whole))
    assert out.read_bytes() == whole.read_bytes()
    printed = [op.row_of(e.row, op.RerankOptions(queries="q")) for e in run("-") if isinstance(e, Produced)]
    kept = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(r["query_id"], r["rank"], r["search_score"], r["text"]) for r in kept] == [
        (r["query_id"], r["rank"], "mine", r["text"]) for r in printed
    ]
    assert [r["score"] for r in kept] == pytest.approx([r["score"] for r in printed], abs=1e-5)
    # What is chosen of the scores is no setting; what they depend on is.
    scored.clear()
    run(str(out), top=1)
    assert scored == [] and len(out.read_text().splitlines()) == 2
    with pytest.raises(QwenchError, match="max_tokens was"):
        run(str(out), max_tokens=40)
