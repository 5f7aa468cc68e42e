"""One sequence of the decode loop: thinking and answer have a budget each.

States: idle (nothing said yet), thinking, grace (budget used, waiting for the end of a sentence) and answer. They
follow from its own generated ids, and from where its prompt ends; tags further up in the prompt do not count.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..models.tokenizer import TextTokenizer
from .sampling import PLAIN, Sampler, Sampling
from .thinking import SENTENCE, Stream, Think
from .writer import Turn, seed_of

if TYPE_CHECKING:
    from torch import Tensor

#: ids of a prompt that its last character may reach over
CONTEXT = 8


@dataclass(slots=True)
class Request:
    """One prompt and its limits.

    Attributes:
        key: what its results are called.
        ids: the prompt.
        max_tokens: of the answer; thinking never eats from it.
        budget: tokens between the tags, -1 for what the context has room for. 0 lets no block begin.
        opened: the prompt ends inside an open block; begun: it ends inside an answer.
        exact: the text goes on from the prompt's, so that white space at its beginning is part of it.
        think_stop: hard, or sentence: up to a tenth more to finish one.
        stops: strings that end the answer, not part of it.
        logprobs: number of alternatives to tell with every token of the answer, None for none.
        samples: turns wanted of the prompt.
        think: tags and message, where they are not the generator's.
    """

    key: Any
    ids: list[int]
    max_tokens: int = 1024
    budget: int = -1
    opened: bool = False
    think_stop: str = "hard"
    sampling: Sampling = PLAIN
    seed: int = 0
    stops: tuple[str, ...] = ()
    logprobs: int | None = None
    begun: bool = False
    exact: bool = False
    samples: int = 1
    think: Think | None = None

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.ids)


class Row:
    """One sequence on its way."""

    def __init__(
        self,
        request: Request,
        tokenizer: TextTokenizer,
        think: Think,
        ends: frozenset[int],
        room: int,
        sample: int = 0,
    ) -> None:
        self.request, self.tokenizer, self.think, self.ends = request, tokenizer, think, ends
        seed = seed_of(request.seed, sample)
        self.turn = Turn(request.key, prompt_tokens=len(request.ids), sample=sample, seed=seed)
        self.turn.sampling, self.turn.budget = request.sampling, request.budget
        tags = [t for t in (think.open, think.close) if t is not None]
        self.sampler = Sampler(request.sampling, seed, request.ids, [*ends, *tags])
        stops = () if think.tagged else ("</think>",)
        before = request.ids[-CONTEXT:] if request.exact else []
        thoughts, words = (before, []) if request.opened else ([], before)
        self.thoughts = Stream(tokenizer, stops, not thoughts, thoughts)
        self.words = Stream(tokenizer, request.stops, not words, words)
        self.state = "thinking" if request.opened else "answer" if request.begun else "idle"
        # Room for the answer and the message that leads to it is set aside before any thought.
        most = self.limit = max(room - len(think.message), 0)
        self.limited_by = "length"
        if 0 <= request.budget <= self.limit:
            self.limit, self.limited_by = request.budget, "budget"
        #: tokens more to finish a sentence; they too leave the answer its room
        self.grace = min(max(self.limit // 10, 1), most - self.limit) if request.think_stop == "sentence" else 0
        self.begun = time.perf_counter()
        self.back = 0  # tokens to take out of the cache before the next pass

    def take(self, logits: Tensor) -> tuple[list[int], list[tuple[str, str]]]:
        """(ids to feed next, none when it is over; pieces of text)."""
        if not self.turn.first_seconds:
            self.turn.first_seconds = time.perf_counter() - self.begun
        if self.state in ("idle", "answer"):
            logits = self._without_tags(logits)
        token = self.sampler.draw(logits)
        if self.state == "idle":
            if token == self.think.open:
                self.state = "thinking"
                # What follows the thought goes on from no text.
                self.words = Stream(self.tokenizer, self.request.stops)
                return [self._kept(token)], []
            self.state = "answer"
        if self.state == "answer":
            return self._answer(token, logits)
        return self._thinking(token)

    def _without_tags(self, logits: Tensor) -> Tensor:
        """No close without a block, and no block inside an answer or where there is no room for one."""
        banned = [self.think.close] if self.state == "answer" else []
        if self.state == "answer" or self.limit <= 0:
            banned.append(self.think.open)
        found = [t for t in banned if t is not None and t < len(logits)]
        if not found:
            return logits
        logits = logits.clone()
        logits[found] = float("-inf")
        return logits

    def _kept(self, token: int) -> int:
        self.turn.generated.append(token)
        self.sampler.saw(token)
        return token

    def _thinking(self, token: int) -> tuple[list[int], list[tuple[str, str]]]:
        turn = self.turn
        if token == self.think.close:
            self._close("model")
            return [self._kept(token)], self._piece("thinking", self.thoughts.flush())
        if turn.thinking_tokens >= self.limit and self._over():
            return self._forced(self.think.message, self.limited_by)
        if token in self.ends:
            return self._forced(self.think.end, "model")
        self._kept(token)
        turn.thinking_tokens += 1
        pieces = self._piece("thinking", self.thoughts.push(token))
        if self.thoughts.stopped:
            self._close("model")
        return [token], pieces

    def _over(self) -> bool:
        """The budget is used up, and so is the grace for a sentence."""
        if self.limited_by != "budget" or not self.limit or self.turn.thinking_tokens >= self.limit + self.grace:
            return True
        tail = self.thoughts.text.rstrip(" ")
        return not tail or tail.endswith(SENTENCE)

    def _forced(self, message: list[int], by: str) -> tuple[list[int], list[tuple[str, str]]]:
        turn = self.turn
        while turn.thinking_tokens and self.thoughts.partial:
            self.thoughts.drop()
            turn.generated.pop()
            turn.thinking_tokens -= 1
            self.back += 1
        said = self.thoughts.flush()
        words = self._decoded(message).split("</think>")[0].rstrip()
        self._close(by)
        turn.inserted_tokens += len(message)
        return list(message), self._piece("thinking", said) + self._piece("thinking", self.thoughts.say(words))

    def _decoded(self, ids: list[int]) -> str:
        return self.thoughts._decode(ids, skip_special_tokens=False)

    def _close(self, by: str) -> None:
        self.state, self.turn.closed_by = "answer", by

    def _answer(self, token: int, logits: Tensor) -> tuple[list[int], list[tuple[str, str]]]:
        turn = self.turn
        if self.request.logprobs is not None:
            turn.logprobs.append(_logprobs(token, logits, self.request.logprobs))
        self._kept(token)
        if token in self.ends:
            return self.finish("stop")
        turn.answer_tokens += 1
        pieces = self._piece("answer", self.words.push(token))
        reason = (
            "stop_string" if self.words.stopped else "length" if turn.answer_tokens >= self.request.max_tokens else ""
        )
        if reason:
            over, rest = self.finish(reason)
            return over, pieces + rest
        return [token], pieces

    def finish(self, reason: str) -> tuple[list[int], list[tuple[str, str]]]:
        """The end: texts and times are filled in."""
        turn = self.turn
        turn.finish = reason
        if self.state == "thinking":
            turn.closed_by = "user"
        pieces = self._piece("thinking", self.thoughts.flush())
        if not self.words.stopped:
            pieces += self._piece("answer", self.words.flush())
        thoughts, exact = self.thoughts.text, self.request.exact and self.request.opened
        turn.thinking, turn.answer = thoughts if exact else thoughts.strip(), self.words.text
        turn.seconds = time.perf_counter() - self.begun
        return [], pieces

    @staticmethod
    def _piece(kind: str, text: str) -> list[tuple[str, str]]:
        return [(kind, text)] if text else []


def _logprobs(token: int, logits: Tensor, count: int) -> dict[str, Any]:
    shares = logits.log_softmax(-1)
    found: dict[str, Any] = {"id": token, "logprob": float(shares[token])}
    if count:
        values, ids = shares.topk(count)
        found["top"] = [{"id": int(i), "logprob": float(v)} for i, v in zip(ids, values, strict=True)]
    return found
