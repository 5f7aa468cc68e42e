"""`qwench embed` and `qwench search` as a person and a script use them, on a real model."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests import tiny
from tests.conftest import Run
from tests.forks import Forks

Lines = Callable[[str], list[dict]]
MODEL = ("--model", "minilm")


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """A small folder with files of many kinds and troubles."""
    tiny.minilm()
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "fruit.md").write_text(
        "# Fruit\n\nBananas are yellow and grow in bunches.\n\n# Tools\n\nA hammer drives nails.\n"
    )
    (docs / "crlf.txt").write_bytes("Der Zug fährt um acht.\r\nThe train leaves at eight.\r\n".encode())
    (docs / "cjk.txt").write_text("北京是中国的首都。🎉👩‍👩‍👧 东京是日本的首都。")
    (docs / "utf16.txt").write_bytes("A lighthouse warns ships.".encode("utf-16"))
    (docs / "latin.txt").write_bytes(
        "Über die Brücke läuft täglich ein müder Bäcker, fröhlich grüßend. ".encode("latin-1") * 4
    )
    (docs / "code.py").write_text("def add(a, b):\n    return a + b\n")
    (docs / "empty.txt").write_text("")
    (docs / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 64)
    (docs / ".gitignore").write_text("ignored.txt\n")
    (docs / "ignored.txt").write_text("secret")
    return docs


def reread(row: dict, folder: Path) -> str:
    """The passage, read again from the file by its span alone."""
    raw = (folder / row["path"]).read_bytes()[row["start_byte"] : row["end_byte"]]
    codec = {"utf16.txt": "utf-16-le", "latin.txt": "cp1252"}.get(Path(row["path"]).name, "utf-8")
    return raw.decode(codec)


def test_a_folder_to_an_index_to_an_answer(qwench: Run, lines: Lines, docs: Path, tmp_path: Path) -> None:
    done = qwench("embed", "docs", "--out", "notes.lance", *MODEL, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    for name in ("empty.txt", "picture.png", "latin.txt"):
        assert name in done.stderr
    assert "secret" not in done.stderr and "ignored" not in done.stderr
    for question, name in (
        ("yellow fruit", "fruit.md"),
        ("首都", "cjk.txt"),
        ("ships", "utf16.txt"),
        ("sum", "code.py"),
    ):
        found = qwench("search", "notes.lance", question, "--json", "-k", "1", cwd=tmp_path)
        (hit,) = lines(found.stdout)
        assert hit["path"] == f"docs/{name}"
        assert reread(hit, tmp_path) == hit["text"]
    text = qwench("search", "notes.lance", "yellow fruit", "-k", "1", cwd=tmp_path).stdout
    assert text.startswith("docs/fruit.md:1  0.") and "»Bananas are yellow and grow in bunches.«" in text
    assert "ignored.txt" not in qwench("search", "notes.lance", "secret", "-l", cwd=tmp_path).stdout


def test_spans_of_every_passage(qwench: Run, lines: Lines, docs: Path, tmp_path: Path) -> None:
    done = qwench("embed", "docs", "--out", "-", "--chunk-tokens", "6", "--chunk-overlap", "2", *MODEL, cwd=tmp_path)
    rows = lines(done.stdout)
    assert len(rows) > 15
    for row in rows:
        assert reread(row, tmp_path) == row["text"]
        text = (tmp_path / row["path"]).read_bytes()[: row["start_byte"]]
        if row["path"].endswith((".md", ".txt")) and "utf16" not in row["path"] and "latin" not in row["path"]:
            assert row["start_line"] == text.decode().replace("\r\n", "\n").count("\n") + 1
        assert abs(np.linalg.norm(row["vector"]) - 1) < 1e-5


def test_a_second_run_embeds_what_changed(qwench: Run, docs: Path, tmp_path: Path) -> None:
    def run(*args: str) -> dict:
        done = qwench("embed", "docs", "--out", "n.lance", "--json", *MODEL, *args, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    first = run()
    assert first["embedded"] == 6 and first["choices"]["device"]["reason"]
    second = run()
    assert (second["embedded"], second["unchanged"], second["rows"]) == (0, 6, first["rows"])
    (docs / "code.py").write_text("def mul(a, b):\n    return a * b\n")
    (docs / "cjk.txt").unlink()
    third = run()
    assert (third["embedded"], third["unchanged"], third["rows"]) == (1, 4, first["rows"])
    assert run("--prune")["pruned"] == 1
    found = qwench("search", "n.lance", "add", "--json", cwd=tmp_path).stdout
    assert "a * b" in found and "a + b" not in found and "cjk" not in found


def test_another_fingerprint_is_refused_and_rebuilt(qwench: Run, docs: Path, tmp_path: Path) -> None:
    qwench("embed", "docs", "--out", "n.lance", *MODEL, cwd=tmp_path)
    done = qwench("embed", "docs", "--out", "n.lance", "--dim", "64", *MODEL, cwd=tmp_path)
    assert done.returncode == 1
    assert "dim was `384` and is now `64`" in done.stderr and "--rebuild" in done.stderr
    done = qwench("embed", "docs", "--out", "n.lance", "--dim", "64", "--rebuild", *MODEL, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert qwench("search", "n.lance", "fruit", cwd=tmp_path).returncode == 0
    assert sorted(p.name for p in tmp_path.iterdir() if "qwench-" in p.name) == []


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".npy", ".safetensors"])
def test_files_of_vectors(qwench: Run, docs: Path, tmp_path: Path, suffix: str) -> None:
    def run() -> dict:
        return json.loads(qwench("embed", "docs", "--out", f"v{suffix}", "--json", *MODEL, cwd=tmp_path).stdout)

    first, second = run(), run()
    assert (first["embedded"], second["embedded"], second["unchanged"]) == (6, 0, 6)
    assert first["rows"] == second["rows"] and (tmp_path / f"v{suffix}").stat().st_size == second["bytes"]


def test_rows_carry_their_columns(qwench: Run, lines: Lines, tmp_path: Path) -> None:
    tiny.minilm()
    rows = [{"id": f"r{i}", "body": f"ticket number {i}", "lang": "en" if i % 2 else "de"} for i in range(6)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows) + "{broken\n")
    args = ("t.jsonl", "--text-field", "body", "--id-field", "id", "--out", "t.lance", *MODEL)
    done = qwench("embed", *args, cwd=tmp_path)
    assert done.returncode == 1 and "t.jsonl" in done.stderr and "7" in done.stderr
    assert qwench("embed", *args, "--keep-going", cwd=tmp_path).returncode == 0
    found = lines(qwench("search", "t.lance", "ticket", "--filter", "lang = 'de'", "--json", cwd=tmp_path).stdout)
    assert {h["row_id"] for h in found} == {"r0", "r2", "r4"}
    bad = qwench("search", "t.lance", "ticket", "--filter", "langue = 'de'", cwd=tmp_path)
    assert bad.returncode == 2 and "lang" in bad.stderr


def test_names_of_ours_win_and_paths_have_a_folder(qwench: Run, lines: Lines, tmp_path: Path) -> None:
    tiny.minilm()
    for name in ("p1/docs", "p2/other"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "p1/docs/c.jsonl").write_text('{"text": "cats purr", "score": 99, "schema": "x"}\n')
    (tmp_path / "p2/other/e.md").write_text("cars")
    for folder, paths in (("p1", ["docs"]), ("p1/docs", ["."]), ("p2", ["other", "--prune"])):
        done = qwench("embed", *paths, "--out", tmp_path / "all.lance", *MODEL, "--json", cwd=tmp_path / folder)
        assert done.returncode == 0 and json.loads(done.stdout)["pruned"] == 0, done.stderr
    found = lines(qwench("search", tmp_path / "all.lance", "cats purr", "--json", cwd=tmp_path).stdout)
    assert [h["path"] for h in found] == ["p1/docs/c.jsonl", "p2/other/e.md"]
    assert found[0]["score"] > 0.99 and (found[0]["input_score"], found[0]["input_schema"]) == (99, "x")
    assert found[0]["schema"] == 1 and found[0]["rank"] == 1
    paths = lines(qwench("search", tmp_path / "all.lance", "cats", "-l", "--json", cwd=tmp_path / "p2").stdout)
    assert {p["path"] for p in paths} == {f"{tmp_path}/p1/docs/c.jsonl", "other/e.md"}


def test_standard_input_and_name_lists(qwench: Run, lines: Lines, docs: Path, tmp_path: Path) -> None:
    done = qwench("embed", "-", "--out", "-", *MODEL, input="one line\n", cwd=tmp_path)
    assert [(r["path"], r["text"]) for r in lines(done.stdout)] == [("-", "one line")]
    names = b"docs/fruit.md\0docs/code.py\0"
    done = qwench("embed", "-0", "--out", "-", *MODEL, input=names, cwd=tmp_path)
    assert {r["path"] for r in lines(done.stdout)} == {"docs/fruit.md", "docs/code.py"}
    assert qwench("embed", "-", "--out", "x.lance", *MODEL, input="", cwd=tmp_path).returncode in (0, 1)


def test_query_at_once_and_dry_run(qwench: Run, lines: Lines, docs: Path, tmp_path: Path) -> None:
    done = qwench("embed", "docs", "--query", "yellow fruit", "-k", "2", "--json", *MODEL, cwd=tmp_path)
    hits = lines(done.stdout)
    assert len(hits) == 2 and hits[0]["path"] == "docs/fruit.md" and hits[0]["score"] >= hits[1]["score"]
    plan = json.loads(qwench("embed", "docs", "--dry-run", "--json", *MODEL, cwd=tmp_path).stdout)
    assert plan["documents"] == 6 and plan["tokens"] > 50 and plan["bytes"] > 0
    assert [p.name for p in tmp_path.iterdir()] == ["docs"]


def test_what_is_cut_is_listed(qwench: Run, tmp_path: Path) -> None:
    tiny.minilm()
    (tmp_path / "long.txt").write_text("word " * 1000)
    (tmp_path / "short.txt").write_text("word")
    args = ("long.txt", "short.txt", "--out", "n.lance", *MODEL)
    done = qwench("embed", *args, "--on-long", "truncate", "--json", cwd=tmp_path)
    report = json.loads(done.stdout)
    assert (report["truncated"], report["truncated_paths"], report["rows"]) == (1, ["long.txt"], 2)
    done = qwench("embed", *args[:2], "--out", "m.lance", *MODEL, "--on-long", "error", cwd=tmp_path)
    assert done.returncode == 1 and "`long.txt`" in done.stderr and "1000" in done.stderr


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (["docs", "--out", "n.lance", "--model", "minlm"], 1, "minilm"),
        (["docs", "--out", "n.lance", "--model", "Qwen/No-Such", "--offline"], 1, "hf download"),
        (["docs", "--out", "n.lance", "--model", "smollm2"], 1, "GGUF"),
        (["docs", "--out", "n.xyz", *MODEL], 2, ".parquet"),
        (["docs", "--out", "docs/fruit.md/n.lance", *MODEL], 1, "docs/fruit.md"),
        (["docs", "--out", "n.lance", "--precision", "int8", *MODEL], 2, "float16"),
        (["docs", "--out", "n.lance", "--dim", "9999", *MODEL], 2, "384"),
        (["docs", "--out", "n.lance", "--chunk-tokens", "9999", *MODEL], 2, "254"),
        (["docs", "--out", "n.lance", "--task", "Find", *MODEL], 2, "--task"),
        (["nowhere", "--out", "n.lance", *MODEL], 1, "nowhere"),
    ],
)
def test_troubles_are_one_sentence(
    qwench: Run, docs: Path, tmp_path: Path, args: list[str], code: int, text: str
) -> None:
    before = sorted(docs.iterdir())
    done = qwench("embed", *args, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert text in done.stderr and "Traceback" not in done.stderr
    assert sorted(docs.iterdir()) == before and not (tmp_path / "n.lance").exists()


def test_search_refuses_a_changed_model(qwench: Run, tmp_path: Path) -> None:
    model = tiny.tiny_bert(tmp_path / "model")
    (tmp_path / "a.txt").write_text("some text")
    assert qwench("embed", "a.txt", "--out", "n.lance", "--model", model, cwd=tmp_path).returncode == 0
    assert qwench("search", "n.lance", "text", "--min-score", "1.1", cwd=tmp_path).returncode == 3
    assert qwench("search", "n.lance", "text", *MODEL, cwd=tmp_path).returncode == 1
    weights = model / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-100] ^= 1
    weights.write_bytes(raw)
    done = qwench("search", "n.lance", "text", cwd=tmp_path)
    assert done.returncode == 1 and "--rebuild" in done.stderr
    weights.write_bytes(raw[:1000])
    done = qwench("embed", "a.txt", "--out", "m.lance", "--model", model, cwd=tmp_path)
    assert done.returncode == 1 and "model.safetensors" in done.stderr and "Traceback" not in done.stderr


def test_an_interrupt_keeps_what_was_written(qwench: Run, tmp_path: Path) -> None:
    tiny.minilm()
    (tmp_path / "big.txt").write_text("\n".join(f"line {i} of a long text that takes its time" for i in range(200_000)))
    command = [sys.executable, "-m", "qwench.cli.main", "embed", "big.txt", "--out", "n.lance", *MODEL]
    # A shell starts its background jobs with SIGINT ignored, and a test run among them hands that on.
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "n.lance" / "data").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, talk = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"interrupted; what was written is kept in `{tmp_path / 'n.lance'}`, and the same command goes on" in talk
    assert "Traceback" not in talk and not (tmp_path / ".n.lance.lock").exists()
    assert qwench("search", "n.lance", "line", "-k", "1", cwd=tmp_path).returncode == 0


def test_the_bar_is_for_terminals(tmp_path: Path, forks: Forks) -> None:
    pexpect = pytest.importorskip("pexpect")
    tiny.minilm()
    (tmp_path / "a.txt").write_text("\n".join(f"line {i} of a text" for i in range(1_500)))
    program, *args = forks.asking("from qwench.cli import out, main; out.PATIENCE = 0.1; main.main()")
    args += ["embed", "a.txt", "--out", "n.lance", *MODEL]
    child = pexpect.spawn(program, args, cwd=str(tmp_path), dimensions=(24, 120), timeout=120, encoding="utf-8")
    child.expect(pexpect.EOF)
    assert "embed" in child.before and "kB" in child.before and "passages" in child.before
    child.close()
    assert child.exitstatus == 0


def content(folder: Path) -> list[tuple]:
    import lancedb

    rows = lancedb.connect(str(folder)).open_table("n").search().limit(None).to_list()
    return sorted((r["key"], r["chunk"], r["text"], r["content_hash"], tuple(np.round(r["vector"], 4))) for r in rows)


def kill_and_go_on(qwench: Run, tmp_path: Path, files: int, kills: int) -> None:
    """`kills` runs are killed at random moments; the last one ends in the same table as an undisturbed run."""
    model = tiny.tiny_bert(tmp_path / "model")
    source = tmp_path / "in"
    source.mkdir()
    rng = random.Random(files)
    for i in range(files):
        (source / f"{i:04}.txt").write_text("\n\n".join(f"{i} {rng.random()} " * 20 for _ in range(1 + i % 3)))
    options = ("--chunk-tokens", "60", "--model", str(model))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    env = os.environ | {"QWENCH_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "qwench.cli.main", "embed", str(source), *options, "--out"]
    start = time.monotonic()
    subprocess.run([*command, whole / "n.lance"], env=env, capture_output=True, check=True)
    length = time.monotonic() - start
    command.append(str(broken / "n.lance"))
    for _ in range(kills):
        process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.3 * length, 1.1 * length))
        process.send_signal(signal.SIGKILL)
        process.wait()
        # Something changes while nothing runs: the next run must not keep both versions.
        (source / f"{rng.randrange(files):04}.txt").write_text(f"changed {rng.random()}")
    assert qwench("embed", source, "--out", broken / "n.lance", *options).returncode == 0
    assert qwench("embed", source, "--out", whole / "n.lance", *options).returncode == 0
    assert content(broken) == content(whole)


def test_killed_runs_are_completed(qwench: Run, tmp_path: Path) -> None:
    kill_and_go_on(qwench, tmp_path, files=100, kills=2)


@pytest.mark.slow
def test_twenty_kills_of_a_thousand_files(qwench: Run, tmp_path: Path) -> None:
    kill_and_go_on(qwench, tmp_path, files=1000, kills=20)
