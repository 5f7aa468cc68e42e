"""Files become documents: what is found, what is passed over and why, and that nothing is lost or read twice."""

from __future__ import annotations

import codecs
import dataclasses
import gzip
import hashlib
import io
import json
import os
import socket
import subprocess
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from qwench.ops.base.errors import QwenchError
from qwench.ops.base.events import Warned
from qwench.ops.text import sources
from qwench.ops.text.documents import Found, ReadOptions, find_files, read_documents
from qwench.ops.text.types import Document


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def write(files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def find(*paths: str, nul_list: bytes | None = None, **options: object) -> tuple[list[str], list[Warned]]:
    stream = io.BytesIO(nul_list) if nul_list is not None else None
    got = list(find_files(paths, ReadOptions(**options), nul_list=stream))
    return [g.path for g in got if isinstance(g, Found)], [g for g in got if isinstance(g, Warned)]


def read(*paths: str, stdin: bytes | None = None, **options: object) -> tuple[list[Document], list[Warned]]:
    chosen = ReadOptions(**options)
    stream = io.BytesIO(stdin) if stdin is not None else None
    got = list(read_documents(find_files(paths, chosen), chosen, stream))
    return [g for g in got if isinstance(g, Document)], [g for g in got if isinstance(g, Warned)]


def text_of(document: Document) -> str:
    return "".join(segment.text for segment in document.segments())


def kinds(warnings: list[Warned]) -> list[tuple[str, str | None, bool]]:
    return [(w.kind, w.subject, w.failed) for w in warnings]


# ---- finding


def test_folders_are_walked_sorted_and_hidden_files_wait_for_a_flag() -> None:
    write({"b/z.md": "1", "b/a.md": "2", "a.txt": "3", "c.py": "4", ".secret": "5", ".conf/x": "6", ".git/config": "7"})
    assert find(".") == (["a.txt", "b/a.md", "b/z.md", "c.py"], [])
    assert find(".", hidden=True)[0] == [".conf/x", ".secret", "a.txt", "b/a.md", "b/z.md", "c.py"]
    assert find("b", "a.txt", "b/a.md", ".", "./b/../a.txt")[0] == ["b/a.md", "b/z.md", "a.txt", "c.py"]
    assert find(".conf", ".secret")[0] == [".conf/x", ".secret"]


def test_paths_are_shown_relative_below_the_working_directory_and_absolute_elsewhere(here: Path) -> None:
    write({"../out/x.md": "1", "in/y.md": "2"})
    outside = here.parent / "out" / "x.md"
    assert find("../out", str(here / "in"))[0] == [str(outside), "in/y.md"]
    assert find("..")[0] == ["in/y.md", str(outside)]


def test_a_folder_named_through_a_link_and_dots_is_the_one_the_system_means(here: Path) -> None:
    write({"../far/deep/x.md": "1", "../far/y.md": "2", "y.md": "3"})
    os.symlink("../far/deep", "link")
    assert find("link/../y.md")[0] == [str(here.parent / "far" / "y.md")]


def test_missing_names_are_told_one_by_one_and_the_rest_goes_on() -> None:
    write({"a.md": "1", "f": "2"})
    paths, warnings = find("nope", "a.md", "f/x", "", "a\0b")
    assert paths == ["a.md"]
    assert [w.kind for w in warnings] == ["missing"] * 4 and all(w.failed for w in warnings)
    assert "`nope` does not exist" in warnings[0].message


def test_a_nul_list_adds_names_and_is_read_to_its_unclosed_end() -> None:
    write({"a\nb.md": "1", ".h": "2", "d/x": "3", "c": "4"})
    paths, warnings = find("c", nul_list=b"a\nb.md\0.h\0d\0\0gone\0c\0d/x")
    assert paths == ["c", "a\nb.md", ".h", "d/x"]
    assert kinds(warnings) == [("missing", "gone", True)]


def test_globs_choose_files_of_folders_relative_to_the_walked_folder() -> None:
    write({"p/docs/a.md": "1", "p/docs/b.py": "2", "p/src/c.md": "3", "p/src/gen/d.md": "4", "e.txt": "5"})
    assert find("p", include=("*.md",))[0] == ["p/docs/a.md", "p/src/c.md", "p/src/gen/d.md"]
    assert find("p", include=("docs/",))[0] == ["p/docs/a.md", "p/docs/b.py"]
    assert find("p", include=("*.md", "!gen/"))[0] == ["p/docs/a.md", "p/src/c.md"]
    assert find("p", exclude=("gen/", "*.py"))[0] == ["p/docs/a.md", "p/src/c.md"]
    assert find("p", "e.txt", include=("*.md",), exclude=("/src",))[0] == ["p/docs/a.md", "e.txt"]
    assert find("p/docs/b.py", "e.txt", exclude=("*.py",))[0] == ["e.txt"]


@pytest.mark.parametrize("wrong", [{"include": ("#",)}, {"exclude": ("",)}, {"encoding": "nonsense"}])
def test_unusable_options_are_usage_errors(wrong: dict) -> None:
    with pytest.raises(QwenchError) as caught:
        ReadOptions(**wrong)
    assert caught.value.code == 2


def test_options_are_jsonable() -> None:
    assert json.loads(json.dumps(dataclasses.asdict(ReadOptions(include=("*.md",)))))["include"] == ["*.md"]


# ---- ignore rules


def test_ignore_files_nest_and_negate_and_named_files_pass() -> None:
    write(
        {".git/info/exclude": "secret.md\n", ".gitignore": "*.log\nbuild/\n", "sub/.gitignore": "!keep.log\n/x.md\r\n"}
    )
    write({"a.log": "1", "sub/keep.log": "2", "sub/x.md": "3", "sub/in/x.md": "4", "build/y.md": "5", "secret.md": "6"})
    assert find(".")[0] == ["sub/in/x.md", "sub/keep.log"]
    assert find("sub")[0] == ["sub/in/x.md", "sub/keep.log"]
    assert find("a.log", "build/y.md")[0] == ["a.log", "build/y.md"]
    everything = ["a.log", "build/y.md", "secret.md", "sub/in/x.md", "sub/keep.log", "sub/x.md"]
    assert find(".", ignore_files=False)[0] == everything


def test_a_named_folder_that_is_ignored_is_walked_under_the_other_rules() -> None:
    write({".git/HEAD": "", ".gitignore": ".venv\n__pycache__/\n", ".venv/.gitignore": "*\n"})
    write({".venv/lib/a.py": "1", ".venv/lib/__pycache__/a.pyc": "2", ".venv/top.py": "3"})
    assert find(".", hidden=True)[0] == [".gitignore"]
    assert find(".venv/lib")[0] == [".venv/lib/a.py"]


def test_a_repository_inside_another_keeps_its_own_rules_only() -> None:
    write({".git/HEAD": "", ".gitignore": "*.md\n", "inner/.git/info/exclude": "*.txt\n"})
    write({"a.md": "1", "a.txt": "2", "inner/b.md": "3", "inner/b.txt": "4"})
    assert find(".")[0] == ["a.txt", "inner/b.md"]
    assert find("inner")[0] == ["inner/b.md"]


def test_a_worktree_keeps_the_rules_of_its_repository(here: Path) -> None:
    write({"main/.git/info/exclude": "*.log\n", "main/.git/worktrees/w/commondir": "../..\n", "tree/a.log": "1"})
    write({"tree/.git": f"gitdir: {here}/main/.git/worktrees/w\n", "tree/a.md": "2"})
    assert find("tree")[0] == ["tree/a.md"]


NAMES = st.sampled_from(["a", "b", "ab", "a.md", "b.log", "c d", "#x", "!y", "doc"])
PATTERNS = st.sampled_from(
    [
        *("a", "b/", "/a", "*.md", "!a.md", "*", "!*/", "a/b", "a/*", "**/ab", "a/**", "a/**/b", "?", "[ab]", "[!a]*"),
        *("doc/*.md", "!a", "!doc/", "\\#x", "\\!y", "# a", "", "c d", "c\\ d", "a  ", "*/b", "!b/", "/*", "!/doc"),
        *("*.l?g", "/a/"),
    ]
)
# Stars in a row are left to the list above: git has quirks there, where it compares a plain beginning by itself.
RANDOM = st.text("ab*/?[]!^\\- .", max_size=6).filter(lambda text: "**" not in text)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.lists(NAMES, min_size=1, max_size=3).map("/".join), min_size=1, max_size=10, unique=True),
    st.dictionaries(st.sampled_from(["", "a", "doc", "b/a"]), st.lists(PATTERNS | RANDOM, max_size=4), max_size=3),
    st.lists(PATTERNS, max_size=2),
)
def test_the_walk_finds_what_git_would_add(
    tmp_path_factory: pytest.TempPathFactory, files: list[str], ignores: dict[str, list[str]], exclude: list[str]
) -> None:
    """git is the oracle: its untracked, unignored files are ours."""
    root = tmp_path_factory.mktemp("repo")
    try:
        subprocess.run(["git", "init", "-q", "--template=", "."], cwd=root, check=True)
    except FileNotFoundError:
        pytest.skip("git is not installed")
    for name in files + [f"{folder}/.gitignore".lstrip("/") for folder in ignores] + [".git/info/exclude"]:
        path = root / name
        if path.is_dir() or any(parent.is_file() for parent in path.parents):
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = exclude if name.startswith(".git/") else ignores.get(name.removesuffix("/.gitignore"), [])
        lines = ignores.get("", []) if name == ".gitignore" else lines
        path.write_text("".join(line + "\n" for line in lines) if "git" in name else "x")
    listed = subprocess.run(
        ["git", "ls-files", "--others", "--exclude-standard", "-z"], cwd=root, capture_output=True, check=True
    )
    expected = sorted(os.fsdecode(name) for name in listed.stdout.split(b"\0") if name)
    got = [os.path.relpath(path, root) for path in find(str(root), hidden=True)[0]]
    assert sorted(got) == expected


