"""The text around query and document that a generative reranker was trained on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ..base.errors import QwenchError
from ..base.parse import decoded
from ..checkpoint.sidecars import read_json
from ..text.prompts import RERANK_DEFAULT_INSTRUCTION, RERANK_PREFIX, RERANK_SUFFIX

#: what marks a template of the newer checkpoint files: its roles are query and document
_ROLES = re.compile(r"""['"]query['"].*['"]document['"]|['"]document['"].*['"]query['"]""", re.DOTALL)
_MARKS = ("qwench-instruction-mark", "qwench-query-mark", "qwench-document-mark")


@dataclass(frozen=True, slots=True)
class RerankTemplate:
    """Prompt = before_instruction, instruction, before_query, query, before_document, document, after_document.

    Attributes:
        instruction: the default instruction.
        reason: where the template was read.
    """

    before_instruction: str = RERANK_PREFIX + "<Instruct>: "
    before_query: str = "\n<Query>: "
    before_document: str = "\n<Document>: "
    after_document: str = RERANK_SUFFIX
    instruction: str = RERANK_DEFAULT_INSTRUCTION
    reason: str = "the model card of Qwen3-Reranker"

    def static(self, instruction: str) -> str:
        """The text before every query."""
        return self.before_instruction + instruction + self.before_query

    def head(self, instruction: str, query: str) -> str:
        """The text before every document of a query."""
        return self.static(instruction) + query + self.before_document

    def filled(self, query: str, document: str) -> str:
        """The whole prompt, with the default instruction."""
        return self.head(self.instruction, query) + document + self.after_document


def read_template(folder: Path) -> RerankTemplate:
    """The checkpoint's own template where it is one with the roles query and document, else the published strings.

    Raises:
        QwenchError: the template cannot be rendered, loses a text, or ends in another way than the model was
            trained on (a template file needs three newlines at its end, because Jinja takes one away).
    """
    source = _source(folder)
    if source is None or not _ROLES.search(source):
        return RerankTemplate()
    rendered = _rendered(folder, source)
    parts = re.split("|".join(_MARKS), rendered)
    if len(parts) != 4 or re.findall("|".join(_MARKS), rendered) != list(_MARKS):
        raise QwenchError(
            f"the chat template does not put instruction, query and document once each, in this order: `{folder}`",
            "take the model's own chat_template.jinja, or move the template away to use the published prompt",
        )
    if parts[3].rstrip("\n").endswith("</think>") and not parts[3].endswith("</think>\n\n"):
        raise QwenchError(
            f"the chat template ends in `</think>` and too few newlines, which changes every score: `{folder}`",
            "end chat_template.jinja with three newlines, of which Jinja takes one away",
        )
    return RerankTemplate(*parts, reason="the checkpoint's chat template")


def _source(folder: Path) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return decoded(file.read_bytes(), str(file))
    template = read_json(folder / "tokenizer_config.json", {}).get("chat_template")
    return template if isinstance(template, str) else None


def _rendered(folder: Path, source: str) -> str:
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    messages = [{"role": r, "content": c} for r, c in zip(("system", "query", "document"), _MARKS, strict=True)]
    try:
        # trim_blocks and lstrip_blocks are what transformers renders chat templates with.
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        return environment.from_string(source).render(messages=messages, add_generation_prompt=True)
    except (TemplateError, TypeError, ValueError, KeyError, ArithmeticError, RecursionError) as error:
        raise QwenchError(
            f"the chat template cannot be rendered ({error}): `{folder}`", "take the model's own template"
        ) from error
