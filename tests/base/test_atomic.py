"""Files are whole or as they were, whatever strikes; one run at a time is at an output."""

from __future__ import annotations

import errno
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from qwench.ops.base import atomic, lock
from qwench.ops.base.atomic import append, move, opened, recover, replacing, write
from qwench.ops.base.errors import QwenchError
from qwench.ops.base.lock import Lock
from qwench.ops.base.paths import check_output, local


def child(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A Python process that says `ready` and then goes on for long."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def test_a_file_is_written_anew_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "ä b.json"
    write(path, "é\n")
    assert path.read_bytes() == "é\n".encode()
    write(path, b"\0two")
    assert path.read_bytes() == b"\0two" and os.listdir(tmp_path) == [path.name]
    with opened(path) as file:
        file.write(b"three")
        assert path.read_bytes() == b"\0two"
    assert path.read_bytes() == b"three"


def test_permissions(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write(tmp_path / "new", "x")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640
    for mode in (0o600, 0o444, 0o755):
        (tmp_path / "new").chmod(mode)
        write(tmp_path / "new", "y")
        assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == mode


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("old")
    (tmp_path / "link").symlink_to(Path("there") / "file")
    (tmp_path / "dangling").symlink_to(Path("there") / "made")
    for name, target in (("link", "file"), ("dangling", "made")):
        write(tmp_path / name, "new")
        assert (tmp_path / name).is_symlink() and (tmp_path / "there" / target).read_text() == "new"
    assert sorted(os.listdir(tmp_path / "there")) == ["file", "made"]
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(QwenchError, match="leads back to itself"):
        write(tmp_path / "loop", "x")


def test_what_is_in_the_way_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    os.mkfifo(tmp_path / "pipe")
    for path, said in (
        ("folder", "a folder is in its place"),
        ("none/deeper/x", f"the folder of the table is not there: `{tmp_path / 'none' / 'deeper'}`"),
        ("file/x", "a part of its path is a file"),
        ("n" * 300, "the name is too long"),
        ("pipe", "a device or a pipe"),
    ):
        with pytest.raises(QwenchError) as caught:
            write(tmp_path / path, "y", "the table")
        assert said in caught.value.message and str(tmp_path) in caught.value.message
        assert "\n" not in caught.value.message and caught.value.hint
    write(tmp_path / ("é" * 120), "a long name that is allowed")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder", "pipe", "é" * 120]

    def denied(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", "x")

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(QwenchError, match=r"the table cannot be written \(no permission\): `.*/file`"):
        write(tmp_path / "file", "y", "the table")


def test_a_read_only_folder(tmp_path: Path) -> None:
    code = (
        "import os, sys; from qwench.ops.base.atomic import write; from qwench.ops.base.paths import check_output\n"
        "os.setuid(65534) if os.getuid() == 0 else None\n"
        "for does in (lambda p: write(p, 'x'), check_output):\n"
        " try: does(sys.argv[1])\n"
        " except Exception as e: print(type(e).__name__, e.message)"
    )
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and len(folder.parts) > 2:
            folder.chmod(0o755)
    tmp_path.chmod(0o555)
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "x"], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first == f"QwenchError the file cannot be written (no permission): `{tmp_path / 'x'}`"
    assert second == f"QwenchError the folder of the output cannot be written into: `{tmp_path}`"
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("where", ["write", "fsync", "close"])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    write(path, "old")
    before = path.stat()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(QwenchError) as caught, opened(path, "the result") as file:
        file.write(b"half")
        if where == "write":
            full()
        elif where == "fsync":
            monkeypatch.setattr(os, "fsync", full)
        else:
            monkeypatch.setattr(os, "replace", full)
    assert caught.value.message == f"the result cannot be written (no space left on the disk): `{path}`"
    assert path.read_text() == "old" and path.stat().st_ino == before.st_ino and os.listdir(tmp_path) == ["x.json"]


def test_a_file_larger_than_allowed(tmp_path: Path) -> None:
    """The kernel's own refusal, in the middle of a write, and a library that tells of it in its own words."""
    import torch
    from safetensors.torch import save_file

    path = tmp_path / "x.safetensors"
    write(path, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(QwenchError, match="larger than files may be here"):
            write(path, bytes(1 << 17))
        with pytest.raises(QwenchError, match="larger than files may be here"), replacing(path) as (part,):
            save_file({"x": torch.zeros(1 << 16)}, part)
        with pytest.raises(QwenchError, match="larger than files"):
            append(tmp_path / "journal", "x" * (1 << 17))
        assert (tmp_path / "journal").read_bytes() == b""
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert path.read_bytes() == b"old" and sorted(os.listdir(tmp_path)) == ["journal", "x.safetensors"]


def test_an_error_of_the_block_is_its_own(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="elsewhere"), replacing(tmp_path / "a"):
        (tmp_path / "elsewhere").read_bytes()
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "a"):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_several_files_are_replaced_together_or_not_at_all(tmp_path: Path) -> None:
    paths = [tmp_path / n for n in ("v.npy", "v.npy.meta.json")]
    with replacing(*paths) as parts:
        for path, part in zip(paths, parts, strict=True):
            assert part.suffix == path.suffix
            part.write_text("one")
    with pytest.raises(ZeroDivisionError), replacing(*paths) as parts:
        parts[0].write_text("two")
        raise ZeroDivisionError
    assert [p.read_text() for p in paths] == ["one", "one"] and len(os.listdir(tmp_path)) == 2
    with pytest.raises(QwenchError, match="none"), replacing(paths[0], tmp_path / "none" / "x"):
        pass
    assert len(os.listdir(tmp_path)) == 2


def test_a_kill_leaves_the_old_file_and_the_next_write_sweeps(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write(path, "old")
    code = (
        "import sys, time; from qwench.ops.base.atomic import opened\n"
        "with opened(sys.argv[1]) as f:\n f.write(b'half'); f.flush(); print('ready', flush=True); time.sleep(60)"
    )
    process = child(code, path)
    assert path.read_text() == "old" and len(os.listdir(tmp_path)) == 2
    write(path, "meanwhile")  # the other's is not touched
    assert len(os.listdir(tmp_path)) == 2
    kill(process)
    assert path.read_text() == "meanwhile"
    (left,) = [p for p in tmp_path.iterdir() if p != path]
    assert left.name.startswith(".x.json.") and atomic.is_leftover(left) and not atomic.is_leftover(path)
    (tmp_path / ".x.json.notes.part.json").write_text("a user's own")
    write(path, "new")
    assert path.read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == [".x.json.notes.part.json", "x.json"]


def test_readers_and_writers_at_once_see_whole_files(tmp_path: Path) -> None:
    path, stop = tmp_path / "x", threading.Event()
    texts = [c * 100_000 for c in "abcd"]
    write(path, texts[0])

    def writes(text: str) -> None:
        while not stop.is_set():
            write(path, text)

    threads = [threading.Thread(target=writes, args=(t,)) for t in texts]
    for thread in threads:
        thread.start()
    seen = {path.read_text() for _ in range(300)}
    stop.set()
    for thread in threads:
        thread.join()
    assert seen <= set(texts) and os.listdir(tmp_path) == ["x"]


def test_a_journal_grows_by_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal"
    append(path, '{"a": 1}')
    with path.open("a") as file:
        file.write('{"cut')
    append(path, '{"b": 2}')
    assert path.read_text() == '{"a": 1}\n{"cut\n{"b": 2}\n'
    real = os.write

    def full(handle: int, data: bytes) -> int:
        if len(data) < 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle, data[:4])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(QwenchError, match="no space left on the disk"):
        append(path, "never whole")
    assert path.read_text() == '{"a": 1}\n{"cut\n{"b": 2}\n'


@pytest.mark.parametrize("exchange", [True, False])
def test_folders_change_places(tmp_path: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda a, b: False)
    old, new = tmp_path / "o", tmp_path / "o.part"
    for at in (1, 2):
        new.mkdir()
        (new / "x").write_text(str(at))
        move(new, old)
        assert (old / "x").read_text() == str(at) and os.listdir(tmp_path) == ["o"]
    os.rename(old, atomic.hidden(old, ".old"))
    recover(old)
    assert (old / "x").read_text() == "2"


HOLD = (
    "import sys, time; from pathlib import Path; from qwench.ops.base.lock import Lock\n"
    "with Lock(Path(sys.argv[1])):\n print('ready', flush=True); time.sleep(60)"
)


def test_a_lock_names_its_holder_and_ends_with_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = child(HOLD, out, "--dtype", "a b")
    with pytest.raises(QwenchError) as caught, Lock(out):
        pass
    assert caught.value.message.startswith(f"another run is at `{out}`: process {process.pid}, `")
    assert "--dtype 'a b'" in caught.value.message and "\n" not in caught.value.message
    kill(process)
    assert os.listdir(tmp_path) == [".out.lock"]
    with Lock(out) as held:
        assert held.held
        with pytest.raises(QwenchError, match=str(os.getpid())), Lock(out):
            pass
        assert held.held
    assert os.listdir(tmp_path) == []


def test_one_of_many_gets_the_lock(tmp_path: Path) -> None:
    """Also while holders remove the file that others have just opened."""
    inside, most, refused, stop = [], [], [], time.monotonic() + 1

    def tries() -> None:
        while time.monotonic() < stop:
            try:
                with Lock(tmp_path / "out"):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()
            except QwenchError:
                refused.append(1)

    threads = [threading.Thread(target=tries) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1 and len(most) > 10 and os.listdir(tmp_path) == []


def test_a_disk_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(lock.fcntl, "flock", none)
    with Lock(tmp_path / "out") as held:
        assert held.note and "has no locks" in held.note and str(tmp_path / "out") in held.note
        write(tmp_path / "out", "x")
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("name", ["s3://b/k", "file:///tmp/x", "hf://a/b", "S3://b", "gs+x://b"])
def test_urls_are_no_paths(name: str, tmp_path: Path) -> None:
    for given in (name, Path(name)):
        with pytest.raises(QwenchError, match=f"the output is a URL.*`{name[:2]}") as caught:
            local(given, "the output")
        assert caught.value.code == 2 and "://" in caught.value.message


def test_paths_are_paths() -> None:
    for name in ("a", "a/b", "./s3:/x", "c:/x", "org/model", "-", "a:b/c", "/x:/y", ""):
        assert local(name) == name


def test_an_output_is_checked_and_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    monkeypatch.chdir(tmp_path)
    assert check_output("new") == tmp_path / "new" and check_output("folder", folder=True) == tmp_path / "folder"
    for name, folder, said in (
        ("folder", False, "a folder is in its place"),
        ("file", True, "a file is in its place"),
        ("none/x", None, "is not there: `.*none`"),
        ("s3://x", None, "is a URL"),
    ):
        with pytest.raises(QwenchError, match=said):
            check_output(name, folder=folder)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
