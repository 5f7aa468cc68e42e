"""Files become vectors: the work behind `qwench embed`.

A reader thread walks, decodes, chunks and tokenises; the model embeds windows of chunks, sorted by true length
and filled to a token budget; rows are written in the order of the input. Memory holds two windows, however
large the corpus.
"""

from __future__ import annotations

import hashlib
import heapq
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

from .errors import QwenchError
from .events import Advanced, Chose, Event, Events, Finished, Produced, Started, Warned
from .text.chunks import ChunkOptions
from .text.documents import ReadOptions, find_files, read_documents
from .text.feed import Entry, Feed

if TYPE_CHECKING:
    import numpy as np

    from .index.fingerprint import Fingerprint
    from .models.embedder import Embedder, EmbedSettings
    from .models.hub import Checkpoint

#: a window is what about this many seconds of embedding take, so that a kill loses no more than that
WINDOW_SECONDS = 10.0
FIRST_WINDOW_TOKENS = 16_384
REUSE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class EmbedOptions:
    """Everything `qwench embed` can be told; names equal the flags.

    Attributes:
        paths: files, folders, or `-`.
        out: output by suffix (.lance, .parquet, .jsonl, .npy, .safetensors) or `-` for JSON lines.
        role: `document` or `query`: which prompt the texts get.
        settings: model settings, see EmbedSettings.
    """

    paths: Sequence[str]
    out: str | None = None
    model: str = "Qwen/Qwen3-Embedding-0.6B"
    revision: str | None = None
    offline: bool = False
    read: ReadOptions = field(default_factory=ReadOptions)
    chunk_tokens: int = 0
    chunk_overlap: int = 0
    on_long: str = "chunk"
    role: str = "document"
    precision: str = "float32"
    rebuild: bool = False
    prune: bool = False
    settings: EmbedSettings | None = None


class _Reuse:
    """Vectors of texts seen before, most recent first out last, bounded in bytes."""

    def __init__(self, limit: int = REUSE_BYTES) -> None:
        self._vectors: OrderedDict[bytes, np.ndarray] = OrderedDict()
        self._room = limit

    def get(self, key: bytes) -> np.ndarray | None:
        if (vector := self._vectors.get(key)) is not None:
            self._vectors.move_to_end(key)
        return vector

    def put(self, key: bytes, vector: np.ndarray) -> None:
        if key not in self._vectors:
            self._room -= vector.nbytes + 128
        self._vectors[key] = vector
        while self._room < 0:
            self._room += self._vectors.popitem(last=False)[1].nbytes + 128


