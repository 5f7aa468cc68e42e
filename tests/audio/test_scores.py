"""`wav score` by witnesses, tiny models and a server: rows, controls, resuming, and what is refused."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from qwench.ops.audio.riff import encode
from qwench.ops.audio.score_options import ScoreOptions
from qwench.ops.audio.scores import score
from qwench.ops.base.errors import QwenchError
from qwench.ops.base.events import Finished, Produced, Warned
from qwench.ops.base.runtime import Runtime
from qwench.ops.jobs.job import JobOptions

from tests.audio.tiny_listeners import checkpoint, noise
from tests.writing.stub import Stub, serving


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Two questions with three answers each, labelled 1, 3, 5."""
    folder = tmp_path / "in"
    folder.mkdir()
    rows = []
    for q in range(2):
        (folder / f"q{q}.wav").write_bytes(encode(noise(2.5, q), 16_000))
        for a, gold in enumerate((1, 3, 5)):
            name = f"q{q}a{a}"
            (folder / f"{name}.wav").write_bytes(encode(noise(1.6 + 0.3 * a, 10 * q + a), 16_000))
            rows.append({"id": name, "question_id": f"q{q}", "question": f"q{q}.wav", "answer": f"{name}.wav"})
            rows[-1] |= {
                "gold": gold,
                "attribute": ("speed", "pitch")[q],
                "question_text": "say so",
                "answer_text": "so",
            }
    return written(folder / "m.jsonl", rows)


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def ran(manifest: Path, out: str = "-", job: dict[str, Any] | None = None, **options: Any) -> tuple[Any, list, list]:
    """(result, rows that were put out, warnings)"""
    runtime = options.pop("runtime", Runtime(device="cpu"))
    job_ = JobOptions(rows=str(manifest), out=out, **(job or {}))
    events: Iterator[Any] = score(ScoreOptions(runtime=runtime, job=job_, **options))
    *told, last = events
    assert isinstance(last, Finished)
    produced = [e.row for e in told if isinstance(e, Produced)]
    return last.result, produced, [e.message for e in told if isinstance(e, Warned)]


