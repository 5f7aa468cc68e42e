"""Carried columns: they do not depend on what comes first, own names win, and LanceDB's errors say what they are."""

from __future__ import annotations

import itertools
from pathlib import Path

import lancedb
import pyarrow as pa
import pytest
from qwench.ops.base.errors import QwenchError
from qwench.ops.index import columns, schema
from qwench.ops.index.errors import lance_errors
from qwench.ops.index.query import open_for_search
from qwench.ops.index.schema import LANCE, OURS, column_name
from qwench.ops.index.table import open_index

from .test_index import PRINT, rows, vector, write

BIG = 2**64 + 1


def found(out: Path, where: str) -> set[str]:
    return {h["text"].split()[0] for h in open_for_search(str(out)).search(vector(0), 50, where=where)}


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_columns_do_not_depend_on_the_order_of_flushes(order: tuple[int, ...], tmp_path: Path) -> None:
    out = tmp_path / "n.lance"
    extras = [{}, {"lang": None, "n": 1, "mixed": "a"}, {"lang": "en", "n": 2.5, "mixed": 7}, {"n": BIG, "mixed": True}]
    write(out, *(rows(f"k{i}", 1, extra=extras[i]) for i in order))
    kinds = {f.name: f.type for f in open_for_search(str(out)).table.schema if f.name in ("lang", "n", "mixed")}
    assert kinds == {"lang": pa.string(), "n": pa.float64(), "mixed": pa.string()}
    assert (
        found(out, "lang = 'en'") == {"k2"} and found(out, "n >= 2") == {"k2", "k3"} and found(out, "n = 1") == {"k1"}
    )
    assert found(out, "mixed = '7'") == {"k2"} and found(out, "mixed = 'true'") == {"k3"}
    hits = {h["text"].split()[0]: h for h in open_for_search(str(out)).search(vector(0), 9)}
    assert [hits[f"k{i}"]["extra"] for i in range(4)] == extras


@pytest.mark.parametrize("stage", ["beside", "dropped"])
def test_a_kill_while_a_column_changes_its_type(stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "n.lance"
    write(out, rows("a", 1, extra={"n": 1}))
    real, calls = columns.retried, []

    def killed(table: object, step: object) -> object:
        calls.append(step)
        if len(calls) > (1 if stage == "beside" else 2):
            raise KeyboardInterrupt
        return real(table, step)

    monkeypatch.setattr(columns, "retried", killed)
    with pytest.raises(KeyboardInterrupt):
        write(out, rows("b", 1, extra={"n": 2.5}))
    monkeypatch.setattr(columns, "retried", real)
    write(out, rows("b", 1, extra={"n": 2.5}))
    assert found(out, "n = 1") == {"a"} and found(out, "n > 2") == {"b"}
    assert not [n for n in open_for_search(str(out)).table.schema.names if n.startswith(schema.RETYPED)]


def test_own_names_win_and_carried_ones_stay(tmp_path: Path) -> None:
    out = tmp_path / "n.lance"
    names = [*sorted(OURS), "input_score", "Score", "a b"]
    write(out, rows("a", 1, extra={n: f"user's {n}" for n in names}), rows("b", 1, extra={"score": 3}))
    for text in (None, "a"):
        hits = open_for_search(str(out)).search(vector(("a", "h1", 0)), 5, text=text)
        hit = next(h for h in hits if h["path"] == "a")
        assert hit["score"] == pytest.approx(1) and hit["text"] == "a h1 0" and hit["id"] != "user's id"
        assert (
            all(hit[f"input_{n}"] == f"user's {n}" for n in OURS) and hit["input_input_score"] == "user's input_score"
        )
        assert hit["Score"] == "user's Score" and hit["extra"]["a b"] == "user's a b"
        assert not set(hit) & LANCE
    assert found(out, "input_score = '3'") == {"b"}
    assert len({column_name(n) for n in names} - {None}) == len(names) - 1


def test_an_older_table_with_a_column_of_our_name(tmp_path: Path) -> None:
    out = tmp_path / "n.lance"
    write(out, rows("a", 1, extra={"score": 99}))
    table = lancedb.connect(str(tmp_path)).open_table("n")
    table.alter_columns({"path": "input_score", "rename": "score"})
    (hit,) = open_for_search(str(out)).search(vector(("a", "h1", 0)), 5)
    assert hit["score"] == pytest.approx(1) and hit["input_score"] == 99
    write(out, rows("b", 1, extra={"score": 7}))
    assert found(out, "score = 7") == {"b"} == found(out, "input_score = 7")


def test_there_is_a_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "MOST_COLUMNS", 3)
    with open_index(str(tmp_path / "n.lance"), PRINT) as writer:
        writer.append(rows("a", 1, extra={f"c{i}": i for i in range(5)}))
        writer.finish()
        assert len(writer.notes) == 1 and "extra" in writer.notes[0]
    (hit,) = open_for_search(str(tmp_path / "n.lance")).search(vector(0), 5)
    assert len([n for n in hit if n.startswith("c")]) == 3 and hit["extra"] == {f"c{i}": i for i in range(5)}


