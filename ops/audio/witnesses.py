"""Judges that are no audio language models, to be compared with: chance, and a few numbers of the sound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .acoustic import Fit, Fitted, features
from .judge import Draw, Judge
from .sounds import Sound


class RandomJudge(Judge):
    """Any score of the scale, drawn by the row's seed without looking at the sound.

    Args:
        scale: the scores there are.
    """

    kind = name = "random"
    witness = True

    def __init__(self, scale: tuple[int, ...]) -> None:
        self.scale = scale

    def ready(self, sound: Sound) -> Any:
        """See Judge: which control it is, so that each is a draw of its own."""
        return list(sound.control.encode())

    def draws(self, ready: Sequence[Any], seeds: Sequence[Sequence[int]]) -> list[list[Draw]]:
        """See Judge."""
        return [[self._drawn(one, seed) for seed in row] for one, row in zip(ready, seeds, strict=True)]

    def _drawn(self, control: list[int], seed: int) -> Draw:
        random = np.random.default_rng([seed, *control])
        return Draw(int(random.choice(self.scale)), seed=seed)


class AcousticJudge(Judge):
    """A softmax over few numbers of the answer's sound, see `acoustic`; its words are the transcripts that are given.

    Args:
        fit: labelled dialogues that it is made from.
    """

    kind = name = "acoustic"
    witness = True

    def __init__(self, fit: Fit, digest: str) -> None:
        self.digest = digest
        self.fitted: Fitted = fit.fitted()

    @property
    def settings(self) -> dict[str, Any]:
        """See Judge."""
        return {"fit": self.digest}

    def ready(self, sound: Sound) -> Any:
        """See Judge."""
        return features(sound)

    def draws(self, ready: Sequence[Any], seeds: Sequence[Sequence[int]]) -> list[list[Draw]]:
        """See Judge: each of its draws is the same."""
        scores = self.fitted.scores(ready)
        return [[Draw(score, seed=seed) for seed in row] for score, row in zip(scores, seeds, strict=True)]
