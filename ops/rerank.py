"""Candidates in, best first out: the work behind `qwench rerank`.

Candidates are spooled to a temporary file while they are read, so memory holds numbers and one window of texts;
then every query scores them window by window.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from typing import Any, BinaryIO

from .base.errors import QwenchError
from .base.events import Advanced, Chose, Event, Events, Finished, Produced, Started, Warned
from .base.paths import local
from .jobs import output
from .jobs.journal import Entry, Journal, kept
from .kernels.choose import prepared
from .scoring.reranker import Reranker, RerankSettings, Scored
from .text.candidates import Candidate, CandidateOptions, read_candidates, read_queries, read_run
from .text.chunks import ChunkOptions, Tokenize, tokenizers_adapter
from .text.fields import beside

#: documents and characters tokenised and scored at a time; with an output fewer, as a kill costs a window
WINDOW = 1024
KEPT_WINDOW = 128
WINDOW_CHARS = 1 << 20


@dataclass(frozen=True, slots=True)
class RerankOptions:
    """Everything `qwench rerank` can be told; names equal the flags.

    Attributes:
        query: the question; with `queries` or `run` it may be empty.
        queries: file of queries.
        run: TREC run that says which documents each query ranks; the candidates are its corpus.
        top: most results per query, 0 for all.
        min_score: least score.
        stable: keep the order of the input.
        keep_going: bad inputs are told and left out instead of ending the run.
        chunk_tokens: tokens per passage, 0 for 512 or the model's limit.
        explain: rows have margin and seconds, too, see `row_of`.
        out: .jsonl or .parquet for the rows, - for none; scores are kept in a journal beside it.
        force: begin anew over what is there.
    """

    query: str = ""
    model: str = "Qwen/Qwen3-Reranker-0.6B"
    queries: str | None = None
    run: str | None = None
    candidates: CandidateOptions = field(default_factory=CandidateOptions)
    top: int = 0
    min_score: float | None = None
    stable: bool = False
    keep_going: bool = False
    chunk_tokens: int = 0
    explain: bool = False
    out: str = "-"
    force: bool = False
    settings: RerankSettings = field(default_factory=RerankSettings)


class Spool:
    """Candidates on disk, read again by position."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="qwench-")  # noqa: SIM115 (lives as long as the spool)
        self._starts = array("Q")
        self._end = 0

    def __len__(self) -> int:
        return len(self._starts)

    def add(self, candidate: Candidate) -> None:
        """Keep a candidate."""
        row = [candidate.text, candidate.kind, candidate.label, candidate.record, candidate.doc_id]
        self._starts.append(self._end)
        self._file.seek(self._end)
        self._end += self._file.write(json.dumps(row).encode() + b"\n")

    def __getitem__(self, index: int) -> Candidate:
        self._file.seek(self._starts[index])
        return Candidate(*json.loads(self._file.readline()))


class Table:
    """Results of one query: a few numbers per document."""

    def __init__(self, documents: Sequence[int]) -> None:
        count = len(documents)
        self.documents = documents
        self.score, self.margin = array("d", bytes(8 * count)), array("d", bytes(8 * count))
        self.tokens, self.seconds = array("L", [0]) * count, array("f", [0.0]) * count
        self.truncated = bytearray(count)

    def put(self, at: int, result: Scored) -> None:
        """Keep the result of the document at position `at`."""
        self.score[at], self.margin[at] = result.score, result.margin
        self.tokens[at], self.seconds[at] = result.tokens, result.seconds
        self.truncated[at] = result.truncated

    def best(self, options: RerankOptions) -> list[tuple[int, int]]:
        """(rank, position) of what passes, best first, equal scores in the order of the input."""
        order = sorted(range(len(self.documents)), key=lambda i: (-self.score[i], i))
        if options.min_score is not None:
            order = [i for i in order if self.score[i] >= options.min_score]
        ranked = list(enumerate(order[: options.top or None], 1))
        return sorted(ranked, key=lambda pair: pair[1]) if options.stable else ranked


def rerank(options: RerankOptions, stdin: BinaryIO | None = None) -> Events:
    """Rank candidates by their relevance to each query.

    Yields Chose, Warned, Kept, Advanced in documents, without an output Produced rows (query_id, kind, label, doc_id,
    rank, score, margin, tokens, truncated, seconds, record), best first query by query, and Finished with counts and
    speed.

    Raises:
        QwenchError: not a reranker; a bad input (unless keep_going); an empty or too long query; another job at the
            output.
    """
    if options.out == "-":
        yield from _rerank(options, stdin, None)
        return
    with kept(output.check(options.out), options.force) as (journal, said):
        yield from said
        yield from _rerank(options, stdin, journal)


def row_of(row: dict[str, Any], options: RerankOptions) -> dict[str, Any]:
    """The candidate's own object with what was found; what it has under these names is kept as `search_NAME`."""
    found = {name: row[name] for name in ("score", "rank", "tokens", "truncated")}
    if options.queries is not None:
        found["query_id"] = row["query_id"]
    if options.explain:
        found |= {"margin": row["margin"], "seconds": round(row["seconds"], 6)}
    return beside(row["record"], found, "search_")


