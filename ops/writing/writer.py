"""The one way to get text: asks go in, pieces and turns come out, whoever writes them.

A writer takes many asks at once and answers in any order. What it is able to do is in `can`; an ask that needs more
is refused in a sentence, never answered as if it had asked for less.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol

from ..base.errors import QwenchError
from ..base.events import Events
from ..models.tokenizer import TextTokenizer
from .sampling import Sampling
from .thinking import STOPS

#: what a writer may be able to do, and how a refusal names it
ABILITIES: Final = {
    "messages": "take messages",
    "text": "go on from a text as it is",
    "ids": "take token ids",
    "prefix": "go on from a given beginning of the answer",
    "seed": "heed a seed",
    "stops": "stop at a string",
    "logprobs": "tell log-probabilities",
    "budget": "keep a budget of thinking",
    "force": "open a thought by text",
    "fork": "compute a prompt once for several samples",
    "score": "tell the log-probabilities of a given text",
    "choose": "compare given continuations",
}


class TooLong(QwenchError):
    """A prompt that leaves the context no room for an answer."""


class Wait:
    """Given by a source of asks whose next one depends on an answer that is still being written."""

    def __repr__(self) -> str:
        return "WAIT"


#: nothing yet, ask again after the next turn
WAIT: Final = Wait()


@dataclass(frozen=True, slots=True)
class Ask:
    """One prompt, what is wanted of it, and its limits.

    Attributes:
        key: what its turns are called.
        messages, text, ids: the prompt, exactly one of them: role and content, for the model's template; a prompt
            already rendered, taken as it is; its tokens.
        prefix: beginning of the answer, text or ids, that is gone on from: nothing of it or after it is stripped.
        samples: turns wanted; each has a seed of its own, see `seed_of`.
        sampling: fields of Sampling that are asked for; the others take the mode's published default.
        seed: None lets the writer draw one, which the turn tells.
        max_tokens: of the answer; thinking never eats from it.
        budget: tokens of thinking, -1 for what the context has room for, 0 for none.
        think_stop: hard, or sentence: up to a tenth more to finish one.
        think_message: what closes a cut thought; None for the published one, "" for none.
        force_think: open a thought by text, whatever the template says.
        stops: strings that end the answer, not part of it.
        logprobs: number of alternatives to tell with every token of the answer, None for none.

    Raises:
        QwenchError: no prompt or more than one; a number out of its range.
    """

    key: Any = None
    messages: Sequence[Mapping[str, Any]] | None = None
    text: str | None = None
    ids: Sequence[int] | None = None
    prefix: str | tuple[int, ...] = ""
    samples: int = 1
    sampling: tuple[tuple[str, float], ...] = ()
    seed: int | None = None
    max_tokens: int = 1024
    budget: int = -1
    think_stop: str = "hard"
    think_message: str | None = None
    force_think: bool = False
    stops: tuple[str, ...] = ()
    logprobs: int | None = None

    def __post_init__(self) -> None:
        if sum(prompt is not None for prompt in (self.messages, self.text, self.ids)) != 1:
            raise QwenchError("an ask has exactly one prompt: messages, a text or ids")
        if self.think_stop not in STOPS:
            raise QwenchError(f"unknown --think-stop: `{self.think_stop}`", f"use {' or '.join(STOPS)}", code=2)
        if self.max_tokens < 1:
            raise QwenchError("--max-tokens must be at least 1", code=2)
        if self.samples < 1:
            raise QwenchError("the number of samples must be at least 1", code=2)
        if self.budget < -1:
            raise QwenchError(f"not a thinking budget: `{self.budget}`", "give -1, 0 or a number of tokens", code=2)
        if self.force_think and self.messages is None:
            raise QwenchError("a thought is opened by text for messages alone", "write <think> into the prompt")

    def needs(self) -> Iterator[str]:
        """Abilities without which it cannot be answered."""
        wanted = {
            "messages": self.messages is not None,
            "text": self.text is not None,
            "ids": self.ids is not None or not isinstance(self.prefix, str),
            "prefix": bool(self.prefix),
            "seed": self.seed is not None,
            "stops": bool(self.stops),
            "logprobs": self.logprobs is not None,
            "force": self.force_think and self.budget != 0,
            "budget": self.budget > 0 and not self.force_think,
        }
        return (name for name, needed in wanted.items() if needed)


@dataclass(slots=True)
class Turn:
    """What an ask came to.

    Attributes:
        sample, seed: which of the ask's samples, and what it was drawn with; sampling: how.
        thinking, answer: texts; closed_by: model, budget, length or user, None where there was no thinking.
        finish: stop, length, stop_string, user, or failed.
        budget: tokens of thinking that were allowed.
        cached_tokens: of the prompt, not computed anew.
        generated: all ids sampled and kept, tags and end included; inserted_tokens: of the closing message.
        logprobs: of every token of the answer: id, token, logprob, and top where alternatives were asked for.
        error: why there is no answer, with finish `failed`: it is to be asked again, and is never a wrong one.
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
    sample: int = 0
    seed: int | None = None
    sampling: Sampling | None = None
    budget: int = -1
    error: QwenchError | None = None


