"""A checkpoint's head becomes another: tensors and config, nothing guessed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..base.errors import QwenchError
from ..base.fields import AGAIN
from .cast import Losses, pieces
from .layout import EMBEDDING, LM_HEAD, PREFIX
from .plan import Output, Plan
from .reader import Source
from .tensors import TensorInfo

if TYPE_CHECKING:
    from torch import Tensor

HEADS = ("lm", "embedding", "reranker", "reward")
SCORE = "score.weight"


def embedding_info(source: Source) -> TensorInfo:
    """The token embeddings of a decoder.

    Raises:
        QwenchError: there are none under a decoder's name.
    """
    for name in (PREFIX + EMBEDDING, EMBEDDING):
        if name in source.infos:
            return _matrix(source, name)
    raise QwenchError(f"no `{EMBEDDING}` among the tensors: `{source.path}`", "--head is for decoders")


def head_info(source: Source, config: dict[str, Any]) -> TensorInfo:
    """The matrix that makes logits: `lm_head.weight`, or the embeddings it is tied to.

    Raises:
        QwenchError: an untied head is missing.
    """
    if config.get("tie_word_embeddings", False):
        return embedding_info(source)
    if LM_HEAD not in source.infos:
        raise QwenchError(f"the checkpoint has no `{LM_HEAD}`, and config.json says it is not tied: `{source.path}`")
    return _matrix(source, LM_HEAD)


def _matrix(source: Source, name: str) -> TensorInfo:
    info = source.infos[name]
    if len(info.shape) != 2:
        raise QwenchError(f"`{name}` is no matrix but of shape {list(info.shape)}: `{source.path}`", AGAIN)
    return info


def to_embedding(source: Source, config: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """Drop the head; the config keeps its architecture, as Qwen3-Embedding's does."""
    _drop(plan, (LM_HEAD, SCORE), "an embedding model has no head")
    embedding_info(source)
    return config | {"tie_word_embeddings": True, "architectures": [_architecture(config, "ForCausalLM")]}


def to_classifier(
    source: Source, config: dict[str, Any], plan: Plan, yes: int, no: int, labels: int, dtype: str | None
) -> dict[str, Any]:
    """Qwen3-Reranker as a sequence classifier: W[yes] - W[no], or the rows (no, yes), made in float32."""
    head = head_info(source, config)
    kind = dtype or "float32"

    def rows(losses: Losses | None) -> Iterator[Tensor]:
        return pieces(SCORE, _score_rows(source, head, yes, no, labels), kind, losses)

    _drop(plan, (LM_HEAD,), "a classifier has its own head")
    what = f"row {yes} - row {no} of `{head.name}`" if labels == 1 else f"rows {no}, {yes} of `{head.name}`"
    plan.outputs.append(Output(SCORE, (labels, head.shape[1]), kind, (head.name,), what, rows))
    names = ["relevance"] if labels == 1 else ["no", "yes"]
    return config | {
        "architectures": [_architecture(config, "ForSequenceClassification")],
        "num_labels": labels,
        "id2label": {str(i): n for i, n in enumerate(names)},
        "label2id": {n: i for i, n in enumerate(names)},
    }


def _score_rows(source: Source, head: TensorInfo, yes: int, no: int, labels: int) -> Tensor:
    """W[yes] - W[no] as one row, or the rows (no, yes); float32."""
    import torch

    if max(yes, no) >= head.shape[0]:
        raise QwenchError(f"token {max(yes, no)} has no row in `{head.name}`, which has {head.shape[0]}", AGAIN)
    weight = source.reader.load(head.name)
    y, n = weight[yes].float(), weight[no].float()
    return (y - n)[None] if labels == 1 else torch.stack((n, y))


def to_lm(source: Source, config: dict[str, Any], plan: Plan, yes: int, no: int) -> dict[str, Any]:
    """A classifier made of yes and no rows becomes the language model it came from.

    Raises:
        QwenchError: the head matrix is not there, or the score rows are others: the model was trained on as a
            classifier, and a language model cannot say the same.
    """
    import torch

    head = head_info(source, config)
    if SCORE in source.infos:
        score = source.reader.load(SCORE)
        if not torch.equal(score, _score_rows(source, head, yes, no, len(score)).to(score.dtype)):
            raise QwenchError(
                f"`{SCORE}` is not made of the yes and no rows of `{head.name}`, so no language model scores the same: "
                f"`{source.path}`",
                "keep it as a classifier",
            )
        _drop(plan, (SCORE,), f"the yes and no rows of `{head.name}` say the same")
    gone = ("num_labels", "id2label", "label2id")
    return {k: v for k, v in config.items() if k not in gone} | {
        "architectures": [_architecture(config, "ForCausalLM")]
    }


def to_reward(source: Source, config: dict[str, Any], plan: Plan, dtype: str | None) -> dict[str, Any]:
    """A scaffold for reward training: one score row of zeros, which every answer gets the reward 0 from."""
    width = embedding_info(source).shape[1]
    kind = dtype or embedding_info(source).dtype

    def zeros(losses: Losses | None) -> Iterator[Tensor]:
        import torch

        return pieces(SCORE, torch.zeros(1, width), kind, None)

    _drop(plan, (LM_HEAD, SCORE), "a reward model has its own head")
    plan.outputs.append(Output(SCORE, (1, width), kind, (), "zeros, to be trained", zeros))
    plan.notes.append(f"`{SCORE}` is zeros: every answer gets the reward 0 until the model is trained")
    return config | {
        "architectures": [_architecture(config, "ForSequenceClassification")],
        "num_labels": 1,
        "id2label": {"0": "reward"},
        "label2id": {"reward": 0},
    }


def _drop(plan: Plan, names: tuple[str, ...], reason: str) -> None:
    for output in [o for o in plan.outputs if o.name in names]:
        plan.outputs.remove(output)
        plan.dropped |= dict.fromkeys(output.sources, reason)


def _architecture(config: dict[str, Any], ending: str) -> str:
    names = config.get("architectures") or []
    stems = {"qwen2": "Qwen2", "qwen3": "Qwen3", "llama": "Llama", "qwen3_moe": "Qwen3Moe"}
    for known in ("ForCausalLM", "ForSequenceClassification", "Model"):
        if names and names[0].endswith(known):
            return names[0].removesuffix(known) + ending
    if config.get("model_type") in stems:
        return stems[config["model_type"]] + ending
    raise QwenchError(f"config.json names no architecture this can be made of: {names}", "set `architectures` there")
