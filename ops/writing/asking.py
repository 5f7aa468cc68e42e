"""An ask becomes requests to a server: the prompt by our own template, its limits, and how tokens are drawn."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..base.errors import QwenchError
from ..models.texts import Texts
from .probe import Findings
from .prompt import ends_open, left_open, rendered
from .sampling import PLAIN, THINKING, Sampling
from .thinking import Think, closing
from .writer import Ask, TooLong

#: tokens of a thought that nothing limits: Qwen's own advice for an output's length
LONGEST = 32768
#: fields of a sampling that are not the protocol's own
BEYOND = ("top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True, slots=True)
class Asked:
    """An ask as a server will be asked.

    Attributes:
        prompt: text or ids; None where the messages are sent.
        limit: tokens of thinking; limited_by: budget, or length.
        opened: the prompt ends inside a thought; peek: whether the answer opens with one is to be seen first.
        exact: the text goes on from the prompt's, so that white space at its beginning is part of it.
        message: what closes a thought that is cut, with the number of its tokens.
    """

    key: Any
    ask: Ask
    prompt: str | list[int] | None
    max_tokens: int
    prompt_tokens: int | None
    sampling: Sampling
    seed: int
    opened: bool = False
    peek: bool = False
    exact: bool = False
    limit: int = 0
    limited_by: str = "length"
    grace: int = 0
    message: tuple[str, int] = ("", 0)


class Asking:
    """See the module.

    Args:
        name: of the model; owner: as in `Served`.
        chat: messages are sent, for the server's own template.
        texts: tokenizer and template, None where they are not known.
        context: in tokens, 0 where nobody tells.
    """

    def __init__(self, name: str, chat: bool, texts: Texts | None = None, context: int = 0, owner: str = "") -> None:
        self.name, self.chat, self.texts, self.context, self.owner = name, chat, texts, context, owner
        self.think = Think.of(texts.tokenizer) if texts else None
        self.found = Findings()

    @property
    def tagged(self) -> bool:
        """The model's thinking tags are known, and tokens."""
        return self.think is not None and self.think.tagged

    def prepare(self, ask: Ask) -> Asked:
        """With the limits that apply; what it needs is there.

        Raises:
            QwenchError: tokens cannot be drawn so; the context has no room for it and one token more.
        """
        beyond = [f"--{n.replace('_', '-')}" for n, value in ask.sampling if n in BEYOND and value != _none(n)]
        if beyond and not self.found.extras:
            raise QwenchError(f"the server takes no {' and no '.join(beyond)}: `{self.name}`", "leave it out", code=2)
        template = self.texts.template if self.texts else None
        thinks = ask.budget != 0 and (self.tagged or ask.force_think)
        own = THINKING if thinks and (template is None or template.thinks) else PLAIN
        sampling = replace(own, **({} if self.found.extras else {"top_k": 0}) | dict(ask.sampling))
        seed = random.randrange(1 << 31) if ask.seed is None else ask.seed
        exact = bool(ask.prefix) or ask.messages is None
        if self.chat:
            return Asked(ask.key, ask, None, ask.max_tokens, None, sampling, seed, exact=exact)
        prompt, opened = self._prompt(ask, thinks)
        if not prompt:
            raise QwenchError("the prompt is empty", "say something")
        fresh = thinks and not opened and not ask.prefix
        if fresh and ask.messages is not None and template and template.thinks:
            # Such a model opens its answer with a thought, empty or not: opened here, it is two requests.
            prompt, opened, fresh = self.longer(prompt, "<think>\n"), True, False
        asked = Asked(ask.key, ask, prompt, ask.max_tokens, self.length(prompt), sampling, seed, opened, exact=exact)
        return self._limited(replace(asked, peek=fresh and ask.budget > 0), thinks or opened)

    def _limited(self, asked: Asked, thinks: bool) -> Asked:
        """With limits that leave the answer its room."""
        ask, text = asked.ask, closing(asked.ask.think_message)
        message = self.length(text) or 0 if thinks else 0
        most = LONGEST
        if self.context and asked.prompt_tokens is not None:
            room = self.context - asked.prompt_tokens - 2 - message
            if room < 1:
                raise TooLong(
                    f"the prompt has {asked.prompt_tokens} tokens, and the server's context of {self.context} has no "
                    "room for an answer",
                    "shorten it, or /reset the conversation",
                )
            asked = replace(asked, max_tokens=min(ask.max_tokens, room))
            most = room - asked.max_tokens
        limit, by = (ask.budget, "budget") if 0 <= ask.budget <= most else (most, "length")
        grace = min(max(limit // 10, 1), most - limit) if ask.think_stop == "sentence" and by == "budget" else 0
        return replace(asked, limit=limit, limited_by=by, grace=grace if limit else 0, message=(text, message))

    def _prompt(self, ask: Ask, thinks: bool) -> tuple[str | list[int], bool]:
        """(text, or ids where they were given, with the prefix; whether they end inside a thought)."""
        decode = self.texts.tokenizer.backend.decode if self.texts else None
        prefix = ask.prefix if isinstance(ask.prefix, str) else decode(list(ask.prefix), skip_special_tokens=False)
        if ask.messages is not None:
            text, opened = rendered(self.texts.template, self.think.tagged, ask, thinks, prefix)
        else:
            text = ask.text or ""
            opened = ends_open(text if ask.ids is None else decode(list(ask.ids)[-8:], skip_special_tokens=False))
        opened = left_open("<think>" * opened + prefix) and self.think is not None
        if ask.ids is None and isinstance(ask.prefix, str):
            return text + prefix, opened
        ids = list(ask.ids) if ask.ids is not None else self.texts.tokenizer.ids([text])[0]
        more = self.texts.tokenizer.ids([prefix])[0] if isinstance(ask.prefix, str) else list(ask.prefix)
        return ids + more, opened

    def longer(self, prompt: str | list[int], text: str) -> str | list[int]:
        """A prompt with more text."""
        return prompt + text if isinstance(prompt, str) else prompt + self.texts.tokenizer.ids([text])[0]

    def length(self, prompt: str | list[int]) -> int | None:
        """Its tokens, None where they cannot be counted."""
        if not isinstance(prompt, str):
            return len(prompt)
        return len(self.texts.tokenizer.ids([prompt])[0]) if self.texts else None

    def answer(self, asked: Asked, seed: int | None, prompt: Any) -> dict[str, Any]:
        """The request for an answer."""
        ask = asked.ask
        body = self.body(asked, seed, prompt, asked.max_tokens, ask.stops)
        if ask.logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": ask.logprobs} if self.chat else {"logprobs": ask.logprobs}
        return body

    def body(self, asked: Asked, seed: int | None, prompt: Any, most: int, stops: Sequence[str] = ()) -> dict[str, Any]:
        """A request, with everything said that a server might have a default of its own for."""
        ask = asked.ask
        body: dict[str, Any] = {"model": self.name, "max_tokens": most, "seed": seed}
        body |= _drawn(asked.sampling, self.found.extras, self.owner)
        if stops:
            body["stop"] = list(stops)
        if prompt is not None:
            return body | {"prompt": prompt} | ({"add_special_tokens": False} if self.found.bare else {})
        messages = [dict(m) for m in ask.messages or ()]
        if ask.prefix:
            messages.append({"role": "assistant", "content": ask.prefix})
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        if ask.budget == 0:
            body["chat_template_kwargs"] = {"enable_thinking": False}
        return body | {"messages": messages}


def _none(name: str) -> float:
    """The value of a field at which it does nothing."""
    return 1 if name == "repetition_penalty" else 0


def _drawn(sampling: Sampling, extras: bool, owner: str) -> dict[str, Any]:
    """How tokens are drawn, in the words of servers."""
    s, body = sampling, {"temperature": sampling.temperature}
    if s.temperature:
        body["top_p"] = s.top_p
    body |= {n: v for n in ("presence_penalty", "frequency_penalty") if (v := getattr(s, n))}
    if not extras:
        return body
    if s.temperature:
        # SGLang has no 0 for all.
        body |= {"top_k": s.top_k or (-1 if owner == "sglang" else 0), "min_p": s.min_p}
    # At 1, too: vLLM takes a model's own from its generation config, and llama-cpp-python has 1.1. The second name is
    # llama.cpp's.
    return body | {"repetition_penalty": s.repetition_penalty, "repeat_penalty": s.repetition_penalty}
