"""The judge by arithmetic: its numbers against sounds that are made to have them, and what controls take from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qwench.ops.audio.acoustic import NUMBERS, RIDGE, Fit, features, measured, pitch, softmax_fit
from qwench.ops.audio.riff import encode
from qwench.ops.audio.score_options import ScoreOptions
from qwench.ops.audio.scores import score
from qwench.ops.audio.sounds import Sound, joined
from qwench.ops.base.errors import QwenchError
from qwench.ops.base.events import Chose, Finished, Produced, Warned
from qwench.ops.jobs.job import JobOptions

RATE = 16_000


def voice(seconds: float, hertz: float, loud: float = 0.1, seed: int = 0) -> np.ndarray:
    """Ten harmonics of a falling line, and a little noise."""
    at = np.arange(round(seconds * RATE)) / RATE
    found = sum(np.sin(2 * np.pi * hertz * n * at) / n for n in range(1, 11))
    found = found + 0.01 * np.random.default_rng(seed).normal(size=len(at))
    return loud * found / np.sqrt(np.mean(found**2))


@pytest.mark.parametrize("hertz", [77.0, 108.0, 161.0, 227.0, 330.0])
def test_the_pitch_of_a_voice(hertz: float) -> None:
    assert pitch(voice(0.5, hertz), RATE) == pytest.approx(hertz, rel=0.02)
    noise = np.random.default_rng(0).normal(0, 0.1, 8000)
    assert pitch(noise, RATE) == 1.0 and pitch(np.zeros(8000), RATE) == 1.0


def test_the_numbers_of_a_voice() -> None:
    quiet = np.zeros(4000)
    sound = np.concatenate([quiet, voice(1.0, 108, 0.05), quiet])
    found = dict(zip(NUMBERS, np.exp(measured(sound, RATE, 20)), strict=True))
    assert found["seconds_a_letter"] == pytest.approx(0.05, rel=0.05)
    assert found["loudness"] == pytest.approx(0.05, rel=0.03) and found["pitch"] == pytest.approx(108, rel=0.02)
    high = np.exp(measured(voice(1.0, 216, 0.05), RATE, 20))
    assert high[3] > 1.5 * found["brightness"]
    assert measured(np.zeros(16_000), RATE, 20) is None and measured(np.zeros(0), RATE, 20) is None


def test_what_nobody_says_has_no_words() -> None:
    both = voice(1, 108), voice(1, 120)
    sound = joined(Sound(np.zeros(0), RATE, *both, ("Say it faster: a red boat", "A RED boat!"), "qa", RATE))
    assert features(sound).overlap == 1.0 and "faster" in features(sound).words
    silent = joined(Sound(np.zeros(0), RATE, both[0], np.zeros(RATE), sound.texts, "qa", RATE))
    assert features(silent).overlap == 0.0 and features(silent).numbers is None
    # Heard the other way round, the question is taken for the answer.
    swapped = joined(Sound(np.zeros(0), RATE, *both, sound.texts, "aq", RATE))
    assert features(swapped).overlap == pytest.approx(3 / 6) and features(swapped).words == {"a", "red", "boat"}
    with pytest.raises(QwenchError, match="needs transcripts"):
        features(joined(Sound(np.zeros(0), RATE, *both)))


def test_the_fit_is_at_its_least_loss() -> None:
    random = np.random.default_rng(0)
    x, y = np.concatenate([np.ones((60, 1)), random.normal(size=(60, 3))], 1), random.integers(3, size=60)
    weights = softmax_fit(x, y, 3)
    p = np.exp(x @ weights)
    p /= p.sum(1, keepdims=True)
    assert np.abs(x.T @ (p - np.eye(3)[y]) + RIDGE * weights).max() < 1e-6
    with pytest.raises(QwenchError, match="2 dialogues with 1 different labels"):
        Fit([features_of(), features_of()], [3, 3]).fitted()


def features_of() -> Any:
    both = voice(1, 108), voice(1, 120)
    return features(joined(Sound(np.zeros(0), RATE, *both, ("say it", "it"), "qa", RATE)))


def dialogues(folder: Path, seed: int) -> Path:
    """Wishes for a higher and a lower voice; wrong words, the wrong voice, and both right; a neutral voice beside."""
    folder.mkdir()
    random, rows = np.random.default_rng(seed), []
    (folder / "q.wav").write_bytes(encode(voice(1.0, 110), RATE))
    (folder / "n.wav").write_bytes(encode(voice(1.0, 120), RATE))
    for number in range(8):
        wish, good, bad = (("higher", 200, 80), ("lower", 80, 200))[number % 2]
        said, other = f"boat{number} tree", f"lamp{number} stone"
        for gold, words, hertz in ((1, other, good), (3, said, bad), (5, said, good)):
            name = f"{number}-{gold}.wav"
            (folder / name).write_bytes(encode(voice(0.8 + random.random() / 2, hertz, 0.1, seed), RATE))
            row = {"question_id": str(number), "question": "q.wav", "answer": name, "answer_neutral": "n.wav"}
            row |= {"gold": gold, "question_text": f"say {wish} {said}", "answer_text": words}
            rows.append(row | {"id": name})
    (folder / "m.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder / "m.jsonl"


def test_silence_leaves_chance_and_one_neutral_voice_the_words(tmp_path: Path) -> None:
    fit, held = dialogues(tmp_path / "fit", 0), dialogues(tmp_path / "held", 1)
    names = ("silence", "text", "order", "loudness")
    options = ScoreOptions("acoustic", fit=str(fit), controls=names, job=JobOptions(rows=str(held)))
    *told, last = score(options)
    assert isinstance(last, Finished) and not [e for e in told if isinstance(e, Warned) and e.kind == "fit"]
    found, controls = last.result, last.result["controls"]
    assert found["agreement"]["accuracy"] == 1.0 and found["ranking"]["share"] == 1.0 and found["witness"]
    assert controls["silence"]["agreement"]["accuracy"] == pytest.approx(1 / 3)
    assert controls["silence"]["ranking"]["share"] == 0.5
    assert (
        controls["text"]["ranking"]["content"]["share"] == 1.0 and controls["text"]["ranking"]["form"]["share"] == 0.5
    )
    rows = [e.row for e in told if isinstance(e, Produced)]
    assert all(r["witness"] and r["model"] == "acoustic" for r in rows)
    *told, _ = score(ScoreOptions("acoustic", fit=str(held), job=JobOptions(rows=str(held))))
    assert any(isinstance(e, Warned) and "24 dialogues are also in --fit" in e.message for e in told)
    assert any(isinstance(e, Chose) and e.name == "fit" and e.value == 24 for e in told)


def test_a_fit_that_is_none(tmp_path: Path) -> None:
    held = dialogues(tmp_path / "held", 1)
    with pytest.raises(QwenchError, match="made from labelled dialogues"):
        list(score(ScoreOptions("acoustic", job=JobOptions(rows=str(held)))))
    bare = held.with_name("bare.jsonl")
    bare.write_text(json.dumps({"question": "q.wav", "answer": "n.wav", "question_text": "a", "answer_text": "b"}))
    with pytest.raises(QwenchError, match="--fit, line 1: no `gold`"):
        list(score(ScoreOptions("acoustic", fit=str(bare), job=JobOptions(rows=str(held)))))
