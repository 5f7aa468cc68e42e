"""What keeps models from being merged, all of it, told from configs and headers alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..checkpoint.sidecars import json_of
from .inputs import Head, Input, of_tokenizer

#: files that say how texts are put to a model
TEXTS = ("chat_template.jinja", "config_sentence_transformers.json", "1_Pooling/config.json")


def problems(first: Input | Head, others: Sequence[Input | Head], sliced: bool) -> tuple[list[str], list[str]]:
    """(what cannot be merged at all, what can with --allow-mismatch), one sentence each.

    Args:
        sliced: layers are picked by the recipe, so that their numbers need not agree.
    """
    hard: list[str] = []
    soft: list[str] = []
    for other in others:
        kinds = [i.config.get("model_type") for i in (first, other)]
        if kinds[0] != kinds[1]:
            soft.append(f"`{first.model}` is a {kinds[0]} and `{other.model}` a {kinds[1]}")
        if not sliced:
            soft += _missing(first, other) + _missing(other, first)
        for name, output in first.outputs.items():
            there = other.outputs.get(name)
            if there is None or there.shape == output.shape:
                continue
            words = f"`{output.name}` is {list(output.shape)} in `{first.model}`"
            words += f" and {list(there.shape)} in `{other.model}`"
            if "embed_tokens" in name or "lm_head" in name:
                words += ": their vocabularies differ"
            hard.append(words)
        soft += vocabularies(first, other)
    return hard, soft


def _missing(one: Input | Head, other: Input | Head) -> list[str]:
    names = [n for n in one.outputs if n not in other.outputs]
    if not names:
        return []
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return [f"`{other.model}` lacks `{one.outputs[names[0]].name}`{more} of `{one.model}`"]


def vocabularies(first: Input | Head, other: Input | Head) -> list[str]:
    """Why the tokenizers of two models cannot share one table of embeddings."""
    hashes = {first.tokenizer_hash, other.tokenizer_hash}
    if None in hashes or len(hashes) == 1:
        return []
    a, b = first.vocabulary, other.vocabulary
    different = [t for t in a.keys() & b.keys() if a[t] != b[t]]
    if different:
        token = min(different)
        ids = f"{a[token]} and {b[token]}"
        return [f"the tokenizers of `{first.model}` and `{other.model}` disagree: {token!r} is {ids}"]
    alone = sorted(a.keys() ^ b.keys())
    shared = set(a.values()) & {b[t] for t in alone if t in b}
    if alone and shared:
        both = f"`{first.model}` and `{other.model}`"
        return [f"the tokenizers of {both} give different tokens one id, such as {alone[0]!r}"]
    return []


def notes(first: Input, others: list[Input], texts: Input) -> list[str]:
    """Differences that do not stop a merge, one sentence each.

    Args:
        texts: the model whose tokenizer and templates are taken.
    """
    found = []
    for other in others:
        kinds = [{o.dtype for o in i.outputs.values()} for i in (first, other)]
        if kinds[0] != kinds[1]:
            names = [", ".join(sorted(k)) for k in kinds]
            found.append(f"`{first.model}` is stored in {names[0]} and `{other.model}` in {names[1]}")
        tied = [bool(i.config.get("tie_word_embeddings")) for i in (first, other)]
        if tied[0] != tied[1]:
            found.append(f"only `{(first if tied[0] else other).model}` ties its head to the embeddings")
        for name in TEXTS:
            if first.side(name) != other.side(name):
                taken = texts if of_tokenizer(name) else first
                found.append(f"`{name}` differs; the one of `{taken.model}` is taken")
        if _template(first) != _template(other):
            found.append(f"the chat template differs; the one of `{texts.model}` is taken")
        ends = [i.config.get("eos_token_id") for i in (first, other)]
        if ends[0] != ends[1] and other is texts:
            found.append(f"the end token stays that of `{first.model}` ({ends[0]}); `{other.model}` has {ends[1]}")
    return list(dict.fromkeys(found))


def _template(model: Input) -> Any:
    name = "tokenizer_config.json"
    return json_of(model.side(name) or b"{}", model.source.folder / name).get("chat_template")
