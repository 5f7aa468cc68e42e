"""Rows of tables become documents: text, id, carried columns, and a line for every row that cannot be read."""

from __future__ import annotations

import codecs
import csv
import datetime
import decimal
import gzip
import io
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from qwench.ops.base.events import Warned
from qwench.ops.text import parquet, rows
from qwench.ops.text.documents import ReadOptions, find_files, read_documents
from qwench.ops.text.fields import beside
from qwench.ops.text.types import Document


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(*paths: str, stdin: bytes | None = None, **options: Any) -> tuple[list[Document], list[Warned]]:
    chosen = ReadOptions(**options)
    got = list(read_documents(find_files(paths, chosen), chosen, io.BytesIO(stdin) if stdin is not None else None))
    return [g for g in got if isinstance(g, Document)], [g for g in got if isinstance(g, Warned)]


def texts(docs: Iterable[Document]) -> list[str]:
    return ["".join(segment.text for segment in d.segments()) for d in docs]


def told(warnings: list[Warned]) -> list[tuple[str, str | None, bool]]:
    return [(w.kind, w.subject, w.failed) for w in warnings]


def jsonl(name: str, *records: Any) -> None:
    Path(name).write_text("".join(r + "\n" if isinstance(r, str) else json.dumps(r) + "\n" for r in records))


def test_json_lines_become_rows_with_id_and_carried_columns() -> None:
    jsonl("a.jsonl", {"id": 7, "body": "one", "n": 1.5, "tags": ["x"]}, "", {"body": "zwei 你好\r\n", "id": "k"})
    docs, warnings = read("a.jsonl", text_field="body", id_field="id")
    assert warnings == []
    assert texts(docs) == ["one", "zwei 你好\r\n"]
    assert [(d.path, d.row, d.row_id, d.key) for d in docs] == [
        ("a.jsonl", 1, "7", "a.jsonl#7"),
        ("a.jsonl", 3, "k", "a.jsonl#k"),
    ]
    assert docs[0].extra == {"id": 7, "n": 1.5, "tags": ["x"]}
    assert {(d.spans, d.encoding) for d in docs} == {("row", "utf-8")}
    assert docs[1].size == len("zwei 你好\r\n".encode())


def test_each_bad_row_is_told_with_its_line_and_the_rest_goes_on() -> None:
    jsonl(
        "a.ndjson",
        {"t": "ok"},
        '{"t": ',
        "[1]",
        {"x": 1},
        {"t": 5},
        {"t": None},
        {"t": ""},
        '{"t": "\\ud800"}',
        {"t": "end"},
    )
    Path("a.ndjson").write_bytes(Path("a.ndjson").read_bytes() + b'{"t": "\xff"}\n{"t": "last"}')
    docs, warnings = read("a.ndjson", text_field="t")
    assert texts(docs) == ["ok", "end", "last"] and [d.row for d in docs] == [1, 9, 11]
    assert told(warnings) == [
        *[("rows", f"a.ndjson:{n}", True) for n in (2, 3, 4, 5, 6)],
        ("empty", "a.ndjson:7", False),
        ("rows", "a.ndjson:8", True),
        ("rows", "a.ndjson:10", True),
    ]
    assert warnings[0].message == "`a.ndjson:2` is not JSON: expecting value at column 6"
    assert warnings[2].message == "`a.ndjson:4` has no field `t`"
    assert "byte 7 of the line" in warnings[7].message


def test_many_bad_rows_are_counted_after_the_first_hundred() -> None:
    jsonl("a.jsonl", *({"x": n} for n in range(1000)), {"t": "ok"}, *({"t": ""} for _ in range(5)))
    docs, warnings = read("a.jsonl", text_field="t")
    assert len(docs) == 1 and len(warnings) == 102
    assert warnings[-2].message == "`a.jsonl` has 900 more rows that cannot be read" and warnings[-2].failed
    assert warnings[-1].message == "`a.jsonl` has 5 more empty rows" and not warnings[-1].failed


def test_ids_that_repeat_or_are_missing_fail_their_row() -> None:
    jsonl(
        "a.jsonl",
        {"text": "a", "id": 1},
        {"text": "b", "id": "1"},
        {"text": "c"},
        {"text": "d", "id": [1]},
        {"text": "e", "id": 2},
    )
    docs, warnings = read("a.jsonl", text_field="text", id_field="id")
    assert texts(docs) == ["a", "e"]
    assert told(warnings) == [("rows", f"a.jsonl:{n}", True) for n in (2, 3, 4)]


