"""What kind of reranker a checkpoint is, from its config and files; one without a score head is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..base.errors import QwenchError
from ..checkpoint.sidecars import modules_of
from ..models.device import Choice
from ..models.layouts import DECODERS
from .reward_kind import CLASSES

#: lm: yes/no logits of a causal LM; classifier: a decoder with a score head, same prompt; cross-encoder: a pair
KINDS = ("lm", "classifier", "cross-encoder")
HINT = "use a reranker, such as Qwen/Qwen3-Reranker-0.6B"


def decide_kind(folder: Path, config: dict[str, Any], asked: str = "auto") -> Choice:
    """One of KINDS, with the reason.

    Raises:
        QwenchError: unknown kind asked for (code 2), an embedding model, or no score head by config.
    """
    if asked != "auto":
        if asked not in KINDS:
            raise QwenchError(f"unknown kind of reranker: `{asked}`", f"use auto, {', '.join(KINDS)}", code=2)
        return Choice(asked, "as asked")
    modules = [m.get("type", "").rsplit(".", 1)[-1] for m in modules_of(folder)]
    if "Pooling" in modules:
        raise QwenchError(f"an embedding model (its modules.json pools vectors), not a reranker: `{folder}`", HINT)
    names = config.get("architectures") or []
    name = names[0] if names else "none named"
    if name in CLASSES:
        raise QwenchError(f"a reward model ({name}), not a reranker: `{folder}`", "score with it: qwench reward score")
    if config.get("model_type") in DECODERS:
        if name.endswith("ForSequenceClassification"):
            return Choice("classifier", f"{name} in config.json")
        if name.endswith("ForCausalLM"):
            return Choice("lm", f"{name} in config.json, scored by its yes and no logits")
    elif name.endswith("ForSequenceClassification"):
        return Choice("cross-encoder", f"{name} in config.json")
    raise QwenchError(f"the model has no score head (architecture {name}): `{folder}`", HINT)


def label_count(config: dict[str, Any]) -> int:
    """Number of labels of a sequence classifier, as transformers reads it.

    Raises:
        QwenchError: neither one nor two labels.
    """
    labels = config.get("id2label")
    count = len(labels) if labels else int(config.get("num_labels", 2))
    if count not in (1, 2):
        raise QwenchError(f"the classifier has {count} labels; a reranker has one or two", HINT)
    return count


def positive_label(config: dict[str, Any]) -> int:
    """Which of two labels means relevant: the one called yes, relevant, true or entailment, else the second."""
    names = {str(v).lower(): int(k) for k, v in (config.get("id2label") or {}).items() if str(k) in ("0", "1")}
    return next((names[n] for n in ("yes", "relevant", "true", "entailment", "label_1") if n in names), 1)


def wants_sigmoid(config: dict[str, Any]) -> Choice:
    """Whether a one-label score goes through the sigmoid, as sentence-transformers reads it from config.json."""
    named = (config.get("sentence_transformers") or {}).get("activation_fn")
    named = named or config.get("sbert_ce_default_activation_function")
    if named and str(named).endswith("Identity"):
        return Choice(False, f"config.json names {named}")
    return Choice(True, "a probability")
