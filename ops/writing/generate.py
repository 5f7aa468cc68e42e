"""The decode loop: sequences join and leave while others decode, and samples of one prompt share its computation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..models.nets.causal import Engine
from ..models.tokenizer import TextTokenizer
from .sequence import Request, Row
from .thinking import Think
from .writer import Piece, Turn, Wait, stuck

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Generator", "Request", "Turn"]


@dataclass(slots=True, eq=False)
class _Samples:
    """Samples of one request, as they are begun.

    Attributes:
        taken: how many are.
        logits: after the prompt, (vocab,), once the first sample's pass has computed them.
    """

    request: Request
    taken: int = 0
    logits: Tensor | None = None


class _Intake:
    """Requests from a source, one sample at a time."""

    def __init__(self, requests: Iterable[Request | Wait]) -> None:
        self._source = iter(requests)
        self._open: list[_Samples] = []
        self._ended = False
        self.waits = False

    def next(self, free: int) -> tuple[_Samples, int] | None:
        """A sample that can begin now, when `free` slots are; slots are kept for samples whose prompt is in work."""
        for group in self._open:
            if group.logits is not None:
                return self._taken(group)
        kept = sum(g.request.samples - g.taken for g in self._open)
        if free <= kept or self._ended or self.waits:
            return None
        request = next(self._source, None)
        if request is None:
            self._ended = True
        elif isinstance(request, Wait):
            self.waits = True
        else:
            self._open.append(_Samples(request))
            return self._taken(self._open[-1])
        return None

    def _taken(self, group: _Samples) -> tuple[_Samples, int]:
        group.taken += 1
        if group.taken == group.request.samples:
            self._open.remove(group)
        return group, group.taken - 1


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
        self.forget()

    def forget(self) -> None:
        """Somebody else uses the engine: nothing of what its slots held is there any more."""
        #: ids whose keys and values each slot holds: a session's next turn goes on where its prompt still agrees
        self.held: list[list[int]] = [[] for _ in range(self.engine.slots)]

    def run(self, requests: Iterable[Request | Wait]) -> Iterator[Piece | Turn]:
        """Pieces of text as they come, and a Turn when a sample is over; requests are taken as slots get free.

        Raises:
            QwenchError: the source of requests waits while nothing is running.
        """
        self.stopping = False
        self._rows: list[Row] = []
        self._feed: dict[int, list[int]] = {}
        self._groups: list[_Samples] = []
        intake = _Intake(requests)
        while True:
            for item in self._fill(intake):
                yield item
                intake.waits &= not isinstance(item, Turn)
            if not self._rows:
                if intake.waits and not self.stopping:
                    raise stuck()
                return
            for item in self._pass():
                yield item
                intake.waits &= not isinstance(item, Turn)

    def _fill(self, intake: _Intake) -> Iterator[Piece | Turn]:
        """Begin samples in the free slots; the turns of those that end with their first token."""
        while len(self._rows) < self.engine.slots and not self.stopping:
            found = intake.next(self.engine.slots - len(self._rows))
            if found is None:
                return
            group, sample = found
            row, slot, prompt = self._row(group.request, sample), len(self._rows), group.request.ids
            first: list[int] = []
            if group.logits is None:
                # A prompt of its own is computed from where a free slot still agrees with it.
                kept = self._nearest(prompt, slot)
                self._keep(slot, kept)
            else:
                first, pieces = row.take(group.logits)
                yield from self._named(row, pieces)
                if not first:
                    yield row.turn
                    continue
                kept = self._copied(prompt, slot)
            row.turn.cached_tokens = kept
            self._rows.append(row)
            self._groups.append(group)
            self._feed[slot] = prompt[kept:] + first

    def _pass(self) -> Iterator[Piece | Turn]:
        """Feed every slot what it said last, and take the next token of each."""
        logits = self.engine.feed(self._feed)
        over: list[int] = []
        for slot, found in zip(list(self._feed), logits, strict=True):
            row, group = self._rows[slot], self._groups[slot]
            self.held[slot] += self._feed[slot]
            if group.request.samples > 1 and group.logits is None:
                group.logits = found.clone()
            ids, pieces = row.finish("user") if self.stopping else row.take(found)
            yield from self._named(row, pieces)
            if row.back:
                self._keep(slot, self.engine.length(slot) - row.back)
                row.back = 0
            self._feed[slot] = ids
            if not ids:
                over.append(slot)
        for slot in reversed(over):
            # The last slot moves into the gap, so that the running ones stay side by side.
            last = len(self._rows) - 1
            if slot != last:
                self.engine.swap(slot, last)
                for values in (self._rows, self._groups, self.held, self._feed):
                    values[slot], values[last] = values[last], values[slot]
            del self._feed[last]
            self._groups.pop()
            yield self._rows.pop().turn

    def _keep(self, slot: int, length: int) -> None:
        self.engine.keep(slot, length)
        del self.held[slot][length:]

    def _nearest(self, ids: list[int], slot: int) -> int:
        """Bring the free slot that holds most of the prompt into place: conversations go on where they were.

        Returns how much that is.
        """
        agree = {s: self._agree(ids, s) for s in range(slot, self.engine.slots)}
        best = max(agree, key=agree.__getitem__)
        if best != slot:
            self.engine.swap(slot, best)
            self.held[slot], self.held[best] = self.held[best], self.held[slot]
        return agree[best]

    def _agree(self, ids: list[int], slot: int) -> int:
        """Tokens of the prompt that a slot holds already; the last is fed in any case, for its logits."""
        held = self.held[slot]
        most = min(len(ids) - 1, len(held), self.engine.length(slot))
        return next((i for i in range(most) if ids[i] != held[i]), most)

    def _copied(self, prompt: list[int], slot: int) -> int:
        """Bring a prompt into a slot from where it was computed; its tokens that are there then, all or none."""
        length = len(prompt)
        there = (s for s in (slot, *range(len(self.held))) if self.held[s][:length] == prompt)
        source = next(there, None)
        if source is not None and source != slot and self.engine.forks:
            self.engine.fork(source, slot, length)
            self.held[slot] = list(prompt)
        kept = length if self.held[slot][:length] == prompt else 0
        self._keep(slot, kept)
        return kept

    def _row(self, request: Request, sample: int) -> Row:
        # Two more: the tags, which no count includes.
        room = self.engine.context - len(request.ids) - request.max_tokens - 2
        return Row(request, self.tokenizer, request.think or self.think, self.ends, room, sample)

    @staticmethod
    def _named(row: Row, pieces: list[tuple[str, str]]) -> Iterator[Piece]:
        return (Piece(row.turn.key, kind, text, row.turn.sample) for kind, text in pieces)
