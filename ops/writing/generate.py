"""The decode loop: sequences join and leave while others decode; thinking and answer have a budget each.

States of a sequence: idle (nothing said yet), thinking, grace (budget used, waiting for the end of a sentence) and
answer. They follow from its own generated ids alone; tags in the prompt do not count.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..models.nets.causal import Engine
from ..models.tokenizer import TextTokenizer
from .sampling import PLAIN, Sampler, Sampling
from .thinking import Stream, Think

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(slots=True)
class Request:
    """One prompt and its limits.

    Attributes:
        key: what its results are called.
        ids: the prompt.
        max_tokens: of the answer; thinking never eats from it.
        budget: tokens between the tags, -1 for what the context has room for. 0 lets no block begin.
        opened: the prompt ends inside an open block.
        think_stop: hard, or sentence: up to a tenth more to finish one.
        stops: strings that end the answer, not part of it.
        logprobs: number of alternatives to tell with every token of the answer, None for none.
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


@dataclass(slots=True)
class Turn:
    """What a request came to.

    Attributes:
        thinking, answer: texts; closed_by: model, budget, length or user, None where there was no thinking.
        finish: stop, length, stop_string or user.
        generated: all ids sampled and kept, tags and end included; inserted: ids of the closing message.
    """

    key: Any
    thinking: str = ""
    answer: str = ""
    closed_by: str | None = None
    finish: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    thinking_tokens: int = 0
    answer_tokens: int = 0
    inserted_tokens: int = 0
    generated: list[int] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    first_seconds: float = 0.0


Piece = tuple[Any, str, str]  # key, thinking or answer, text


class _Row:
    """One sequence on its way."""

    def __init__(
        self, request: Request, tokenizer: TextTokenizer, think: Think, ends: frozenset[int], room: int
    ) -> None:
        self.request, self.think, self.ends = request, think, ends
        self.turn = Turn(request.key, prompt_tokens=len(request.ids))
        tags = [t for t in (think.open, think.close) if t is not None]
        self.sampler = Sampler(request.sampling, request.seed, request.ids, [*ends, *tags])
        stops = () if think.tagged else ("</think>",)
        self.thoughts, self.words = Stream(tokenizer, stops), Stream(tokenizer, request.stops)
        self.state = "thinking" if request.opened else "idle"
        # Room for the answer and the message that leads to it is set aside before any thought.
        self.limit = max(room - len(think.message), 0)
        self.limited_by = "length"
        if 0 <= request.budget <= self.limit:
            self.limit, self.limited_by = request.budget, "budget"
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
        grace = max(self.limit // 10, 1) if self.request.think_stop == "sentence" and self.limit else 0
        if self.limited_by != "budget" or self.turn.thinking_tokens >= self.limit + grace:
            return True
        tail = self.thoughts.text.rstrip(" ")
        return not tail or tail.endswith(("\n", ".", "!", "?", "。", "！", "？"))

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
        turn.thinking, turn.answer = self.thoughts.text.strip(), self.words.text
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


class Generator:
    """Runs requests on an engine.

    Args:
        ends: ids that end a turn.

    Attributes:
        stopping: set it, and every sequence ends where it is.
    """

    def __init__(self, engine: Engine, tokenizer: TextTokenizer, think: Think, ends: Iterable[int]) -> None:
        self.engine, self.tokenizer, self.think, self.ends = engine, tokenizer, think, frozenset(ends)
        self.stopping = False
        #: ids whose keys and values slot 0 holds: a session's next turn goes on where its prompt still agrees
        self.held: list[int] = []

    def run(self, requests: Iterable[Request]) -> Iterator[Piece | Turn]:
        """Pieces of text as they come, and a Turn when a request is over; requests are taken as slots get free."""
        waiting = iter(requests)
        self.stopping = False
        rows: list[_Row] = []
        feed: dict[int, list[int]] = {}
        held: list[list[int]] = []
        more = True
        while True:
            while more and len(rows) < self.engine.slots and not self.stopping:
                request = next(waiting, None)
                if request is None:
                    more = False
                    break
                slot, row = len(rows), self._row(request)
                kept = self._agree(request.ids) if not rows else 0
                self.held = []
                self.engine.keep(slot, kept)
                row.turn.cached_tokens = kept
                rows.append(row)
                held.append(list(request.ids))
                feed[slot] = request.ids[kept:]
            if not rows:
                return
            logits = self.engine.feed(feed)
            over: list[int] = []
            for slot, found in zip(list(feed), logits, strict=True):
                row = rows[slot]
                if self.stopping:
                    ids, pieces = row.finish("user")
                else:
                    ids, pieces = row.take(found)
                yield from ((row.turn.key, kind, text) for kind, text in pieces)
                if row.back:
                    self.engine.keep(slot, self.engine.length(slot) - row.back)
                    del held[slot][len(held[slot]) - row.back :]
                    row.back = 0
                feed[slot] = ids
                held[slot] += ids
                if not ids:
                    over.append(slot)
            for slot in reversed(over):
                # The last slot moves into the gap, so that the running ones stay side by side.
                last = len(rows) - 1
                if slot != last:
                    self.engine.swap(slot, last)
                    rows[slot], rows[last] = rows[last], rows[slot]
                    held[slot], held[last] = held[last], held[slot]
                    feed[slot] = feed[last]
                del feed[last]
                ended = held.pop()
                self.held = ended if last == 0 else []
                yield rows.pop().turn

    def _agree(self, ids: list[int]) -> int:
        """Tokens of the prompt that slot 0 holds already; the last is fed in any case, for its logits."""
        most = min(len(ids) - 1, len(self.held), self.engine.length(0))
        return next((i for i in range(most) if ids[i] != self.held[i]), most)

    def _row(self, request: Request) -> _Row:
        # Two more: the tags, which no count includes.
        room = self.engine.context - len(request.ids) - request.max_tokens - 2
        return _Row(request, self.tokenizer, self.think, self.ends, room)
