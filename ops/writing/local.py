"""A model on this machine as a writer: the torch engine, or llama.cpp's library."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from ..base.errors import QwenchError
from ..base.events import Chose, Events, Started, Warned
from ..base.runtime import Runtime
from ..kernels.choose import prepared
from ..models.device import pick_threads
from ..models.hub import Checkpoint, resolve
from ..models.tokenizer import TextTokenizer
from .generate import Generator
from .likelihood import of_continuations, of_text
from .load import load_causal
from .prompt import ends_open, left_open, rendered
from .sampling import PLAIN, THINKING
from .sequence import Request
from .thinking import Think
from .writer import Ask, Piece, Scored, Text, TooLong, Turn, Wait, refuse


class LocalWriter:
    """See Writer.

    Args:
        model: a name for `resolve`, or a checkpoint that it has given.
        context, slots, streams: see `load_causal`.

    Attributes:
        loaded: what `load` has loaded: engine, tokenizer, template, ends; checkpoint: from where.
    """

    def __init__(
        self,
        model: str | Checkpoint,
        runtime: Runtime | None = None,
        *,
        context: int = 0,
        slots: int = 1,
        streams: int = 0,
    ) -> None:
        self._model, self._runtime = model, runtime or Runtime()
        self._context, self._slots, self._streams = context, slots, streams
        self.name = model if isinstance(model, str) else model.name

    def load(self) -> Events:
        """The model, with the choices made; yields Chose and Warned.

        Raises:
            QwenchError: see `load_causal`.
        """
        import torch

        runtime = self._runtime
        threads = pick_threads(runtime.threads)
        torch.set_num_threads(threads.value)
        yield Chose("threads", threads.value, threads.reason)
        yield Started("load")
        found = self._model
        checkpoint = resolve(found, runtime.revision, runtime.offline) if isinstance(found, str) else found
        self.checkpoint = checkpoint
        if runtime.engine != "llama.cpp":
            yield from prepared(runtime)
        asked = replace(runtime, threads=threads.value)
        self.loaded = load_causal(checkpoint, asked, context=self._context, slots=self._slots, streams=self._streams)
        for name, choice in (
            ("engine", self.loaded.runner),
            ("device", self.loaded.device),
            ("dtype", self.loaded.dtype),
            ("kernels", self.loaded.kernels),
        ):
            yield Chose(name, choice.value, choice.reason)
        if self.loaded.template.source is None:
            yield Warned("template", "the model has no chat template: the prompt is continued as plain text")
        if self.loaded.stretched:
            yield Warned(
                "context",
                f"the context is stretched {self.loaded.stretched:.3g} times by YaRN, which is static here: short "
                "texts may get worse; leave --context out for them",
            )
        elif self._context:
            self.loaded.engine.context = min(self._context, self.loaded.engine.context)
        self.think = Think.of(self.loaded.tokenizer)
        self.generator = Generator(self.loaded.engine, self.loaded.tokenizer, self.think, self.loaded.ends)

    @property
    def context(self) -> int:
        """See Writer."""
        return self.loaded.engine.context

    @property
    def can(self) -> frozenset[str]:
        """See Writer."""
        able = {"messages", "text", "ids", "prefix", "seed", "stops", "logprobs", "force", "score", "choose"}
        more = {"budget": self.think.tagged, "fork": self.loaded.engine.forks}
        return frozenset(able | {name for name, there in more.items() if there})

    @property
    def why(self) -> dict[str, tuple[str, str | None]]:
        """See Writer."""
        sentence = f"the model has no thinking tags, so there is nothing to give a budget to: `{self.name}`"
        return {"budget": (sentence, "leave --think-budget out, or open a block by text with --force-think")}

    @property
    def about(self) -> dict[str, Any]:
        """See Writer."""
        template = (self.loaded.template.source or "").encode()
        return {
            "model": self.name,
            "revision": self.checkpoint.revision,
            "template": hashlib.blake2b(template, digest_size=8).hexdigest(),
            "engine": self.loaded.runner.value,
            "dtype": self.loaded.dtype.value,
            "quantize": self._runtime.quantize,
            "context": self.context,
            "streams": self._streams,
        }

    def shown(self, prepared: Request) -> str:
        """See Writer."""
        return self.loaded.tokenizer.backend.decode(prepared.ids, skip_special_tokens=False)

    @property
    def models(self) -> list[str]:
        """See Writer."""
        return [self.name]

    @property
    def tokenizer(self) -> TextTokenizer:
        """See Writer."""
        return self.loaded.tokenizer

    def prepare(self, ask: Ask) -> Request:
        """See Writer: messages as ids, with the limits that apply.

        Raises:
            QwenchError: it needs what the model cannot; the context has no room for it and one token more.
        """
        refuse(self, ask.needs())
        thinks = ask.budget != 0 and (self.think.tagged or ask.force_think)
        think = self.think if ask.think_message is None else Think.of(self.loaded.tokenizer, ask.think_message)
        ids, opened = self._prompt(ask, thinks)
        if not ids:
            raise QwenchError("the prompt is empty", "say something")
        context = self.context
        room = context - len(ids) - 2
        if thinks:
            room -= len(think.message)
        if room < 1:
            raise TooLong(
                f"the prompt has {len(ids)} tokens, and the context of {context} has no room for an answer",
                "shorten it, /reset the conversation, or widen the context with --context",
            )
        return Request(
            ask.key,
            ids,
            min(ask.max_tokens, room),
            ask.budget,
            opened,
            ask.think_stop,
            replace(THINKING if thinks and self.loaded.template.thinks else PLAIN, **dict(ask.sampling)),
            random.randrange(1 << 31) if ask.seed is None else ask.seed,
            ask.stops,
            ask.logprobs,
            begun=bool(ask.prefix) and not opened,
            exact=bool(ask.prefix) or ask.messages is None,
            samples=ask.samples,
            think=think,
        )

    def _prompt(self, ask: Ask, thinks: bool) -> tuple[list[int], bool]:
        """(ids of the prompt and the prefix, whether they end inside a thought)."""
        tokenizer, text = self.loaded.tokenizer, ask.text or ""
        given = ask.prefix if isinstance(ask.prefix, str) else ""
        said = given or tokenizer.backend.decode(list(ask.prefix), skip_special_tokens=False) if ask.prefix else ""
        if ask.messages is not None:
            text, opened = rendered(self.loaded.template, self.think.tagged, ask, thinks, said)
        else:
            tail = text if ask.ids is None else tokenizer.backend.decode(list(ask.ids)[-8:], skip_special_tokens=False)
            opened = ends_open(tail)
        ids = list(ask.ids) if ask.ids is not None else []
        if ask.messages is not None and self.loaded.template.source is None:
            # Nothing but the tokenizer says how such a model's texts begin.
            ids += tokenizer.before
        if text + given:
            ids += tokenizer.ids([text + given])[0]
        return ids + ([] if given else [int(i) for i in ask.prefix]), left_open("<think>" * opened + said)

    def run(self, asks: Iterable[Ask | Request | Wait]) -> Iterator[Piece | Turn]:
        """See Writer."""
        prepared = (self.prepare(ask) if isinstance(ask, Ask) else ask for ask in asks)
        for item in self.generator.run(prepared):
            if isinstance(item, Turn):
                item.logprobs = [self._named(entry) for entry in item.logprobs]
            yield item

    def _named(self, entry: dict[str, Any]) -> dict[str, Any]:
        """A log-probability with the text of its token, its alternatives too."""
        text = self.loaded.tokenizer.backend.decode([entry["id"]], skip_special_tokens=False)
        return {"token": text} | entry | ({"top": [self._named(e) for e in entry["top"]]} if "top" in entry else {})

    def stop(self) -> None:
        """See Writer: after the token it is at; what there is of it is kept."""
        self.generator.stopping = True

    def score(self, texts: Iterable[Text]) -> Iterator[Scored]:
        """See Writer."""
        for text in texts:
            ids = list(text.ids) if text.ids is not None else self.loaded.tokenizer.ids([text.text or ""])[0]
            self.generator.forget()
            windows = of_text(self.loaded.engine, ids, text.window)
            yield Scored(text.key, ids, [value for window in windows for value in window])

    def choose(self, ask: Ask, continuations: Sequence[str]) -> list[Scored]:
        """See Writer."""
        prompt, ends = self.prepare(ask).ids, self.loaded.tokenizer.ids(list(continuations))
        longest = max(map(len, ends), default=0)
        if len(prompt) + longest > self.context:
            raise QwenchError(
                f"the prompt has {len(prompt)} tokens, and the context of {self.context} has no room for "
                f"a continuation of {longest}"
            )
        self.generator.forget()
        found = of_continuations(self.loaded.engine, prompt, ends)
        return [Scored(n, ids, values) for n, (ids, values) in enumerate(zip(ends, found, strict=True))]
