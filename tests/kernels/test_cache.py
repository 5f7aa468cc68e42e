"""The cache of built kernels: whose it is, what is damaged, read-only or slow, and a compiler that fails."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from qwench.ops.base.errors import QwenchError
from qwench.ops.base.events import Advanced, Chose, Started, Warned
from qwench.ops.base.runtime import Runtime
from qwench.ops.kernels import choose
from qwench.ops.kernels.native import border, build, check, linear, rows, store
from qwench.ops.kernels.native import library as native_library
from qwench.ops.writing.session import Chat, ChatOptions

from tests.tiny import byte_decoder

pytestmark = pytest.mark.skipif(not native_library.available().value, reason=native_library.available().reason)
BUILT = "C kernels built for this CPU"


class Compiler:
    """Stands in for a compiler: counts its calls, and gives out the library that is loaded already."""

    def __init__(self, folder: Path) -> None:
        self.path, self.log = folder / "fake cc", folder / "calls"
        self.good = Path(border.library()._name).read_bytes()
        (folder / "good.so").write_bytes(self.good)
        self.does(f"cp '{folder}/good.so' \"$out\"")

    def does(self, command: str) -> None:
        self.path.write_text(
            '#!/bin/sh\ntest "$1" = --version && echo "fake 1.0" && exit 0\n'
            f'echo called >> "{self.log}"\n'
            'while test $# -gt 0; do test "$1" = -o && out="$2"; shift; done\n' + command + "\n"
        )
        self.path.chmod(0o755)

    @property
    def calls(self) -> int:
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0


@pytest.fixture
def cc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Compiler]:
    """A fake compiler and an empty cache in tmp_path/kernels, in a process that has looked for nothing yet."""
    loaded, made = list(border._loaded), Compiler(tmp_path)
    monkeypatch.setenv("QWENCH_NATIVE_CACHE", str(tmp_path / "kernels"))
    monkeypatch.setenv("CC", f"'{made.path}'")
    anew(monkeypatch)
    yield made
    border._loaded[:] = loaded
    linear.rows_limit.cache_clear()


def anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process."""
    monkeypatch.setattr(native_library, "_found", [])
    border.enter(None)
    linear.rows_limit.cache_clear()


def again(monkeypatch: pytest.MonkeyPatch) -> tuple[bool, str]:
    anew(monkeypatch)
    found = native_library.available()
    return found.value, found.reason


def works() -> None:
    x = torch.randn(2, 8)
    torch.testing.assert_close(rows.silu_mul(x), choose.EAGER.silu_mul(x))


def libraries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.so"))


def test_built_once_for_its_owner_alone(cc: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        assert again(monkeypatch) == (True, BUILT)
        works()
    assert cc.calls == 1
    home = tmp_path / "kernels"
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(p.stat().st_mode) & 0o077 == 0 for p in home.iterdir())