def test_a_column_that_may_not_be_empty_is_no_damage(tmp_path: Path) -> None:
    out = tmp_path / "n.lance"
    write(out, rows("a", 1))
    table = lancedb.connect(str(tmp_path)).open_table("n")
    table.add_columns({"mine": "1"})
    table.alter_columns({"path": "mine", "nullable": False})
    with pytest.raises(QwenchError, match=r"may not be empty.*mine") as caught:
        write(out, rows("b", 1))
    assert "damaged" not in caught.value.message and "nullable" in caught.value.hint


def test_a_bad_glob_or_filter_is_named(tmp_path: Path) -> None:
    out = tmp_path / "n.lance"
    write(out, rows("a", 1))
    index = open_for_search(str(out))
    with pytest.raises(QwenchError, match=r"glob.*z-a") as caught:
        index.search(vector(0), 5, path_glob="[z-a].md", where="tokens > 1")
    assert caught.value.code == 2
    with pytest.raises(QwenchError, match=r"filter is not right.*nope"):
        index.search(vector(0), 5, path_glob="*.md", where="nope = 1")


def test_a_conflict_is_tried_again(tmp_path: Path) -> None:
    out = tmp_path / "n.lance"
    write(out, rows("a", 1))
    other = lancedb.connect(str(tmp_path)).open_table("n")
    with open_index(str(out), PRINT) as writer:
        other.add_columns(pa.field("mine", pa.int64()))
        other.delete("key = 'nothing'")
        writer.append(rows("b", 1, extra={"lang": "en"}))
        writer.finish()
    assert found(out, "lang = 'en'") == {"b"} and "mine" in open_for_search(str(out)).table.schema.names


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("Retryable commit conflict for version 5: preempted", "another program"),
        ("Invalid input, The column _rowid is a reserved name", "LanceDB uses itself"),
        ("something new, /root/.cargo/x.rs:3", r"cannot do this \(something new\)"),
        ("LanceError(IO): file size is too small, /root/x", "damaged"),
        ("No space left on device", "no space left"),
    ],
)
def test_messages_of_lancedb(message: str, said: str) -> None:
    with pytest.raises(QwenchError, match=said) as caught, lance_errors("n.lance"):
        raise RuntimeError(message)
    assert "/root" not in caught.value.message and caught.value.hint


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("我们使用向量数据库存储用户身份信息。系统设计需要考虑性能。", "性能"),
        ("東京特許許可局で働いています。", "特許"),
        ("ภาษาไทยไม่มีการเว้นวรรคระหว่างคำ", "เว้นวรรค"),
        ("an error ENOSPC in disk_full()", "enospc?"),
        ("call c++ (quickly) AND never", '"c++" (quickly'),
    ],
)
def test_full_text_in_any_script(text: str, query: str, tmp_path: Path) -> None:
    out = tmp_path / "n.lance"
    wanted = vector("query")
    far = rows("far", 1)[0] | {"text": text, "vector": -wanted}
    write(out, [far], [r for i in range(9) for r in rows(f"k{i}", 1)])
    hits = open_for_search(str(out)).search(wanted, 5, text=query)
    best = next(h for h in hits if h["text"] == text)
    assert best["fused"] > 1 / 80  # it is in the list of the full text


def test_an_older_full_text_index_is_made_anew(tmp_path: Path) -> None:
    from lancedb.index import FTS

    out = tmp_path / "n.lance"
    write(out, [rows("a", 1)[0] | {"text": "系统设计需要考虑性能。"}])
    lancedb.connect(str(tmp_path)).open_table("n").create_index("text", config=FTS(with_position=False))
    index = open_for_search(str(out))
    index.search(vector(0), 5, text="性能")
    (made,) = [i for i in index.table.list_indices() if list(i.columns) == ["text"]]
    assert made.index_details["base_tokenizer"] == "icu/split"
