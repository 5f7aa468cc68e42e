"""A judge by arithmetic: how fast, loud, high and bright an answer is, and whether its words are those asked for.

The words are the given transcripts, and count as far as there is a sound: what nobody says has no words. A wish ("say
it faster") is in the words of the question, so each of them has weights of its own for the numbers of the answer.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..base.errors import QwenchError
from .sounds import Sound
from .waves import Mono

#: seconds of a frame, and its loudness against the loudest below which nobody speaks
FRAME, QUIET = 0.02, 0.05
#: an answer with less is no answer; seconds
LEAST = 0.1
#: of voices, in Hz; how alike a frame and itself one period later must be
PITCH, VOICED = (60.0, 400.0), 0.6
#: strength of the ridge, and steps of Newton
RIDGE, STEPS = 0.3, 30
NUMBERS = ("seconds_a_letter", "loudness", "pitch", "brightness")


@dataclass(frozen=True, slots=True)
class Features:
    """Of a dialogue.

    Attributes:
        numbers: those of NUMBERS, logarithms, (4,); None where the answer is silent.
        words: of the question.
        overlap: share of the answer's words that are also the question's.
    """

    numbers: NDArray[np.float64] | None
    words: frozenset[str]
    overlap: float


def features(sound: Sound) -> Features:
    """What is computed of a dialogue: of what is heard after the pause, which is taken for the answer.

    Raises:
        QwenchError: the parts or the transcripts are not told.
    """
    (_, asked), (answer, said) = sound.heard
    if asked is None or said is None:
        raise QwenchError("the acoustic judge needs transcripts", "give question_text and answer_text")
    words, spoken = _words(asked), _words(said)
    numbers = measured(answer, sound.rate, len(re.sub(r"\W", "", said)))
    overlap = sum(w in words for w in spoken) / len(spoken) if numbers is not None and spoken else 0.0
    return Features(numbers, frozenset(words), overlap)


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", text.casefold())


def measured(samples: Mono, rate: int, letters: int) -> NDArray[np.float64] | None:
    """The NUMBERS of a sound (n,), None where there is no voice in it."""
    wide = round(FRAME * rate)
    frames = samples[: len(samples) // wide * wide].reshape(-1, wide)
    loud = np.sqrt(np.mean(frames**2, 1)) if len(frames) else np.zeros(0)
    if not len(loud) or loud.max() < 1e-3:
        return None
    spoken = loud > QUIET * loud.max()
    if spoken.sum() * FRAME < LEAST:
        return None
    # From the first to the last of it: pauses are part of how fast somebody speaks.
    at = np.flatnonzero(spoken)
    seconds = (at[-1] - at[0] + 1) * FRAME
    power = np.abs(np.fft.rfft(frames[spoken] * np.hanning(wide), axis=1)) ** 2
    bright = (power @ np.fft.rfftfreq(wide, 1 / rate)).sum() / power.sum()
    level = np.sqrt(np.mean(frames[spoken] ** 2))
    return np.log([seconds / max(letters, 1), level, pitch(samples, rate), bright])


def pitch(samples: Mono, rate: int) -> float:
    """Median over voiced frames of 40 ms of the first strong peak of their autocorrelation, in Hz; 1 of none."""
    wide = round(0.04 * rate)
    low, high = (int(rate / hertz) for hertz in PITCH[::-1])
    # A frame is compared with what follows it, so that late periods are as long as early ones.
    starts = np.arange(0, len(samples) - wide - high, wide // 2)
    found = []
    loudest = float(np.sqrt(np.mean(samples**2)))
    for start in starts:
        frame = samples[start : start + wide]
        energy = float(frame @ frame)
        if energy <= wide * (0.3 * loudest) ** 2:
            continue
        ahead = samples[start : start + wide + high]
        products = np.correlate(ahead, frame, "valid")
        squares = np.concatenate([[0.0], np.cumsum(ahead**2)])
        alike = products / np.sqrt(energy * np.maximum(squares[wide:] - squares[:-wide], 1e-12))
        best = float(alike[low:].max())
        if best >= VOICED:
            # The first peak that is nearly the best: twice the period is as alike as the period.
            at = low + int(np.argmax(alike[low:] >= 0.93 * best))
            while at + 1 < len(alike) and alike[at + 1] > alike[at]:
                at += 1
            found.append(rate / at)
    return float(np.median(found)) if found else 1.0


@dataclass(slots=True)
class Fit:
    """Labelled dialogues."""

    seen: list[Features] = field(default_factory=list)
    golds: list[int] = field(default_factory=list)

    def fitted(self) -> Fitted:
        """The softmax of least loss, with a ridge.

        Raises:
            QwenchError: fewer than two labels, or dialogues that are all silent.
        """
        labels = sorted(set(self.golds))
        spoken = [f.numbers for f in self.seen if f.numbers is not None]
        if len(labels) < 2 or not spoken:
            raise QwenchError(
                f"--fit has {len(self.golds):,} dialogues with {len(labels)} different labels",
                "give labelled dialogues of two labels at least",
            )
        counts = Counter(word for f in self.seen for word in f.words)
        # What every question says tells nothing, and what one alone says cannot be learnt from.
        kept = sorted(w for w, n in counts.items() if 2 <= n < len(self.seen))
        middle, spread = np.mean(spoken, 0), np.std(spoken, 0) + 1e-6
        made = Fitted(labels, kept, middle, spread, np.zeros((0, 0)))
        x = made.columns(self.seen)
        y = np.array([labels.index(g) for g in self.golds])
        made.weights = softmax_fit(x, y, len(labels))
        return made


@dataclass(slots=True)
class Fitted:
    """A softmax: labels, the question's words it knows, and weights (columns, labels)."""

    labels: list[int]
    words: list[str]
    middle: NDArray[np.float64]
    spread: NDArray[np.float64]
    weights: NDArray[np.float64]

    def columns(self, seen: Sequence[Features]) -> NDArray[np.float64]:
        """(n, columns): 1, overlap, silence, the numbers, and these again for every word of the question."""
        rows = []
        for one in seen:
            silent = one.numbers is None
            z = np.zeros(len(NUMBERS)) if one.numbers is None else (one.numbers - self.middle) / self.spread
            z = np.clip(z, -3, 3)
            crossed = [z if word in one.words else np.zeros(len(z)) for word in self.words]
            rows.append(np.concatenate([[1.0, 2 * one.overlap, float(silent)], z, *crossed]))
        return np.array(rows)

    def scores(self, seen: Sequence[Features]) -> list[int]:
        """The likeliest label of each."""
        if not seen:
            return []
        return [self.labels[i] for i in (self.columns(seen) @ self.weights).argmax(1)]


def softmax_fit(x: NDArray[np.float64], y: NDArray[np.int64], labels: int) -> NDArray[np.float64]:
    """Weights (columns, labels) of least cross-entropy over rows plus RIDGE / 2 of their squares, by gradient steps.

    Args:
        x: (n, columns), the first is 1. y: (n,) numbers of labels.
    """
    weights = np.zeros((x.shape[1], labels))
    target = np.eye(labels)[y]
    # The curvature is at most half of the largest square of x, so that each step goes down.
    step = 1 / (0.5 * np.linalg.norm(x, 2) ** 2 + RIDGE)
    ahead, last, speed = weights, weights, 1.0
    for _ in range(STEPS * 100):
        z = x @ ahead
        p = np.exp(z - z.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        weights = ahead - step * (x.T @ (p - target) + RIDGE * ahead)
        faster = (1 + (1 + 4 * speed * speed) ** 0.5) / 2
        ahead, last, speed = weights + (speed - 1) / faster * (weights - last), weights, faster
    return weights
