"""One answer of a server on its way: what has been said, by text; what is known of its tokens."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from ..base.errors import QwenchError
from .asking import Asked
from .reply import Part, Tags, Usage, split_thought
from .thinking import Words
from .writer import Piece, Turn


class Spoken:
    """See the module.

    Args:
        count: tokens of a text, None where that is not known.

    Attributes:
        usage: of the request that is being answered; finish: why its answer ended.
    """

    def __init__(self, asked: Asked, sample: int, seed: int, count: Any) -> None:
        self.asked, self.count = asked, count
        self.turn = Turn(asked.key, sample=sample, seed=seed, sampling=asked.sampling, budget=asked.ask.budget)
        self.turn.prompt_tokens = asked.prompt_tokens or 0
        self.thought, self.words = Words(("</think>",), False), Words(asked.ask.stops, False)
        self.usage: Usage | None = None
        self.finish: str | None = None
        self._tags, self._own, self._said = Tags(), "", {"thinking": "", "answer": ""}
        self._events, self._begun = 0, time.perf_counter()

    @property
    def ended(self) -> bool:
        """A stop string has come: nothing after it is heard, should the server go on."""
        return bool(self.words.stopped or (self.thought.stopped and self.turn.closed_by is None))

    @property
    def _begins(self) -> bool:
        """The answer begins in the prompt: whatever follows is part of it."""
        return bool(self.asked.ask.prefix) and not self.asked.opened

    def _strips(self, kind: str) -> bool:
        """White space at the beginning is none of the text's."""
        if kind == "thinking":
            return not (self.asked.exact and self.asked.opened)
        return not self.asked.exact or self.asked.opened or bool(self._said["thinking"])

    def piece(self, kind: str, text: str) -> Iterator[Piece]:
        """Text to be shown, without the white space it is not to begin with."""
        if text and not self.turn.first_seconds:
            self.turn.first_seconds = time.perf_counter() - self._begun
        if not self._said[kind] and self._strips(kind):
            text = text.lstrip()
        if text:
            self._said[kind] += text
            yield Piece(self.turn.key, kind, text, self.turn.sample)

    def think(self, part: Part) -> Iterator[Piece]:
        """Part of a thought that has been opened."""
        if not self.ended:
            self._events += 1
            yield from self.piece("thinking", self.thought.show(part.text))

    def think_over(self) -> Iterator[Piece]:
        """The thought's request is done: its tokens are counted."""
        if not self.thought.stopped:
            yield from self.piece("thinking", self.thought.rest())
        self.turn.thinking_tokens = min(self._tokens(self.thought.text), self.asked.limit)
        self._usage(first=True)

    def close(self, by: str, words: str, tokens: int) -> Iterator[Piece]:
        """The thought ends; `words` have been put in."""
        self.turn.closed_by, self.turn.inserted_tokens = by, tokens
        said = words.split("</think>")[0].rstrip()
        if said:
            yield from self.piece("thinking", self.thought.say(said))

    def answer(self, part: Part) -> Iterator[Piece]:
        """Part of an answer, which may begin with a thought of its own."""
        if self.ended:
            return
        self._events += 1
        self._own += part.thought
        yield from self.piece("thinking", part.thought)
        yield from self._told(self.words.show(part.text))
        self.turn.logprobs += part.logprobs
        by_string = self.words.stopped or (part.matched or "") in self.asked.ask.stops
        self.finish = "stop_string" if by_string else part.finish or self.finish

    def _told(self, text: str, last: bool = False) -> Iterator[Piece]:
        if self._begins or self.turn.closed_by:
            yield from self.piece("answer", text)
        else:
            for kind, said in self._tags.push(text, last):
                yield from self.piece(kind, said)

    def over(self, finish: str | None) -> Iterator[Piece]:
        """The end: texts, tokens and times are filled in."""
        turn = self.turn
        if self.asked.opened and turn.closed_by is None:
            yield from self.think_over()
            turn.closed_by = "user"
        turn.finish = finish or self.finish or "user"
        if not self.words.stopped:
            yield from self._told(self.words.rest(), last=True)
        answer, own = self.words.text, self._own
        if not self._begins:
            # A tag that comes once more, after the close, is no part of an answer.
            more, answer = split_thought(answer)
            own += more
        if own and turn.closed_by is None:
            turn.closed_by = "model" if answer.strip() or turn.finish == "stop" else turn.finish
        thought = self.thought.text + own
        turn.thinking = thought if self.asked.exact and self.asked.opened else thought.strip()
        turn.answer = answer.lstrip() if own or self._strips("answer") else answer
        count = min(self.count(own), self._tokens(own)) if own and self.count else 0
        turn.thinking_tokens += count
        turn.answer_tokens = self._tokens(self.words.text) - count
        self._usage(first=not self.asked.opened)
        turn.seconds = time.perf_counter() - self._begun

    def failed(self, error: QwenchError) -> None:
        """There is no answer, and nothing of it is kept that could be taken for one."""
        turn = self.turn
        turn.finish, turn.error, turn.closed_by = "failed", error, None
        turn.thinking = turn.answer = ""
        turn.thinking_tokens = turn.answer_tokens = turn.inserted_tokens = 0
        turn.logprobs = []
        turn.seconds = time.perf_counter() - self._begun

    def _tokens(self, text: str) -> int:
        """Tokens of the request's reply: the server's count, else the tokenizer's, else one an event."""
        if self.usage and self.usage.completion is not None:
            return self.usage.completion
        return self.count(text) if self.count else self._events

    def _usage(self, first: bool) -> None:
        """The prompt's tokens, of the first request alone."""
        usage, self.usage, self._events = self.usage or Usage(), None, 0
        if first:
            self.turn.prompt_tokens = usage.prompt if usage.prompt is not None else self.turn.prompt_tokens
            self.turn.cached_tokens = usage.cached or 0
