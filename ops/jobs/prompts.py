"""Rows of prompts through a writer: what `chat --prompts` and `sample` have in common, and the work of the first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..base.events import Events, Warned
from ..writing.many import REQUEST, messages_of
from ..writing.session import Chat, ChatOptions
from ..writing.writer import Ask, Turn
from .rows import Key
from .work import Work


class Prompts(Work):
    """Rows of messages, a prompt or a question; see Work.

    Args:
        samples: of every prompt.

    Attributes:
        before: messages that come before every row's own.

    Raises:
        QwenchError: an option that does not fit.
    """

    def __init__(self, options: ChatOptions, samples: int = 1) -> None:
        self._options, self._samples = options, samples
        self.chat = Chat(options)
        self.before = list(self.chat.messages)
        self._unheard: set[str] = set()

    def load(self, rows: int) -> Events:
        """See Work."""
        # Every slot has keys and values of its own, used or not.
        slots = max(min(self._options.slots, rows * self._samples), 1)
        self.chat = Chat(replace(self._options, slots=slots, seed=self.chat.seed))
        yield from self.chat.load()
        self.writer = self.chat.writer

    def adopt(self, settings: Mapping[str, Any]) -> None:
        """See Work: the seed, where none is asked for."""
        if self._options.seed is None and isinstance(settings.get("seed"), int):
            self.chat.seed = settings["seed"]

    @property
    def settings(self) -> dict[str, Any]:
        """See Work."""
        o = self._options
        return {
            **self.chat.writer.about,
            "seed": self.chat.seed,
            "max_tokens": o.max_tokens,
            "sampling": dict(o.sampling),
            "think_budget": self.chat.budget,
            "think_stop": o.think_stop,
            "think_message": o.think_message,
            "force_think": o.force_think,
            "stops": list(o.stops),
            "logprobs": o.logprobs,
            "before": self.before,
        }

    def ask(self, row: dict[str, Any], key: Key, seed: int) -> Ask:
        """A row's messages as an ask.

        Raises:
            QwenchError: there are none.
        """
        self._unheard |= {name for name in REQUEST if name in row}
        return self.chat.ask(key, [*self.before, *messages_of(row)], seed)

    def remarks(self) -> Iterator[Warned]:
        """See Work: a line about fields of rows that would ask for something, and do not here."""
        if names := [f"`{name}`" for name in REQUEST if name in self._unheard]:
            text = f"rows have {', '.join(names)}, carried along and not heard: flags ask for all rows alike"
            yield Warned("rows", text)

    def count(self, results: list[Turn]) -> dict[str, int]:
        """See Work: what the prompts would have taken sample by sample is prefilled and cached together."""
        cached = sum(turn.cached_tokens for turn in results)
        return {
            "samples": len(results),
            "prefilled_tokens": sum(turn.prompt_tokens for turn in results) - cached,
            "cached_tokens": cached,
            "generated_tokens": sum(len(t.generated) or t.thinking_tokens + t.answer_tokens for t in results),
        }


class Answers(Prompts):
    """The work of `chat --prompts`: what `Chat.report` tells of an answer, beside the row's fields."""

    name = "prompts"

    def begin(self, row: dict[str, Any], key: Key) -> Sequence[Ask]:
        """See Work."""
        return [self.ask(row, key, self.chat.seed + key.number)]

    def finish(self, row: dict[str, Any], results: list[Turn]) -> dict[str, Any]:
        """See Work."""
        return self.chat.report(results[0])
