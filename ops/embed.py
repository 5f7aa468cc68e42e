"""Files become vectors: the work behind `qwench embed`.

A reader thread walks, decodes, chunks and tokenises; the model embeds windows of chunks, sorted by true length
and filled to a token budget; rows are written in the order of the input. Memory holds two windows, however
large the corpus.
"""

from __future__ import annotations

import heapq
import os
import time
from collections.abc import Callable
from typing import Any, BinaryIO

from .base.errors import QwenchError
from .base.events import Advanced, Events, Finished, Kept, Produced, Started, Warned
from .base.paths import local
from .kernels.choose import prepared
from .scoring.embedder import unit
from .scoring.session import Counts, EmbedOptions, Reuse, Session, row_of, survey, windows
from .text.feed import Entry, Feed

__all__ = ["EmbedOptions", "answer", "dry_run", "embed"]


def embed(options: EmbedOptions, stdin: BinaryIO | None = None, nul_list: BinaryIO | None = None) -> Events:
    """Embed files into an index or a file of vectors.

    Yields Warned for every input that was skipped, cut or lost, Chose for automatic choices, Advanced in bytes of
    input, Produced rows when `out` is `-`, and Finished with counts, speed, fingerprint and failures.

    Raises:
        QwenchError: nothing to embed, unknown model or output, another fingerprint than the index has.
    """
    counts, begun = Counts(), time.monotonic()
    if options.out not in (None, "-"):
        from .index.table import check_index

        check_index(options.out, options.precision)
    early: list[Warned] = []
    found, size = survey(options, nul_list, early)
    for warning in early:
        yield counts.warned(warning)
    if not found and not options.prune:
        raise QwenchError("nothing to embed in: " + ", ".join(f"`{p}`" for p in options.paths))
    yield Started("load", None, "")
    yield from prepared(options.settings.runtime)
    session = Session(options)
    yield from session.choices()
    fingerprint = session.fingerprint()
    loaded = time.monotonic()
    if options.out in (None, "-"):
        yield from _to_rows(session, found, size, stdin, counts)
        pruned, report = 0, {}
    else:
        from .index.table import open_index

        with open_index(options.out, fingerprint, precision=options.precision, rebuild=options.rebuild) as writer:
            yield Kept(str(writer.folder))
            if writer.lock.note:
                yield Warned("lock", writer.lock.note)
            feed = session.feed(found, stdin, writer)
            yield from _run(session, feed, size, counts, writer)
            pruned = writer.prune(_gone(options, feed, counts, writer)) if options.prune else 0
            for note in writer.notes:
                yield Warned("index", note)
            yield Started("write", None, "")
            report = writer.finish()
    seconds = time.monotonic() - loaded
    yield Finished(
        {
            "schema": 1,
            "out": options.out or "-",
            **counts.report(),
            "pruned": pruned,
            **report,
            "seconds": round(seconds, 3),
            "seconds_loading": round(loaded - begun, 3),
            "tokens_per_second": round(counts.tokens / seconds, 1) if counts.tokens else None,
            "fingerprint": fingerprint.to_dict(),
        }
    )


def _run(session: Session, feed: Feed, size: int, counts: Counts, writer: Any) -> Events:
    for item in windows(session, feed, size, counts, Reuse(), writer.vectors_of):
        if isinstance(item, tuple):
            writer.append([row_of(e, v) for e, v in zip(*item, strict=True)])
        else:
            yield item


def _gone(options: EmbedOptions, feed: Feed, counts: Counts, writer: Any) -> Callable[[str, str], bool]:
    """Whether an indexed document is gone: not met below the given paths, or its file is no longer there.

    What could not be read this time is still there, and so is what is stored from a folder that is not known.
    """
    roots = [full for p in options.paths for full in (os.path.abspath(p), os.path.realpath(p))]
    failed = [p for f in counts.failures for p in (os.path.abspath(f["path"]), writer.names.full(f["path"])) if p]
    unknown: set[str] = set()

    def below(path: str, folders: list[str]) -> bool:
        return any(path == f or path.startswith(f.rstrip("/") + "/") for f in folders)

    def gone(key: str, path: str) -> bool:
        if key in feed.keys or path == "-":
            return False
        full = writer.names.full(path)
        if full is None:
            if not unknown:
                said = "are kept, since the index does not say which folder they count from"
                writer.notes.append(f"`{path}` and others {said}; prune from that folder, or use --rebuild")
            unknown.add(path)
            return False
        # A failed row is told as path:line.
        ways = [full, os.path.realpath(full)]
        lost = any(below(way, failed) or any(f.startswith(way + ":") for f in failed) for way in ways)
        return not lost and (any(below(way, roots) for way in ways) or not os.path.lexists(full))

    return gone


