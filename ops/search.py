"""A question becomes passages: the work behind `qwench search`."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .base.errors import QwenchError
from .base.events import Advanced, Chose, Event, Events, Finished, Produced, Started, Warned
from .base.runtime import Runtime
from .kernels.choose import prepared
from .text.sentences import sentence_spans

if TYPE_CHECKING:
    from .index.fingerprint import Fingerprint
    from .scoring.embedder import Embedder


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """Everything `qwench search` can be told; names equal the flags.

    Attributes:
        index: a .lance index written by `qwench embed`.
        k: most hits.
        min_score: least cosine similarity, -1 to 1.
        hybrid: full text and vectors together, fused by reciprocal rank (RRF).
        filter: SQL condition on columns.
        where_path: glob on the path, `**` spans folders.
        model: the model that must have made the index; None takes the one it names.
        task: instruction for the query instead of the index's own.
        mark: find the sentence of each passage that fits the query best.
        exact: do not use an approximate index.
        rerank: a reranker that puts the best hits in order; `score` is then its score.
        rerank_from: hits it is given.
    """

    index: str
    query: str
    k: int = 10
    min_score: float | None = None
    hybrid: bool = False
    filter: str | None = None
    where_path: str | None = None
    model: str | None = None
    task: str | None = None
    mark: bool = True
    exact: bool = False
    rerank: str | None = None
    rerank_from: int = 50
    runtime: Runtime = field(default_factory=Runtime)


def search(options: SearchOptions) -> Events:
    """Answer a query from an index.

    Yields Produced hits, best first (rank, score, path, row, start_line, end_line, start_byte, end_byte, text, ...;
    `best_start` and `best_end` are character offsets of the best sentence in `text`), then Finished.

    Raises:
        QwenchError: no such index, another model than the index was made with, bad filter.
    """
    from .index.query import open_for_search
    from .scoring.embedder import unit

    if not options.query.strip():
        raise QwenchError("the query is empty", "give a question or a few words", code=2)
    if options.k < 1:
        raise QwenchError(f"-k must be at least 1, not {options.k}", code=2)
    index = open_for_search(options.index)
    yield Started("load", None, "")
    yield from prepared(options.runtime)
    model = load_for(index.fingerprint, options)
    for name in ("device", "dtype", "threads", "engine", "kernels"):
        yield Chose(name, model.choices[name].value, model.choices[name].reason)
    prompt = index.fingerprint.prompt_query
    if options.task is not None:
        prompt = model.layout.prompt("query", options.task)
    vector = unit(model.embed(model.query_ids([options.query], prompt))[0])
    yield Started("search", None, "")
    hits = index.search(
        vector,
        max(options.k, options.rerank_from) if options.rerank else options.k,
        min_score=options.min_score,
        where=options.filter,
        path_glob=options.where_path,
        text=options.query if options.hybrid else None,
        exact=options.exact,
    )
    if options.rerank and hits:
        hits = yield from _reranked(options, hits)
    if options.mark:
        _mark(model, vector, hits)
    for rank, hit in enumerate(hits, 1):
        yield Produced({"rank": rank, **hit})
    yield Finished({"schema": 1, "index": options.index, "query": options.query, "hits": len(hits)})


def _reranked(options: SearchOptions, hits: list[dict[str, Any]]) -> Generator[Event, None, list[dict[str, Any]]]:
    """The k best hits by a reranker; their cosine similarity stays as `search_score`."""
    from .models.hub import resolve
    from .scoring.reranker import Reranker, RerankSettings, Scored

    yield Started("load", None, "")
    reranker = Reranker(resolve(options.rerank, None, options.runtime.offline), RerankSettings(runtime=options.runtime))
    yield Chose("rerank", reranker.choices["kind"].value, reranker.choices["kind"].reason)
    yield Started("rerank", len(hits), "")
    question = reranker.question(options.query)
    results = [Scored(i) for i in range(len(hits))]
    for _ in reranker.scored(question, [hit["text"] for hit in hits], None, results):
        yield Advanced("rerank", 1)
    cut = sum(r.truncated for r in results)
    if cut:
        yield Warned("truncated", f"{cut} passages were cut to fit {reranker.max_tokens} tokens of the reranker")
    results.sort(key=lambda r: (-r.score, r.index))
    return [hits[r.index] | {"search_score": hits[r.index]["score"], "score": r.score} for r in results[: options.k]]


def load_for(fingerprint: Fingerprint, options: SearchOptions) -> Embedder:
    """The model an index was made with, made to embed the same way.

    Raises:
        QwenchError: the model is another one, or has changed since.
    """
    from .models.hub import resolve
    from .scoring.embedder import Embedder, EmbedSettings

    name = options.model or fingerprint.model
    revision = fingerprint.revision if fingerprint.model_kind == "hub" and name == fingerprint.model else None
    checkpoint = resolve(name, revision, options.runtime.offline)
    if fingerprint.revision not in (checkpoint.revision, checkpoint.former):
        raise QwenchError(
            f"the index was made with `{fingerprint.model}` at revision `{fingerprint.revision}`, and "
            f"`{name}` is now at `{checkpoint.revision}`: `{options.index}`",
            "search with that model, or embed again with --rebuild",
        )
    runtime = options.runtime
    if runtime.dtype == "auto":
        runtime = replace(runtime, dtype=_index_dtype(fingerprint))
    settings = EmbedSettings(
        dim=fingerprint.dim,
        max_tokens=fingerprint.max_tokens,
        runtime=runtime,
    )
    model = Embedder(checkpoint, settings)
    if (made := model.describe()["pooling"]) != fingerprint.pooling:
        raise QwenchError(
            f"the index was made by an earlier version, which read this model otherwise (pooling was "
            f"`{fingerprint.pooling}`, is `{made}`): `{options.index}`",
            "embed again with --rebuild",
        )
    return model


def _index_dtype(fingerprint: Fingerprint) -> str:
    # A query is one short text: float32 is affordable, and at least as exact as what the index holds.
    return "auto" if fingerprint.dtype != "float32" else "float32"


def _mark(model: Embedder, vector: Any, hits: list[dict[str, Any]]) -> None:
    """Add `best_start` and `best_end`, the span of the sentence nearest to the query, to each hit."""
    from .scoring.embedder import unit

    spans = [(hit, span) for hit in hits for span in sentence_spans(hit["text"])]
    limit = model.content_limit()
    contents = model.tokenizer.ids([hit["text"][a:b] for hit, (a, b) in spans])
    scores = unit(model.embed([model.tokenizer.wrap(ids[:limit]) for ids in contents])) @ vector if spans else []
    best: dict[int, float] = {}
    for (hit, (start, stop)), score in zip(spans, scores, strict=True):
        if score > best.get(id(hit), -2.0):
            best[id(hit)] = float(score)
            hit["best_start"], hit["best_end"] = start, stop


def optimize(index: str, force: bool = False) -> Events:
    """Build an approximate index over a large table, and measure what it finds of the exact answer.

    Raises:
        QwenchError: too few rows for it to pay (unless forced), or the table cannot be written.
    """
    from .index.query import open_for_search

    table = open_for_search(index)
    yield Started("optimize", None, "")
    report = table.optimize(force=force)
    if report.get("recall_at_10") is not None and report["recall_at_10"] < 0.9:
        yield Warned("recall", f"the approximate index finds {report['recall_at_10']:.0%} of the exact top 10")
    yield Finished({"schema": 1, "index": index, **report})
