"""How a checkpoint says its vectors are made: modules.json in its order, prompts, longest input.

Reads the sentence-transformers layout (old and new spellings), model2vec's, and, for a bare Qwen3-Embedding
checkpoint, the contract of the Qwen3 Embedding report (arXiv 2506.05176, section 2).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..base.errors import QwenchError
from ..checkpoint.adapter import adapter_alone
from ..checkpoint.sidecars import read_json
from ..text.prompts import EMBED_DEFAULT_TASK, embed_query_prompt
from .modules import TOKENS, Step, read_modules, transformer_settings

DECODERS = ("qwen3", "qwen2", "llama")
#: a prompt that a task is put into: what stands before the task, the task, and what stands after it
INSTRUCTION = re.compile(
    r"(\s*<?instruct(?:ion)?>?:?\s*)(\S.*?)(\s*\n.*|\s+<?query>?:?\s*|\s*)", re.IGNORECASE | re.DOTALL
)
#: tokenizers state lengths above this when they know none
NO_LIMIT = 1 << 30


@dataclass(frozen=True, slots=True)
class Layout:
    """How hidden states become vectors.

    Attributes:
        folder: where the encoder is, with its config, weights and tokenizer.
        steps: what is done with its output, in order.
        static: the encoder is a table of one vector a token.
        bare: nothing in the folder says so: it is read by a published contract.
        prompts: name -> text put before a text (`query`, `document`, ...).
        default_prompt: name of the prompt of texts that have none of their own.
        max_tokens: longest input with special tokens, None where only the architecture limits it.
        lowercase: texts are lower-cased before tokenizing.
        dim: coordinates that are kept, None for all.
        drop_unknown: tokens that the vocabulary lacks count for nothing.
        reason: where this was read.
    """

    folder: Path
    steps: tuple[Step, ...]
    static: bool = False
    bare: bool = False
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    max_tokens: int | None = None
    lowercase: bool = False
    dim: int | None = None
    drop_unknown: bool = False
    reason: str = ""

    @property
    def pooling(self) -> str:
        """The pooling by name; all steps by name where they are not pooling, dense layers, normalising."""
        kinds = [s.kind for s in self.steps]
        inner = [s for s in self.steps[1:] if s.kind == "Dense"]
        plain = kinds == ["Pooling", *["Dense"] * len(inner), *["Normalize"] * self.normalize]
        if plain and all("(" not in s.name for s in inner):
            return self.steps[0].name
        return ", ".join(s.name for s in self.steps)

    @property
    def normalize(self) -> bool:
        """Vectors have length 1."""
        return bool(self.steps) and self.steps[-1].kind == "Normalize" and self.steps[-1].reads != TOKENS

    def prompt(self, role: str, task: str | None = None, name: str | None = None) -> str:
        """The text put before a query or document.

        Args:
            role: query or document.
            task: one-sentence instruction, put into the model's own prompt in place of the one that is there.
            name: a prompt of the checkpoint by name, instead of the role's own.

        Raises:
            QwenchError: unknown prompt name, or a task for a model without instructions.
        """
        if name is not None:
            if name not in self.prompts:
                known = ", ".join(f"`{n}`" for n in self.prompts) or "none"
                raise QwenchError(f"the model has no prompt of that name: `{name}`", f"its prompts: {known}", code=2)
            return self.prompts[name]
        # As encode_query and encode_document of sentence-transformers: only documents fall back on the default.
        names = ("query",) if role == "query" else ("document", "passage", "corpus")
        found = next((self.prompts[n] for n in names if n in self.prompts), None)
        if found is None:
            found = self.prompts[self.default_prompt] if role != "query" and self.default_prompt else ""
        if task is None:
            return found
        parts = INSTRUCTION.fullmatch(found)
        if parts is None:
            raise QwenchError(
                "--task is for models trained with instructions, and this one has no `Instruct:` prompt",
                "leave out --task",
                code=2,
            )
        return parts[1] + task + parts[3]


def read_layout(folder: Path, config: dict[str, Any] | None = None) -> Layout:
    """The layout of a checkpoint folder; `config` is the encoder's, read from the folder by default.

    Raises:
        QwenchError: a module this program does not know, a checkpoint that does not say how to pool, or an adapter.
    """
    if error := adapter_alone(folder):
        raise error
    if (folder / "modules.json").is_file():
        return _from_modules(folder)
    if config is None:
        config = read_json(folder / "config.json")
    if config.get("model_type") == "model2vec":
        return _model2vec(folder, config)
    if config.get("model_type") in DECODERS and not _has_own_head(config):
        return Layout(
            folder,
            (Step("Pooling", folder, TOKENS, modes=("lasttoken",)), Step("Normalize", folder)),
            bare=True,
            prompts={"query": embed_query_prompt(EMBED_DEFAULT_TASK, ""), "document": ""},
            reason="no modules.json: a bare decoder, read by the Qwen3-Embedding contract",
        )
    raise QwenchError(
        f"the checkpoint does not say how its vectors are made (no modules.json): `{folder}`",
        "use a sentence-transformers model or a Qwen3-Embedding checkpoint",
    )


def _has_own_head(config: dict[str, Any]) -> bool:
    return any(a.endswith("ForSequenceClassification") for a in config.get("architectures") or [])


def _from_modules(folder: Path) -> Layout:
    kind, place, steps = read_modules(folder)
    if error := adapter_alone(place):
        raise error
    static = kind == "StaticEmbedding"
    settings = {} if static else transformer_settings(place)
    said = read_json(folder / "config_sentence_transformers.json", {})
    if said.get("model_type", "SentenceTransformer") != "SentenceTransformer":
        raise QwenchError(
            f"a model of another kind than text embedding (model_type `{said['model_type']}`): `{folder}`",
            "use a SentenceTransformer model",
        )
    prompts = {k: v for k, v in (said.get("prompts") or {}).items() if v is not None}
    default = said.get("default_prompt_name")
    if default is not None and default not in prompts:
        raise QwenchError(
            f"the model's default prompt is not among its prompts: `{default}`: `{folder}`",
            "mend config_sentence_transformers.json",
        )
    for step in steps:
        if step.modes and not step.config.get("include_prompt", True) and any(prompts.values()):
            raise QwenchError(
                f"pooling without the prompt (include_prompt: false) is not supported: `{step.folder}`",
                "use a model that pools its prompts too",
            )
    limit = settings.get("max_seq_length")
    if limit is None and not static:
        limit = stated_limit(place)
    pooled = [Step("Pooling", place, TOKENS, modes=("mean",))] if static else []
    return Layout(
        place,
        (*pooled, *steps),
        static,
        False,
        prompts,
        default,
        limit,
        bool(settings.get("do_lower_case")),
        said.get("truncate_dim"),
        reason="modules.json of the checkpoint",
    )


def stated_limit(folder: Path) -> int | None:
    """Longest input by tokenizer_config.json, None where it states none."""
    stated = read_json(folder / "tokenizer_config.json", {}).get("model_max_length")
    return int(stated) if stated and stated < NO_LIMIT else None


def _model2vec(folder: Path, config: dict[str, Any]) -> Layout:
    """A model2vec folder without modules.json: the mean over known tokens, of length 1 where the config says so."""
    if config.get("pooling", "mean") != "mean":
        raise QwenchError(
            f"pooling of this kind is not supported for static embeddings: `{config['pooling']}`: `{folder}`",
            "use a model2vec model with mean pooling",
        )
    ending = (Step("Normalize", folder),) if config.get("normalize") else ()
    steps = (Step("Pooling", folder, TOKENS, modes=("mean",)), *ending)
    reason = "config.json of model2vec"
    return Layout(folder, steps, True, max_tokens=config.get("max_length", 512), drop_unknown=True, reason=reason)
