"""What servers reply, read: whole replies and pieces of them, from both endpoints, as one thing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

#: how an answer may end, by what servers call it
ENDS = {"stop": "stop", "eos": "stop", "eos_token": "stop", "stop_sequence": "stop", "length": "length"}


@dataclass(slots=True)
class Part:
    """Of one choice: all of it, or what has come now.

    Attributes:
        text, thought: as sent, nothing stripped; a thought is what the server itself calls one.
        finish: stop or length, None while it goes on.
        matched: the stop string that ended it, where the server tells.
        logprobs: of tokens: token, logprob, and top.
    """

    index: int = 0
    text: str = ""
    thought: str = ""
    finish: str | None = None
    matched: str | None = None
    logprobs: list[dict[str, Any]] = field(default_factory=list)


@dataclass(slots=True)
class Usage:
    """Tokens, None where the server does not count them."""

    prompt: int | None = None
    cached: int | None = None
    completion: int | None = None


class Unanswered(ValueError):
    """An answer that ended for a reason that makes it none."""


def parts_of(value: Any, piece: bool = False) -> list[Part]:
    """The choices of a reply or of an event of it.

    Args:
        piece: it is an event: choices may be missing, and have not all ended.

    Raises:
        ValueError: no such thing, or a choice without a text or an end.
    """
    if not isinstance(value, dict):
        raise ValueError("it is no object")
    if value.get("error"):
        raise ValueError(f"an error: {_short(value['error'])}")
    choices = value.get("choices")
    if piece and choices is None:
        return []
    if not isinstance(choices, list) or not (choices or piece):
        raise ValueError("it has no choices")
    try:
        return [_part(choice, number, piece) for number, choice in enumerate(choices)]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"a choice is not as it should be ({type(error).__name__})") from error


def _part(choice: Any, number: int, piece: bool) -> Part:
    if not isinstance(choice, dict):
        raise ValueError("a choice is no object")
    said = choice.get("message", choice.get("delta")) if "text" not in choice else choice
    if not isinstance(said, dict):
        raise ValueError("a choice is empty")
    text = said.get("text") if said is choice else said.get("content")
    thought = said.get("reasoning_content") or said.get("reasoning")
    if text is None and thought is None and not piece:
        raise ValueError("a choice has no text")
    index = choice.get("index", number)
    if not isinstance(index, int) or not all(isinstance(t, str | None) for t in (text, thought)):
        raise ValueError("a choice has a text that is none")
    finish, matched = choice.get("finish_reason"), choice.get("stop_reason", choice.get("matched_stop"))
    if finish is not None and finish not in ENDS:
        raise Unanswered(f"the answer ended by `{_short(finish)}`")
    if finish is None and not piece:
        raise ValueError("a choice does not say how it ended")
    return Part(
        index,
        text or "",
        thought or "",
        ENDS.get(finish or ""),
        matched if isinstance(matched, str) else None,
        list(_logprobs(choice.get("logprobs"))),
    )


def usage_of(value: dict[str, Any]) -> Usage:
    """What a reply, or an event of it, says of tokens."""
    found = value.get("usage")
    if not isinstance(found, dict):
        return Usage()
    details = found.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    numbers = (found.get("prompt_tokens"), cached, found.get("completion_tokens"))
    return Usage(*(n if isinstance(n, int) else None for n in numbers))


def _logprobs(found: Any) -> Iterator[dict[str, Any]]:
    """Log-probabilities in either endpoint's form."""
    if not isinstance(found, dict):
        return
    content = found.get("content")
    if isinstance(content, list):
        for entry in content:
            yield _named(entry["token"], entry["logprob"]) | {
                "top": [_named(e["token"], e["logprob"]) for e in entry.get("top_logprobs") or []]
            }
        return
    tokens, values = found.get("tokens") or [], found.get("token_logprobs") or []
    tops = found.get("top_logprobs") or [None] * len(tokens)
    for token, value, top in zip(tokens, values, tops, strict=False):
        best = sorted((top or {}).items(), key=lambda pair: -pair[1])
        yield _named(token, value) | {"top": [_named(*pair) for pair in best]}


def _named(token: Any, logprob: Any) -> dict[str, Any]:
    return {"token": str(token), "logprob": float(logprob)}


def _short(value: Any) -> str:
    value = value.get("message", value) if isinstance(value, dict) else value
    return " ".join(str(value).split())[:200]


def split_thought(text: str) -> tuple[str, str]:
    """(thought, answer) of a text with tags: what precedes the last closing tag, or follows one that is left open."""
    before, closed, after = text.rpartition("</think>")
    if closed:
        return before.lstrip().removeprefix("<think>"), after
    if text.lstrip().startswith("<think>"):
        return text.lstrip().removeprefix("<think>"), ""
    return "", text


class Tags:
    """A text that may begin with a thought, as it comes: each piece with its kind."""

    def __init__(self) -> None:
        self.state, self._held = "start", ""

    def push(self, text: str, last: bool = False) -> Iterator[tuple[str, str]]:
        """(thinking or answer, text) of what can be told now."""
        self._held += text
        if self.state == "start":
            begun = self._held.lstrip()
            if "<think>".startswith(begun[:7]) and len(begun) < 7 and not last:
                return
            self.state = "thinking" if begun.startswith("<think>") else "answer"
            if self.state == "thinking":
                self._held = begun.removeprefix("<think>")
        if self.state == "thinking":
            thought, closed, rest = self._held.partition("</think>")
            keep = 0 if last or closed else max(n for n in range(8) if thought.endswith("</think>"[:n]))
            shown = thought[: len(thought) - keep]
            self._held = rest if closed else thought[len(thought) - keep :]
            if shown:
                yield "thinking", shown
            if not closed:
                return
            self.state = "answer"
        if self._held:
            yield "answer", self._held
            self._held = ""