# ---- links and things that are no files


def test_links_are_followed_once_and_loops_are_told(here: Path) -> None:
    write({"real/x.md": "1", "real/sub/y.md": "2", "../far/z.md": "3"})
    os.symlink("..", "real/sub/up")
    os.symlink("..", "real/out")
    os.symlink("self", "self")
    os.symlink("gone", "dangling")
    os.symlink("../far", "far")
    os.symlink("real/x.md", "x-link.md")
    os.symlink("sub", "real/twin")
    paths, warnings = find(".")
    assert paths == ["far/z.md", "real/sub/y.md", "real/x.md"]
    assert kinds(warnings) == [
        ("skipped", "dangling", False),
        ("loop", "real/out", False),
        ("loop", "real/sub/up", False),
        ("loop", "self", False),
    ]
    paths, warnings = find("real")
    assert paths == ["real/sub/y.md", "real/x.md"]
    assert [(w.kind, w.subject) for w in warnings] == [("loop", "real/out"), ("loop", "real/sub/up")]
    assert kinds(find("self")[1]) == [("loop", "self", True)]
    assert kinds(find("dangling")[1]) == [("missing", "dangling", True)]


def test_a_linked_folder_does_not_hide_files_from_their_own_folder() -> None:
    write({".git/HEAD": "", "a/.gitignore": "*.md\n", "z/x.md": "1", "z/y.txt": "2"})
    os.symlink("../z", "a/link")
    assert find(".")[0] == ["a/link/y.txt", "z/x.md"]