def test_without_a_text_field_the_first_row_decides_and_it_is_said_once() -> None:
    jsonl("a.jsonl", {"text": "row"})
    jsonl("b.jsonl", {"text": "row 2"})
    jsonl("c.jsonl", {"body": "plain"})
    jsonl("d.jsonl", {"body": "plain 2"})
    Path("e.csv").write_text("x,y\n1,2\n")
    Path("f.csv").write_text("x,text\n1,cell\n")
    docs, warnings = read("a.jsonl", "b.jsonl", "c.jsonl", "d.jsonl", "e.csv", "f.csv")
    assert [(d.path, d.spans) for d in docs] == [
        *[
            ("a.jsonl", "row"),
            ("b.jsonl", "row"),
            ("c.jsonl", "file"),
            ("d.jsonl", "file"),
            ("e.csv", "file"),
            ("f.csv", "row"),
        ]
    ]
    assert texts(docs)[3:] == ['{"body": "plain 2"}\n', "x,y\n1,2\n", "cell"]
    assert told(warnings) == [("rows", name, False) for name in ("a.jsonl", "c.jsonl", "e.csv", "f.csv")]
    assert all("--text-field" in w.message for w in warnings)


def test_the_hash_of_a_row_is_of_its_text_and_columns() -> None:
    jsonl("a.jsonl", {"text": "a", "n": 1}, {"n": 1, "text": "a"}, {"text": "a", "n": 2}, {"text": "b", "n": 1})
    hashes = [d.content_hash for d in read("a.jsonl", text_field="text")[0]]
    assert hashes[0] == hashes[1] and len(set(hashes)) == 3 and len(hashes[0]) == 32


@pytest.mark.parametrize("codec", ["utf-8-sig", "utf-16", "utf-32"])
def test_tables_with_a_byte_order_mark(codec: str) -> None:
    Path("a.jsonl").write_bytes('{"text": "é 你"}\n{"text": "b"}\n'.encode(codec))
    Path("a.csv").write_bytes("text,n\r\né 你,1\r\n".encode(codec))
    assert texts(read("a.jsonl", "a.csv", text_field="text")[0]) == ["é 你", "b", "é 你"]


def test_tables_in_a_declared_encoding() -> None:
    Path("a.jsonl").write_bytes('{"text": "grüß"}\n'.encode("latin-1"))
    Path("a.csv").write_bytes("text;n\ngrüß;1\n".encode("latin-1"))
    docs, warnings = read("a.jsonl", "a.csv", text_field="text", encoding="latin-1")
    assert texts(docs) == ["grüß", "grüß"] and docs[1].extra == {"n": "1"}
    assert warnings[0].message == "`a.csv` has columns parted by `;`" and len(warnings) == 1
    docs, warnings = read("a.jsonl", text_field="text")
    assert docs == [] and told(warnings) == [("rows", "a.jsonl:1", True)]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.text(min_size=1), st.text()), min_size=1, max_size=8),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    st.sampled_from([".csv", ".tsv"]),
)
def test_csv_cells_come_back_as_they_were(table: list[tuple[str, str]], newline: str, codec: str, suffix: str) -> None:
    """The writer of the standard library is the oracle, with quotes, separators and line breaks inside cells."""
    with open("t" + suffix, "w", encoding=codec, newline="") as file:
        writer = csv.writer(
            file, delimiter="\t" if suffix == ".tsv" else ",", lineterminator=newline, quoting=csv.QUOTE_ALL
        )
        writer.writerows([("text", "n"), *table])
    if b"\0" in Path("t" + suffix).read_bytes() and codec != "utf-16":
        return  # binary
    docs, warnings = read("t" + suffix, text_field="text")
    assert [w for w in warnings if w.failed] == []
    assert [(text, d.extra["n"]) for text, d in zip(texts(docs), docs, strict=True)] == table
    assert [d.row for d in docs] == list(range(1, len(table) + 1))


def test_malformed_csv_rows_are_told_with_their_line() -> None:
    Path("a.csv").write_text('n,text,n\n1,"two\nlines",3\n1,a,b,c\n"x"y,z,\n2,fine,4\n\n5\n6,"never closed,\n7,lost,\n')
    docs, warnings = read("a.csv", text_field="text")
    assert texts(docs) == ["two\nlines", "fine"] and [d.row for d in docs] == [1, 4]
    assert docs[0].extra == {"n": "1", "n_2": "3"}
    assert told(warnings) == [("rows", f"a.csv:{n}", True) for n in (4, 5, 8, 9)]
    assert warnings[0].message == "`a.csv:4` has 4 fields where the header has 3"


