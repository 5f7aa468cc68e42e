"""A checkpoint's head becomes another: tensors and config, nothing guessed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..base.errors import QwenchError
from ..base.fields import AGAIN
from .cast import Losses, pieces
from .layout import EMBEDDING, LM_HEAD, PREFIX
from .plan import Output, Plan

if TYPE_CHECKING:
    from torch import Tensor

HEADS = ("lm", "embedding", "reranker", "reward")
SCORE = "score.weight"


def embedding_of(plan: Plan) -> Output:
    """The token embeddings of a decoder, as planned.

    Raises:
        QwenchError: there are none under a decoder's name.
    """
    for output in plan.outputs:
        if output.name in (PREFIX + EMBEDDING, EMBEDDING):
            return _matrix(output)
    raise QwenchError(f"no `{EMBEDDING}` among the tensors", "--head is for decoders")


def head_of(plan: Plan, config: dict[str, Any]) -> Output:
    """The matrix that makes logits, as planned: `lm_head.weight`, or the embeddings it is tied to.

    Raises:
        QwenchError: an untied head is missing.
    """
    if config.get("tie_word_embeddings", False):
        return embedding_of(plan)
    for output in plan.outputs:
        if output.name == LM_HEAD:
            return _matrix(output)
    raise QwenchError(f"the checkpoint has no `{LM_HEAD}`, and config.json says it is not tied")


def _matrix(output: Output) -> Output:
    if len(output.shape) != 2:
        raise QwenchError(f"`{output.name}` is no matrix but of shape {list(output.shape)}", AGAIN)
    return output


def untied(plan: Plan) -> None:
    """Give the model a head of its own, equal to the embeddings."""
    embedding = embedding_of(plan)
    plan.outputs.append(replace(embedding, name=LM_HEAD, action=f"copy of `{embedding.sources[0]}`"))


def to_embedding(config: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """Drop the head; the config keeps its architecture, as Qwen3-Embedding's does."""
    _drop(plan, (LM_HEAD, SCORE), "an embedding model has no head")
    embedding_of(plan)
    return config | {"tie_word_embeddings": True, "architectures": [_architecture(config, "ForCausalLM")]}


def to_classifier(
    config: dict[str, Any], plan: Plan, yes: int, no: int, labels: int, dtype: str | None
) -> dict[str, Any]:
    """Qwen3-Reranker as a sequence classifier: W[yes] - W[no], or the rows (no, yes), made in float32.

    Raises:
        QwenchError: it is a classifier already, or has no head to make one of.
    """
    if any(o.name == SCORE for o in plan.outputs):
        raise QwenchError(f"the checkpoint is a classifier already: it has a `{SCORE}`", "leave out --head")
    head = head_of(plan, config)

    def rows(index: slice | list[int]) -> Tensor:
        return _score_rows(head, yes, no, labels)[index]

    what = f"row {yes} - row {no} of `{_label(head)}`" if labels == 1 else f"rows {no}, {yes} of `{_label(head)}`"
    score = _score(rows, (labels, head.shape[1]), dtype or "float32", head.sources, what)
    plan.outputs.append(score)
    _drop(plan, (LM_HEAD,), "a classifier has its own head")
    names = ["relevance"] if labels == 1 else ["no", "yes"]
    return config | {
        "architectures": [_architecture(config, "ForSequenceClassification")],
        "num_labels": labels,
        "id2label": {str(i): n for i, n in enumerate(names)},
        "label2id": {n: i for i, n in enumerate(names)},
    }


def _label(head: Output) -> str:
    return head.name if head.name == LM_HEAD else head.sources[0]


def _score(
    rows: Callable[[slice | list[int]], Tensor], shape: tuple[int, int], kind: str, sources: tuple[str, ...], what: str
) -> Output:
    def made(losses: Losses | None) -> Iterator[Tensor]:
        return pieces(SCORE, rows(slice(None)), kind, losses)

    return Output(SCORE, shape, kind, sources, what, made, rows)


def _score_rows(head: Output, yes: int, no: int, labels: int) -> Tensor:
    """W[yes] - W[no] as one row, or the rows (no, yes); float32."""
    assert head.rows is not None
    if max(yes, no) >= head.shape[0]:
        raise QwenchError(f"token {max(yes, no)} has no row in `{_label(head)}`, which has {head.shape[0]}", AGAIN)
    rows = head.rows([no, yes]).float()
    return (rows[1] - rows[0])[None] if labels == 1 else rows


def to_lm(config: dict[str, Any], plan: Plan, yes: int, no: int) -> dict[str, Any]:
    """A classifier made of yes and no rows becomes the language model it came from.

    Raises:
        QwenchError: the head matrix is not there, or the score rows are others: the model was trained on as a
            classifier, and a language model cannot say the same.
    """
    import torch

    head = head_of(plan, config)
    score = next((o for o in plan.outputs if o.name == SCORE), None)
    if score is not None:
        assert score.rows is not None
        held = score.rows(slice(None))
        if not torch.equal(held, _score_rows(head, yes, no, len(held)).to(held.dtype)):
            raise QwenchError(
                f"`{SCORE}` is not made of the yes and no rows of `{_label(head)}`, so no language model scores the "
                "same",
                "keep it as a classifier",
            )
        _drop(plan, (SCORE,), f"the yes and no rows of `{_label(head)}` say the same")
    gone = ("num_labels", "id2label", "label2id")
    return {k: v for k, v in config.items() if k not in gone} | {
        "architectures": [_architecture(config, "ForCausalLM")]
    }


def to_reward(config: dict[str, Any], plan: Plan, dtype: str | None, trained: bool) -> dict[str, Any]:
    """A scaffold for reward training: one score row of zeros, which every answer gets the reward 0 from.

    Args:
        trained: an adapter brings the row, and takes the place of the zeros.
    """
    embedding = embedding_of(plan)
    width = embedding.shape[1]

    def rows(index: slice | list[int]) -> Tensor:
        import torch

        return torch.zeros(1, width)[index]

    _drop(plan, (LM_HEAD, SCORE), "a reward model has its own head")
    plan.outputs.append(_score(rows, (1, width), dtype or embedding.dtype, (), "zeros, to be trained"))
    if not trained:
        plan.notes.append(f"`{SCORE}` is zeros: every answer gets the reward 0 until the model is trained")
    return config | {
        "architectures": [_architecture(config, "ForSequenceClassification")],
        "num_labels": 1,
        "id2label": {"0": "reward"},
        "label2id": {"reward": 0},
    }


def _drop(plan: Plan, names: tuple[str, ...], reason: str) -> None:
    gone = [o for o in plan.outputs if o.name in names]
    plan.outputs = [o for o in plan.outputs if o.name not in names]
    used = {name for o in plan.outputs if o.name != SCORE for name in o.sources}
    plan.dropped |= {name: reason for o in gone for name in o.sources if name not in used}


def _architecture(config: dict[str, Any], ending: str) -> str:
    names = config.get("architectures") or []
    stems = {"qwen2": "Qwen2", "qwen3": "Qwen3", "llama": "Llama", "qwen3_moe": "Qwen3Moe"}
    for known in ("ForCausalLM", "ForSequenceClassification", "Model"):
        if names and names[0].endswith(known):
            return names[0].removesuffix(known) + ending
    if config.get("model_type") in stems:
        return stems[config["model_type"]] + ending
    raise QwenchError(f"config.json names no architecture this can be made of: {names}", "set `architectures` there")
