"""A checkpoint that scores documents against a query, whatever their kind, length and number."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..base.errors import QwenchError
from ..base.runtime import Runtime
from ..checkpoint.sidecars import read_json
from ..models.device import Choice, pick_threads, steady_heap
from ..models.hub import Checkpoint
from ..models.load import model_folder
from ..text.prompts import RERANK_SELFTEST
from .rerank_kind import decide_kind, wants_sigmoid
from .schedule import Schedule
from .scorers import PairScorer, PromptScorer, Question

LONG = ("truncate", "max", "error")
#: windows of a long document share this part of themselves with the one before
OVERLAP = 8


@dataclass(frozen=True, slots=True)
class RerankSettings:
    """What decides a score besides model, query and document.

    Attributes:
        instruction: what counts as relevant, for models with a prompt; None takes the template's own.
        kind: auto, lm, classifier or cross-encoder.
        max_tokens: longest input, prompt and query included; None takes the model's own.
        long: what becomes of a document that is longer: truncate (its end is cut), max (best window), error.
    """

    instruction: str | None = None
    kind: str = "auto"
    max_tokens: int | None = None
    long: str = "truncate"
    batch_tokens: int = 0
    runtime: Runtime = field(default_factory=Runtime)


@dataclass(slots=True)
class Scored:
    """One document's result.

    Attributes:
        index: position among the documents given.
        score: probability, or the raw margin where the model wants it so.
        margin: log-odds of relevance.
        tokens: tokens read, prompt and query included (of all windows).
        truncated: the end of the document was not read.
        windows: how many windows were read.
        seconds: its share of the time.
    """

    index: int
    score: float = 0.0
    margin: float = float("-inf")
    tokens: int = 0
    truncated: bool = False
    windows: int = 0
    seconds: float = 0.0


class Reranker:
    """Loads a checkpoint and scores documents.

    Attributes:
        max_tokens: longest input.
        choices: name -> Choice (kind, device, dtype, threads, engine, ...) for reports.

    Raises:
        QwenchError: not a reranker, or settings out of range; see the scorers.
    """

    def __init__(self, checkpoint: Checkpoint, settings: RerankSettings) -> None:
        import torch

        if settings.long not in LONG:
            raise QwenchError(f"unknown --long: `{settings.long}`", f"use {', '.join(LONG)}", code=2)
        self.checkpoint, self.settings = checkpoint, settings
        steady_heap()
        threads = pick_threads(settings.runtime.threads)
        torch.set_num_threads(threads.value)
        folder = model_folder(checkpoint)
        config = read_json(folder / "config.json")
        kind = decide_kind(folder, config, settings.kind)
        self.scorer: PromptScorer | PairScorer
        if kind.value == "cross-encoder":
            if settings.instruction is not None:
                raise QwenchError("--instruction is for models with a prompt, and this is a cross-encoder", code=2)
            self.scorer = PairScorer(checkpoint, settings.runtime)
        else:
            self.scorer = PromptScorer(checkpoint, kind.value, settings.instruction, settings.runtime)
        self.sigmoid = wants_sigmoid(config)
        self.max_tokens = self._limit(settings.max_tokens)
        loaded = self.scorer.loaded
        self.schedule = Schedule(self.scorer.device, threads.value, self.scorer.parameters, settings.batch_tokens)
        self.choices: dict[str, Choice] = {
            "kind": kind,
            "device": loaded.device,
            "dtype": loaded.dtype,
            "threads": threads,
            "engine": loaded.engine,
            "kernels": loaded.kernels,
            "batch_tokens": self.schedule.choice,
            "sigmoid": self.sigmoid,
            **self.scorer.choices,
        }

    def _limit(self, asked: int | None) -> int:
        if asked is None:
            return self.scorer.max_tokens
        if not 1 <= asked <= self.scorer.encoder.max_positions:
            most = self.scorer.encoder.max_positions
            raise QwenchError(f"--max-tokens must be from 1 to {most} for this model, not {asked}", code=2)
        self.scorer.max_tokens = asked
        return asked

    def question(self, query: str) -> Question:
        """A query made ready for any number of documents.

        Raises:
            QwenchError: it is empty, or leaves no room for a document.
        """
        if not query.strip():
            raise QwenchError("the query is empty", "give a question or a few words", code=2)
        question = self.scorer.question(query)
        if question.fixed >= self.max_tokens:
            raise QwenchError(
                f"the query with its prompt has {question.fixed} tokens and the model takes {self.max_tokens}: "
                f"`{query[:60]}{'...' if len(query) > 60 else ''}`",
                "shorten the query",
            )
        return question

    def documents(self, texts: list[str]) -> list[list[int]]:
        """Token ids of documents, good for every query."""
        return self.scorer.documents(texts)

    def score(self, question: Question, texts: list[str], ids: list[list[int]] | None = None) -> list[Scored]:
        """Results in the order given.

        Raises:
            QwenchError: a document is too long and `long` is `error`.
        """
        results = [Scored(i) for i in range(len(texts))]
        for _ in self.scored(question, texts, ids, results):
            pass
        return results

    def scored(
        self, question: Question, texts: list[str], ids: list[list[int]] | None, results: list[Scored]
    ) -> Iterator[int]:
        """Fill `results` batch by batch: yields the document's index after each of its windows."""
        ids = self.scorer.join(question, texts, self.documents(texts) if ids is None else ids)
        room = self.max_tokens - question.fixed
        inputs: list[tuple[int, list[int]]] = []
        for i, row in enumerate(ids):
            inputs += [(i, window) for window in self._windows(i, row, room, results)]
        lengths = [len(row) + self._own for _, row in inputs]
        before = time.monotonic()
        for batch, margins in self.schedule.run(
            lengths, lambda batch: self.scorer.margins(question, [inputs[b][1] for b in batch])
        ):
            now = time.monotonic()
            each = (now - before) / max(sum(lengths[b] for b in batch), 1)
            before = now
            for b, margin in zip(batch, margins[:, 0].tolist(), strict=True):
                index, row = inputs[b]
                self._add(results[index], margin, question.fixed + len(row), each * lengths[b])
                yield index

    @property
    def _own(self) -> int:
        """Tokens computed per input besides its document."""
        return len(self.scorer.suffix) if isinstance(self.scorer, PromptScorer) else 2

    def _windows(self, index: int, row: list[int], room: int, results: list[Scored]) -> list[list[int]]:
        if len(row) <= room:
            return [row]
        if self.settings.long == "error":
            raise QwenchError(
                f"document {index + 1} has {len(row)} tokens and there is room for {room}",
                "use --long truncate, --long max, or a larger --max-tokens",
            )
        if self.settings.long == "truncate":
            results[index].truncated = True
            return [row[:room]]
        step = max(room - room // OVERLAP, 1)
        return [row[at : at + room] for at in range(0, max(len(row) - room // OVERLAP, 1), step)]

    def _add(self, result: Scored, margin: float, tokens: int, seconds: float) -> None:
        if margin != margin:
            raise QwenchError(f"the model gave no number for document {result.index + 1} (NaN)", "try --dtype float32")
        result.margin = max(result.margin, margin)
        result.score = _sigmoid(result.margin) if self.sigmoid.value else result.margin
        result.tokens += tokens
        result.windows += 1
        result.seconds += seconds


def selftest(model: Reranker) -> list[dict[str, Any]]:
    """The published pair test, both orders, batched and single: rows of query, document, scores, and `right`.

    A pair is right when its own document scores higher than the other question's, both ways.
    """
    queries, documents = RERANK_SELFTEST
    batched = {q: _scores(model, q, documents) for q in queries}
    turned = {q: _scores(model, q, documents[::-1])[::-1] for q in queries}
    single = {q: [_scores(model, q, [d])[0] for d in documents] for q in queries}
    rows = []
    for i, query in enumerate(queries):
        for how, table in (("batched", batched), ("reversed", turned), ("single", single)):
            own, other = table[query][i], table[query][1 - i]
            rows.append({"query": query, "how": how, "own": own, "other": other, "right": own > other})
    return rows


def _scores(model: Reranker, query: str, documents: Sequence[str]) -> list[float]:
    return [s.score for s in model.score(model.question(query), list(documents))]


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
