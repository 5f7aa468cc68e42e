"""Waves brought to one rate, measured, and two of them merged into one dialogue."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..base.errors import QwenchError
from .riff import Wave

Mono = NDArray[np.float64]
#: seconds of the shortest part; RMS below which a part is silent (-80 dB)
SHORTEST, SILENT = 0.1, 1e-4
#: a sample this near to full scale counts as clipped, and so large a share of them is told
FULL, CLIPPED = 32767 / 32768, 0.01
#: seconds of whole dialogues in the paper
USUAL = (5.0, 35.0)
#: half of the filter's length in periods of the lower rate, as in scipy
PERIODS = 10


@dataclass(frozen=True, slots=True)
class Merged:
    """samples: (n,) at `rate`; first, gap: lengths in samples of what is heard first and of the pause."""

    samples: Mono
    rate: int
    first: int
    gap: int
    warnings: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.samples) / self.rate

    @property
    def parts(self) -> tuple[Mono, Mono]:
        """What is heard first, and what follows the pause."""
        return self.samples[: self.first], self.samples[self.first + self.gap :]


def mono(wave: Wave, rate: int) -> Mono:
    """The average of the channels, (n,) at `rate`; n is the length times the ratio of the rates, rounded up."""
    one = wave.samples.mean(1)
    if wave.rate == rate:
        return one
    from scipy.signal import resample_poly

    shared = math.gcd(wave.rate, rate)
    return resample_poly(one, rate // shared, wave.rate // shared)


def rms(samples: Mono) -> float:
    """Root of the mean square, full scale is 1."""
    return float(np.sqrt(np.mean(np.square(samples)))) if len(samples) else 0.0


def levelled(samples: Mono, decibels: float) -> Mono:
    """The same sound with an RMS of so many decibels of full scale; silence stays silent."""
    now = rms(samples)
    return samples if now == 0 else samples * (10 ** (decibels / 20) / now)


def clipped(samples: Mono) -> float:
    """Share of samples at or beyond full scale."""
    return float(np.mean(np.abs(samples) >= FULL)) if len(samples) else 0.0


def remarks(samples: Mono, what: str) -> list[str]:
    """What is odd about a sound: silent, or clipped."""
    found = []
    if rms(samples) < SILENT:
        found.append(f"{what} is silent")
    if (share := clipped(samples)) > CLIPPED:
        found.append(f"{share:.1%} of {what} is clipped")
    return found


def check_part(samples: Mono, rate: int, what: str) -> None:
    """Raises:
    QwenchError: it is shorter than 0.1 s, or silent.
    """
    if len(samples) < SHORTEST * rate:
        raise QwenchError(f"{what} is {len(samples) / rate:.3f} s long, shorter than {SHORTEST} s", "record it again")
    if rms(samples) < SILENT:
        raise QwenchError(f"{what} is silent", "record it again")


def merge(
    question: Wave, answer: Wave, gap: float = 1.0, rate: int = 16_000, order: str = "qa", level: float | None = None
) -> Merged:
    """Question, pause, answer (or with `aq` the other way round) as one mono wave.

    Parts are resampled before they are joined, so that the pause is exactly `gap` seconds of zeros.

    Args:
        level: RMS in decibels of full scale that both parts are brought to; None leaves them.

    Raises:
        QwenchError: a part is shorter than 0.1 s, or silent.
    """
    parts, told = [], list[str]()
    for what, wave in (("the question", question), ("the answer", answer)):
        samples = mono(wave, rate)
        check_part(samples, rate, what)
        if level is not None:
            samples = levelled(samples, level)
        told += remarks(samples, what)
        parts.append(samples)
    first, second = parts if order == "qa" else parts[::-1]
    pause = round(gap * rate)
    whole = np.concatenate([first, np.zeros(pause), second])
    if not USUAL[0] <= (seconds := len(whole) / rate) <= USUAL[1]:
        told.append(f"the dialogue is {seconds:.1f} s long, outside the usual {USUAL[0]:.0f} to {USUAL[1]:.0f} s")
    return Merged(whole, rate, len(first), pause, tuple(told))