KINDS = ["qwen2_5_omni_thinker", "qwen3_omni_moe_thinker", "qwen2_audio"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_rows_is_its_rows(kind: str, manifest: Path, tmp_path: Path) -> None:
    model = str(checkpoint(tmp_path / "m", kind))
    (tmp_path / "asked.txt").write_text("Which?")
    own = {
        "model": model,
        "max_tokens": 6,
        "controls": ("order", "silence"),
        "prompt_file": str(tmp_path / "asked.txt"),
    }
    _, together, _ = ran(manifest, job={"limit": 4}, batch=5, **own)
    _, alone, _ = ran(manifest, job={"limit": 4}, batch=1, **own)
    assert together == alone and len(together) == 4
    for row in together:
        assert row["score"] is None and "cut after 6 tokens" in row["reason"] and row["format"] is False
        assert row["prompt"] == "file" and row["witness"] is False and row["revision"]
    # The tiny mixture's words do not hang on the sound; its logits do, see test_omni.
    assert kind == KINDS[1] or any(r["controls"]["silence"]["text"] != r["text"] for r in together)


def test_draws_hang_on_the_seed_alone(manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "asked.txt").write_text("Which?")
    own = {"model": str(checkpoint(tmp_path / "m", KINDS[0])), "max_tokens": 4}
    own["prompt_file"] = str(tmp_path / "asked.txt")
    drawn = ran(manifest, **own | (draw := {"job": {"limit": 2}, "samples": 3, "temperature": 1.0, "seed": 3}))[1]
    assert drawn == ran(manifest, **own | draw)[1]
    assert len({s["text"] for s in drawn[0]["samples"]}) > 1 and drawn[0]["text"] == drawn[0]["samples"][0]["text"]
    other = ran(manifest, **own | draw | {"samples": 1})[1]
    assert [r["text"] for r in other] == [r["text"] for r in drawn]


def test_it_goes_on_after_a_kill(manifest: Path, tmp_path: Path) -> None:
    model, out = checkpoint(tmp_path / "m", KINDS[0]), tmp_path / "scores.jsonl"
    asked = tmp_path / "asked.txt"
    asked.write_text("Which?")
    # Enough that a busy machine does not end before it is killed.
    rows = rows_of(manifest)
    written(manifest, [{**row, "id": f"{row['id']}-{n}"} for n in range(3) for row in rows])
    own = {"model": str(model), "max_tokens": 8, "batch": 1, "prompt_file": str(asked)}
    command = [sys.executable, "-m", "qwench.cli.main", "wav", "score", str(manifest), "--model", str(model), "--out"]
    command += [str(out), "--max-tokens", "8", "--batch", "1", "--device", "cpu"]
    command += ["--prompt-file", str(asked)]
    env = os.environ | {"QWENCH_HOME": str(tmp_path / "home")}
    journal = tmp_path / ".scores.jsonl.job"
    child = subprocess.Popen(command, env=env, stderr=subprocess.PIPE)
    end = time.monotonic() + 120
    while not (journal.exists() and journal.read_bytes().count(b"\n") >= 3) and time.monotonic() < end:
        assert child.poll() is None, child.stderr.read()
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not out.exists()
    result, _, _ = ran(manifest, str(out), **own)
    assert 2 <= result["done"] < 18 and result["rows"] == 18
    whole = tmp_path / "whole.jsonl"
    ran(manifest, str(whole), **own)
    assert rows_of(out) == rows_of(whole)
    with pytest.raises(QwenchError, match="max_tokens was 8, is 5"):
        ran(manifest, str(out), **own | {"max_tokens": 5})
    # A sound that has changed since is heard anew.
    (manifest.parent / "q0a0.wav").write_bytes(encode(noise(2, 99), 16_000))
    assert ran(manifest, str(out), **own)[0]["done"] == 15


def scalar(folder: Path, **config: Any) -> Path:
    """A checkpoint with a head of random numbers."""
    from safetensors.torch import load_file, save_file

    checkpoint(folder, KINDS[0])
    weights = load_file(folder / "model.safetensors")
    weights["score_head.weight"] = torch.randn(1, 48, generator=torch.Generator().manual_seed(1))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(told | config))
    return folder


def test_a_scalar_head_is_its_layer_over_the_mean(manifest: Path, tmp_path: Path) -> None:
    from qwench.ops.audio.omni import AUDIO, Listener
    from qwench.ops.audio.sounds import sound_of
    from safetensors.torch import load_file

    model = scalar(tmp_path / "m")
    result, rows, _ = ran(manifest, model=str(model), batch=4)
    assert result["agreement"] is None and result["ranking"]["pairs"] == 6 and result["head"] == "scalar"
    assert [r["score"] for r in rows] == pytest.approx(
        [r["score"] for r in ran(manifest, model=str(model), batch=1)[1]]
    )
    listener = Listener(model, "cpu", heads=("score_head.",))
    given = rows_of(manifest)[4]
    sound = sound_of(given, manifest.parent, 16_000)
    turns = [
        ("user", [{"type": "text", "text": "say so"}, AUDIO]),
        ("assistant", [{"type": "text", "text": "so"}, AUDIO]),
    ]
    heard = listener.conversation(turns, [sound.question, sound.answer], False)
    hidden = listener.model(**listener.inputs([heard]), output_hidden_states=True).hidden_states[-1][0]
    weight = load_file(model / "model.safetensors")["score_head.weight"]
    assert rows[4]["score"] == pytest.approx(float(weight[0] @ hidden.detach().mean(0)), rel=1e-4)
    last = ran(manifest, model=str(scalar(tmp_path / "last", pooler="last")))[1]
    assert last[4]["score"] == pytest.approx(float(weight[0] @ hidden.detach()[-1]), rel=1e-4)


