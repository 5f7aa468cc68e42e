"""A server as a writer: any that speaks OpenAI's protocol, asked with our own template or with messages.

A budget of thinking takes two requests: the thought with its limit, then the answer after it with its own (Qwen3
technical report, section 4.3; documentation of Qwen3).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from queue import SimpleQueue
from typing import Any

from ..base.errors import QwenchError
from ..base.events import Chose, Events, Started, Warned
from ..base.runtime import Runtime
from ..models.texts import texts_at, texts_here
from ..models.tokenizer import TextTokenizer
from .asking import LONGEST, Asked, Asking
from .exchange import Exchange
from .http import Client, Patience
from .probe import PATHS, Probe, served
from .writer import Ask, Piece, Scored, Text, Turn, Wait, refuse, stuck

APIS = tuple(PATHS)
BOTH = "with --api chat a server has one limit for thought and answer together: --max-tokens"


class RemoteWriter:
    """See Writer.

    Args:
        model: the served name, "" for the only one.
        runtime: its engine is the address; api, tokenizer, api_key_env and concurrency are heeded.
        live: pieces come while the server writes; else an answer comes whole.
        patience: how long is waited.
    """

    def __init__(self, model: str, runtime: Runtime, *, live: bool = True, patience: Patience | None = None) -> None:
        if runtime.api not in APIS:
            raise QwenchError(f"unknown --api: `{runtime.api}`", f"use {' or '.join(APIS)}", code=2)
        if runtime.concurrency < 1:
            raise QwenchError("--concurrency must be at least 1", code=2)
        self.name, self._runtime, self._live = model, runtime, live
        self._client = Client(runtime.engine, runtime.api_key_env, runtime.concurrency, patience)

    def load(self) -> Events:
        """See Writer: the model's name, its tokenizer, and what the server can.

        Raises:
            QwenchError: no such server or model, or one that cannot be asked in this way.
        """
        self._client.begin()
        yield Started("probe")
        self._served = found = yield from served(self._client, self.name)
        self.name, chat = found.name, self._runtime.api == "chat"
        if self._runtime.tokenizer:
            texts, why = texts_at(self._runtime.tokenizer), "asked for"
        else:
            texts, why = texts_here(found.name), "of the served name, which is on this machine"
        if texts:
            yield Chose("tokenizer", texts.name, why)
        context, by = found.context, "told by the server"
        if not context:
            context, by = texts.context if texts else 0, "by the model's config; the server does not tell"
        yield Chose("context", context or "not known", by if context else "the server does not tell")
        self._asking = Asking(found.name, chat, texts, context, found.owner)
        if chat:
            yield Warned("api", BOTH)
        elif not context and self._asking.tagged:
            yield Warned("context", f"the server's context is not known: a thought has {LONGEST} tokens at most")
        self._asking.found = yield from Probe(self._client, found.name, self._runtime.api, texts).run()
        self._exchange = Exchange(self._client, self._asking, self._live)

    @property
    def about(self) -> dict[str, Any]:
        """All that decides what is written beside the ask, JSON-able: the model, who serves it, what the probe found.

        The address is none of it: a server may move.
        """
        served, texts = self._served, self._asking.texts
        template = hashlib.blake2b(((texts and texts.template.source) or "").encode(), digest_size=8).hexdigest()
        return {
            "model": self.name,
            "server": served.owner,
            "version": served.version,
            "api": self._runtime.api,
            "context": self.context,
            "tokenizer": texts and texts.name,
            "template": template,
            "probe": asdict(self._asking.found),
        }

    def shown(self, prepared: Asked) -> str:
        """The prompt in full, as the server is given it."""
        if prepared.prompt is None:
            return json.dumps(list(prepared.ask.messages or ()), ensure_ascii=False)
        if isinstance(prepared.prompt, str):
            return prepared.prompt
        return self._asking.texts.tokenizer.backend.decode(prepared.prompt, skip_special_tokens=False)

    @property
    def models(self) -> list[str]:
        """See Writer: what the server serves."""
        return list(self._served.models)

    @property
    def tokenizer(self) -> TextTokenizer | None:
        """See Writer."""
        return self._asking.texts.tokenizer if self._asking.texts else None

    @property
    def context(self) -> int:
        """See Writer; 0 where nobody tells."""
        return self._asking.context

    @property
    def can(self) -> frozenset[str]:
        """See Writer."""
        chat, texts, found = self._asking.chat, self._asking.texts is not None, self._asking.found
        able = {
            "messages": chat or texts,
            "text": not chat,
            "ids": found.ids and not chat,
            "prefix": found.prefix,
            "seed": True,
            "stops": True,
            "logprobs": found.logprobs,
            "budget": not chat and self._asking.tagged,
            "force": not chat and texts,
            "fork": found.n,
        }
        return frozenset(name for name, there in able.items() if there)

    @property
    def why(self) -> dict[str, tuple[str, str | None]]:
        """See Writer."""
        name, tokenizer = self.name, "name its tokenizer with --tokenizer"
        if self._asking.chat:
            sentence = "through --api chat a server keeps no budget of thinking, only none at all"
            budget = (sentence, "leave --think-budget out, set it to 0, or use --api completions")
            return {
                "budget": budget,
                "force": ("through --api chat no thought can be opened", "leave --force-think out"),
                "text": ("through --api chat only messages can be sent", "use --api completions"),
                "prefix": (f"the server does not go on from a given beginning: `{name}`", "use --api completions"),
            }
        if self._asking.texts is None:
            sentence = f"messages for `{name}` cannot be rendered without the model's tokenizer and template"
            needs = (sentence, f"{tokenizer}, or use --api chat")
            return {"messages": needs, "force": needs, "budget": (f"tags of `{name}` are not known", tokenizer)}
        sentence = f"the model has no thinking tags, so there is nothing to give a budget to: `{name}`"
        return {
            "budget": (sentence, "leave --think-budget out, or open a block by text with --force-think"),
            "ids": (f"the server takes no token ids: `{name}`", "give the prompt as text"),
        }

    def prepare(self, ask: Ask) -> Asked:
        """See Writer.

        Raises:
            QwenchError: it needs what the server cannot; see `Asking.prepare`.
        """
        refuse(self, ask.needs())
        return self._asking.prepare(ask)

    def run(self, asks: Iterable[Ask | Asked | Wait]) -> Iterator[Piece | Turn]:
        """See Writer: as many requests at a time as `--concurrency` says.

        Raises:
            QwenchError: the server refuses a request; see Writer.
        """
        client, source, told = self._client, iter(asks), SimpleQueue[Any]()
        client.begin()
        units: list[tuple[Asked, range]] = []
        flying, ended, waits = 0, False, False
        pool = ThreadPoolExecutor(self._runtime.concurrency, "request")
        try:
            while True:
                while flying < self._runtime.concurrency and not client.stopping:
                    if not units and not ended and not waits:
                        ask = next(source, None)
                        ended, waits = ask is None, isinstance(ask, Wait)
                        if not (ended or waits):
                            units = self._exchange.units(self.prepare(ask) if isinstance(ask, Ask) else ask)
                    if not units:
                        break
                    pool.submit(self._work, *units.pop(0), told)
                    flying += 1
                if not flying:
                    if waits and not client.stopping:
                        raise stuck()
                    return
                item = told.get()
                if item is None:
                    flying -= 1
                elif isinstance(item, BaseException):
                    raise item
                else:
                    yield item
                    waits &= not isinstance(item, Turn)
        finally:
            # What is left in flight has nobody to hear it.
            if flying:
                client.stop()
            pool.shutdown(cancel_futures=True)

    def _work(self, asked: Asked, samples: range, told: SimpleQueue[Any]) -> None:
        """A request's pieces and turns, from a thread of its own; None at its end."""
        try:
            for item in self._exchange.said(asked, samples):
                told.put(item)
        except BaseException as error:
            told.put(error)
        finally:
            told.put(None)

    def stop(self) -> None:
        """See Writer: connections are closed; what has come is kept."""
        self._client.stop()

    def score(self, texts: Iterable[Text]) -> Iterator[Scored]:
        """See Writer: refused."""
        refuse(self, ["score"])
        yield from ()

    def choose(self, ask: Ask, continuations: Sequence[str]) -> list[Scored]:
        """See Writer: refused."""
        refuse(self, ["choose"])
        return []
