"""The index floor with vectors made by hand: states, replacement, locks, formats, queries."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from qwench.ops.base.errors import QwenchError
from qwench.ops.index.fingerprint import Fingerprint, differences
from qwench.ops.index.query import glob_regex, open_for_search
from qwench.ops.index.table import open_index

DIM = 16
PRINT = Fingerprint(
    "m", "folder", "r1", "mean", True, DIM, "float32", "none", 128, "", "", 100, 0, "chunk"
)  # fmt: skip


def vector(seed: object) -> np.ndarray:
    v = np.random.default_rng(abs(hash(str(seed))) % 2**32).normal(size=DIM).astype(np.float32)
    return v / np.linalg.norm(v)


def rows(
    key: str, count: int, version: str = "h1", extra: dict | None = None, first: int = 0, last: bool = True
) -> list:
    return [
        {
            "key": key, "path": key, "row": None, "row_id": None, "spans": "file",
            "start_byte": i, "end_byte": i + 1, "start_line": 1, "end_line": 1,
            "text": f"{key} {version} {i}", "tokens": 3, "truncated": False, "chunk": i,
            "last": last and i == count - 1, "content_hash": version, "extra": extra or {},
            "vector": vector((key, version, i)),
        }
        for i in range(first, count)
    ]  # fmt: skip


def write(out: Path, *groups: list, fingerprint: Fingerprint = PRINT, **options: object) -> dict:
    with open_index(str(out), fingerprint, **options) as writer:
        for group in groups:
            writer.append(group)
            writer.flush()
        return writer.finish()


def texts(out: Path) -> list[str]:
    return sorted(open_for_search(str(out)).table.search().limit(None).to_arrow()["text"].to_pylist())


def test_states_replacement_and_continuation(tmp_path: Path) -> None:
    out = tmp_path / "n.lance"
    write(out, rows("a", 3), rows("b", 5, last=False)[:2])
    with open_index(str(out), PRINT) as writer:
        a, b = writer.state("a", "h1"), writer.state("b", "h1")
        assert a and a.complete and a.n_chunks_done == 3
        assert b and not b.complete and b.n_chunks_done == 2
        assert writer.state("c", "h1") is None
        changed = writer.state("a", "h2")
        assert changed and changed.content_hash == "h1"
        writer.append(rows("b", 5, first=2))
        writer.append(rows("a", 2, "h2"))
        writer.finish()
    assert texts(out) == ["a h2 0", "a h2 1", *[f"b h1 {i}" for i in range(5)]]


def test_leftovers_of_a_killed_replacement_are_cleaned(tmp_path: Path) -> None:
    out = tmp_path / "n.lance"
    write(out, rows("a", 2))
    # The new version is durable, the old one not yet deleted: what a kill between the two leaves.
    with open_index(str(out), PRINT) as writer:
        writer.append(rows("a", 1, "h2"))
        writer._states.clear()
        writer.finish()
    assert len(texts(out)) == 3
    with open_index(str(out), PRINT) as writer:
        state = writer.state("a", "h2")
        assert state and state.complete
        writer.finish()
    assert texts(out) == ["a h2 0"]


def test_rows_with_a_gap_are_dropped(tmp_path: Path) -> None:
    out = tmp_path / "n.lance"
    write(out, rows("a", 5, first=2))
    with open_index(str(out), PRINT) as writer:
        assert writer.state("a", "h1") is None
        writer.append(rows("a", 5))
        writer.finish()
    assert len(texts(out)) == 5


def test_prune_and_reuse(tmp_path: Path) -> None:
    out = tmp_path / "n.lance"
    write(out, rows("it's.md", 2), rows("b", 1))
    with open_index(str(out), PRINT) as writer:
        found = writer.vectors_of("it's.md")
        assert sorted(map(tuple, found.values())) == sorted(tuple(vector(("it's.md", "h1", i))) for i in range(2))
        assert writer.prune(lambda key, path: key == "it's.md") == 1
        writer.finish()
    assert texts(out) == ["b h1 0"]


def test_a_second_writer_is_told(tmp_path: Path) -> None:
    out = tmp_path / "n.lance"
    code = (
        "import sys; from tests.index.test_index import *\n"
        "try:\n with open_index(sys.argv[1], PRINT): pass\n"
        "except QwenchError as e: print(e.message)"
    )
    command = [sys.executable, "-c", code, str(out)]
    root = Path(__file__).parents[2]
    with open_index(str(out), PRINT) as writer:
        writer.append(rows("a", 1))
        told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root).stdout
        assert "another run" in told and "n.lance" in told
        writer.finish()
    assert subprocess.run(command, capture_output=True, text=True, check=True, cwd=root).stdout == ""
    assert texts(out) == ["a h1 0"]


def test_another_fingerprint_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "n.lance"
    write(out, rows("a", 1))
    other = replace(PRINT, revision="r2", pooling="cls", prompt_query="q: ", model="other name")
    assert differences(PRINT, other) == [("revision", "r1", "r2"), ("pooling", "mean", "cls")]
    with pytest.raises(QwenchError, match="pooling was `mean` and is now `cls`") as caught:
        write(out, fingerprint=other)
    assert "--rebuild" in (caught.value.hint or "")
    assert texts(out) == ["a h1 0"]


def test_the_old_index_stays_until_a_rebuild_is_done(tmp_path: Path) -> None:
    out, other = tmp_path / "n.lance", replace(PRINT, pooling="cls")
    write(out, rows("a", 2))
    with pytest.raises(ZeroDivisionError), open_index(str(out), other, rebuild=True) as writer:
        writer.append(rows("b", 1))
        writer.flush()
        raise ZeroDivisionError
    assert texts(out) == ["a h1 0", "a h1 1"]
    with open_index(str(out), other, rebuild=True) as writer:
        state = writer.state("b", "h1")
        assert state and state.complete  # the killed rebuild is continued
        writer.append(rows("c", 1))
        writer.finish()
    assert texts(out) == ["b h1 0", "c h1 0"]
    assert [p.name for p in tmp_path.iterdir()] == ["n.lance"]


def test_a_kill_between_the_renames_of_a_rebuild(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    from qwench.ops.base import atomic

    # A system that cannot swap two names in one step.
    monkeypatch.setattr(atomic, "_exchange", lambda a, b: False)
    out, calls, real = tmp_path / "n.lance", [], os.rename
    write(out, rows("a", 1))

    def dies(a: Path, b: Path) -> None:
        calls.append(a)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(a, b)

    monkeypatch.setattr(os, "rename", dies)
    with pytest.raises(KeyboardInterrupt):
        write(out, rows("b", 1), rebuild=True)
    monkeypatch.setattr(os, "rename", real)
    assert not out.exists()
    with open_index(str(out), PRINT) as writer:
        assert writer.state("a", "h1")
        writer.finish()
    assert texts(out) == ["a h1 0"]


def test_damage_is_one_sentence(tmp_path: Path) -> None:
    out = tmp_path / "n.lance"
    write(out, rows("a", 1))
    for manifest in (out / "_versions").glob("*.manifest"):
        manifest.write_bytes(manifest.read_bytes()[:20])
    for action in (lambda: write(out, rows("b", 1)), lambda: open_for_search(str(out))):
        with pytest.raises(QwenchError, match="damaged") as caught:
            action()
        assert "\n" not in caught.value.message and "/root/" not in caught.value.message
    (tmp_path / "file").write_text("x")
    with pytest.raises(QwenchError):
        write(tmp_path / "file" / "n.lance", rows("a", 1))
    with pytest.raises(QwenchError, match="letters"):
        write(tmp_path / "a b.lance", rows("a", 1))


def test_a_full_disk_keeps_what_was_there(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        out = small / "n.lance"
        write(out, rows("a", 10))
        many = [r | {"text": "x" * 5000 + str(i)} for i, r in enumerate(rows("b", 400))]
        for target in (out, small / "v.parquet", small / "v.npy"):
            with pytest.raises(QwenchError, match="space"):
                for _ in range(3):
                    write(target, many)
        assert [t for t in texts(out) if t.startswith("a")] == sorted(f"a h1 {i}" for i in range(10))
        assert not [p for p in small.iterdir() if p.suffix == ".part"]
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_read_only_folder(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("a file system cannot be mounted here")
    try:
        write(place / "n.lance", rows("a", 3))
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        for target in (place / "n.lance", place / "m.lance", place / "v.parquet"):
            with pytest.raises(QwenchError, match=r"written|read-only|Read-only"):
                write(target, rows("b", 1))
        assert len(texts(place / "n.lance")) == 3
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".npy", ".safetensors"])
@pytest.mark.parametrize("precision", ["float32", "float16", "int8", "binary"])
def test_file_formats(tmp_path: Path, suffix: str, precision: str) -> None:
    from sentence_transformers.util import quantize_embeddings

    out = tmp_path / f"v{suffix}"
    if (suffix, precision) == (".jsonl", "float16"):
        with pytest.raises(QwenchError, match="precision"):
            write(out, precision=precision)
        return
    write(out, rows("a", 30, extra={"lang": "en"}), rows("b", 20), precision=precision)
    want = np.stack([r["vector"] for key, n in (("a", 30), ("b", 20)) for r in rows(key, n)])
    if precision == "int8":
        want = quantize_embeddings(want, "int8", calibration_embeddings=want)
    elif precision == "binary":
        want = quantize_embeddings(want, "ubinary")
    got, described = read_back(out)
    np.testing.assert_array_equal(got, want.astype(got.dtype) if precision == "float16" else want)
    assert [d["text"] for d in described][:2] == ["a h1 0", "a h1 1"] and len(described) == 50
    assert [p for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    with open_index(str(out), PRINT, precision=precision) as writer:
        assert bool(writer.state("a", "h1")) == (precision == "float32")
        assert bool(writer.notes) == (precision != "float32")
        if precision == "float32":
            writer.append(rows("a", 1, "h2"))
            writer.finish()
            got, described = read_back(out)
            assert [d["text"] for d in described] == [*[f"b h1 {i}" for i in range(20)], "a h2 0"]
            np.testing.assert_array_equal(got[-1], vector(("a", "h2", 0)))


def read_back(out: Path) -> tuple[np.ndarray, list[dict]]:
    """Vectors and rows of a file, by the libraries any reader would use."""
    if out.suffix == ".parquet":
        import pyarrow.parquet as pq

        table = pq.read_table(out)
        return np.stack(table["vector"].to_numpy()), table.drop_columns("vector").to_pylist()
    if out.suffix == ".jsonl":
        found = [json.loads(line) for line in out.read_text().splitlines()]
        return np.array([r["vector"] for r in found], np.float32), found
    described = [json.loads(line) for line in Path(f"{out}.rows.jsonl").read_text().splitlines()]
    if out.suffix == ".npy":
        return np.load(out), described
    from safetensors.numpy import load_file

    return load_file(out)["vectors"], described


def test_foreign_and_cut_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "v.npy").write_bytes(b"mine")
    with pytest.raises(QwenchError, match="not written by"):
        write(tmp_path / "v.npy", rows("a", 1))
    assert (tmp_path / "v.npy").read_bytes() == b"mine"
    write(tmp_path / "w.jsonl", rows("a", 3))
    text = (tmp_path / "w.jsonl").read_text()
    (tmp_path / "w.jsonl").write_text(text[: len(text) // 2])
    with pytest.raises(QwenchError, match="damaged"):
        write(tmp_path / "w.jsonl", rows("b", 1))


def test_a_plain_lancedb_client_opens_it(tmp_path: Path) -> None:
    import lancedb

    write(tmp_path / "notes.lance", rows("a", 2, extra={"lang": "en", "n": 3, "odd": [1]}))
    table = lancedb.connect(str(tmp_path)).open_table("notes")
    (row, _) = table.search().to_list()
    assert (row["lang"], row["n"], json.loads(row["extra"])["odd"]) == ("en", 3, [1])


PATHS = ["it's.md", "50%_x.txt", "[a].md", "dir/a.md", "dir/sub/b.md", "dir/c.py", "é/文.md", "a+b.md"]


@pytest.mark.parametrize(
    ("glob", "found"),
    [
        ("*.md", {"it's.md", "[a].md", "dir/a.md", "dir/sub/b.md", "é/文.md", "a+b.md"}),
        ("dir/*", {"dir/a.md", "dir/c.py"}),
        ("dir/**", {"dir/a.md", "dir/sub/b.md", "dir/c.py"}),
        ("**/*.md", {"it's.md", "[a].md", "dir/a.md", "dir/sub/b.md", "é/文.md", "a+b.md"}),
        ("it's.md", {"it's.md"}),
        ("50%_x.txt", {"50%_x.txt"}),
        ("[[]a].md", {"[a].md"}),
        ("[!d]*.md", {"it's.md", "[a].md", "dir/a.md", "dir/sub/b.md", "é/文.md", "a+b.md"}),
        ("?.md", {"dir/a.md", "dir/sub/b.md", "é/文.md"}),
        ("a+b.*", {"a+b.md"}),
        ("é/*", {"é/文.md"}),
    ],
)
def test_path_globs(tmp_path_factory: pytest.TempPathFactory, glob: str, found: set[str]) -> None:
    import re

    assert {p for p in PATHS if re.match(glob_regex(glob), p)} == found
    out = tmp_path_factory.mktemp("g") / "n.lance"
    write(out, [r for p in PATHS for r in rows(p, 1)])
    hits = open_for_search(str(out)).search(vector(1), 100, path_glob=glob)
    assert {h["path"] for h in hits} == found


def test_scores_are_exact_cosines(tmp_path: Path) -> None:
    out, wanted = tmp_path / "n.lance", vector("query")
    made = [r for i in range(20) for r in rows(f"f{i}", 10, extra={"n": i})]
    write(out, made)
    index = open_for_search(str(out))
    assert index.fingerprint.dim == DIM and index.count() == 200
    hits = index.search(wanted, 10)
    order = sorted(made, key=lambda r: -float(r["vector"] @ wanted))[:10]
    assert [h["text"] for h in hits] == [r["text"] for r in order]
    np.testing.assert_allclose([h["score"] for h in hits], [r["vector"] @ wanted for r in order], atol=1e-5)
    least = hits[4]["score"]
    assert len(index.search(wanted, 10, min_score=least)) == 5
    assert {h["extra"]["n"] for h in index.search(wanted, 50, where="n IN (3, 4)")} == {3, 4}
    with pytest.raises(QwenchError, match="filter") as caught:
        index.search(wanted, 5, where="nope = 1")
    assert caught.value.code == 2 and "content_hash" in (caught.value.hint or "")
    rare = made[137] | {"text": "xylophone"}
    write(out, [rare | {"key": "x", "path": "x", "chunk": 0, "last": True, "vector": -wanted}])
    hits = open_for_search(str(out)).search(wanted, 5, text="where is the xylophone?")
    assert "xylophone" in [h["text"] for h in hits]


def test_an_approximate_index_is_measured(tmp_path: Path) -> None:
    out = tmp_path / "n.lance"
    write(out, [r for i in range(40) for r in rows(f"f{i}", 50)])
    index = open_for_search(str(out))
    with pytest.raises(QwenchError, match="2000 passages"):
        index.optimize()
    report = index.optimize(force=True, sample=50)
    assert report["rows"] == 2000 and report["sample"] == 50 and 0.8 < report["recall_at_10"] <= 1
    exact = [h["text"] for h in index.search(vector("q"), 5, exact=True)]
    assert (
        exact == [h["text"] for h in sorted(index.search(vector("q"), 2000, exact=True), key=lambda h: -h["score"])][:5]
    )


@pytest.mark.parametrize(("name", "text"), [("none.lance", "no such index"), ("v.parquet", "reads .lance")])
def test_what_is_no_index(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(QwenchError, match=text):
        open_for_search(str(tmp_path / name))


def test_a_foreign_table_is_refused(tmp_path: Path) -> None:
    import lancedb

    lancedb.connect(str(tmp_path)).create_table("other", [{"a": 1}])
    with pytest.raises(QwenchError, match="not made by qwench"):
        open_for_search(str(tmp_path / "other.lance"))
    with pytest.raises(QwenchError, match="not made by qwench"):
        write(tmp_path / "other.lance", rows("a", 1))