def test_heads_that_are_none_are_refused(manifest: Path, tmp_path: Path) -> None:
    plain = str(checkpoint(tmp_path / "plain", KINDS[0]))
    with pytest.raises(QwenchError, match=r"no `score_head\.weight`"):
        ran(manifest, model=plain, head="scalar")
    with pytest.raises(QwenchError, match="not known here: `attention`"):
        ran(manifest, model=str(scalar(tmp_path / "a", pooler="attention")))
    with pytest.raises(QwenchError, match="neither reads a prompt nor draws"):
        ran(manifest, model=str(tmp_path / "a"), prompt="think")


def test_a_server_hears_the_file_itself(manifest: Path, tmp_path: Path) -> None:
    def brain(body: dict[str, Any]) -> str:
        return "<think>well</think><score>5</score>" if body["seed"] % 2 else "<score>3</score>"

    sound = encode(noise(6), 16_000)
    (manifest.parent / "whole.wav").write_bytes(sound)
    rows = [{"id": "w", "audio": "whole.wav", "gold": 5}, rows_of(manifest)[0]]
    given = written(manifest.parent / "two.jsonl", rows)
    with serving(Stub(brain)) as stub:
        runtime = Runtime(engine=stub.address)
        result, found, _ = ran(given, runtime=runtime, samples=2, temperature=1.0)
        posts = stub.posts()
        assert len(posts) == 4 and result["scored"] == 2 and {r["score"] for r in found} <= {3, 5}
        for body in posts:
            first, second = body["messages"][0]["content"]
            assert len(body["messages"]) == 1 and first["type"] == "input_audio" and second["type"] == "text"
            assert second["text"].endswith("<score>X</score> (**X is 1, 3, or 5**)\n")
            assert first["input_audio"]["format"] == "wav"
        sent = {base64.b64decode(b["messages"][0]["content"][0]["input_audio"]["data"]) for b in posts}
        assert sound in sent and len(sent) == 2
        assert len(min(sent, key=len)) == 44 + 2 * (40_000 + 16_000 + 25_600)
        ran(given, runtime=runtime, audio_part="audio_url")
        url = stub.posts()[-1]["messages"][0]["content"][0]["audio_url"]["url"]
        assert url.startswith("data:audio/wav;base64,") and base64.b64decode(url.partition(",")[2]) in sent
        with pytest.raises(QwenchError, match="unknown --audio-part"):
            ran(given, runtime=runtime, audio_part="file")


def test_a_server_that_refuses_fails_its_row_alone(manifest: Path) -> None:
    def refuse(handler: Any) -> bool:
        handler.send(400, {"error": {"message": "audio is not supported"}})
        return True

    with serving(Stub(lambda body: "<score>1</score>")) as stub:
        stub.faults.append(refuse)
        result, rows, warnings = ran(manifest, job={"at_once": 1}, runtime=Runtime(engine=stub.address))
    assert result["failed"] == 1 and rows[0]["failed"].endswith("audio is not supported")
    assert rows[1]["score"] == 1 and any("line 1 failed" in w for w in warnings)


def test_an_interrupt_leaves_nobody_waiting_for_a_server(manifest: Path) -> None:
    gone = threading.Event()

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    def silent(handler: Any) -> bool:
        if stub.flying == 6:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGALRM)
        return gone.wait(60)

    with serving(Stub(lambda body: "<score>1</score>")) as stub:
        stub.faults += [silent] * 6
        before = signal.signal(signal.SIGALRM, stop)
        try:
            with pytest.raises(KeyboardInterrupt):
                ran(manifest, runtime=Runtime(engine=stub.address))
            waiting = [t for t in threading.enumerate() if t.name.startswith("qwench-job")]
            for thread in waiting:
                thread.join(10)
            assert not any(t.is_alive() for t in waiting)
        finally:
            signal.signal(signal.SIGALRM, before)
            gone.set()


