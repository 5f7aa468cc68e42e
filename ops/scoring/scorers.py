"""Query and document become one number: generative rerankers by their prompt, cross-encoders by a pair.

A scorer turns a query into a `Question` once, documents into ids once, and ids into margins (log-odds of
relevance) batch by batch.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..base.errors import QwenchError
from ..base.runtime import Runtime
from ..checkpoint.sidecars import read_json
from ..models.device import Choice
from ..models.hub import Checkpoint
from ..models.load import Loaded, load_encoder
from ..models.nets.decoder import DecoderEncoder
from ..models.nets.packed import Prefix
from ..models.nets.weights import Weights
from ..models.rerank_template import read_template
from ..models.tokenizer import TextTokenizer
from ..text.prompts import RERANK_NO, RERANK_YES
from .rerank_kind import HINT, label_count, positive_label

if TYPE_CHECKING:
    from torch import Tensor, dtype

#: what Qwen3-Reranker's model card reads at most; its positions reach further, its training did not
PROMPT_TOKENS = 8192
#: prefixes kept for when the query comes again
KEPT = 8


@dataclass(frozen=True, slots=True)
class Question:
    """A query made ready.

    Attributes:
        query: its text.
        fixed: tokens every input has besides its document.
        ids: what stands before each document.
        prefix: keys and values of those ids, for decoders.
        seam: documents follow the prefix token by token; without it they are tokenised with the head.
    """

    query: str
    fixed: int
    ids: list[int]
    prefix: Prefix | None = None
    seam: bool = True


class PromptScorer:
    """Qwen3-Reranker: a decoder that reads a prompt and answers yes or no (Qwen3 Embedding report, section 2).

    margin = h . (W[yes] - W[no]) at the last position, in float32; or h . score.weight for its classifier form.
    Instruction and query are prefilled once; their keys and values serve all documents.

    Raises:
        QwenchError: no head, yes or no are not single tokens, or an architecture that is not a known decoder.
    """

    def __init__(self, checkpoint: Checkpoint, kind: str, instruction: str | None, runtime: Runtime) -> None:
        self.tokenizer = TextTokenizer.load(checkpoint.path)
        self.template = read_template(checkpoint.path)
        self.instruction = self.template.instruction if instruction is None else instruction
        self.answers = _answer_ids(checkpoint, self.tokenizer) if kind == "lm" else None
        head = self._lm_head if kind == "lm" else _classifier_head
        self.loaded: Loaded = load_encoder(checkpoint, runtime, head=head)
        if not isinstance(self.loaded.encoder, DecoderEncoder):
            raise QwenchError(f"not a decoder that prompts can be scored with: `{checkpoint.name}`", HINT)
        if not self.loaded.encoder.causal:
            raise QwenchError(
                f"the decoder attends to both sides (is_causal: false), so it embeds: `{checkpoint.name}`",
                HINT,
            )
        self.encoder = self.loaded.encoder
        self.device = self.loaded.device.value
        self.max_tokens = min(self.encoder.max_positions, PROMPT_TOKENS)
        self.parameters: int = self.encoder.matmul_parameters
        self.suffix = self._ids(self.template.after_document)
        # A space before the document belongs to its first word, so the prefix ends before it.
        self._lead = " " if self.template.before_document.endswith(" ") else ""
        self._static: Prefix | None = None
        self._static_ids = self._ids(self.template.static(self.instruction).removesuffix(" "))
        self._kept: OrderedDict[str, Question] = OrderedDict()
        self.choices = {"prompt": Choice(self.instruction, self.template.reason)}

    def _lm_head(self, weights: Weights, config: dict[str, Any], dtype: dtype, device: str) -> Tensor:
        name = "lm_head.weight"
        if config.get("tie_word_embeddings", False):
            name = "embed_tokens.weight"
            if (stored := weights.stored_name(name)) and not stored.startswith("model."):
                raise QwenchError(
                    f"the weights have no head and no `model.` prefix, as in an embedding model: `{weights.folder}`",
                    HINT,
                )
        yes, no = weights.rows(name, list(self.answers)).to(device)
        return (yes - no)[None]

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.ids([text])[0]

    def question(self, query: str) -> Question:
        """The query with its keys and values; those of the last few queries are kept."""
        import torch

        if query in self._kept:
            self._kept.move_to_end(query)
            return self._kept[query]
        text = self.template.head(self.instruction, query).removesuffix(self._lead)
        ids, more = self._ids(text), self._ids(text + self._lead + "a")
        seam = more[: len(ids)] == ids
        if not seam:
            # Another tokenizer than Qwen's: share what both ways of tokenising agree on.
            ids = self._static_ids if more[: len(self._static_ids)] == self._static_ids else []
        fixed = len(ids) + len(self.suffix)
        if fixed >= self.max_tokens:
            return Question(query, fixed, ids, None, seam)
        with torch.inference_mode():
            prefix = self._prefill(ids)
        self._kept[query] = Question(query, fixed, ids, prefix, seam)
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return self._kept[query]

    def _prefill(self, ids: list[int]) -> Prefix | None:
        import torch

        def run(part: list[int], before: Prefix | None) -> Prefix:
            return self.encoder.prefill(torch.tensor(part, device=self.device), before)

        static = self._static_ids
        if ids[: len(static)] != static:
            return run(ids, None) if ids else None
        if self._static is None:
            self._static = run(static, None)
        return run(ids[len(static) :], self._static) if len(ids) > len(static) else self._static

    def documents(self, texts: list[str]) -> list[list[int]]:
        """Ids of documents as they follow any query."""
        return self.tokenizer.ids([self._lead + t for t in texts])

    def join(self, question: Question, texts: list[str], ids: list[list[int]]) -> list[list[int]]:
        """Ids of documents as they follow this query: the same, unless the tokenizer has no seam there."""
        if question.seam:
            return ids
        head = self.template.head(self.instruction, question.query)
        return [i[len(question.ids) :] for i in self.tokenizer.ids([head + t for t in texts])]

    def margins(self, question: Question, rows: list[list[int]]) -> Any:
        """Log-odds of relevance of each document, (n, 1) float32."""
        import torch

        lengths = [len(r) + len(self.suffix) for r in rows]
        ids = torch.tensor([t for r in rows for t in (*r, *self.suffix)], device=self.device)
        hidden = self.encoder.last_hidden(ids, lengths, question.prefix).float()
        return _one_margin(hidden @ self.loaded.head.t(), self.loaded.config).cpu().numpy()


class PairScorer:
    """A cross-encoder: [CLS] query [SEP] document [SEP], and a classifier on the first token.

    Raises:
        QwenchError: no classifier among the weights, or more than two labels.
    """

    def __init__(self, checkpoint: Checkpoint, runtime: Runtime) -> None:
        self.tokenizer = TextTokenizer.load(checkpoint.path)
        self.loaded: Loaded = load_encoder(checkpoint, runtime, head=_bert_head)
        label_count(self.loaded.config)
        self.encoder = self.loaded.encoder
        self.device = self.loaded.device.value
        stated = read_json(checkpoint.path / "tokenizer_config.json", {}).get("model_max_length") or 1 << 30
        self.max_tokens = min(self.encoder.max_positions, int(stated))
        self.parameters = getattr(self.encoder, "matmul_parameters", None)
        self._before, self._between, self._after, self._types = self.tokenizer.pair_ids()
        self.choices: dict[str, Choice] = {}

    def question(self, query: str) -> Question:
        """The query's ids with the special ids around them."""
        ids = [*self._before, *self.tokenizer.ids([query])[0], *self._between]
        return Question(query, len(ids) + len(self._after), ids)

    def documents(self, texts: list[str]) -> list[list[int]]:
        """Content ids of documents."""
        return self.tokenizer.ids(texts)

    def join(self, question: Question, texts: list[str], ids: list[list[int]]) -> list[list[int]]:
        """The same ids: in a pair nothing fuses with the query."""
        return ids

    def margins(self, question: Question, rows: list[list[int]]) -> Any:
        """Log-odds of relevance of each document, (n, 1) float32."""
        import torch

        lengths = [question.fixed + len(r) for r in rows]
        ids = torch.tensor([t for r in rows for t in (*question.ids, *r, *self._after)], device=self.device)
        first, second = self._types
        types = [t for r in rows for t in (*[first] * len(question.ids), *[second] * (len(r) + len(self._after)))]
        types = torch.tensor(types, device=self.device)
        if self.loaded.head is None:
            logits = self.encoder.logits(ids, lengths, types)
        else:
            hidden = self.encoder.hidden(ids, lengths, types)
            starts = torch.tensor([0, *lengths[:-1]], device=self.device).cumsum(0)
            pooler, pooler_bias, classifier, bias = self.loaded.head
            pooled = torch.tanh(torch.nn.functional.linear(hidden[starts], pooler, pooler_bias))
            logits = torch.nn.functional.linear(pooled, classifier, bias).float()
        return _one_margin(logits, self.loaded.config).cpu().numpy()