@pytest.mark.parametrize(
    "damage", ["truncated", "bit", "empty", "no proof", "proof is text", "proof is a list", "gone"]
)
def test_a_damaged_library_is_built_again(
    damage: str, cc: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again(monkeypatch)
    (file,), (proof,) = libraries(tmp_path / "kernels"), (tmp_path / "kernels").glob("*.json")
    # The copy that is loaded is mapped into memory: a new file in its place, as another process would see it.
    content = bytearray(file.read_bytes())
    if damage == "bit":
        content[len(content) // 2] ^= 1
    new = {"truncated": content[:5000], "empty": b"", "bit": content}.get(damage)
    if new is not None:
        file.unlink()
        file.write_bytes(new)
        file.chmod(0o600)
    elif damage == "gone":
        file.unlink()
    elif damage == "no proof":
        proof.unlink()
    else:
        proof.write_text("{" if damage == "proof is text" else "[1]")
    for _ in range(2):
        assert again(monkeypatch) == (True, BUILT)
        works()
    assert cc.calls == 2


@pytest.mark.parametrize(
    "content", ["", "[]", '{"float32": "8"}', '{"float32": -3}', '{"float32": null}', '{"float32": 4']
)
def test_damaged_measurements_are_made_again(
    content: str, cc: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again(monkeypatch)
    monkeypatch.setattr(linear, "_measure", lambda kind: 7)
    name = tmp_path / "kernels" / f"{border.key_of_library()}-{torch.get_num_threads()}.json"
    name.write_text(content)
    name.chmod(0o600)
    assert linear.rows_limit("float32") == 7
    assert json.loads(name.read_text()) == {"float32": 7}


@pytest.mark.parametrize("what", ["folder", "library"])
@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_what_others_can_write_is_not_loaded(
    what: str, mode: int, cc: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again(monkeypatch)
    home = tmp_path / "kernels"
    path = home if what == "folder" else libraries(home)[0]
    path.chmod(mode)
    before = sorted(home.iterdir())
    for calls in (2, 3):
        assert again(monkeypatch) == (True, f"{BUILT}, for this run alone: others can write to `{path}`")
        assert cc.calls == calls
        assert not Path(border.library()._name).is_relative_to(home)
        assert not Path(border.library()._name).exists()
        works()
    assert sorted(home.iterdir()) == before


def test_a_folder_of_somebody_else(cc: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    again(monkeypatch)
    monkeypatch.setattr(os, "geteuid", lambda: (tmp_path / "kernels").stat().st_uid + 1)
    owner = os.stat
    if os.getuid() == 0:  # what root has made is trusted by all
        os.chown(tmp_path / "kernels", 12345, -1)
    value, reason = again(monkeypatch)
    assert value and reason.endswith(f"`{tmp_path / 'kernels'}` belongs to somebody else")
    assert owner is os.stat


def test_a_cache_that_cannot_be_written(cc: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A good library in it is used, with what is measured anew; without one it is built for the run."""
    again(monkeypatch)

    def refused(content: bytes, path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(store, "place", refused)
    monkeypatch.setattr(linear, "_measure", lambda kind: 7)
    assert again(monkeypatch) == (True, BUILT)
    assert linear.rows_limit("float32") == 7
    assert cc.calls == 1
    monkeypatch.setenv("QWENCH_NATIVE_CACHE", str(tmp_path / "other"))
    told = f"{BUILT}, for this run alone: `{tmp_path / 'other'}` cannot be written (Permission denied)"
    assert again(monkeypatch) == (True, told)
    works()
    monkeypatch.setenv("QWENCH_NATIVE_CACHE", "/proc/none/kernels")
    assert again(monkeypatch)[0]


def test_synced_before_it_has_its_name(cc: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda n: (done.append("sync"), fsync(n))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append(Path(b).suffix), replace(a, b))[1])
    again(monkeypatch)
    assert done == ["sync", ".so", "sync", "sync", ".json", "sync"]


def test_a_compiler_that_fails_is_asked_once_a_day(
    cc: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cc.does("echo 'x.c:1: error: planted' >&2; exit 1")
    reasons = [again(monkeypatch) for _ in range(3)]
    assert cc.calls == 1 and not any(value for value, _ in reasons)
    assert all("failed: x.c:1: error: planted" in reason for _, reason in reasons)
    assert "asked again tomorrow" in reasons[1][1] and "tomorrow" not in reasons[0][1]
    assert choose.pick_kernels("auto", "cpu") == choose.Choice("eager", reasons[1][1])
    with pytest.raises(QwenchError, match="planted"):
        choose.pick_kernels("native", "cpu")
    # It is named to the user on the day's first run alone.
    monkeypatch.setattr(store, "today", lambda: "2999-01-01")
    for told in ([Warned("kernels", reasons[0][1])], []):
        anew(monkeypatch)
        assert list(choose.prepared(Runtime(kernels="auto", device="cpu"))) == told
    assert cc.calls == 2


def test_a_compiler_that_was_ended_is_asked_again(cc: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    cc.does("kill -9 $$")
    for calls in (1, 2):
        assert "signal 9" in again(monkeypatch)[1]
        assert cc.calls == calls


def test_wrong_results_are_remembered(cc: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_library, "fault_of", lambda: "join came out wrong in the check after the build")
    first = again(monkeypatch)
    monkeypatch.setattr(native_library, "fault_of", check.fault_of)
    assert first == again(monkeypatch) == (False, "join came out wrong in the check after the build")
    assert cc.calls == 1
    with pytest.raises(RuntimeError, match="not loaded"):
        border.library()


def test_a_compiler_of_several_words(cc: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `ccache gcc`; and what is no command at all."""
    wrapper = tmp_path / "ccache"
    wrapper.write_text('#!/bin/sh\necho wrapped >> "$0.log"\nexec "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("CC", f"{wrapper} '{cc.path}'")
    assert again(monkeypatch) == (True, BUILT)
    assert cc.calls == 1 and (tmp_path / "ccache.log").exists()
    for wrong, said in (("no-such-cc -O1", "no C compiler `no-such-cc`"), ("gcc 'a", "$CC is no command")):
        monkeypatch.setenv("CC", wrong)
        assert said in again(monkeypatch)[1]


def test_a_long_compile_is_told(cc: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "PATIENCE", 0.05)
    cc.does("sleep 0.5\n" + cc.path.read_text().splitlines()[-1])
    anew(monkeypatch)
    assert (
        list(choose.prepared(Runtime(kernels="eager", device="cpu")))
        == list(choose.prepared(Runtime(kernels="auto", device="cuda")))
        == []
    )
    assert not cc.calls
    events = choose.prepared(Runtime(kernels="auto", device="cpu"))
    assert next(events) == Started("build kernels")
    assert not libraries(store.cache())  # it is told while the compiler is at work
    *during, after = events
    assert set(during) == {Advanced("build kernels", 0, detail="once for this machine")} and after == Started("load")
    works()
    assert list(choose.prepared(Runtime(kernels="auto", device="cpu"))) == []


def test_whoever_stops_listening_ends_the_compiler(cc: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "PATIENCE", 0.05)
    cc.does('echo $$ > "$0.pid"; exec sleep 60')
    anew(monkeypatch)
    events = choose.prepared(Runtime(kernels="native", device="cpu"))
    next(events)
    events.close()
    with pytest.raises(ProcessLookupError):
        os.kill(int(Path(f"{cc.path}.pid").read_text()), 0)
    assert not native_library._found


def test_chat_tells_of_the_build(cc: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "PATIENCE", 0.05)
    cc.does("sleep 0.2\n" + cc.path.read_text().splitlines()[-1])
    anew(monkeypatch)
    options = ChatOptions(model=str(byte_decoder(tmp_path / "m")), runtime=Runtime(device="cpu"))
    events = list(Chat(options).load())
    assert Started("build kernels") in events
    assert Chose("kernels", "native", BUILT) in events


def test_a_command_says_what_it_does_not_load_and_why(qwench, cc: Compiler, tmp_path: Path) -> None:
    """A library that was cut short is built again; one that others can write to is left alone."""
    folder, home = byte_decoder(tmp_path / "m"), tmp_path / "kernels"
    env = {"QWENCH_NATIVE_CACHE": str(home), "CC": f"'{cc.path}'"}
    for calls in (1, 2, 3):
        done = qwench("chat", "-m", folder, "hi", "--max-tokens", 1, "--device", "cpu", env=env)
        assert done.returncode == 0, done.stderr
        assert cc.calls == calls
        assert (f"warning: {BUILT}, for this run alone: others can write to" in done.stderr) == (calls == 3)
        (file,) = libraries(home)
        if calls == 1:
            file.write_bytes(file.read_bytes()[:9000])
        else:
            home.chmod(0o777)