def test_controls_are_what_they_say(manifest: Path) -> None:
    from qwench.ops.audio.sounds import controlled, sound_of
    from qwench.ops.audio.waves import rms

    row = rows_of(manifest)[0]
    plain = sound_of(row, manifest.parent, 16_000)
    q, a = plain.question, plain.answer
    gap = np.zeros(16_000)
    assert (plain.whole == np.concatenate([q, gap, a])).all()
    order = controlled(plain, "order", row, manifest.parent)
    assert (order.whole == np.concatenate([a, gap, q])).all() and order.heard[0][1] == "so"
    silence = controlled(plain, "silence", row, manifest.parent)
    assert len(silence.whole) == len(plain.whole) and not silence.whole[len(q) :].any()
    loud = controlled(plain, "loudness", row, manifest.parent)
    assert rms(loud.question) == pytest.approx(rms(loud.answer)) == pytest.approx(10 ** (-26 / 20))
    assert controlled(plain, "text", row, manifest.parent) is None
    voiced = controlled(plain, "text", row | {"answer_neutral": "q1a2.wav"}, manifest.parent)
    assert len(voiced.answer) == round(2.2 * 16_000) and (voiced.question == q).all()
    # The same of a merged wave, parted where its manifest says, whatever was put first.
    (manifest.parent / "merged.wav").write_bytes(encode(order.whole, 16_000))
    merged = {"audio": "merged.wav", "gap_at": 1.6, "gap": 1.0, "order": "aq"}
    found = sound_of(merged, manifest.parent, 16_000)
    assert len(found.answer) == len(a) and np.allclose(found.question, q, atol=1e-4)
    swapped = controlled(found, "order", merged, manifest.parent)
    assert np.allclose(swapped.whole, plain.whole, atol=1e-4)


def test_controls_need_parts(manifest: Path) -> None:
    (manifest.parent / "whole.wav").write_bytes(encode(noise(6), 16_000))
    given = written(manifest.parent / "w.jsonl", [{"audio": "../in/whole.wav"}])
    with pytest.raises(QwenchError, match="line 1: --controls need to know where the answer begins"):
        ran(given, model="random", controls=("order",))
    assert ran(given, model="random")[0]["scored"] == 1
    (manifest.parent.parent / "far.wav").write_bytes(encode(noise(6), 16_000))
    written(given, [{"audio": "../far.wav"}])
    assert any(
        "outside the manifest's folder and are only read: `../far.wav`" in w for w in ran(given, model="random")[2]
    )
    written(given, [{"audio": "whole.wav", "gap_at": 7.0}])
    _, rows, _ = ran(given, model="random", controls=("order",))
    assert "gap_at is 7.0 s in a sound of 6.00 s" in rows[0]["failed"]


def test_sounds_that_are_odd_are_told_and_bad_ones_fail_alone(manifest: Path) -> None:
    rows = rows_of(manifest)
    (manifest.parent / "q0a0.wav").write_bytes(encode(np.zeros(32_000), 16_000))
    (manifest.parent / "q0a1.wav").write_bytes(b"ID3" + bytes(50))
    (manifest.parent / "q0a2.wav").unlink()
    (manifest.parent / "q1a0.wav").write_bytes(encode(np.sign(noise(36)), 16_000))
    result, found, warnings = ran(manifest, model="random")
    assert (result["failed"], result["scored"], result["warned"]) == (2, 4, 2)
    assert "MP3 under the name of a WAV" in found[1]["failed"] and "is not there" in found[2]["failed"]
    assert found[0]["remarks"] == ["the answer is silent"]
    assert any("line 4: 100.0% of the answer is clipped" in w for w in warnings)
    assert any("line 4: it is 39.5 s long, outside the usual" in w for w in warnings)
    written(manifest, [rows[0] | {"gold": 7}])
    with pytest.raises(QwenchError, match="line 1: gold is 7, and none of 1, 2, 3, 4, 5"):
        ran(manifest, model="random")


