"""What a judge hears of a row: the dialogue, and the same with one thing changed, which is a control."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..base.errors import QwenchError
from . import riff
from .waves import USUAL, Mono, levelled, mono, remarks

#: name -> what is changed
CONTROLS = {
    "order": "the answer first",
    "silence": "silence in the place of the answer",
    "text": "the same words by one neutral voice",
    "loudness": "both parts at one loudness",
}
#: decibels that `loudness` brings both parts to
LEVEL = -26.0
PARTS = "give question and answer, or gap_at of the sound"


@dataclass(frozen=True, slots=True)
class Sound:
    """A dialogue as it is heard.

    Attributes:
        whole: (n,) at `rate`.
        question, answer: the parts, None where it is not known where one ends.
        texts: what is said in them, where that is told.
        order: qa, or aq where the answer is heard first.
        gap: samples between them.
        data: the file that `whole` is of, where it is a WAV file.
        control: what is changed, "" for nothing.
    """

    whole: Mono
    rate: int
    question: Mono | None = None
    answer: Mono | None = None
    texts: tuple[str | None, str | None] = (None, None)
    order: str = "qa"
    gap: int = 0
    data: bytes | None = None
    control: str = ""

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.whole) / self.rate

    @property
    def heard(self) -> tuple[tuple[Mono, str | None], tuple[Mono, str | None]]:
        """(sound, words) of what is heard first, and of what is heard after the pause.

        Raises:
            QwenchError: it is not known where the one ends.
        """
        if self.question is None or self.answer is None:
            raise QwenchError("it is not told where the question ends and the answer begins", PARTS)
        both = (self.question, self.texts[0]), (self.answer, self.texts[1])
        return both if self.order == "qa" else both[::-1]

    @property
    def remarks(self) -> list[str]:
        """What is odd about it: silent, clipped, or of unusual length."""
        parts = [("the question", self.question), ("the answer", self.answer)]
        told = [text for what, part in parts if part is not None for text in remarks(part, what)]
        if self.question is None:
            told = remarks(self.whole, "the sound")
        if not USUAL[0] <= self.seconds <= USUAL[1]:
            told.append(f"it is {self.seconds:.1f} s long, outside the usual {USUAL[0]:.0f} to {USUAL[1]:.0f} s")
        return told


def sound_of(row: dict[str, Any], base: Path, rate: int, gap: float = 1.0) -> Sound:
    """The dialogue of a row: its audio, else its question and answer with a pause between.

    Args:
        row: see `manifest.flat`. base: the folder that its paths are relative to.
        gap: seconds of the pause where the row does not tell.

    Raises:
        QwenchError: a wave that cannot be read, or a `gap_at` that is not in it.
    """
    texts = tuple(t if isinstance(t := row.get(f"{part}_text"), str) else None for part in ("question", "answer"))
    pause = round(_number(row, "gap", gap) * rate)
    order = "aq" if row.get("order") == "aq" else "qa"
    if not row.get("audio"):
        question, answer = (mono(riff.read(base / row[part]), rate) for part in ("question", "answer"))
        return joined(Sound(np.zeros(0), rate, question, answer, texts, order, pause))
    path = base / row["audio"]
    whole = mono(riff.read(path), rate)
    data = path.read_bytes() if path.suffix.lower() in (".wav", ".wave") else None
    found = Sound(whole, rate, None, None, texts, order, pause, data)
    if row.get("gap_at") is not None:
        at = round(_number(row, "gap_at", 0.0) * rate)
        if not 0 < at < at + pause < len(whole):
            raise QwenchError(f"gap_at is {row['gap_at']} s in a sound of {found.seconds:.2f} s", "correct the row")
        first, second = whole[:at], whole[at + pause :]
        return replace(found, question=first if order == "qa" else second, answer=second if order == "qa" else first)
    if row.get("question") and row.get("answer"):
        question, answer = (mono(riff.read(base / row[part]), rate) for part in ("question", "answer"))
        return replace(found, question=question, answer=answer)
    return found


def _number(row: dict[str, Any], name: str, default: float) -> float:
    value = row.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e6:
        raise QwenchError(f"`{name}` is no number of seconds: {value!r}", "correct the row")
    return float(value)


def joined(sound: Sound) -> Sound:
    """The whole, anew from its parts."""
    first, second = (part for part, _ in sound.heard)
    return replace(sound, whole=np.concatenate([first, np.zeros(sound.gap), second]), data=None)


def controlled(sound: Sound, name: str, row: dict[str, Any], base: Path) -> Sound | None:
    """The dialogue with one thing changed; None where `text` has no neutral voice to take.

    Raises:
        QwenchError: parts that are not known, or a neutral wave that cannot be read.
    """
    assert sound.question is not None and sound.answer is not None
    sound = replace(sound, control=name)
    if name == "order":
        return joined(replace(sound, order="aq" if sound.order == "qa" else "qa"))
    if name == "silence":
        return joined(replace(sound, answer=np.zeros(len(sound.answer))))
    if name == "loudness":
        parts = (levelled(part, LEVEL) for part in (sound.question, sound.answer))
        return joined(replace(sound, question=next(parts), answer=next(parts)))
    if not row.get("answer_neutral"):
        return None
    neutral = {
        part: mono(riff.read(base / row[f"{part}_neutral"]), sound.rate)
        for part in ("question", "answer")
        if row.get(f"{part}_neutral")
    }
    return joined(replace(sound, **neutral))
