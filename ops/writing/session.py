"""A conversation with a thinking budget: a loaded model, its messages, and what may be said about each turn."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..base.atomic import write
from ..base.errors import QwenchError
from ..base.events import Events, Finished, Produced, Warned
from ..base.paths import local
from ..base.runtime import Runtime
from ..text.rows import json_lines
from .engines import writer_of
from .thinking import STOPS, budget_of
from .writer import Ask, Turn, Writer, refuse


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
    """A conversation, and what its asks have in common; a writer answers them.

    Attributes:
        writer: there once `load` has run.
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
        if "" in options.stops:
            raise QwenchError("--stop takes a text, and an empty one would end every answer before it begins", code=2)
        if options.max_tokens < 1:
            raise QwenchError("--max-tokens must be at least 1", code=2)
        self.seed = random.randrange(1 << 31) if options.seed is None else options.seed
        self.messages: list[dict[str, Any]] = []
        self.turns: list[dict[str, Any]] = []
        self.system = options.system
        self.reset()

    def load(self) -> Events:
        """The model, with the choices made; yields Chose and Warned.

        Raises:
            QwenchError: see `LocalWriter.load`; a budget for a model that does not think.
        """
        o = self.options
        self.writer: Writer = writer_of(o.model, o.runtime, context=o.context, slots=o.slots, streams=o.streams)
        yield from self.writer.load()
        # A server that serves one model need not be told its name.
        self.options = replace(o, model=self.writer.name)
        refuse(self.writer, self.ask(None, [], 0).needs())

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
        self.options, self.writer = other.options, other.writer

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.messages, self.turns = [], []
        self.instruct(self.system)

    def instruct(self, system: str | None) -> None:
        """Another system message from here on, None for none; it stays after a `reset`."""
        self.system = system
        self.messages = [m for m in self.messages if m["role"] != "system"]
        if system is not None:
            self.messages.insert(0, {"role": "system", "content": system})

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
        self.writer.stop()

    def turn(self, prompt: str) -> Events:
        """Ask; yields Produced pieces (kind thinking or answer, text), then Finished with the turn.

        Raises:
            QwenchError: the prompt does not fit the context; a server does not answer.
        """
        self.messages.append({"role": "user", "content": prompt})
        try:
            prepared = self.writer.prepare(self.ask(None, self.messages, self.seed + len(self.turns)))
        except QwenchError:
            self.messages.pop()
            raise
        if prepared.max_tokens < self.options.max_tokens:
            yield Warned("context", f"the context has room for an answer of {prepared.max_tokens} tokens only")
        for item in self.writer.run([prepared]):
            if isinstance(item, Turn):
                if item.error:
                    self.messages.pop()
                    raise item.error
                self.messages.append({"role": "assistant", "content": item.answer})
                self.turns.append(self.report(item))
                yield Finished(self.turns[-1])
            else:
                yield Produced({"kind": item.kind, "text": item.text})

    def ask(self, key: Any, messages: list[dict[str, Any]], seed: int) -> Ask:
        """Messages, with what the options say of every ask."""
        o = self.options
        return Ask(
            key,
            tuple(messages),
            sampling=o.sampling,
            seed=seed,
            max_tokens=o.max_tokens,
            budget=self.budget,
            think_stop=o.think_stop,
            think_message=o.think_message,
            force_think=o.force_think,
            stops=o.stops,
            logprobs=o.logprobs,
        )

    def report(self, turn: Turn) -> dict[str, Any]:
        """A turn as JSON-able data with stable keys."""
        names = ("thinking", "answer", "closed_by", "finish", "prompt_tokens", "cached_tokens", "thinking_tokens")
        found = {name: getattr(turn, name) for name in (*names, "answer_tokens", "inserted_tokens")}
        # A server tells no ids.
        count = len(turn.generated) or turn.thinking_tokens + turn.answer_tokens
        found["generated_tokens"] = count
        found["budget"] = turn.budget
        found["seconds"], found["first_token_seconds"] = round(turn.seconds, 4), round(turn.first_seconds, 4)
        later = turn.seconds - turn.first_seconds
        found["tokens_per_second"] = round((count - 1) / later, 2) if later > 0 and count else None
        found["seed"] = turn.seed
        found["sampling"] = asdict(turn.sampling) if turn.sampling else {}
        if self.options.logprobs is not None:
            found["logprobs"] = turn.logprobs
        return found

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
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise QwenchError(f"not a transcript: `{path}`", "each line is an object with role and content") from error
        self.messages, self.turns = found, []
