"""Adapters in a plan: which end of the model they may change, and whose tokenizer it has then."""

from __future__ import annotations

from typing import Any

from ..checkpoint.adapter import Adapter
from ..checkpoint.heads import SCORE, embedding_of, untied
from ..checkpoint.impostors import genuine
from ..checkpoint.layout import EMBEDDING, LM_HEAD, PREFIX
from ..checkpoint.lora import merge_adapters, one_sided, resized
from ..checkpoint.plan import Plan
from ..checkpoint.reader import Source
from ..checkpoint.sidecars import TOKENIZER_FILES

#: heads whose score row is made by the conversion
MAKES_SCORE = ("reranker", "reward")


def adapted(config: dict[str, Any], plan: Plan, head: str | None, adapters: list[Adapter]) -> dict[str, Any]:
    """Merge adapters; those of a model whose head is made anew need not share it with the embeddings."""
    names = {o.name for o in plan.outputs}
    causal = not names & {LM_HEAD, SCORE} and bool(config.get("tie_word_embeddings", False))
    touched = {n for a in adapters for n in a.touched}
    own = head in (*MAKES_SCORE, "embedding") and causal and one_sided(plan, adapters)
    if own:
        untied(plan)
        config = config | {"tie_word_embeddings": False}
    logits = next((o for o in plan.outputs if o.name == LM_HEAD), None)
    if logits is not None and logits.sources == embedding_of(plan).sources:
        for adapter in adapters:
            if EMBEDDING in adapter.tokens and LM_HEAD not in adapter.touched:
                # peft ties rows of tokens as the model ties its ends.
                adapter.tokens[LM_HEAD] = adapter.tokens[EMBEDDING]
                touched.add(LM_HEAD)
    wanted = touched - {SCORE} if head in MAKES_SCORE else touched
    if wanted:
        merge_adapters(plan, adapters, causal and not own, tuple(wanted))
    if head in ("embedding", "reward") and LM_HEAD in touched:
        plan.notes.append(f"the adapter's `{LM_HEAD}` is left out: the model is given a head of another kind")
    return resized(plan, config)


def tokenizers(source: Source, plan: Plan, adapters: list[Adapter]) -> None:
    """Adapters with embeddings of another size bring their tokenizer; other tokenizers of theirs are told."""
    embedding = next((o for o in plan.outputs if o.name in (EMBEDDING, PREFIX + EMBEDDING)), None)
    old = source.infos[embedding.sources[0]].shape[0] if embedding and embedding.sources else None
    for adapter in adapters:
        file = adapter.folder / TOKENIZER_FILES[0]
        grown = EMBEDDING in adapter.saved and len(adapter.saved[EMBEDDING]) != old
        if not file.is_file():
            if grown:
                plan.notes.append(f"`{adapter.folder.name}` resizes the embeddings and has no tokenizer beside it")
            continue
        own = source.folder / TOKENIZER_FILES[0]
        if grown:
            texts = [n for n in TOKENIZER_FILES if (adapter.folder / n).is_file()]
            plan.copies = [n for n in plan.copies if n not in TOKENIZER_FILES]
            plan.side |= {n: genuine(adapter.folder / n).read_bytes() for n in texts}
            plan.notes.append(f"the tokenizer is that of `{adapter.folder.name}`, which resizes the embeddings")
        elif not own.is_file() or own.read_bytes() != file.read_bytes():
            plan.notes.append(f"`{adapter.folder.name}` has a tokenizer of its own; the model's is kept")
