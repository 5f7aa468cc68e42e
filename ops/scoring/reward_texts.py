"""Conversations become token ids, and the place in them that a reward is read at."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ..base.errors import QwenchError
from ..models.template import ChatTemplate
from ..models.tokenizer import TextTokenizer
from .process_reward import MARK, marked
from .reward_kind import SYSTEMS
from .reward_rows import Conversation

LONG = ("error", "skip", "cut-prompt")
POOLS = ("last", "before-pad")
#: what a Qwen reward model is read at
END = "<|endoftext|>"


@dataclass(frozen=True, slots=True)
class TextSettings:
    """How a conversation is read; names equal the flags.

    Attributes:
        pool: last, or before-pad: the token before the first pad token.
        system: message of rows without their own; None for what the kind was trained with.
        max_tokens_in: longest text, 0 for the model's.
        long: what becomes of a longer one: error, skip, or cut-prompt (its oldest turns).
        step_separator: between the steps of an answer without marks.
    """

    pool: str = "last"
    system: str | None = None
    max_tokens_in: int = 0
    long: str = "error"
    step_separator: str = "\n\n"

    def check(self) -> None:
        """Raises QwenchError: an unknown word."""
        for flag, value, known in (("--pool", self.pool, POOLS), ("--long", self.long, LONG)):
            if value not in known:
                raise QwenchError(f"unknown {flag}: `{value}`", f"use {', '.join(known)}", code=2)
        if not self.step_separator:
            raise QwenchError("--step-separator is empty", "leave it out for an empty line", code=2)


@dataclass(frozen=True, slots=True)
class Ready:
    """A text made ready.

    Attributes:
        ids: up to the token that is read; of a process model all.
        text: as rendered. tokens: of all of it; answer_tokens: of the answer alone.
        marks: places of step marks, of a process model.
        prompt: what is the same for all answers to one prompt.
        pair: question and answer, of an encoder.
        truncated: turns of the prompt were left out. skipped: it is too long, and has no reward.
    """

    ids: list[int]
    text: str
    tokens: int
    answer_tokens: int
    prompt: str
    marks: tuple[int, ...] = ()
    pair: tuple[str, str] | None = None
    truncated: bool = False
    skipped: bool = False


def before_pad(ids: list[int], pad: int) -> int:
    """The token before the first pad token, wrapping to the last one, as transformers 4's classes count."""
    return ((ids.index(pad) if pad in ids else 0) - 1) % len(ids)