def _text_key(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


class _Session:
    """A loaded model with the prompts and chunk sizes of one run."""

    def __init__(self, options: EmbedOptions) -> None:
        from .models.embedder import Embedder, EmbedSettings
        from .models.hub import resolve

        settings = options.settings or EmbedSettings()
        if options.role not in ("document", "query"):
            raise QwenchError(f"unknown role: `{options.role}`", "use document or query", code=2)
        self.options = options
        self.checkpoint: Checkpoint = resolve(options.model, options.revision, options.offline)
        self.model: Embedder = Embedder(self.checkpoint, settings)
        layout = self.model.layout
        self.query_prompt = layout.prompt("query", settings.task)
        if options.role == "query":
            self.prompt = layout.prompt("query", settings.task, settings.prompt_name)
        else:
            self.prompt = layout.prompt("document", None, settings.prompt_name)
        limit = self.model.content_limit(self.prompt)
        if limit < 1:
            raise QwenchError(f"the prompt leaves no room in the {self.model.max_tokens} tokens of the model")
        if options.chunk_tokens > limit:
            raise QwenchError(
                f"--chunk-tokens is {options.chunk_tokens}, and the model has room for {limit} after its own tokens",
                f"use --chunk-tokens {limit} or less",
                code=2,
            )
        size = options.chunk_tokens or min(limit, 512)
        if options.chunk_overlap >= size:
            raise QwenchError(f"--chunk-overlap must be less than the chunk size of {size}", code=2)
        self.chunking = ChunkOptions(size, options.chunk_overlap, options.on_long, limit)

    def fingerprint(self) -> Fingerprint:
        from .index.fingerprint import Fingerprint

        chunked = self.options.on_long == "chunk"
        return Fingerprint(
            **self.model.describe(),
            prompt_query=self.query_prompt,
            prompt_document=self.prompt,
            chunk_tokens=self.chunking.chunk_tokens if chunked else 0,
            chunk_overlap=self.chunking.chunk_overlap if chunked else 0,
            on_long=self.options.on_long,
        )

    def choices(self) -> list[Chose]:
        return [Chose(name, c.value, c.reason) for name, c in self.model.choices.items()]

    def feed(self, found: Sequence[Any], stdin: BinaryIO | None, state: Any = None) -> Feed:
        from .text.chunks import tokenizers_adapter

        documents = read_documents(found, self.options.read, stdin=stdin)
        tokenize = tokenizers_adapter(self.model.tokenizer.backend)
        return Feed(documents, tokenize, self.chunking, state, FIRST_WINDOW_TOKENS)

    def input_ids(self, entries: Sequence[Entry]) -> list[list[int]]:
        """Model inputs: content ids between special ids, cut to the model's length."""
        tokenizer, limit = self.model.tokenizer, self.model.max_tokens - self.model.tokenizer.specials
        if self.prompt:
            content = tokenizer.ids([self.prompt + e.chunk.text for e in entries])
        else:
            content = [e.chunk.ids for e in entries]
        return [tokenizer.wrap(list(ids[:limit])) for ids in content]


def _survey(options: EmbedOptions, nul_list: BinaryIO | None, events: list[Warned]) -> tuple[list[Any], int]:
    """All files first (names only), so that the bar knows how much there is: (found, bytes)."""
    found = []
    for item in find_files(options.paths, options.read, nul_list=nul_list):
        if isinstance(item, Warned):
            events.append(item)
        else:
            found.append(item)
    return found, sum(max(f.size, 0) for f in found)


@dataclass(slots=True)
class _Counts:
    documents: int = 0
    embedded: int = 0
    unchanged: int = 0
    failed: int = 0
    skipped: int = 0
    chunks: int = 0
    chunks_reused: int = 0
    tokens: int = 0
    truncated: int = 0
    truncated_paths: list[str] = field(default_factory=list)
    failures: list[dict[str, str]] = field(default_factory=list)

    def warned(self, warning: Warned) -> Warned:
        if warning.failed:
            self.failed += 1
            self.failures.append({"path": warning.subject or "", "kind": warning.kind, "message": warning.message})
        elif warning.kind in ("skipped", "binary", "empty"):
            self.skipped += 1
        return warning

    def entry(self, entry: Entry) -> None:
        self.chunks += 1
        self.tokens += entry.chunk.tokens
        if entry.chunk.truncated:
            self.truncated += 1
            if len(self.truncated_paths) < 1_000 and entry.document.key not in self.truncated_paths[-1:]:
                self.truncated_paths.append(entry.document.key)

    def report(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


def embed(options: EmbedOptions, stdin: BinaryIO | None = None, nul_list: BinaryIO | None = None) -> Events:
    """Embed files into an index or a file of vectors.

    Yields Warned for every input that was skipped, cut or lost, Chose for automatic choices, Advanced in bytes of
    input, Produced rows when `out` is `-`, and Finished with counts, speed, fingerprint and failures.

    Raises:
        QwenchError: nothing to embed, unknown model or output, another fingerprint than the index has.
    """
    counts, begun = _Counts(), time.monotonic()
    early: list[Warned] = []
    found, size = _survey(options, nul_list, early)
    for warning in early:
        yield counts.warned(warning)
    if not found and not options.prune:
        raise QwenchError("nothing to embed in: " + ", ".join(f"`{p}`" for p in options.paths))
    yield Started("load", None, "")
    session = _Session(options)
    yield from session.choices()
    fingerprint = session.fingerprint()
    loaded = time.monotonic()
    if options.out in (None, "-"):
        yield from _to_rows(session, found, size, stdin, counts)
        pruned, report = 0, {}
    else:
        from .index.table import open_index

        with open_index(options.out, fingerprint, precision=options.precision, rebuild=options.rebuild) as writer:
            feed = session.feed(found, stdin, writer.state)
            yield from _run(session, feed, size, counts, writer)
            for note in writer.notes:
                yield Warned("precision", note)
            pruned = writer.prune(_gone(options, feed, counts)) if options.prune else 0
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


def _vectors(session: _Session, entries: list[Entry], reuse: _Reuse, counts: _Counts) -> list[np.ndarray]:
    """A vector for each entry, in order; identical texts are embedded once."""
    vectors: list[np.ndarray | None] = []
    fresh: OrderedDict[bytes, Entry] = OrderedDict()
    keys = [_text_key(e.chunk.text) for e in entries]
    for key, entry in zip(keys, entries, strict=True):
        vectors.append(reuse.get(key))
        if vectors[-1] is None:
            fresh.setdefault(key, entry)
    made = session.model.embed(session.input_ids(list(fresh.values()))) if fresh else []
    new = dict(zip(fresh, made, strict=True))
    counts.chunks_reused += len(entries) - len(fresh)
    for key, vector in new.items():
        reuse.put(key, vector)
    return [new[key] if v is None else v for key, v in zip(keys, vectors, strict=True)]


def _windows(
    session: _Session,
    feed: Feed,
    size: int,
    counts: _Counts,
    reuse: _Reuse,
    vectors_of: Callable[[str], dict[bytes, np.ndarray]] | None = None,
) -> Iterator[Event | tuple[list[Entry], list[np.ndarray]]]:
    """Embed window by window: yields events, and (entries, vectors) pairs."""
    yield Started("embed", size, "B")
    batch_tokens = session.model.batch_tokens
    with feed:
        for window in feed:
            for warning in window.warnings:
                yield counts.warned(warning)
            start = time.monotonic()
            for key in window.changed if vectors_of else ():
                for text_key, vector in vectors_of(key).items():
                    reuse.put(text_key, vector)
            for entry in window.entries:
                counts.entry(entry)
            if window.entries:
                yield window.entries, _vectors(session, window.entries, reuse, counts)
                spent = max(time.monotonic() - start, 1e-3)
                feed.window_tokens = int(window.tokens / spent * WINDOW_SECONDS)
            counts.documents, counts.embedded, counts.unchanged = feed.documents, feed.changed, feed.unchanged
            yield Advanced("embed", window.bytes, detail=f"{counts.chunks} chunks")
            if session.model.batch_tokens != batch_tokens:
                batch_tokens = session.model.batch_tokens
                yield Warned("memory", f"out of memory: batches are now {batch_tokens} tokens")


def _run(session: _Session, feed: Feed, size: int, counts: _Counts, writer: Any) -> Events:
    for item in _windows(session, feed, size, counts, _Reuse(), writer.vectors_of):
        if isinstance(item, tuple):
            writer.append([_row(e, v) for e, v in zip(*item, strict=True)])
        else:
            yield item


def _gone(options: EmbedOptions, feed: Feed, counts: _Counts) -> Callable[[str, str], bool]:
    """Whether an indexed document is gone: not met below the given paths, or its file is no longer there.

    What could not be read this time is still there.
    """
    roots = [os.path.abspath(p) for p in options.paths]
    failed = [os.path.abspath(f["path"]) for f in counts.failures]

    def below(path: str, folders: list[str]) -> bool:
        return any(path == f or path.startswith(f.rstrip("/") + "/") for f in folders)

    def gone(key: str, path: str) -> bool:
        if key in feed.keys or path == "-":
            return False
        full = os.path.abspath(path)
        return not below(full, failed) and (below(full, roots) or not os.path.lexists(full))

    return gone


def _row(entry: Entry, vector: np.ndarray) -> dict[str, Any]:
    document, chunk = entry.document, entry.chunk
    return {
        "key": document.key,
        "path": document.path,
        "row": document.row,
        "row_id": document.row_id,
        "spans": document.spans,
        "start_byte": chunk.start_byte,
        "end_byte": chunk.end_byte,
        "start_line": chunk.start_line,
        "end_line": chunk.end_line,
        "text": chunk.text,
        "tokens": chunk.tokens,
        "truncated": chunk.truncated,
        "chunk": chunk.index,
        "last": entry.last,
        "content_hash": document.content_hash,
        "vector": vector,
        "extra": document.extra,
    }


def _to_rows(session: _Session, found: list[Any], size: int, stdin: BinaryIO | None, counts: _Counts) -> Events:
    for item in _windows(session, session.feed(found, stdin), size, counts, _Reuse()):
        if isinstance(item, tuple):
            for entry, vector in zip(*item, strict=True):
                row = _row(entry, vector)
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
    counts, early = _Counts(), []
    found, size = _survey(options, nul_list, early)
    for warning in early:
        yield counts.warned(warning)
    if not found:
        raise QwenchError("nothing to embed in: " + ", ".join(f"`{p}`" for p in options.paths))
    session = _Session(options)
    yield from session.choices()
    wanted = session.model.embed(session.model.query_ids([query], session.query_prompt))[0]
    best: list[tuple[float, int, Entry]] = []
    serial = 0
    for item in _windows(session, session.feed(found, stdin), size, counts, _Reuse()):
        if not isinstance(item, tuple):
            yield item
            continue
        for entry, vector in zip(*item, strict=True):
            serial += 1
            heapq.heappush(best, (float(vector @ wanted), -serial, entry))
            if len(best) > k:
                heapq.heappop(best)
    for rank, (score, _, entry) in enumerate(sorted(best, reverse=True), 1):
        row = _row(entry, wanted)
        for name in ("vector", "last", "key", "content_hash"):
            row.pop(name)
        yield Produced({"rank": rank, "score": score} | row)
    yield Finished({"schema": 1, "query": query, "hits": len(best), **counts.report()})