def _rerank(options: RerankOptions, stdin: BinaryIO | None, journal: Journal | None) -> Events:
    from .models.hub import resolve

    for name in options.candidates.paths:
        local(name, "an input")
    queries = _queries(options)
    run = read_run(options.run) if options.run else None
    wanted = {d for documents in run.values() for d in documents} if run else None
    asked = options.settings.runtime
    checkpoint = resolve(options.model, asked.revision, asked.offline)
    loaded = cache(lambda: Reranker(checkpoint, options.settings))
    yield from prepared(asked)
    yield Started("read", None, "")
    spool, failed = Spool(), 0
    for event in read_candidates(options.candidates, stdin, cache(lambda: _cutting(loaded(), queries, options))):
        if isinstance(event, Candidate):
            if wanted is None or event.doc_id in wanted:
                spool.add(event)
            continue
        if isinstance(event, Warned) and event.failed:
            if not options.keep_going:
                raise QwenchError(event.message, "correct it, or add --keep-going to rank the rest")
            failed += 1
        yield event
    begun = time.monotonic()
    totals = {"documents": len(spool), "queries": len(queries), "passed": 0, "truncated": 0, "tokens": 0}
    if len(spool):
        plan = _plan(queries, run, spool)
        for missing in plan.missing:
            if not options.keep_going:
                raise QwenchError(missing.message, "give the corpus of the run, or add --keep-going")
            failed += 1
            yield missing
        yield Started("load", None, "")
        model = loaded()
        yield from (Chose(name, c.value, c.reason) for name, c in model.choices.items())
        if journal is not None:
            yield from journal.take(_settings(model, options), options.force)
        begun = time.monotonic()
        tables = {name: Table(documents) for name, documents in plan.documents.items()}
        yield from _scores(model, queries, tables, spool, journal)

        def results(totals: dict[str, int]) -> Iterator[Event]:
            for name, _ in queries:
                yield from _results(options, name, tables[name], spool, totals, model.max_tokens)

        if journal is None:
            yield from results(totals)
        else:
            yield from (event for event in results(totals) if not isinstance(event, Produced))
            output.write(
                journal.out,
                lambda: (row_of(e.row, options) for e in results(Counter()) if isinstance(e, Produced)),
            )
    seconds = time.monotonic() - begun
    pairs = sum(map(len, plan.documents.values())) if len(spool) else 0
    yield Finished(
        {
            "schema": 1,
            "model": checkpoint.name,
            **totals,
            "pairs": pairs,
            "failed": failed,
            "seconds": round(seconds, 3),
            "documents_per_second": round(pairs / seconds, 2) if pairs else None,
        }
    )


def _queries(options: RerankOptions) -> list[tuple[str, str]]:
    if options.queries:
        return read_queries(options.queries)
    if not options.query.strip():
        raise QwenchError("the query is empty", "give a question or a few words", code=2)
    return [("1", options.query)]


def _cutting(model: Reranker, queries: list[tuple[str, str]], options: RerankOptions) -> tuple[Tokenize, ChunkOptions]:
    """How files become passages: by the model's tokens, as long as every query leaves room for."""
    room = model.max_tokens - max(model.question(text).fixed for _, text in queries)
    if options.chunk_tokens > room:
        raise QwenchError(
            f"--chunk-tokens is {options.chunk_tokens}, and the model has room for {room} beside prompt and query",
            f"use --chunk-tokens {room} or less",
            code=2,
        )
    size = options.chunk_tokens or min(room, 512)
    return tokenizers_adapter(model.scorer.tokenizer.backend), ChunkOptions(size, max_tokens=size)


@dataclass(frozen=True, slots=True)
class _Plan:
    """Which documents each query ranks, and which of a run the corpus lacks."""

    documents: dict[str, Sequence[int]]
    missing: list[Warned]


def _plan(queries: list[tuple[str, str]], run: dict[str, list[str]] | None, spool: Spool) -> _Plan:
    if run is None:
        return _Plan({name: range(len(spool)) for name, _ in queries}, [])
    at = {spool[i].doc_id: i for i in range(len(spool))}
    names = list(run) if len(queries) == 1 and queries[0][0] not in run and len(run) == 1 else [n for n, _ in queries]
    plan, missing = {}, []
    for (name, _), key in zip(queries, names, strict=True):
        documents = run.get(key, [])
        if not documents:
            missing.append(Warned("missing", f"the run has no documents for the query `{key}`", key, True))
        lacking = [d for d in documents if d not in at]
        if lacking:
            message = f"the corpus lacks {len(lacking)} documents of the query `{key}`, such as `{lacking[0]}`"
            missing.append(Warned("missing", message, key, True))
        plan[name] = [at[d] for d in documents if d in at]
    return _Plan(plan, missing)


