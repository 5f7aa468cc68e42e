"""A conversation with a thinking budget: a loaded model, its messages, and what may be said about each turn."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..base.atomic import write
from ..base.errors import QwenchError
from ..base.events import Chose, Events, Finished, Produced, Started, Warned
from ..base.paths import local
from ..base.runtime import Runtime
from ..kernels.choose import prepared
from ..models.device import pick_threads
from ..models.hub import resolve
from ..text.rows import json_lines
from .generate import Generator, Request, Turn
from .load import load_causal
from .sampling import PLAIN, THINKING
from .thinking import NON_THINKING, STOPS, Think, budget_of


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """Everything `qwench chat` can be told.

    Attributes:
        think_budget: -1, 0, a number of tokens, or minimal, low, medium, high.
        sampling: fields of Sampling that were asked for; the others take the mode's published default.
        seed: None draws one, which the result tells.
        streams: of a ParScale checkpoint, 0 for its own number.
        context: in tokens, 0 for the model's own.
    """

    model: str = "Qwen/Qwen3-0.6B"
    system: str | None = None
    think_budget: str = "-1"
    think_stop: str = "hard"
    think_message: str | None = None
    force_think: bool = False
    max_tokens: int = 1024
    sampling: tuple[tuple[str, float], ...] = ()
    stops: tuple[str, ...] = ()
    logprobs: int | None = None
    seed: int | None = None
    context: int = 0
    slots: int = 1
    streams: int = 0
    runtime: Runtime = field(default_factory=Runtime)


class Chat:
    """A loaded model and the conversation with it.

    Attributes:
        messages: role and content of every turn, without thoughts; turns: what `turn` told of each answer.
    """

    def __init__(self, options: ChatOptions) -> None:
        """Load nothing yet; see `load`.

        Raises:
            QwenchError: an option that does not fit.
        """
        self.options, self.budget = options, budget_of(options.think_budget)
        if options.think_stop not in STOPS:
            raise QwenchError(f"unknown --think-stop: `{options.think_stop}`", f"use {' or '.join(STOPS)}", code=2)
        if options.max_tokens < 1:
            raise QwenchError("--max-tokens must be at least 1", code=2)
        self.seed = random.randrange(1 << 31) if options.seed is None else options.seed
        self.messages: list[dict[str, Any]] = []
        self.turns: list[dict[str, Any]] = []
        self.reset()

    def load(self) -> Events:
        """The model, with the choices made; yields Chose and Warned.

        Raises:
            QwenchError: see `load_causal`; a budget for a model that does not think.
        """
        import torch

        o = self.options
        r = o.runtime
        threads = pick_threads(r.threads)
        torch.set_num_threads(threads.value)
        yield Chose("threads", threads.value, threads.reason)
        yield Started("load")
        checkpoint = resolve(o.model, r.revision, r.offline)
        if r.engine != "llama.cpp":
            yield from prepared(r)
        self.loaded = load_causal(
            checkpoint,
            device=r.device,
            dtype=r.dtype,
            quantize=r.quantize,
            context=o.context,
            slots=o.slots,
            engine=r.engine,
            kernels=r.kernels,
            threads=threads.value,
            streams=o.streams,
        )
        for name, choice in (
            ("engine", self.loaded.runner),
            ("device", self.loaded.device),
            ("dtype", self.loaded.dtype),
            ("kernels", self.loaded.kernels),
        ):
            yield Chose(name, choice.value, choice.reason)
        self.think = Think.of(self.loaded.tokenizer, o.think_message)
        if self.budget > 0 and not self.think.tagged and not o.force_think:
            raise QwenchError(
                f"the model has no thinking tags, so there is nothing to give a budget to: `{o.model}`",
                "leave --think-budget out, or open a block by text with --force-think",
            )
        if self.loaded.template.source is None:
            yield Warned("template", "the model has no chat template: the prompt is continued as plain text")
        if o.context and o.context > 32768:
            yield Warned("context", "YaRN is static here: short texts may get worse; leave --context out for them")
        elif o.context:
            self.loaded.engine.context = min(o.context, self.loaded.engine.context)
        self.generator = Generator(self.loaded.engine, self.loaded.tokenizer, self.think, self.loaded.ends)

    def switch(self, model: str) -> Events:
        """Another model for the same conversation; when it cannot be loaded the one at work stays. Yields as `load`.

        Raises:
            QwenchError: see `load`.
        """
        other = Chat(
            replace(
                self.options,
                model=model,
                think_budget=str(self.budget),
                runtime=replace(self.options.runtime, revision=None),
            )
        )
        yield from other.load()
        self.options, self.loaded, self.think, self.generator = (
            other.options,
            other.loaded,
            other.think,
            other.generator,
        )

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.messages, self.turns = [], []
        if self.options.system is not None:
            self.messages = [{"role": "system", "content": self.options.system}]

    def undo(self) -> str | None:
        """Take the last question and its answer back; returns the question, None when there is none."""
        while self.messages and self.messages[-1]["role"] != "system":
            message = self.messages.pop()
            if message["role"] == "user":
                if self.turns:
                    self.turns.pop()
                return message["content"]
        return None

    def stop(self) -> None:
        """End the running answer after the token it is at; what there is of it is kept."""
        self.generator.stopping = True

    def turn(self, prompt: str) -> Events:
        """Ask; yields Produced pieces (kind thinking or answer, text), then Finished with the turn.

        Raises:
            QwenchError: the prompt does not fit the context.
        """
        self.messages.append({"role": "user", "content": prompt})
        try:
            request = self.request(None, self.messages, self.seed + len(self.turns))
        except QwenchError:
            self.messages.pop()
            raise
        if request.max_tokens < self.options.max_tokens:
            yield Warned("context", f"the context has room for an answer of {request.max_tokens} tokens only")
        for item in self.generator.run([request]):
            if isinstance(item, Turn):
                self.messages.append({"role": "assistant", "content": item.answer})
                self.turns.append(self.report(item, request))
                yield Finished(self.turns[-1])
            else:
                yield Produced({"kind": item[1], "text": item[2]})

    def request(self, key: Any, messages: list[dict[str, Any]], seed: int) -> Request:
        """Messages as ids, with the limits that apply.

        Raises:
            QwenchError: the context has no room for them and one token more.
        """
        o, tagged = self.options, self.think.tagged
        thinks = self.budget != 0 and (tagged or o.force_think)
        text, opening = self.loaded.template.render(messages, thinking=(thinks if tagged else None))
        opened = opening.rfind("<think>") > opening.rfind("</think>")
        if self.budget == 0 and tagged and "</think>" not in opening:
            text = text.removesuffix("<think>\n") + NON_THINKING if opened else text + NON_THINKING
            opened = False
        if o.force_think and thinks and not opened:
            text, opened = text + "<think>\n", True
        ids = self.loaded.tokenizer.ids([text])[0]
        if not ids:
            raise QwenchError("the prompt is empty", "say something")
        room = self.loaded.engine.context - len(ids) - 2
        if thinks:
            room -= len(self.think.message)
        if room < 1:
            raise QwenchError(
                f"the prompt has {len(ids)} tokens, and the context of {self.loaded.engine.context} has no room for "
                "an answer",
                "shorten it, /reset the conversation, or widen the context with --context",
            )
        sampling = replace(THINKING if thinks else PLAIN, **dict(o.sampling))
        return Request(
            key, ids, min(o.max_tokens, room), self.budget, opened, o.think_stop, sampling, seed, o.stops, o.logprobs
        )

    def report(self, turn: Turn, request: Request) -> dict[str, Any]:
        """A turn as JSON-able data with stable keys."""
        s = request.sampling
        names = ("thinking", "answer", "closed_by", "finish", "prompt_tokens", "cached_tokens", "thinking_tokens")
        found = {name: getattr(turn, name) for name in (*names, "answer_tokens", "inserted_tokens")}
        found["generated_tokens"] = len(turn.generated)
        found["budget"] = self.budget
        found["seconds"], found["first_token_seconds"] = round(turn.seconds, 4), round(turn.first_seconds, 4)
        later = turn.seconds - turn.first_seconds
        found["tokens_per_second"] = round((len(turn.generated) - 1) / later, 2) if later > 0 else None
        found["seed"] = request.seed
        found["sampling"] = {name: getattr(s, name) for name in s.__dataclass_fields__}
        if request.logprobs is not None:
            found["logprobs"] = [self._named(entry) for entry in turn.logprobs]
        return found

    def _named(self, entry: dict[str, Any]) -> dict[str, Any]:
        """A log-probability with the text of its token, its alternatives too."""
        text = self.loaded.tokenizer.backend.decode([entry["id"]], skip_special_tokens=False)
        return {"token": text} | entry | ({"top": [self._named(e) for e in entry["top"]]} if "top" in entry else {})

    def save(self, path: Path) -> None:
        """The conversation as JSON lines, whole or not at all.

        Raises:
            QwenchError: it cannot be written.
        """
        local(path, "the transcript")
        write(path, "".join(json.dumps(m, ensure_ascii=False) + "\n" for m in self.messages), "the transcript")

    def open(self, path: Path) -> None:
        """Go on with a saved conversation.

        Raises:
            QwenchError: it cannot be read, or is no transcript.
        """
        try:
            local(path, "the transcript")
            with path.open("rb") as file:
                found = [value for _, value in json_lines(file)]
            if not all(isinstance(m["role"], str) and isinstance(m["content"], str) for m in found):
                raise ValueError("role and content must be texts")
        except OSError as error:
            raise QwenchError(f"the transcript cannot be read ({error.strerror}): `{path}`") from error
        except (ValueError, KeyError, TypeError) as error:
            raise QwenchError(f"not a transcript: `{path}`", "each line is an object with role and content") from error
        self.messages, self.turns = found, []
