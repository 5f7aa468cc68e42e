"""`wav build`: lengths, paths, resuming, and rows that are none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qwench.ops.audio import build as building
from qwench.ops.audio.build import BuildOptions, build, wave_name
from qwench.ops.audio.riff import encode, read
from qwench.ops.base.errors import QwenchError
from qwench.ops.base.events import Finished, Warned


def tone(seconds: float, rate: int = 16_000, hertz: float = 220.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for name, seconds, hertz in (("q7.q", 2, 200), ("q7.a1", 3, 300), ("q7.a2", 4, 400)):
        (folder / f"{name}.wav").write_bytes(encode(tone(seconds, hertz=hertz), 16_000))
    return folder


def ran(events: Iterator[Any]) -> tuple[dict[str, Any], list[str]]:
    *told, last = events
    assert isinstance(last, Finished)
    return last.result, [e.message for e in told if isinstance(e, Warned)]


def made(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


def test_a_folder_becomes_waves_whose_paths_hold(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result, _ = ran(build(BuildOptions(str(folder), str(out))))
    assert (result["made"], result["kept"], result["seconds"]) == (2, 0, 13.0)
    for row, seconds in zip(made(out), (6.0, 7.0), strict=True):
        assert (row["seconds"], row["gap_at"], row["gap"], row["question_id"]) == (seconds, 2.0, 1.0, "q7")
        sound = read(out / row["audio"]).samples[:, 0]
        assert len(sound) == seconds * 16_000 and not sound[32_000:48_000].any()
        parts = [read(out / row[p]).samples[:, 0] for p in ("question", "answer")]
        assert (np.concatenate([parts[0], np.zeros(16_000), parts[1]]) == sound).all()


def test_what_is_the_same_is_not_made_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, count = tmp_path / "out", []
    options = BuildOptions(str(folder), str(out))
    real = building.merge

    def counted(*args: Any, **named: Any) -> Any:
        count.append(1)
        if len(count) == 2:
            raise KeyboardInterrupt
        return real(*args, **named)

    monkeypatch.setattr(building, "merge", counted)
    with pytest.raises(KeyboardInterrupt):
        list(build(options))
    assert not (out / "manifest.jsonl").exists()
    result, _ = ran(build(options))
    assert (result["made"], result["kept"]) == (1, 1)
    whole = (out / "manifest.jsonl").read_bytes()
    assert ran(build(options))[0]["kept"] == 2 and (out / "manifest.jsonl").read_bytes() == whole
    # A wave of the output that was changed, a part that was, and another setting are all seen.
    (out / made(out)[0]["audio"]).write_bytes(b"x")
    assert ran(build(options))[0]["made"] == 1 and (out / "manifest.jsonl").read_bytes() == whole
    (folder / "q7.a2.wav").write_bytes(encode(tone(1), 16_000))
    assert ran(build(options))[0]["made"] == 1
    assert ran(build(BuildOptions(str(folder), str(out), order="aq")))[0]["made"] == 2
    assert sorted(p.name for p in out.iterdir() if not p.name.endswith(".lock")) == [
        "manifest.jsonl",
        "q7.a1.wav",
        "q7.a2.wav",
    ]


def test_conversations_and_paths_from_elsewhere(folder: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "rows" / "m.jsonl"
    manifest.parent.mkdir()
    turns = [
        {"role": r, "content": [{"type": "text", "text": r}, {"type": "audio", "audio": f"../in/{n}.wav"}]}
        for r, n in (("user", "q7.q"), ("assistant", "q7.a1"))
    ]
    manifest.write_text(json.dumps({"id": "a/../b", "conversation": turns, "gold": 3}))
    result, warnings = ran(build(BuildOptions(str(manifest), str(tmp_path / "out"), rate=8000, level_rms=-20.0)))
    assert result["made"] == 1 and any("outside the manifest's folder" in w for w in warnings)
    (row,) = made(tmp_path / "out")
    assert row["question_text"] == "user" and row["gold"] == 3 and "/" not in row["audio"]
    assert read(tmp_path / "out" / row["audio"]).rate == 8000
    assert {p.name for p in tmp_path.iterdir()} == {"in", "rows", "out"}


def test_names_keep_ids_apart() -> None:
    names = ["a b", "a-b", "a/b", "../a", "", ".", "日本", "x" * 300]
    assert len({wave_name(n) for n in names}) == len(names)
    assert all("/" not in wave_name(n) and not wave_name(n).startswith(".") for n in names)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"question": "q7.q.wav"}, "line 1: no question and answer"),
        ({"question": "q7.q.wav", "answer": "none.wav"}, "line 1: the sound is not there"),
        ({"question": "q7.q.wav", "answer": "q7.a1.wav", "gold": 9}, "line 1: gold is 9"),
        ({"question": 7, "answer": "q7.a1.wav"}, "line 1: `question` is no path"),
        ({"messages": [{"role": "user", "content": "hi"}]}, "line 1: the conversation has no two turns"),
    ],
)
def test_rows_that_are_none(folder: Path, tmp_path: Path, row: dict, says: str) -> None:
    manifest = folder / "m.jsonl"
    manifest.write_text(json.dumps(row) + "\n" + json.dumps({"question": "q7.q.wav", "answer": "q7.a1.wav"}))
    with pytest.raises(QwenchError, match=says):
        list(build(BuildOptions(str(manifest), str(tmp_path / "out"))))
    assert not (tmp_path / "out").exists()
    result, warnings = ran(build(BuildOptions(str(manifest), str(tmp_path / "out"), keep_going=True)))
    assert result["made"] == result["failed"] == 1 and any(says in w for w in warnings)


@pytest.mark.parametrize("name", ["q7.q", "q7.a2"])
def test_a_wave_is_never_written_over_a_part(folder: Path, name: str) -> None:
    """Neither of its own row nor of another."""
    manifest = folder / "m.jsonl"
    rows = [{"id": name, "question": "q7.q.wav", "answer": "q7.a1.wav"}]
    rows.append({"id": "x", "question": "q7.q.wav", "answer": "q7.a2.wav"})
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = (folder / f"{name}.wav").read_bytes()
    with pytest.raises(QwenchError, match="line 1: its wave would be written over"):
        list(build(BuildOptions(str(manifest), str(folder))))
    assert (folder / f"{name}.wav").read_bytes() == before


def test_nothing_is_made_for_a_sound_that_is_bad(folder: Path, tmp_path: Path) -> None:
    (folder / "q7.a2.wav").write_bytes(encode(np.zeros(16_000), 16_000))
    with pytest.raises(QwenchError, match=r"`q7\.a2\.wav`: the answer is silent"):
        list(build(BuildOptions(str(folder), str(tmp_path / "out"))))
    assert not (tmp_path / "out").exists()


def test_the_command(qwench, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = qwench("wav", "build", folder, "--out", out, "--dry-run")
    assert done.returncode == 0 and "2 dialogues to be made" in done.stderr and not out.exists()
    done = qwench("wav", "build", folder, "--out", out)
    assert done.returncode == 0 and "2 dialogues made, 0 there already; 13" in done.stderr, done.stderr
    (folder / "q7.a1.wav").write_bytes(b"ID3" + bytes(9))
    done = qwench("wav", "build", folder, "--out", out)
    assert done.returncode == 1 and "MP3 under the name of a WAV" in done.stderr