def _settings(model: Reranker, options: RerankOptions) -> dict[str, Any]:
    """What a score depends on."""
    checkpoint, asked = model.checkpoint, options.settings
    return {
        "job": "rerank",
        "model": checkpoint.name,
        "revision": checkpoint.revision,
        **{name: choice.value for name, choice in model.choices.items() if name in ("kind", "dtype")},
        "quantize": asked.runtime.quantize,
        "instruction": asked.instruction,
        "max_tokens": model.max_tokens,
        "long": asked.long,
    }


def _windows(documents: Sequence[int], spool: Spool, window: int) -> Iterator[tuple[list[int], list[str]]]:
    """Positions in `documents` with their texts, a bounded amount at a time."""
    positions: list[int] = []
    texts: list[str] = []
    size = 0
    for position, index in enumerate(documents):
        positions.append(position)
        texts.append(spool[index].text)
        size += len(texts[-1])
        if len(texts) >= window or size >= WINDOW_CHARS:
            yield positions, texts
            positions, texts, size = [], [], 0
    if texts:
        yield positions, texts


def _scores(
    model: Reranker,
    queries: list[tuple[str, str]],
    tables: dict[str, Table],
    spool: Spool,
    journal: Journal | None,
) -> Events:
    """Fill the tables; queries that rank the same documents share the reading and tokenising of a window."""
    total = sum(len(t.documents) for t in tables.values())
    yield Started("rerank", total, "")
    groups: dict[Any, list[tuple[str, str]]] = {}
    for name, text in queries:
        documents = tables[name].documents
        groups.setdefault(documents if isinstance(documents, range) else tuple(documents), []).append((name, text))
    done, begun = 0, time.monotonic()
    for documents, group in groups.items():
        for positions, texts in _windows(documents, spool, KEPT_WINDOW if journal else WINDOW):
            ids = cache(partial(model.documents, texts))
            for name, text in group:
                key, digest = f"{name}/{positions[0]}", _digest(text, texts)
                results = _known(journal, key, digest)
                if results is None:
                    results, question = [Scored(i) for i in range(len(texts))], model.question(text)
                    for index in model.scored(question, texts, ids(), results):
                        if results[index].windows == 1:
                            done += 1
                            speed = done / max(time.monotonic() - begun, 1e-6)
                            yield Advanced("rerank", 1, detail=f"{speed:.1f} documents/s")
                    if journal is not None:
                        journal.add(key, digest, Entry({"scores": [asdict(r) for r in results]}, None, {}))
                else:
                    yield Advanced("rerank", len(results))
                for position, result in zip(positions, results, strict=True):
                    tables[name].put(position, result)


def _digest(query: str, texts: list[str]) -> str:
    return hashlib.blake2b(json.dumps([query, *texts]).encode(), digest_size=12).hexdigest()


def _known(journal: Journal | None, key: str, digest: str) -> list[Scored] | None:
    """What the journal has of a window."""
    if journal is None or not journal.done(key, digest):
        return None
    entry = journal.entry(key)
    return [Scored(**told) for told in entry.found["scores"]] if entry else None


def _results(
    options: RerankOptions, name: str, table: Table, spool: Spool, totals: dict[str, int], max_tokens: int
) -> Iterator[Event]:
    cut = [i for i, t in enumerate(table.truncated) if t]
    if cut:
        names = ", ".join(f"`{spool[table.documents[i]].label[:60]}`" for i in cut[:3])
        more = ", ..." if len(cut) > 3 else ""
        count = f"{len(cut)} documents were" if len(cut) > 1 else "1 document was"
        yield Warned("truncated", f"{count} cut to fit {max_tokens} tokens: {names}{more}; --long max reads them whole")
    totals["truncated"] += len(cut)
    totals["tokens"] += sum(table.tokens)
    for rank, at in table.best(options):
        candidate = spool[table.documents[at]]
        totals["passed"] += 1
        yield Produced(
            {
                "query_id": name,
                "kind": candidate.kind,
                "label": candidate.label,
                "doc_id": candidate.doc_id,
                "rank": rank,
                "score": table.score[at],
                "margin": table.margin[at],
                "tokens": table.tokens[at],
                "truncated": bool(table.truncated[at]),
                "seconds": table.seconds[at],
                "record": candidate.record,
            }
        )


def selftest(options: RerankOptions) -> Events:
    """The published pair test: Finished has its rows and `right`, whether all are in the right order."""
    from .models.hub import resolve
    from .scoring.reranker import selftest as test

    yield Started("load", None, "")
    asked = options.settings.runtime
    checkpoint = resolve(options.model, asked.revision, asked.offline)
    yield from prepared(asked)
    model = Reranker(checkpoint, options.settings)
    yield from (Chose(name, c.value, c.reason) for name, c in model.choices.items())
    yield Started("test", None, "")
    rows = test(model)
    name = model.checkpoint.name
    yield Finished({"schema": 1, "model": name, "right": all(r["right"] for r in rows), "rows": rows})