def test_a_random_judge_is_chance_and_seeded(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(encode(noise(0.2), 16_000))
    given = written(tmp_path / "m.jsonl", [{"id": n, "audio": "a.wav", "gold": 3} for n in range(300)])
    one, rows, _ = ran(given, model="random", scale=(1, 3, 5))
    assert one["agreement"]["accuracy"] == pytest.approx(1 / 3, abs=0.1)
    assert (
        rows == ran(given, model="random", scale=(1, 3, 5))[1] != ran(given, model="random", scale=(1, 3, 5), seed=1)[1]
    )
    several, _, _ = ran(given, model="random", samples=5)
    assert several["stability"]["rows"] == 300 and several["stability"]["spread"] > 1


def test_a_text_model_has_no_ears(manifest: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "config.json").write_text('{"model_type": "qwen3"}')
    save_file({"x": torch.zeros(1)}, tmp_path / "text" / "model.safetensors")
    with pytest.raises(QwenchError, match="has no audio encoder") as told:
        ran(manifest, model=str(tmp_path / "text"))
    assert told.value.code == 1 and "Qwen2.5-Omni" in told.value.hint


def test_more_memory_than_there_is_is_told_before_loading(manifest: Path, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m", KINDS[0])
    head = json.dumps({"x": {"dtype": "F32", "shape": [1 << 41], "data_offsets": [0, 1 << 43]}}).encode()
    (folder / "model.safetensors").unlink()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        file.truncate(8 + len(head) + (1 << 43))
    with pytest.raises(QwenchError, match=r"needs 8796\.1 GB in float32, and .* GB are free") as told:
        ran(manifest, model=str(folder))
    assert told.value.code == 1 and "--engine http" in told.value.hint


def test_the_command(qwench, lines, manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.jsonl"
    done = qwench(
        "wav", "score", manifest, "--model", "random", "--scale", "1,3,5", "--controls", "order", "--out", out
    )
    assert done.returncode == 0, done.stderr
    assert "6 of 6 dialogues have a score" in done.stderr and "of 6 labelled" in done.stdout
    assert "a witness to compare with" in done.stdout and "majority     0.3333" in done.stdout
    assert all(r["witness"] and r["controls"]["order"]["score"] in (1, 3, 5) for r in rows_of(out))
    done = qwench("wav", "score", manifest, "--model", "random", "--prompt", "think")
    assert done.returncode == 2 and "no audio language model, so --prompt would do nothing" in done.stderr
    (manifest.parent / "q0a0.wav").unlink()
    done = qwench("wav", "score", manifest, "--model", "random", "--fail-under", "1", "--json", "--keep-going")
    assert done.returncode == 3 and len(lines(done.stdout)) == 6
    for wave in manifest.parent.glob("*a?.wav"):
        wave.unlink()
    done = qwench("wav", "score", manifest, "--model", "random", "--keep-going")
    assert done.returncode == 1 and "line 6 failed: the sound is not there: `" in done.stderr
    assert "0 of 0 dialogues have a score" in done.stderr and "6 failed" in done.stderr


def test_what_is_too_long_fails_or_is_told(manifest: Path, tmp_path: Path) -> None:
    for seconds in (31, 36):
        (manifest.parent / f"{seconds}.wav").write_bytes(encode(noise(seconds), 16_000))
    (tmp_path / "asked.txt").write_text("Which?")
    own = {"max_tokens": 1, "prompt_file": str(tmp_path / "asked.txt")}
    given = written(manifest.parent / "long.jsonl", [{"audio": "31.wav"}])
    result, rows, _ = ran(given, model=str(checkpoint(tmp_path / "a", KINDS[2])), **own)
    assert result["failed"] == 1 and "31.0 s long, and the model hears 30 s" in rows[0]["failed"]
    written(given, [{"audio": "36.wav"}])
    result, rows, warnings = ran(given, model=str(checkpoint(tmp_path / "o", KINDS[0])), **own)
    assert result["failed"] == 0 and "line 1: it is 36.0 s long, outside the usual 5 to 35 s" in warnings
