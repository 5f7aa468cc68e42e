"""Rows of every format are the same plain objects, and their keys stay from run to run."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from qwench.ops.base.errors import QwenchError
from qwench.ops.jobs.rows import Table
from qwench.ops.text.rows import Malformed

ROWS = [
    {"id": "a", "prompt": "Zwölf, bitte;\nund mehr", "n": "1"},
    {"id": "b", "prompt": 'say "hi", twice', "n": "2"},
    {"id": "c", "prompt": "日本", "n": ""},
]


def table(rows: list[dict], mark: str = ",") -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=mark)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def contents(suffix: str) -> bytes:
    if suffix == ".parquet":
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(ROWS), sink)
        return sink.getvalue()
    if suffix.endswith(".gz"):
        return gzip.compress(contents(suffix.removesuffix(".gz")))
    if suffix in (".csv", ".tsv"):
        return table(ROWS, "\t" if suffix == ".tsv" else ",")
    return "".join(json.dumps(row) + "\n\n" for row in ROWS).encode()


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".jsonl.gz", ".csv.gz"])
def test_every_format_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    data = contents(suffix)
    (tmp_path / f"rows{suffix}").write_bytes(data)
    named = list(Table(str(tmp_path / f"rows{suffix}")))
    assert [row.value for row in named] == ROWS
    assert [row.key for row in named] == ["a", "b", "c"]
    if suffix != ".tsv":  # a stream has no suffix that says what parts its columns, and a comma may
        piped = Table("-", io.BytesIO(data))
        assert list(piped) == [*piped]
        assert [(r.key, r.digest, r.value) for r in piped] == [(r.key, r.digest, r.value) for r in named]


def test_columns_may_be_parted_by_semicolons(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(table(ROWS, ";"))
    assert [row.value for row in Table(str(tmp_path / "rows.csv"))] == ROWS


def keys(*lines: object, field: str | None = None) -> list[str]:
    data = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines).encode()
    return [row.key for row in Table("-", io.BytesIO(data), field)]


def test_keys_are_distinct_and_stay() -> None:
    rows = [{"id": 7}, {"prompt": "x"}, {"prompt": "x"}, {"id": True}, {"id": "7"}, {"id": ""}]
    found = keys(*rows)
    assert found[0] == "7" and len(set(found)) == len(rows)
    # More rows below, another order of fields: nothing changes above.
    assert keys(*rows, {"id": "new"})[:-1] == found
    assert keys({"a": 1, "b": 2}) == keys({"b": 2, "a": 1}) != keys({"a": 1, "b": 3})
    assert keys({"name": "x", "id": 1}, {"name": "y", "id": 1}, field="name") == ["x", "y"]


@pytest.mark.parametrize(
    ("rows", "what"),
    [([{"name": "x"}, {"name": "x"}], "line 2 repeats the id `x`"), ([{"id": "x"}], "line 1 has no id in its field")],
)
def test_a_named_id_must_name(rows: list[dict], what: str) -> None:
    with pytest.raises(QwenchError, match=what):
        keys(*rows, field="name")


def test_what_is_no_row_is_told_with_its_line() -> None:
    data = b'{"a": 1}\n\n[1]\n{"a": \n{"a": 1e999, "b": "\\ud800"}\n'
    rows = list(Table("-", io.BytesIO(data)))
    assert [row.place for row in rows] == ["line 1", "line 3", "line 4", "line 5"]
    assert [isinstance(row.value, Malformed) for row in rows] == [False, True, True, False]
    assert "no JSON object" in rows[1].value and "is not JSON" in rows[2].value
    assert rows[3].value == {"a": None, "b": "\\ud800"}


@pytest.mark.parametrize(
    ("name", "data", "what"),
    [
        ("x.jsonl", None, "is not there"),
        ("x.parquet", b"PAR1 no", "cannot be read as Parquet"),
        ("x.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 99, mtime=0)[:-9], "cannot be read"),
        ("https://x.org/a.jsonl", None, "is a URL"),
    ],
    ids=["missing", "parquet", "cut_gzip", "url"],
)
def test_what_cannot_be_read_is_a_sentence(tmp_path: Path, name: str, data: bytes | None, what: str) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(QwenchError, match=what):
        list(Table(name if ":" in name else str(tmp_path / name)))
    with pytest.raises(QwenchError, match="a folder"):
        Table(str(tmp_path))