def _one_margin(logits: Tensor, config: dict[str, Any]) -> Tensor:
    """Logits (n, 1) or (n, 2) -> (n, 1): two labels count by their difference, as a softmax over them would."""
    if logits.shape[1] == 1:
        return logits
    yes = positive_label(config)
    return (logits[:, yes] - logits[:, 1 - yes])[:, None]


def _answer_ids(checkpoint: Checkpoint, tokenizer: TextTokenizer) -> tuple[int, int]:
    """Token ids of yes and no; sentence-transformers' LogitScore module may name others."""
    named = read_json(checkpoint.path / "1_LogitScore" / "config.json", {})
    if "true_token_id" in named and "false_token_id" in named:
        return int(named["true_token_id"]), int(named["false_token_id"])
    yes, no = tokenizer.single_ids((RERANK_YES, RERANK_NO), checkpoint.path)
    return yes, no


def _classifier_head(weights: Weights, config: dict[str, Any], dtype: dtype, device: str) -> Tensor:
    return weights.rows("score.weight", list(range(label_count(config)))).to(device)


def _bert_head(weights: Weights, config: dict[str, Any], dtype: dtype, device: str) -> tuple[Tensor, ...]:
    h, labels = config["hidden_size"], label_count(config)
    shapes = {
        "pooler.dense.weight": (h, h),
        "pooler.dense.bias": (h,),
        "classifier.weight": (labels, h),
        "classifier.bias": (labels,),
    }
    return tuple(weights.take(name, dtype, shape, device) for name, shape in shapes.items())