def test_hard_links_are_files_of_their_own() -> None:
    write({"a/x.md": "1"})
    os.makedirs("b")
    os.link("a/x.md", "b/x.md")
    assert find(".", "a/x.md")[0] == ["a/x.md", "b/x.md"]


def test_pipes_sockets_and_devices_are_passed_over_with_a_line() -> None:
    write({"d/a.md": "1"})
    os.mkfifo("d/pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("d/sock")
        assert kinds(find("d")[1]) == [("skipped", "d/pipe", False), ("skipped", "d/sock", False)]
        assert kinds(find("d/sock")[1]) == [("skipped", "d/sock", True)]
    assert kinds(find("/dev/null")[1]) == [("skipped", "/dev/null", True)]
    assert "device" in find("/dev/null")[1][0].message


@pytest.mark.parametrize("size", [5, 3_000_000])
def test_a_named_pipe_is_read_as_a_stream(size: int) -> None:
    os.mkfifo("pipe")
    content = (b"line of text\n" * (size // 13 + 1))[:size]
    writer = threading.Thread(target=lambda: Path("pipe").write_bytes(content))
    writer.start()
    docs, warnings = read("pipe")
    writer.join()
    assert warnings == [] and docs[0].size == size and docs[0].path == "pipe"
    for _ in range(2):
        assert text_of(docs[0]).encode() == content


def test_a_file_replaced_by_a_pipe_does_not_hang() -> None:
    write({"a.md": "1"})
    found = list(find_files(["a.md"], ReadOptions()))
    os.remove("a.md")
    os.mkfifo("a.md")
    assert kinds(list(read_documents(found, ReadOptions()))) == [("unreadable", "a.md", True)]


def test_what_cannot_be_looked_at_costs_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions do not hold for root, so the system calls are told to refuse."""
    write({"closed/a": "1", "open/b": "2", "open/c": "3", "open/d": "4"})
    real_list, real_lstat, real_open = os.listdir, os.lstat, os.open

    def refuse(path: object) -> None:
        if str(path).endswith("/closed") or str(path).endswith("/d"):
            raise PermissionError(13, "Permission denied", path)
        if str(path).endswith("/c"):
            raise FileNotFoundError(2, "No such file or directory", path)

    monkeypatch.setattr(os, "listdir", lambda path: refuse(path) or real_list(path))
    monkeypatch.setattr(os, "open", lambda path, *rest, **more: refuse(path) or real_open(path, *rest, **more))
    docs, warnings = read(".")
    assert [d.path for d in docs] == ["open/b"]
    assert kinds(warnings) == [
        ("unreadable", "closed", True),
        ("vanished", "open/c", True),
        ("unreadable", "open/d", True),
    ]
    monkeypatch.setattr(os, "lstat", lambda path: refuse(path) or real_lstat(path))
    assert kinds(find("open")[1]) == [("vanished", "open/c", True), ("unreadable", "open/d", True)]


def test_names_that_are_not_utf8_are_shown_escaped_and_read() -> None:
    os.makedirs(b"d")
    Path(os.fsdecode(b"d/caf\xe9.md")).write_text("content")
    Path("d/new\nline\x1b.md").write_bytes(b"")
    docs, warnings = read("d")
    assert docs[0].path == "d/caf\\xe9.md" and text_of(docs[0]) == "content"
    docs[0].path.encode()
    assert warnings[0].message == "`d/new\\nline\\x1b.md` is empty"


# ---- reading


def test_documents_carry_hash_size_encoding_and_exact_spans() -> None:
    data = codecs.BOM_UTF16_LE + "grüß\r\n你好 🙂\r\n".encode("utf-16-le")
    write({"a.txt": data})
    (document,), warnings = read("a.txt")
    assert warnings == []
    assert document.content_hash == hashlib.blake2b(data, digest_size=16).hexdigest()
    assert (document.size, document.encoding, document.spans, document.row) == (len(data), "utf-16-le", "file", None)
    (segment,) = document.segments()
    assert (segment.text, segment.start_byte, segment.start_line) == ("grüß\r\n你好 🙂\r\n", 2, 1)
    assert data[segment.start_byte :].decode(document.encoding) == segment.text


def test_empty_and_binary_files_are_told_and_fail_only_when_named() -> None:
    write(
        {"d/e.md": b"", "d/bom.md": codecs.BOM_UTF8, "d/i.png": b"\x89PNG\r\n\x1a\n", "d/n.bin": b"a\0b", "d/t.md": "x"}
    )
    write({"d/big.bin": b"\0" * 2_000_000})
    docs, warnings = read("d")
    assert [d.path for d in docs] == ["d/t.md"]
    assert kinds(warnings) == [
        ("binary", "d/big.bin", False),
        ("empty", "d/bom.md", False),
        ("empty", "d/e.md", False),
        ("binary", "d/i.png", False),
        ("binary", "d/n.bin", False),
    ]
    assert kinds(read("d/n.bin", "d/e.md")[1]) == [("binary", "d/n.bin", True), ("empty", "d/e.md", False)]


def test_encodings_are_declared_guessed_aloud_or_refused() -> None:
    text = "Le café était fermé à Noël, déjà l'été où naïveté et cœur se mêlent.\n"
    write({"l.txt": text.encode("cp1252"), "u.txt": "é", "x.txt": bytes(range(128, 256))})
    docs, warnings = read("l.txt", "u.txt", "x.txt")
    assert [(d.path, d.encoding) for d in docs] == [("l.txt", "cp1252"), ("u.txt", "utf-8")]
    assert kinds(warnings) == [("encoding", "l.txt", False), ("encoding", "x.txt", True)]
    assert all("--encoding" in w.message for w in warnings)
    docs, warnings = read("l.txt", encoding="utf-8")
    assert docs == [] and "offset 6" in warnings[0].message and warnings[0].failed


def test_a_codec_whose_bytes_cannot_be_sliced_counts_spans_in_its_text() -> None:
    text = "日本語とABC\n" * 40
    write({"j.txt": text.encode("iso2022_jp")})
    chosen = ReadOptions(encoding="iso2022_jp")
    note, document = list(read_documents(find_files(["j.txt"], chosen), chosen, segment_chars=30))
    assert note.kind == "encoding" and not note.failed
    assert (document.encoding, document.spans) == ("utf-8", "converted")
    data, segments = text.encode(), list(document.segments())
    assert len(segments) > 5 and "".join(s.text for s in segments) == text
    assert all(data[s.start_byte :].startswith(s.text.encode()) for s in segments)


def test_standard_input_once_in_memory_or_put_aside() -> None:
    docs, _ = read("-", "-", stdin=b"hello\n")
    assert [(d.path, d.size, text_of(d)) for d in docs] == [("-", 6, "hello\n")]
    content = "zeile mit ü\n".encode() * 200_000
    (document,), _ = read("-", stdin=content)
    assert document.content_hash == hashlib.blake2b(content, digest_size=16).hexdigest()
    first, second = document.segments(), document.segments()
    assert next(first) == next(second)  # two readers do not disturb each other
    assert text_of(document).encode() == content
    assert kinds(read("-", stdin=b"")[1]) == [("empty", "-", False)]
    assert kinds(read("-", stdin=b"a\0b")[1]) == [("binary", "-", True)]


def big(lines: int = 60_000) -> bytes:
    return "".join(f"line {n} of a long file, mit ü\n" + "\n" * (n % 9 == 0) for n in range(lines)).encode()


def test_a_large_file_is_streamed_in_segments_at_blank_lines() -> None:
    data = big()
    write({"big.md": data})
    assert len(data) > sources.SMALL
    (document,), warnings = read("big.md")
    assert warnings == [] and document.size == len(data)
    segments = list(document.segments())
    assert len(segments) > 1 and "".join(s.text for s in segments).encode() == data
    for segment in segments:
        part = segment.text.encode()
        assert data[segment.start_byte : segment.start_byte + len(part)] == part
        assert segment.start_line == 1 + data[: segment.start_byte].count(b"\n")
    assert all(segment.text.endswith("\n\n") for segment in segments[:-1])


@pytest.mark.parametrize("change", ["same size", "longer", "shorter", "no text any more", "gone"])
def test_a_large_file_that_changes_after_it_was_hashed_is_an_error(change: str) -> None:
    data = big()
    write({"big.md": data})
    (document,), _ = read("big.md")
    changed = {
        "same size": b"L" + data[1:],
        "longer": data + b"x",
        "shorter": data[:-1],
        "no text any more": b"\xff" + data,
    }
    if change == "gone":
        os.remove("big.md")
    else:
        write({"big.md": changed[change]})
    with pytest.raises(QwenchError, match=r"`big\.md` (changed while|vanished before)"):
        list(document.segments())


def test_a_small_file_is_read_once() -> None:
    write({"a.md": "before"})
    (document,), _ = read("a.md")
    write({"a.md": "after"})
    assert text_of(document) == "before"


def test_a_huge_line_is_cut_between_characters() -> None:
    data = "你好x".encode() * 600_000
    write({"line.txt": data})
    (document,), _ = read("line.txt")
    segments = list(document.segments())
    assert len(segments) >= 2 and "".join(s.text for s in segments).encode() == data
    assert {s.start_line for s in segments} == {1}


def test_files_are_read_one_at_a_time_and_memory_stays_flat() -> None:
    for n in range(40):
        write({f"d/{n:03}.txt": b"text " * 100_000})
    opened: list[str] = []

    def watched() -> Iterator[Found | Warned]:
        for item in find_files(["d"], ReadOptions()):
            opened.append(item.path)
            yield item

    tracemalloc.start()
    for count, document in enumerate(read_documents(watched(), ReadOptions()), 1):
        assert len(opened) == count
        assert sum(len(s.text) for s in document.segments()) == 500_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 40 and peak < 8 * 500_000


def test_packed_text_is_read(tmp_path: Path) -> None:
    long = "line of text, größer\n" * 20_000
    write({"a.txt.gz": gzip.compress("packed größe".encode()), "b.1.gz": gzip.compress(long.encode())})
    write({"c.tar.gz": gzip.compress(b"\0" * 600), "d.txt.gz": gzip.compress(os.urandom(9000))[:-100], "e.gz": "text"})
    docs, warnings = read("a.txt.gz", "b.1.gz", "c.tar.gz", "d.txt.gz", "e.gz")
    assert [text_of(d) for d in docs] == ["packed größe", long, "text"]
    assert [d.spans for d in docs] == ["converted", "converted", "file"]
    assert docs[1].size == Path("b.1.gz").stat().st_size
    assert [(w.kind, w.subject) for w in warnings][:1] == [("binary", "c.tar.gz")]
    assert warnings[1].subject == "d.txt.gz" and warnings[1].failed


def test_a_file_with_a_few_bad_bytes_is_read_and_said() -> None:
    write({"a.txt": "Größe und Höhe der Brücke\n".encode() * 50_000 + b"\xff\n"})
    docs, warnings = read("a.txt")
    assert text_of(docs[0]).endswith("Brücke\n\ufffd\n") and docs[0].spans == "converted"
    assert [(w.kind, w.failed) for w in warnings] == [("encoding", False)] and "in 1 place" in warnings[0].message