class Piece(NamedTuple):
    """Text as it comes; kind is thinking or answer."""

    key: Any
    kind: str
    text: str
    sample: int = 0


class Prepared(Protocol):
    """An ask as it will be run.

    Attributes:
        max_tokens: of the answer, no more than there is room for.
        prompt_tokens: None where the writer cannot count them.
    """

    key: Any
    max_tokens: int

    @property
    def prompt_tokens(self) -> int | None: ...


@dataclass(frozen=True, slots=True)
class Text:
    """A text that is given, to be scored.

    Attributes:
        text, ids: exactly one of them.
        window: tokens that are seen together at most, 0 for the context. Windows share a token: the last of one is
            the first that the next is told.
    """

    key: Any = None
    text: str | None = None
    ids: Sequence[int] | None = None
    window: int = 0

    def __post_init__(self) -> None:
        if (self.text is None) == (self.ids is None):
            raise QwenchError("what is scored is either a text or ids")


@dataclass(frozen=True, slots=True)
class Scored:
    """Natural log-probabilities of tokens, each given what is before it.

    Attributes:
        ids: the tokens.
        logprobs: of a text all but the first token's, which nothing is before; of a continuation all.
    """

    key: Any
    ids: list[int]
    logprobs: list[float]

    @property
    def mean(self) -> float:
        """Log-probability of a token on average, NaN when there is none."""
        return sum(self.logprobs) / len(self.logprobs) if self.logprobs else float("nan")


class Writer(Protocol):
    """Who writes: a model here, or a server.

    Attributes:
        name: of the model.
        context: tokens that a prompt and its answer may have together.
        can: names of ABILITIES; an ask for any other is refused.
        why: ability -> a sentence and a next step, where there is more to say of a refusal.
        models: names that there is a choice of, its own among them.
    """

    name: str

    @property
    def context(self) -> int: ...

    @property
    def can(self) -> frozenset[str]: ...

    @property
    def why(self) -> Mapping[str, tuple[str, str | None]]: ...

    @property
    def about(self) -> Mapping[str, Any]:
        """All that decides what is written beside the ask, JSON-able: name of the model, its revision, its template."""
        ...

    @property
    def models(self) -> Sequence[str]: ...

    @property
    def tokenizer(self) -> TextTokenizer | None:
        """Of the model, None where it is not known."""
        ...

    def load(self) -> Events:
        """Make ready to write, with the choices made; yields Chose and Warned.

        Raises:
            QwenchError: no such model, or no such server.
        """
        ...

    def prepare(self, ask: Ask) -> Prepared:
        """An ask as it will be run, for who wants to know before.

        Raises:
            QwenchError: it needs what the writer cannot, or does not fit.
        """
        ...

    def shown(self, prepared: Prepared) -> str:
        """The prompt in full, as the model is given it."""
        ...

    def run(self, asks: Iterable[Ask | Prepared | Wait]) -> Iterator[Piece | Turn]:
        """Pieces as they come and a Turn for every sample, in any order.

        Args:
            asks: taken one by one as there is room for them. WAIT stands for one that depends on a turn still being
                written: the source is asked again after the next turn.

        Raises:
            QwenchError: see `prepare`; a source that waits while nothing is being written.
        """
        ...

    def stop(self) -> None:
        """End all that is being written where it is."""
        ...

    def score(self, texts: Iterable[Text]) -> Iterator[Scored]:
        """Log-probabilities of given texts, in their order.

        Raises:
            QwenchError: the writer cannot.
        """
        ...

    def choose(self, ask: Ask, continuations: Sequence[str]) -> list[Scored]:
        """Log-probabilities of continuations of one prompt, whose tokens are joined to the prompt's; keys are numbers.

        Raises:
            QwenchError: the writer cannot; see `prepare`.
        """
        ...


def refuse(writer: Writer, needs: Iterable[str]) -> None:
    """Nothing, or a refusal.

    Raises:
        QwenchError: a need that the writer cannot meet.
    """
    for name in needs:
        if name not in writer.can:
            raise QwenchError(*writer.why.get(name, (f"`{writer.name}` cannot {ABILITIES[name]}", None)))


def stuck() -> QwenchError:
    """What becomes of a source of asks that waits while nothing is being written."""
    return QwenchError(
        "the source of prompts waits for an answer, and none is being written",
        "each prompt must wait for one that was asked before it",
    )


def seed_of(seed: int, sample: int) -> int:
    """Seed of one of several samples: the first has the ask's own, none depends on how many there are.

    31 bits: llama.cpp takes 0xFFFFFFFF for "draw one".
    """
    if sample == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}/{sample}".encode()).digest()[:4], "big") >> 1