def test_a_csv_without_the_column_says_which_it_has() -> None:
    Path("a.csv").write_text("x,y\n1,2\n")
    docs, warnings = read("a.csv", text_field="body")
    assert docs == [] and told(warnings) == [("rows", "a.csv", True)]
    assert warnings[0].message == "`a.csv` has no column `body`, it has: `x`, `y`"


def test_a_huge_cell_is_read_and_cut_into_segments() -> None:
    cell = "zeile\n" * 400_000
    with open("a.csv", "w", newline="") as file:
        csv.writer(file).writerows([["text"], [cell], ["small"]])
    docs, warnings = read("a.csv", text_field="text")
    assert warnings == [] and [len(list(d.segments())) for d in docs] == [3, 1]
    assert texts(docs) == [cell, "small"]
    assert list(docs[0].segments())[1].start_line == 1 + next(docs[0].segments()).text.count("\n")


def test_tables_without_rows_are_empty() -> None:
    Path("a.csv").write_text("text,n\n")
    Path("b.jsonl").write_text("\n\n")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), "c.parquet")
    docs, warnings = read("a.csv", "b.jsonl", "c.parquet", text_field="text")
    assert docs == [] and told(warnings) == [("empty", name, False) for name in ("a.csv", "b.jsonl", "c.parquet")]


def test_rows_from_standard_input() -> None:
    docs, _ = read("-", stdin=b' \n{"body": "a"}\n{"body": "b"}\n', text_field="body")
    assert texts(docs) == ["a", "b"] and docs[1].key == "-#3"
    assert texts(read("-", stdin=b"n,body\n1,c\n", text_field="body")[0]) == ["c"]
    docs, _ = read("-", stdin=b"text\tn\nd\t1\n", stdin_name="x.tsv")
    assert texts(docs) == ["d"] and docs[0].path == "x.tsv"
    assert texts(read("-", stdin=b'{"text": "plain"}\n')[0]) == ['{"text": "plain"}\n']