class RewardTexts:
    """See the module.

    Args:
        kind: of the head, see `decide_kind`.
        limit: longest text the model takes.
        pad: its pad token, None where there is none.

    Attributes:
        notes: name -> sentence, of what is odd about the texts so far; each is said once.

    Raises:
        QwenchError: no step mark, or no pad token to stop before.
    """

    def __init__(
        self, tokenizer: TextTokenizer, template: ChatTemplate, kind: str, limit: int, pad: int | None,
        settings: TextSettings,
    ) -> None:  # fmt: skip
        settings.check()
        self.tokenizer, self.template, self.kind, self.settings = tokenizer, template, kind, settings
        self.limit = min(settings.max_tokens_in or limit, limit)
        if settings.max_tokens_in > limit:
            raise QwenchError(
                f"--max-tokens-in is {settings.max_tokens_in}, and the model takes {limit} tokens", code=2
            )
        self.system = settings.system if settings.system is not None else SYSTEMS.get(kind)
        self.qwen = kind == "mlp"
        self.notes: dict[str, str] = {}
        self.pad, self.mark, self.end = pad, -1, tokenizer.token_id(END)
        if settings.pool == "before-pad" and pad is None:
            raise QwenchError("the model has no pad token that --pool before-pad could stop at", "use --pool last", 2)
        if kind == "process":
            found = tokenizer.token_id(MARK)
            if found is None or tokenizer.ids([MARK])[0] != [found]:
                raise QwenchError(
                    f"the tokenizer has no single token for the step mark `{MARK}`", "it is of another model"
                )
            self.mark = found
        if template.source is None and kind != "pair":
            self.notes["template"] = "the model has no chat template: messages are joined as they are"

    def adopt(self, system: str | None) -> None:
        """Read as a head over another's base was trained, and not as Qwen's class is."""
        self.qwen = False
        if self.settings.system is None:
            self.system = system

    def ready(self, conversation: Conversation) -> Ready:
        """A conversation made ready.

        Raises:
            QwenchError: the template refuses it, it is too long, a mark where none may be.
        """
        if conversation.steps is not None and self.kind != "process":
            raise QwenchError("`steps` are for process reward models, and this one gives one number", "give a response")
        if self.kind == "pair":
            return self._pair(conversation)
        messages, answer = self._messages(conversation)
        own = len(self.tokenizer.ids([conversation.answer])[0])
        text, ids = self._encoded(messages, conversation.bare)
        truncated = False
        while len(ids) > self.limit and self.settings.long == "cut-prompt" and (shorter := _shorter(messages)):
            messages, truncated = shorter, True
            text, ids = self._encoded(messages, conversation.bare)
        prompt = json.dumps(messages[:-1])
        if len(ids) > self.limit:
            if self.settings.long == "skip":
                return Ready([], text, len(ids), own, prompt, truncated=truncated, skipped=True)
            raise self._too_long(len(ids))
        if not ids:
            raise QwenchError("the text has no tokens")
        if self.kind == "process":
            places = tuple(i for i, t in enumerate(ids) if t == self.mark)
            if len(places) != answer:
                raise QwenchError(f"the template leaves {len(places)} of {answer} step marks", "it is of another model")
            return Ready(ids, text, len(ids), own, prompt, places, truncated=truncated)
        return Ready(ids[: self._pooled(ids) + 1], text, len(ids), own, prompt, truncated=truncated)

    def pooled_token(self, ready: Ready) -> str | None:
        """The token that is read, as text; None for a pair, which is read at its first."""
        if ready.skipped or ready.pair is not None:
            return None
        at = ready.marks[-1] if ready.marks else len(ready.ids) - 1
        return self.tokenizer.backend.decode([ready.ids[at]], skip_special_tokens=False)

    def _messages(self, conversation: Conversation) -> tuple[list[dict[str, Any]], int]:
        """(messages with the system's, how many steps the answer has)"""
        messages, count = list(conversation.messages), 0
        if self.kind == "process":
            text, count = marked(conversation, self.settings.step_separator)
            messages[-1] = {**messages[-1], "content": text}
            if count == 1:
                self.notes["steps"] = "some answers have one step alone: no --step-separator is in them"
        given = messages[0]["role"] == "system"
        if given and self.qwen and messages[0]["content"]:
            self.notes["system"] = "rows have a system message, which is kept; the model was trained with an empty one"
        if not given and self.system is not None and not conversation.bare:
            messages.insert(0, {"role": "system", "content": self.system})
        return messages, count

    def _encoded(self, messages: list[dict[str, Any]], bare: bool) -> tuple[str, list[int]]:
        if bare:
            self.notes["bare"] = "rows without a prompt are read as they are, without the chat template"
        text = messages[-1]["content"] if bare else self.template.closed(messages)
        ids = self.tokenizer.ids([text])[0]
        if self.qwen and ids and ids[-1] != self.end:
            self.notes["end"] = f"some texts do not end in `{END}`, which the model was trained to be read at"
        if self.kind == "linear" and ids and ids[-1] == self.pad and self.settings.pool == "last":
            self.notes["pad"] = "some texts end in the pad token, which transformers passes over: see --pool before-pad"
        return text, ids

    def _pooled(self, ids: list[int]) -> int:
        if self.settings.pool == "last":
            return len(ids) - 1
        assert self.pad is not None
        return before_pad(ids, self.pad)

    def _pair(self, conversation: Conversation) -> Ready:
        *before, last = conversation.messages
        if len(before) != 1 or before[0]["role"] != "user":
            what = f"a prompt of {len(before)} messages" if before else "an answer without a prompt"
            raise QwenchError(f"the model reads one question and one answer, and the row has {what}")
        question, answer = before[0]["content"], last["content"]
        first, second = self.tokenizer.ids([question, answer])
        around = self.tokenizer.pair_ids()
        tokens = len(first) + len(second) + sum(len(part) for part in around[:3])
        key = json.dumps(question)
        if tokens > self.limit:
            if self.settings.long == "skip":
                return Ready([], question, tokens, len(second), key, skipped=True)
            raise self._too_long(tokens)
        return Ready(second, f"{question}\n{answer}", tokens, len(second), key, pair=(question, answer))

    def _too_long(self, tokens: int) -> QwenchError:
        hint = "--long skip leaves it without a reward; --long cut-prompt takes away the prompt's oldest turns"
        if self.settings.long == "cut-prompt":
            hint = "its last turn and the answer are never cut; --long skip leaves it without a reward"
        return QwenchError(f"the text has {tokens:,} tokens, and the model takes {self.limit:,}", hint)


def _shorter(messages: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """Without the oldest turn, which ends before the next user message; None where the last turn alone is left."""
    first = int(messages[0]["role"] == "system")
    starts = [i for i, m in enumerate(messages) if m["role"] == "user" and i > first]
    return [*messages[:first], *messages[starts[0] :]] if starts else None
