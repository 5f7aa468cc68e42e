"""What a reranker ranks, and files of queries."""

from __future__ import annotations

from pathlib import Path

import pytest
from qwench.ops.base.events import Warned
from qwench.ops.text.candidates import Candidate, CandidateOptions, read_candidates, read_queries
from qwench.ops.text.chunks import ChunkOptions


def words(texts: list[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
    return [([0] * len(t), [(i, i + 1) for i in range(len(t))]) for t in texts]


def test_a_query_may_have_tabs(tmp_path: Path) -> None:
    (tmp_path / "q.tsv").write_text('q1\tfoo\tbar baz\nno id\n{"_id": "q3", "text": "a\\tb\u2028c"}\n')
    assert read_queries(str(tmp_path / "q.tsv")) == [("q1", "foo\tbar baz"), ("2", "no id"), ("q3", "a\tb\u2028c")]


def test_a_table_without_the_column_is_text_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("d").mkdir()
    Path("d/a.csv").write_text("x,y\n1,2\n")
    Path("d/b.csv").write_text("text,y\ncell,2\n")
    Path("d/c.txt").write_text("plain")

    def ranked(*paths: str) -> tuple[list[tuple[str, str]], list[Warned]]:
        found = list(read_candidates(CandidateOptions(paths=paths, whole=True), None, lambda: (words, ChunkOptions(9))))
        return [(c.kind, c.text) for c in found if isinstance(c, Candidate)], [
            w for w in found if isinstance(w, Warned)
        ]

    texts, warnings = ranked("d")
    assert texts == [("file", "x,y\n1,2\n"), ("row", "cell"), ("file", "plain")]
    assert not any(w.failed for w in warnings) and "read as plain text" in warnings[0].message
    texts, warnings = ranked("d/a.csv", "d/b.csv")
    assert texts == [("row", "cell")] and [w.failed for w in warnings] == [True]