def test_compressed_tables() -> None:
    Path("a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n{"text": "b"}\n'))
    Path("b.csv.gz").write_bytes(gzip.compress(b"text\nc\n"))
    assert texts(read("a.jsonl.gz", "b.csv.gz", text_field="text")[0]) == ["a", "b", "c"]
    assert texts(read("a.jsonl.gz")[0]) == ["a", "b"]
    Path("c.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 1000)[:-10])
    Path("d.csv.gz").write_bytes(b"text\nc\n")
    _, warnings = read("c.jsonl.gz", "d.csv.gz", text_field="text")
    assert told(warnings) == [("unreadable", "c.jsonl.gz", True), ("unreadable", "d.csv.gz", True)]


def test_parquet_rows_carry_columns_that_json_can_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "BATCH_ROWS", 2)
    when = datetime.datetime(2024, 5, 6, 7, 8, 9, tzinfo=datetime.UTC)
    table = pa.table(
        {
            "key": ["a", "b", "c", "d"],
            "body": pa.array(["one", "zwei ü", None, ""], pa.large_string()).dictionary_encode(),
            "when": pa.array([when] * 4),
            "fine": pa.array([1_000_000_001] * 4, pa.timestamp("ns")),
            "price": pa.array([decimal.Decimal("1.50")] * 4),
            "raw": [b"\xff\x00"] * 4,
            "score": [math.nan, 1.0, 2.0, 3.0],
            "deep": [{"a": [1, None]}] * 4,
        }
    )
    pq.write_table(table, "t.parquet", row_group_size=3)
    docs, warnings = read("t.parquet", text_field="body", id_field="key")
    assert texts(docs) == ["one", "zwei ü"] and [d.key for d in docs] == ["t.parquet#a", "t.parquet#b"]
    assert told(warnings) == [("rows", "t.parquet:3", True), ("empty", "t.parquet:4", False)]
    extra = json.loads(json.dumps(docs[0].extra, allow_nan=False))
    assert datetime.datetime.fromisoformat(extra["when"]) == when
    assert (extra["price"], extra["raw"], extra["score"], extra["deep"]) == ("1.50", "/wA=", None, {"a": [1, None]})
    assert "00:00:01.000000001" in extra["fine"]


def test_parquet_that_cannot_give_text() -> None:
    pq.write_table(pa.table({"text": [1, 2], "t": ["a", "b"]}), "n.parquet")
    Path("broken.parquet").write_bytes(Path("n.parquet").read_bytes()[:-20])
    Path("d").mkdir()
    pq.write_table(pa.table({"x": ["a"]}), "d/x.parquet")
    assert told(read("n.parquet")[1]) == [("rows", "n.parquet", True)]
    assert told(read("n.parquet", text_field="body")[1]) == [("rows", "n.parquet", True)]
    assert told(read("broken.parquet", text_field="t")[1]) == [("unreadable", "broken.parquet", True)]
    assert told(read("d")[1]) == [("rows", "d/x.parquet", False)]
    assert "--text-field" in read("d")[1][0].message
    assert texts(read("n.parquet", text_field="t")[0]) == ["a", "b"]


def test_a_table_in_name_only_is_binary() -> None:
    Path("a.csv").write_bytes(b"PK\x03\x04 a spreadsheet")
    assert told(read("a.csv", text_field="text")[1]) == [("binary", "a.csv", True)]


def test_rows_are_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first row is there before the second line has been parsed."""
    jsonl("a.jsonl", *({"text": f"row {n}"} for n in range(50)))
    parsed: list[str] = []
    real = rows._parsed
    monkeypatch.setattr(rows, "_parsed", lambda line: parsed.append(line) or real(line))
    chosen = ReadOptions(text_field="text")
    for count, _ in enumerate(read_documents(find_files(["a.jsonl"], chosen), chosen), 1):
        assert len(parsed) == count
    assert count == 50


def test_bom_alone_is_an_empty_table() -> None:
    Path("a.jsonl").write_bytes(codecs.BOM_UTF8)
    assert told(read("a.jsonl", text_field="text")[1]) == [("empty", "a.jsonl", False)]


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16"])
def test_json_lines_end_at_line_feeds_alone(codec: str) -> None:
    values = [{"a": "one\u2028two\u2029three\u0085four\x0b\x0c\x1c"}, {"b": 1}]
    text = "\n".join(json.dumps(v, ensure_ascii=False) for v in values) + '\n\n{"c"\n'
    found = list(rows.json_lines(io.BytesIO(text.encode(codec))))
    assert found[:2] == list(enumerate(values, 1))
    assert found[2][0] == 4 and isinstance(found[2][1], rows.Malformed) and len(found) == 3


def test_good_utf8_rows_stay_whatever_is_declared() -> None:
    Path("a.jsonl").write_bytes('{"text": "grüß"}\n'.encode() + '{"text": "grün"}\n'.encode("cp1252"))
    Path("a.csv").write_bytes("text\ngrüß\n".encode())
    docs, warnings = read("a.jsonl", "a.csv", text_field="text", encoding="cp1252")
    assert texts(docs) == ["grüß", "grün", "grüß"]
    assert ["is UTF-8" in w.message for w in warnings] == [True]


@pytest.mark.parametrize(
    ("table", "wanted", "said"),
    [
        ('id\ttext\n1\t"What is\n2\tworld"\n3\tfine\n', ['"What is', 'world"', "fine"], True),
        ('id\ttext\n1\t"Hello\n2\tworld\n3\tfine\n', ['"Hello', "world", "fine"], True),
        ('id\ttext\n1\t"Hello" he said\n2\tb\n', ['"Hello" he said', "b"], True),
        ('id\ttext\n1\t5" disk\n2\tb\n', ['5" disk', "b"], False),
        ('id\ttext\n1\t"quoted ""cell"""\n2\tb\n', ['quoted "cell"', "b"], False),
        ('id\ttext\n1\t"two\nlines"\n2\tb\n', ["two\nlines", "b"], False),
        ('"id"\t"text"\n"1"\t"a\n2\tb"\n', ["a\n2\tb"], False),
    ],
)
def test_quotes_of_a_table_parted_by_tabs(table: str, wanted: list[str], said: bool) -> None:
    Path("a.tsv").write_text(table)
    docs, warnings = read("a.tsv", text_field="text")
    assert texts(docs) == wanted
    assert [w.kind for w in warnings] == ["rows"] * said and not any(w.failed for w in warnings)


def test_a_quote_that_is_never_closed_between_commas() -> None:
    Path("a.csv").write_text('id,text\n1,"Hello\n2,world\n')
    assert texts(read("a.csv", text_field="text")[0]) == ['"Hello', "world"]
    Path("b.csv").write_text('id,text\n1,"Hello\n2,world"\n')
    assert texts(read("b.csv", text_field="text")[0]) == ["Hello\n2,world"]


@given(st.dictionaries(st.sampled_from(["a", "b", "input_a", "input_input_a", "input_b"]), st.integers(), max_size=5))
def test_no_field_is_lost_beside_ours(given_: dict[str, int]) -> None:
    ours = {"a": -1, "c": -2}
    found = beside(given_, ours)
    assert found.items() >= ours.items() and len(found) == len(given_) + 2
    assert sorted(v for k, v in found.items() if k not in ours) == sorted(given_.values())
