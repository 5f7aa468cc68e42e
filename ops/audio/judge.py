"""What every judge of dialogues has in common, and how what one writes becomes a score."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base.errors import QwenchError
from ..base.parse import decoded
from ..base.paths import local
from .sounds import Sound
from .verdicts import PROMPTS, SCALE, verdict


@dataclass(frozen=True, slots=True)
class Draw:
    """One judgement.

    Attributes:
        score: None where there is none, and then `reason` tells why.
        text, thinking: as it was written, None of judges that write nothing.
        form: whether the text has the form that was asked for.
    """

    score: float | None
    reason: str | None = None
    text: str | None = None
    thinking: str | None = None
    form: bool | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a judge that writes is asked.

    Attributes:
        name: published, own (the one with thoughts is ours), or file.
        think: a closed thought is part of the form.
    """

    name: str
    text: str
    think: bool

    @property
    def hash(self) -> str:
        """Of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

    @classmethod
    def of(cls, name: str, file: str | None) -> Prompt:
        """A prompt by its name, or the text of a file in its place.

        Raises:
            QwenchError: an unknown name, or a file that cannot be read or holds nothing.
        """
        if name not in PROMPTS:
            raise QwenchError(f"unknown --prompt: `{name}`", f"use {' or '.join(PROMPTS)}", 2)
        text, think = PROMPTS[name]
        if file is None:
            return cls("own" if think else name, text, think)
        try:
            text = decoded(Path(local(file, "the prompt")).expanduser().read_bytes(), "the prompt")
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            raise QwenchError(f"the prompt cannot be read ({why}): `{file}`", "give a text file") from error
        if not text.strip():
            raise QwenchError(f"the prompt is empty: `{file}`", "leave --prompt-file out for the published one")
        return cls("file", text, think)


@dataclass(frozen=True, slots=True)
class Asking:
    """How a judge that writes is asked: its prompt, the scores there are, and how much it may write.

    Attributes:
        temperature: 0 is greedy.
    """

    prompt: Prompt
    scale: tuple[int, ...] = SCALE
    max_tokens: int = 1024
    temperature: float = 0.0

    def draw(self, text: str, cut: bool, seed: int | None, thought: str | None = None) -> Draw:
        """What is to be read of a text.

        Args:
            cut: it ended at max_tokens.
            thought: what a server has taken out of the text as a thought.
        """
        whole = text if thought is None else f"<think>{thought}</think>{text}"
        found = verdict(whole, self.scale, self.prompt.think)
        reason = found.reason
        if reason is not None and cut:
            reason += f", and it was cut after {self.max_tokens:,} tokens"
        return Draw(found.score, reason, text, found.thinking, found.form, seed)


class Judge:
    """Who scores dialogues.

    Attributes:
        kind: text, scalar, random or acoustic. name: as rows tell it. revision: of its weights, where it has some.
        witness: it is no audio language model, and is there to be compared with.
        rate: of the sounds that it is given, in Hz.
        alone: one dialogue at a time, several times at once: a server has batches of its own.
    """

    kind: str
    name: str
    revision: str | None = None
    witness = False
    rate = 16_000
    alone = False

    @property
    def settings(self) -> dict[str, Any]:
        """All that changes a score, JSON-able."""
        return {}

    def ready(self, sound: Sound) -> Any:
        """What `draws` needs of a dialogue.

        Raises:
            QwenchError: it cannot be heard.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Nobody waits for an answer any more."""

    def draws(self, ready: Sequence[Any], seeds: Sequence[Sequence[int]]) -> list[list[Draw]]:
        """Judgements of several dialogues, one for each of its seeds."""
        raise NotImplementedError
