"""Prompts become samples: the work behind `qwench sample`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..base.errors import QwenchError
from ..text.rows import Malformed
from ..writing.many import messages_of
from ..writing.session import ChatOptions
from ..writing.writer import Ask, Turn
from .job import JobOptions
from .prompts import Prompts
from .rows import Key, Table


@dataclass(frozen=True, slots=True)
class SampleOptions:
    """Everything `qwench sample` can be told.

    Attributes:
        n: samples of every prompt.
        shots: file of examples that come before every prompt: rows of messages, or of prompt or question and answer.
        prefix_field: column with the beginning of the answer, which is gone on from.
        chat: how is asked; its slots are samples at a time.
        job: which rows, and where they go.
    """

    n: int = 1
    shots: str | None = None
    prefix_field: str | None = None
    chat: ChatOptions = field(default_factory=ChatOptions)
    job: JobOptions = field(default_factory=JobOptions)


def seed_of_row(seed: int, key: str) -> int:
    """Seed of a row's first sample, 31 bits of a hash of the run's seed and the row's key; `seed_of` has the others."""
    return int.from_bytes(hashlib.sha256(json.dumps([seed, key]).encode()).digest()[:4], "big") >> 1


class Samples(Prompts):
    """See Work: `samples`, each with text, finish, tokens and seed, and thinking or log-probabilities.

    Raises:
        QwenchError: an option that does not fit, or examples that cannot be read.
    """

    name = "sample"

    def __init__(self, options: SampleOptions) -> None:
        if options.n < 1:
            raise QwenchError("--n must be at least 1", code=2)
        super().__init__(options.chat, options.n)
        self.options = options
        self.before += shots_of(options.shots) if options.shots else []

    @property
    def settings(self) -> dict[str, Any]:
        """See Work."""
        return super().settings | {"n": self.options.n, "prefix_field": self.options.prefix_field}

    def begin(self, row: dict[str, Any], key: Key) -> Sequence[Ask]:
        """See Work."""
        ask = self.ask(row, key, seed_of_row(self.chat.seed, key))
        return [replace(ask, samples=self.options.n, prefix=self._prefix(row))]

    def _prefix(self, row: dict[str, Any]) -> str:
        name = self.options.prefix_field
        if name is None:
            return ""
        if not isinstance(row.get(name, 0), str | None):
            raise QwenchError(f"there is no text in the field `{name}`", "give a text, or null where there is none")
        return row[name] or ""

    def finish(self, row: dict[str, Any], results: list[Turn]) -> dict[str, Any]:
        """See Work."""
        return {"samples": [self._sample(turn) for turn in results]}

    def _sample(self, turn: Turn) -> dict[str, Any]:
        found: dict[str, Any] = {"text": turn.answer}
        if turn.closed_by is not None:
            found |= {
                "thinking": turn.thinking,
                "closed_by": turn.closed_by,
                "thinking_tokens": turn.thinking_tokens,
            }
        found |= {"finish": turn.finish, "tokens": turn.answer_tokens, "seed": turn.seed}
        return found | ({"logprobs": turn.logprobs} if self.options.chat.logprobs is not None else {})


def shots_of(name: str) -> list[dict[str, Any]]:
    """Messages of a file of examples.

    Raises:
        QwenchError: it cannot be read, or holds none.
    """
    found: list[dict[str, Any]] = []
    for row in Table(name):
        try:
            if isinstance(row.value, Malformed):
                raise QwenchError(f"it {row.value}")
            found += messages_of(row.value)
            if row.value.get("messages") is None:
                if not isinstance(row.value.get("answer"), str):
                    raise QwenchError("there is no text in the field `answer`", "every example needs one")
                found.append({"role": "assistant", "content": row.value["answer"]})
        except QwenchError as error:
            raise QwenchError(f"--shots, {row.place}: {error.message}", error.hint) from error
    if not found:
        raise QwenchError(f"there are no examples: `{name}`", "leave --shots out")
    return found
