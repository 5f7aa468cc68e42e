"""How a checkpoint says its vectors are made: modules.json, pooling, dense layers, prompts.

Reads the sentence-transformers layout (old and new spellings) and, for a bare Qwen3-Embedding checkpoint,
the contract of the Qwen3 Embedding report (arXiv 2506.05176, section 2).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..base.errors import QwenchError
from ..checkpoint.sidecars import modules_of, read_json
from ..text.prompts import EMBED_DEFAULT_TASK, embed_query_prompt

POOLINGS = ("mean", "cls", "lasttoken", "max", "mean_sqrt_len_tokens", "weightedmean")
#: old boolean names of 1_Pooling/config.json -> pooling
OLD_POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
DECODERS = ("qwen3", "qwen2", "llama")


@dataclass(frozen=True, slots=True)
class Layout:
    """How hidden states become vectors.

    Attributes:
        pooling: one of POOLINGS.
        normalize: vectors have length 1.
        dense: folders of dense layers applied to the pooled vector, in order.
        prompts: name -> text put before a text (`query`, `document`, ...).
        max_tokens: longest input with special tokens, None where only the architecture limits it.
        lowercase: texts are lower-cased before tokenizing.
        reason: where this was read.
    """

    pooling: str
    normalize: bool
    dense: tuple[Path, ...] = ()
    prompts: dict[str, str] = field(default_factory=dict)
    max_tokens: int | None = None
    lowercase: bool = False
    reason: str = ""

    @property
    def qwen3_contract(self) -> bool:
        """The query prompt is an instruction that a task can be put into."""
        return self.prompts.get("query", "").startswith("Instruct: ")

    def prompt(self, role: str, task: str | None = None, name: str | None = None) -> str:
        """The text put before a query or document.

        Args:
            role: query or document.
            task: one-sentence instruction; only models trained with `Instruct:` prompts take one.
            name: a prompt of the checkpoint by name, instead of the role's own.

        Raises:
            QwenchError: unknown prompt name, or a task for a model without instructions.
        """
        if name is not None:
            if name not in self.prompts:
                known = ", ".join(f"`{n}`" for n in self.prompts) or "none"
                raise QwenchError(f"the model has no prompt of that name: `{name}`", f"its prompts: {known}", code=2)
            return self.prompts[name]
        if task is not None:
            if not self.qwen3_contract:
                raise QwenchError(
                    "--task is for models trained with instructions, and this one has no `Instruct:` prompt",
                    "leave out --task",
                    code=2,
                )
            return embed_query_prompt(task, "")
        if role == "query":
            return self.prompts.get("query", "")
        return next((self.prompts[n] for n in ("document", "passage", "corpus") if n in self.prompts), "")


def read_layout(folder: Path, config: dict[str, Any]) -> Layout:
    """The layout of a checkpoint folder.

    Raises:
        QwenchError: a module this program does not know, or a checkpoint that does not say how to pool.
    """
    if (folder / "modules.json").is_file():
        return _from_modules(folder)
    if config.get("model_type") in DECODERS and not _has_own_head(config):
        return Layout(
            "lasttoken",
            True,
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
    pooling, normalize, dense = None, False, []
    for module in modules_of(folder):
        kind, path = module["type"].rsplit(".", 1)[-1], folder / module.get("path", "")
        if kind == "Transformer":
            if path != folder:
                folder_of = path.relative_to(folder)
                raise QwenchError(f"the transformer is in a sub-folder, which is not supported: `{folder_of}`")
        elif kind == "Pooling":
            pooling = _pooling(path)
        elif kind == "Normalize":
            normalize = True
        elif kind == "Dense":
            dense.append(path)
        else:
            raise QwenchError(
                f"the model has a module this program does not know: `{module['type']}` in `{folder / 'modules.json'}`",
                "Transformer, Pooling, Dense and Normalize are known",
            )
    if pooling is None:
        raise QwenchError(f"the model has no pooling module: `{folder / 'modules.json'}`", "its vectors are undefined")
    transformer = read_json(folder / "sentence_bert_config.json", {})
    prompts = read_json(folder / "config_sentence_transformers.json", {}).get("prompts") or {}
    return Layout(
        pooling,
        normalize,
        tuple(dense),
        {k: v for k, v in prompts.items() if v is not None},
        transformer.get("max_seq_length"),
        bool(transformer.get("do_lower_case")),
        "modules.json of the checkpoint",
    )


def _pooling(path: Path) -> str:
    config = read_json(path / "config.json")
    if not config.get("include_prompt", True):
        raise QwenchError(f"pooling without the prompt (include_prompt: false) is not supported: `{path}`")
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [new for old, new in OLD_POOLING.items() if config.get(old)]
    modes = [modes] if isinstance(modes, str) else list(modes)
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise QwenchError(f"pooling of this kind is not supported: `{modes}` in `{path / 'config.json'}`")
    return modes[0]
