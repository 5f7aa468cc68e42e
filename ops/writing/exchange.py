"""One ask and what a server says to it: a thought and its answer are two requests, several samples may be one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from .asking import Asked, Asking
from .http import Client, Failed, Refused, Stopped
from .probe import PATHS
from .reply import Part, parts_of, usage_of
from .spoken import Spoken
from .sse import Whole
from .thinking import END, SENTENCE
from .writer import Piece, Turn, seed_of


class Exchange:
    """See the module.

    Args:
        live: pieces come while the server writes; else an answer comes whole.
    """

    def __init__(self, client: Client, asking: Asking, live: bool) -> None:
        self._client, self._asking, self._live = client, asking, live
        self._path = PATHS["chat" if asking.chat else "completions"]
        self._counts = True  # streams are asked for their usage

    def units(self, asked: Asked) -> list[tuple[Asked, range]]:
        """An ask as requests: samples together where one request can have several choices, else each its own."""
        samples = asked.ask.samples
        if self._asking.found.n and not (self._live or asked.opened or asked.peek):
            return [(asked, range(samples))]
        return [(asked, range(n, n + 1)) for n in range(samples)]

    def said(self, asked: Asked, samples: range) -> Iterator[Piece | Turn]:
        """Pieces and turns of a request.

        Raises:
            QwenchError: the server refuses it.
        """
        yield from self._several(asked, samples) if len(samples) > 1 else self._one(asked, samples[0])

    def _spoken(self, asked: Asked, sample: int, seed: int) -> Spoken:
        texts = self._asking.texts
        count = None if texts is None else lambda text: len(texts.tokenizer.ids([text])[0])
        return Spoken(asked, sample, seed, count)

    def _one(self, asked: Asked, sample: int) -> Iterator[Piece | Turn]:
        """One sample: its thought where there is one, and its answer."""
        row = self._spoken(asked, sample, seed_of(asked.seed, sample))
        try:
            prompt = asked.prompt
            if asked.peek and self._opens(row):
                prompt, row.asked = self._asking.longer(prompt, "<think>"), replace(asked, opened=True)
            if row.asked.opened:
                prompt = yield from self._thought(row, prompt)
            yield from self._parts(row, self._asking.answer(row.asked, row.turn.seed, prompt), row.answer)
            yield from row.over(None)
        except Stopped:
            yield from row.over("user")
        except Failed as error:
            row.failed(error)
        yield row.turn

    def _several(self, asked: Asked, samples: range) -> Iterator[Piece | Turn]:
        """Samples as choices of one request; those that do not come are asked for by themselves."""
        rows = [self._spoken(asked, n, asked.seed) for n in samples]
        try:
            body = self._asking.answer(asked, asked.seed, asked.prompt) | {"n": len(rows)}
            parts, usage = self._client.post(self._path, body, lambda v: (parts_of(v), usage_of(v)))
        except (Stopped, Failed) as error:
            for row in rows:
                if isinstance(error, Failed):
                    row.failed(error)
                else:
                    yield from row.over("user")
                yield row.turn
            return
        for row, part in zip(rows, sorted(parts, key=lambda p: p.index), strict=False):
            # Their tokens are counted together: each one's are the tokenizer's.
            one = row.count is None
            row.usage = replace(usage, completion=usage.completion and usage.completion // len(parts) if one else None)
            yield from row.answer(part)
            yield from row.over(None)
            yield row.turn
        for n in samples[len(parts) :]:
            yield from self._one(asked, n)

    def _opens(self, row: Spoken) -> bool:
        """Whether the answer begins with a thought."""
        body = self._asking.body(row.asked, row.turn.seed, row.asked.prompt, 1)
        return self._client.post(self._path, body, parts_of)[0].text.strip() == "<think>"

    def _thought(self, row: Spoken, prompt: Any) -> Iterator[Piece | Any]:
        """A thought within its limit, closed; the prompt of the answer."""
        asked, finish = row.asked, "length"
        if asked.limit:
            body = self._asking.body(row.asked, row.turn.seed, prompt, asked.limit, ("</think>",))
            finish = yield from self._parts(row, body, row.think)
        yield from row.think_over()
        shut = row.thought.stopped or finish == "stop"
        if not shut and asked.grace and not row.thought.text.rstrip(" ").endswith(SENTENCE):
            shut = yield from self._sentence(row, prompt)
        # A character that was cut is no part of it.
        thought = row.thought.text = row.thought.text.rstrip("�")
        if shut:
            # It has said the tag, or ended its turn without.
            end = "</think>" if row.thought.stopped or thought.endswith("\n") or not thought else END
            yield from row.close("model", "", 0 if end == "</think>" else self._asking.length(END) or 0)
        else:
            end = asked.message[0]
            yield from row.close(asked.limited_by, *asked.message)
        return self._asking.longer(prompt, thought + end)

    def _sentence(self, row: Spoken, prompt: Any) -> Iterator[Piece | Any]:
        """Up to a tenth more, to the end of the sentence; whether the thought has ended by itself."""
        longer = self._asking.longer(prompt, row.thought.text)
        body = self._asking.body(row.asked, row.turn.seed, longer, row.asked.grace, ("</think>",))
        part = self._client.post(self._path, body, parts_of)[0]
        more = part.text.partition("</think>")[0]
        at = min((n for n in range(1, len(more) + 1) if more[n - 1] in SENTENCE), default=len(more))
        cut, tokens = at < len(more), self._asking.length(more[:at]) or 0
        row.turn.thinking_tokens += min(tokens, row.asked.grace)
        yield from row.piece("thinking", row.thought.say(more[:at]))
        return part.finish == "stop" and not cut

    def _parts(self, row: Spoken, body: dict[str, Any], take: Any) -> Iterator[Piece | Any]:
        """A reply, piece by piece where that is wanted; why it ended."""
        if not self._live:
            part, row.usage = self._client.post(self._path, body, lambda v: (parts_of(v)[0], usage_of(v)))
            yield from take(part)
            return part.finish
        try:
            return (yield from self._streamed(row, body, take))
        except Refused as error:
            # A server may not know how to count a stream.
            if not (self._counts and error.fields):
                raise
            self._counts = False
            return (yield from self._streamed(row, body, take))

    def _streamed(self, row: Spoken, body: dict[str, Any], take: Any) -> Iterator[Piece | Any]:
        body = body | {"stream": True} | ({"stream_options": {"include_usage": True}} if self._counts else {})
        whole, thinks, finish = Whole(), Whole(), None
        for value in self._client.stream(self._path, body):
            if value.get("usage"):
                row.usage = usage_of(value)
            for part in _pieces(value):
                finish = part.finish or finish
                part.text, part.thought = whole.push(part.text), thinks.push(part.thought)
                yield from take(part)
            if row.ended:
                return finish
        if finish is None:
            raise Failed("the server's answer broke off before its end", "run the same command again")
        if rest := whole.flush():
            yield from take(Part(text=rest, finish=finish))
        return finish


def _pieces(value: dict[str, Any]) -> list[Part]:
    try:
        return parts_of(value, piece=True)
    except ValueError as error:
        raise Failed(f"the server sends what is no answer ({error})", "run the same command again") from error
