"""Rows of conversations in the shapes that reward data comes in: trl's, RewardBench's, samples, steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..base.errors import QwenchError

Message = dict[str, Any]
ANSWERS = ("steps", "responses", "samples", "response")
HINT = (
    "a row has messages, or a prompt with response, responses, chosen and rejected, or steps: "
    '{"prompt": "...", "response": "..."}'
)


@dataclass(frozen=True, slots=True)
class Conversation:
    """A prompt and one answer.

    Attributes:
        messages: all of it, the answer last; without a prompt the answer alone.
        bare: the text has no prompt, and is read as it is, without a template.
        steps: the answer in parts, where the row has it so.
    """

    messages: tuple[Message, ...]
    bare: bool = False
    steps: tuple[str, ...] | None = None

    @property
    def answer(self) -> str:
        """Text of the last message."""
        return self.messages[-1]["content"]


@dataclass(frozen=True, slots=True)
class Answers:
    """What a row asks about.

    Attributes:
        form: one, several, or pair.
        conversations: in the order of the row; of a pair the chosen ones first.
        chosen: how many of a pair are chosen; lists: whether each side is a list of answers.
    """

    form: str
    conversations: tuple[Conversation, ...]
    chosen: int = 0
    lists: tuple[bool, bool] = (False, False)


def answers_of(row: dict[str, Any]) -> Answers:
    """The conversations of a row.

    Raises:
        QwenchError: there are none, an answer is empty or not from the assistant, a field is of another kind.
    """
    if row.get("chosen") is not None or row.get("rejected") is not None:
        return _pair(row)
    before = _prompt(row)
    if isinstance(row.get("messages"), list) and all(row.get(n) is None for n in ANSWERS):
        return Answers("one", (_checked(_messages(row["messages"], "messages"), "messages"),))
    if row.get("steps") is not None:
        return Answers("one", (_stepped(before, row["steps"]),))
    if row.get("responses") is not None or row.get("samples") is not None:
        name = "responses" if row.get("responses") is not None else "samples"
        given = row[name]
        if not isinstance(given, list) or not given:
            raise QwenchError(f"`{name}` is no list of answers", HINT)
        texts = [g.get("text") if name == "samples" and isinstance(g, dict) else g for g in given]
        return Answers("several", tuple(_joined(before, t, f"{name}, number {i}") for i, t in enumerate(texts, 1)))
    if row.get("response") is not None:
        return Answers("one", (_joined(before, row["response"], "response"),))
    raise QwenchError("there is no answer to score", HINT)


def _pair(row: dict[str, Any]) -> Answers:
    before, sides, lists = _prompt(row), [], []
    for name in ("chosen", "rejected"):
        given = row.get(name)
        several = isinstance(given, list) and bool(given) and all(isinstance(g, str) for g in given)
        lists.append(several)
        texts = given if several else [given]
        sides.append([_joined(before, t, name) for t in texts])
    return Answers("pair", (*sides[0], *sides[1]), len(sides[0]), (lists[0], lists[1]))


def _prompt(row: dict[str, Any]) -> list[Message]:
    """What comes before the answers; none where the row has no prompt."""
    for name in ("prompt", "question", "messages"):
        given = row.get(name)
        if isinstance(given, str) and name != "messages":
            return [{"role": "user", "content": given}]
        if isinstance(given, list):
            return _messages(given, name)
        if given is not None:
            raise QwenchError(f"`{name}` is neither a text nor a list of messages", HINT)
    return []


def _messages(given: list[Any], name: str) -> list[Message]:
    if not given:
        raise QwenchError(f"`{name}` is an empty list", HINT)
    for message in given:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise QwenchError(f"`{name}` is no list of messages with a role", HINT)
        if not isinstance(message.get("content"), str):
            raise QwenchError(f"a message of `{name}` has no text, and only text can be read", HINT)
    return given


def _joined(before: list[Message], given: Any, name: str) -> Conversation:
    """A prompt and an answer, which is a text, its messages, or the whole conversation over again."""
    if isinstance(given, str):
        whole = [*before, {"role": "assistant", "content": given}]
        return _checked(whole, name, bare=not before)
    if not isinstance(given, list):
        raise QwenchError(f"there is no answer in `{name}`", HINT)
    messages = _messages(given, name)
    again = messages[0]["role"] != "assistant"
    return _checked(messages if again else [*before, *messages], name)


def _checked(messages: list[Message], name: str, bare: bool = False) -> Conversation:
    last = messages[-1]
    if last["role"] != "assistant":
        raise QwenchError(
            f"the last message of `{name}` is from `{last['role']}`, and not the assistant's answer", HINT
        )
    if not last["content"].strip():
        raise QwenchError(f"the answer is empty in `{name}`", "an answer without text has no reward")
    if len(messages) == 1 and not bare:
        raise QwenchError(f"`{name}` has an answer and no prompt", HINT)
    return Conversation(tuple(messages), bare)


def _stepped(before: list[Message], given: Any) -> Conversation:
    if not isinstance(given, list) or not all(isinstance(s, str) for s in given):
        raise QwenchError("`steps` is no list of texts", HINT)
    steps = tuple(s for s in given if s.strip())
    if not before or not steps:
        raise QwenchError("there is no " + ("answer in `steps`" if before else "prompt"), HINT)
    return Conversation((*before, {"role": "assistant", "content": "\n\n".join(steps)}), steps=steps)