def _to_rows(session: Session, found: list[Any], size: int, stdin: BinaryIO | None, counts: Counts) -> Events:
    for item in windows(session, session.feed(found, stdin), size, counts, Reuse()):
        if isinstance(item, tuple):
            for entry, vector in zip(*item, strict=True):
                row = row_of(entry, vector)
                row.pop("last"), row.pop("key")
                yield Produced(row | {"vector": [float(x) for x in vector]})
        else:
            yield item


def answer(
    options: EmbedOptions, query: str, k: int = 5, stdin: BinaryIO | None = None, nul_list: BinaryIO | None = None
) -> Events:
    """Answer a question from files at once, keeping no index: yields the k best passages as Produced rows.

    Rows have the keys of `search` hits: rank, score, path, spans and text.
    """
    counts, early = Counts(), []
    found, size = survey(options, nul_list, early)
    for warning in early:
        yield counts.warned(warning)
    if not found:
        raise QwenchError("nothing to embed in: " + ", ".join(f"`{p}`" for p in options.paths))
    yield from prepared(options.settings.runtime)
    session = Session(options)
    yield from session.choices()
    wanted = unit(session.model.embed(session.model.query_ids([query], session.query_prompt))[0])
    best: list[tuple[float, int, Entry]] = []
    serial = 0
    for item in windows(session, session.feed(found, stdin), size, counts, Reuse()):
        if not isinstance(item, tuple):
            yield item
            continue
        for entry, vector in zip(*item, strict=True):
            serial += 1
            heapq.heappush(best, (float(unit(vector) @ wanted), -serial, entry))
            if len(best) > k:
                heapq.heappop(best)
    for rank, (score, _, entry) in enumerate(sorted(best, reverse=True), 1):
        row = row_of(entry, wanted)
        for name in ("vector", "last", "key", "content_hash"):
            row.pop(name)
        yield Produced({"rank": rank, "score": score} | row)
    yield Finished({"schema": 1, "query": query, "hits": len(best), **counts.report()})


def dry_run(options: EmbedOptions, stdin: BinaryIO | None = None, nul_list: BinaryIO | None = None) -> Events:
    """Count what `embed` would do, embedding no more than a sample to learn the speed.

    Finished has documents, chunks, tokens, bytes the index will take, and seconds it will take (None without text).
    """
    counts, early = Counts(), []
    if options.out not in (None, "-"):
        local(options.out, "the index")
    found, size = survey(options, nul_list, early)
    for warning in early:
        yield counts.warned(warning)
    session = Session(options)
    yield from session.choices()
    yield Started("count", size, "B")
    text_bytes, sample = 0, []
    with session.feed(found, stdin) as feed:
        for window in feed:
            for warning in window.warnings:
                yield counts.warned(warning)
            for entry in window.entries:
                counts.entry(entry)
                text_bytes += len(entry.chunk.text)
            sample = sample or window.entries[:64]
            yield Advanced("count", window.bytes, detail=f"{counts.chunks} chunks")
        counts.documents = counts.embedded = feed.documents
    per_token = _seconds_per_token(session, sample) if sample else None
    yield Finished(
        {
            "schema": 1,
            "out": options.out or "-",
            **counts.report(),
            "bytes": counts.chunks * (session.model.dim * 4 + 200) + text_bytes,
            "seconds": None if per_token is None else round(per_token * counts.tokens, 1),
            "fingerprint": session.fingerprint().to_dict(),
        }
    )


def _seconds_per_token(session: Session, sample: list[Entry]) -> float:
    rows = session.input_ids(sample)
    session.model.embed(rows[:4])
    start = time.monotonic()
    session.model.embed(rows)
    return (time.monotonic() - start) / max(sum(map(len, rows)), 1)
