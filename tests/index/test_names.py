"""What a document is called in an index: one name a file, from wherever the command runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from qwench.ops.index.names import BASE_KEY, Names
from qwench.ops.index.query import open_for_search
from qwench.ops.index.table import open_index

from .test_index import PRINT, rows, vector


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("p/docs/a.md", "p/docs/sub/b.md", "other/c.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.chdir(tmp_path / "p")
    return tmp_path


def test_other_spellings_and_folders_give_one_name(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names.here()
    (here / "p" / "again").symlink_to("docs")
    (here / "p" / "side").symlink_to("../other")
    for path in ("docs/a.md", "./docs/../docs/a.md", "again/a.md", f"{here}/p/docs/a.md", "../p/docs/a.md"):
        assert names.stored(path) == "docs/a.md", path
    assert names.stored("-") == "-"
    # A folder of elsewhere that is linked here is found again under its link, and whole under its own name.
    assert names.stored("side/c.md") == "side/c.md" and names.stored("../other/c.md") == f"{here}/other/c.md"
    monkeypatch.chdir(here / "p" / "docs")
    assert names.stored("a.md") == "docs/a.md" and names.shown("docs/a.md") == "a.md"
    monkeypatch.chdir(here)
    assert names.stored("p/docs/a.md") == "docs/a.md" and names.shown("docs/a.md") == "p/docs/a.md"
    assert names.full("docs/a.md") == f"{here}/p/docs/a.md"


@pytest.mark.parametrize("move", [shutil.copytree, shutil.move])
def test_the_folder_is_found_again_after_a_move(move, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = Names.here().to_json(here / "p" / "n.lance")
    monkeypatch.chdir(here)
    move("p", "q")
    assert Names.found(said, here / "q" / "n.lance", ["docs/a.md"]).base == f"{here}/q"
    # The index alone elsewhere: the written folder counts as long as it is there.
    alone = Names.found(said, here / "elsewhere" / "n.lance", ["docs/a.md"]).base
    assert alone == (f"{here}/p" if (here / "p").exists() else None)


def test_an_older_index_counts_from_where_its_files_are(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = here / "n.lance"
    assert Names.found(None, index, ["docs/a.md", "/x/y"]).base == f"{here}/p"
    monkeypatch.chdir(here / "other")
    lost = Names.found(None, index, ["docs/a.md"])
    assert lost.base is None and lost.full("docs/a.md") is None and lost.shown("docs/a.md") == "docs/a.md"
    assert lost.stored("c.md") == f"{here}/other/c.md" and json.loads(lost.to_json(index)) == {}
    assert Names.found(None, index, ["/x/y", "-"]).base == f"{here}/other"


@pytest.mark.parametrize("suffix", [".lance", ".parquet", ".jsonl", ".npy"])
def test_every_output_knows_its_folder(suffix: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = here / f"v{suffix}"
    with open_index(str(out), PRINT) as writer:
        writer.append(rows("docs/a.md", 1))
        writer.finish()
    monkeypatch.chdir(here / "other")
    with open_index(str(out), PRINT) as writer:
        assert writer.names.base == f"{here}/p" and writer.state("docs/a.md", "h1")
        writer.append(rows("docs/sub/b.md", 1))
        writer.finish()
    with open_index(str(out), PRINT) as writer:
        assert writer.names.base == f"{here}/p"


def test_hits_are_named_from_where_the_search_runs(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = here / "n.lance"
    with open_index(str(out), PRINT) as writer:
        writer.append(rows("docs/a.md", 1))
        writer.finish()
    assert BASE_KEY.encode() in open_for_search(str(out)).table.schema.metadata
    for folder, shown in (
        ("p", "docs/a.md"),
        ("p/docs", "a.md"),
        (".", "p/docs/a.md"),
        ("other", f"{here}/p/docs/a.md"),
    ):
        monkeypatch.chdir(here / folder)
        (hit,) = open_for_search(str(out)).search(vector(0), 5, path_glob="docs/*")
        assert hit["path"] == shown
