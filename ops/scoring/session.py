"""What every way of embedding files shares: options, the loaded model with its prompts, windows of vectors."""

from __future__ import annotations

import hashlib
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ..base.atomic import hidden
from ..base.errors import QwenchError
from ..base.events import Advanced, Chose, Event, Started, Warned
from ..base.paths import local
from ..text.chunks import ChunkOptions
from ..text.documents import ReadOptions, find_files, read_documents
from ..text.feed import Entry, Feed
from .embedder import Embedder, EmbedSettings

if TYPE_CHECKING:
    import numpy as np

    from ..index.fingerprint import Fingerprint
    from ..index.table import IndexWriter
    from ..models.hub import Checkpoint

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
    read: ReadOptions = field(default_factory=ReadOptions)
    chunk_tokens: int = 0
    chunk_overlap: int = 0
    on_long: str = "chunk"
    role: str = "document"
    precision: str = "float32"
    rebuild: bool = False
    prune: bool = False
    settings: EmbedSettings = field(default_factory=EmbedSettings)


class Reuse:
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


class Session:
    """A loaded model with the prompts and chunk sizes of one run."""

    def __init__(self, options: EmbedOptions) -> None:
        from ..models.hub import resolve

        settings = options.settings
        if options.role not in ("document", "query"):
            raise QwenchError(f"unknown role: `{options.role}`", "use document or query", code=2)
        self.options = options
        self.checkpoint: Checkpoint = resolve(options.model, settings.runtime.revision, settings.runtime.offline)
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
        from ..index.fingerprint import Fingerprint

        chunked = self.options.on_long == "chunk"
        return Fingerprint(
            **self.model.describe(),
            former=self.checkpoint.former or "",
            prompt_query=self.query_prompt,
            prompt_document=self.prompt,
            chunk_tokens=self.chunking.chunk_tokens if chunked else 0,
            chunk_overlap=self.chunking.chunk_overlap if chunked else 0,
            on_long=self.options.on_long,
        )

    def choices(self) -> list[Event]:
        """Automatic choices with their reasons, and a guess said aloud."""
        made: list[Event] = [Chose(name, c.value, c.reason) for name, c in self.model.choices.items()]
        if self.model.layout.bare:
            text = f"{self.model.layout.reason}; a chat model gives poor vectors: `{self.checkpoint.name}`"
            made.append(Warned("layout", text, self.checkpoint.name))
        return made

    def feed(self, found: Sequence[Any], stdin: BinaryIO | None, index: IndexWriter | None = None) -> Feed:
        """Windows of what an index lacks of the found files, or of everything; its documents have the index's names."""
        from ..text.chunks import tokenizers_adapter

        def unchanged(path: str, content_hash: str) -> bool:
            known = index.state(index.names.stored(path), content_hash) if index else None
            return bool(known and known.complete and known.content_hash == content_hash)

        documents = read_documents(found, self.options.read, stdin=stdin, unchanged=unchanged)
        if index:
            documents = (d if isinstance(d, Warned) else replace(d, path=index.names.stored(d.path)) for d in documents)
        tokenize = tokenizers_adapter(self.model.tokenizer.backend)
        return Feed(documents, tokenize, self.chunking, index.state if index else None, FIRST_WINDOW_TOKENS)

    def input_ids(self, entries: Sequence[Entry]) -> list[list[int]]:
        """Model inputs: content ids between special ids, cut to the model's length."""
        tokenizer, limit = self.model.tokenizer, self.model.max_tokens - self.model.tokenizer.specials
        if self.prompt:
            content = tokenizer.ids([self.prompt + e.chunk.text for e in entries])
        else:
            content = [e.chunk.ids for e in entries]
        return [tokenizer.wrap(list(ids[:limit])) for ids in content]


def survey(options: EmbedOptions, nul_list: BinaryIO | None, warnings: list[Warned]) -> tuple[list[Any], int]:
    """All files first (names only), so that the bar knows how much there is: (found, bytes).

    Indexes and the run's own output are no input: they are left out, with one line each.
    """
    for name in options.paths:
        local(name, "an input")
    out = options.out if options.out != "-" else None
    own = {os.path.abspath(out + tail) for tail in ("", ".rows.jsonl", ".meta.json")} if out else set()
    own |= {str(hidden(Path(os.path.abspath(out)), ".lock"))} if out else set()
    found, skipped = [], set()
    for item in find_files(options.paths, options.read, nul_list=nul_list):
        if isinstance(item, Warned):
            warnings.append(item)
            continue
        index = _index_above(item.path)
        if index or os.path.abspath(item.path) in own:
            skipped.add(index or item.path)
        else:
            found.append(item)
    warnings += [Warned("skipped", f"an index is not read as text: `{path}`", path) for path in sorted(skipped)]
    return found, sum(f.size or 0 for f in found)


def _index_above(path: str) -> str | None:
    """The .lance folder that `path` lies in."""
    head, found, _ = path.partition(".lance/")
    return head + ".lance" if found else None


@dataclass(slots=True)
class Counts:
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


def _vectors(session: Session, entries: list[Entry], reuse: Reuse, counts: Counts) -> list[np.ndarray]:
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


def windows(
    session: Session,
    feed: Feed,
    size: int,
    counts: Counts,
    reuse: Reuse,
    vectors_of: Callable[[str], dict[bytes, np.ndarray]] | None = None,
) -> Iterator[Event | tuple[list[Entry], list[np.ndarray]]]:
    """Embed window by window: yields events, and (entries, vectors) pairs."""
    yield Started("embed", size, "B")
    batch_tokens = session.model.schedule.batch_tokens
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
            if session.model.schedule.batch_tokens != batch_tokens:
                batch_tokens = session.model.schedule.batch_tokens
                yield Warned("memory", f"out of memory: batches are now {batch_tokens} tokens")


def row_of(entry: Entry, vector: np.ndarray) -> dict[str, Any]:
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
