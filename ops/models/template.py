"""A checkpoint's chat template, rendered without transformers."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any, ClassVar

from ..base.errors import QwenchError
from ..base.parse import decoded
from ..checkpoint.sidecars import json_of

Message = dict[str, Any]


class ChatTemplate:
    """Messages become the text of a prompt.

    Args:
        source: Jinja text; None for a model without a template, whose prompts are taken as they are.
        specials: bos_token, eos_token and the like, for the template.
    """

    def __init__(self, source: str | None, specials: dict[str, str]) -> None:
        self.source, self.specials, self._template = source, specials, None
        if source is None:
            return
        from jinja2 import TemplateError, nodes
        from jinja2.ext import Extension
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        class Generation(Extension):
            """`{% generation %}` marks for training what the model says; the text is the same."""

            tags: ClassVar[set[str]] = {"generation"}

            def parse(self, parser: Any) -> Any:
                line = next(parser.stream).lineno
                body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
                return nodes.Scope(body, lineno=line)

        def refuse(message: str) -> None:
            raise TemplateError(message)

        room = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
        )
        room.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
        room.globals |= {
            "raise_exception": refuse,
            "strftime_now": lambda form: datetime.datetime.now().strftime(form),
        }
        try:
            self._template = room.from_string(source)
        except (TemplateError, RecursionError) as error:
            raise QwenchError(
                f"the chat template cannot be read ({error})",
                "mend it, or copy that of the original checkpoint: tokenizer_config.json or chat_template.jinja",
            ) from error

    @property
    def thinks(self) -> bool:
        """It is made for a model that thinks before it answers."""
        return self.source is not None and ("enable_thinking" in self.source or "<think>" in self.source)

    @classmethod
    def read(cls, files: dict[str, bytes]) -> ChatTemplate:
        """From chat_template.jinja, else from tokenizer_config.json."""
        config = json_of(files.get("tokenizer_config.json", b"{}"), "tokenizer_config.json")
        specials = {}
        for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
            value = config.get(name)
            specials[name] = value["content"] if isinstance(value, dict) else value or ""
        source = config.get("chat_template")
        if isinstance(source, list):
            source = next((t["template"] for t in source if t.get("name") == "default"), None)
        if "chat_template.jinja" in files:
            source = decoded(files["chat_template.jinja"], "chat_template.jinja")
        return cls(source, specials)

    def render(self, messages: list[Message], *, thinking: bool | None = None) -> tuple[str, str]:
        """(the prompt, the part of it that opens the answer).

        Args:
            messages: role and content.
            thinking: `enable_thinking`; None leaves it undefined.

        Raises:
            QwenchError: the template refuses the messages, or leaves one out.
        """
        if self._template is None:
            return "".join(m["content"] for m in messages), ""
        whole, bare = (self._rendered(messages, add, thinking) for add in (True, False))
        for message in messages:
            # What a model said before may lose its thoughts; nobody else's words may be lost.
            if message.get("role") != "assistant":
                _there(message, whole)
        return whole, whole[len(bare) :] if whole.startswith(bare) else ""

    def spoken(self, messages: list[Message], opened: bool = True) -> str:
        """The prompt of messages whose content is a list of parts, of which those with text must be there.

        Args:
            opened: it opens an answer.

        Raises:
            QwenchError: there is no template, or it refuses the messages or leaves a text out.
        """
        if self._template is None:
            raise QwenchError("the model has no chat template", "copy chat_template.jinja of the original checkpoint")
        text = self._rendered(messages, opened, None)
        for message in messages:
            for part in message["content"]:
                _there({"role": message["role"], "content": part.get("text", "")}, text)
        return text

    def closed(self, messages: list[Message]) -> str:
        """A whole conversation, whose last message is the answer, with nothing that opens another.

        Raises:
            QwenchError: the template refuses the messages, or leaves one or the answer out.
        """
        if self._template is None:
            return "".join(m["content"] for m in messages)
        text = self._rendered(messages, False, None)
        for message in messages:
            if message.get("role") != "assistant" or message is messages[-1]:
                _there(message, text)
        return text

    def _rendered(self, messages: list[Message], add: bool, thinking: bool | None) -> str:
        assert self._template is not None
        extra = {} if thinking is None else {"enable_thinking": thinking}
        from jinja2 import TemplateError

        try:
            return self._template.render(messages=messages, add_generation_prompt=add, **self.specials, **extra)
        except (TemplateError, TypeError, ValueError, KeyError, ArithmeticError, RecursionError) as error:
            raise QwenchError(f"the chat template refuses these messages: {error}", "see its roles") from error


def _there(message: Message, text: str) -> None:
    """Raise where a message is not in a rendered text; a thought before an answer may be set apart or left out."""
    said = str(message.get("content") or "")
    said = (said.rpartition("</think>")[2] if message.get("role") == "assistant" else said).strip()
    if said not in text:
        raise QwenchError(
            f"the chat template leaves a message out: role `{message.get('role')}`, {said[:40]!r}",
            "use the roles it knows: system, user, assistant",
        )


def chat_files(folder: Path) -> dict[str, bytes]:
    """The files of a model folder that decide about prompts and ends."""
    names = ("tokenizer_config.json", "chat_template.jinja", "generation_config.json")
    return {n: (folder / n).read_bytes() for n in names if (folder / n).is_file()}
