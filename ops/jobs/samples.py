"""Prompts become samples: the work behind `qwench sample`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..base.errors import QwenchError
from ..base.events import Events
from ..text.rows import Malformed
from ..writing.many import messages_of
from ..writing.session import Chat, ChatOptions
from ..writing.writer import Ask, Turn, Writer
from .job import JobOptions
from .rows import Table


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


class Samples:
    """See Work: `samples`, each with text, finish, tokens and seed, and thinking or log-probabilities.

    Raises:
        QwenchError: an option that does not fit, or examples that cannot be read.
    """

    name = "sample"

    def __init__(self, options: SampleOptions) -> None:
        if options.n < 1:
            raise QwenchError("--n must be at least 1", code=2)
        self.options, self.chat = options, Chat(options.chat)
        self.writer: Writer | None = None
        self.before = [*self.chat.messages, *(_shots(options.shots) if options.shots else ())]

    def load(self, rows: int) -> Events:
        """See Work."""
        o = self.options
        # Every slot has keys and values of its own, used or not.
        slots = max(min(o.chat.slots, rows * o.n), 1)
        self.chat = Chat(replace(o.chat, slots=slots))
        yield from self.chat.load()
        self.writer = self.chat.writer

    @property
    def settings(self) -> dict[str, Any]:
        """See Work."""
        o, c = self.options, self.chat.options
        return {
            **self.chat.writer.about,
            "seed": self.chat.seed,
            "n": o.n,
            "max_tokens": c.max_tokens,
            "sampling": dict(c.sampling),
            "think_budget": self.chat.budget,
            "think_stop": c.think_stop,
            "think_message": c.think_message,
            "force_think": c.force_think,
            "stops": list(c.stops),
            "logprobs": c.logprobs,
            "prefix_field": o.prefix_field,
            "before": self.before,
        }

    def begin(self, row: dict[str, Any], key: str) -> Sequence[Ask]:
        """See Work."""
        ask = self.chat.ask(key, [*self.before, *messages_of(row)], seed_of_row(self.chat.seed, key))
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

    def count(self, results: list[Turn]) -> dict[str, int]:
        """See Work: what the prompts would have taken sample by sample is prefilled and cached together."""
        cached = sum(turn.cached_tokens for turn in results)
        return {
            "samples": len(results),
            "prefilled_tokens": sum(turn.prompt_tokens for turn in results) - cached,
            "cached_tokens": cached,
            "generated_tokens": sum(len(turn.generated) for turn in results),
        }


def _shots(name: str) -> list[dict[str, Any]]:
    """Messages of examples."""
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
