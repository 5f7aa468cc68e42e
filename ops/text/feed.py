"""The reader thread: documents become windows of tokenised chunks while the model is busy with the last window."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..base.errors import QwenchError
from ..base.events import Warned
from .chunks import ChunkOptions, Tokenize, chunk_document
from .types import Chunk, Document


class Known(Protocol):
    """What an index already holds of a document."""

    content_hash: str
    n_chunks_done: int
    complete: bool


@dataclass(frozen=True, slots=True)
class Entry:
    """A chunk with its document; `last` marks the document's last chunk."""

    document: Document
    chunk: Chunk
    last: bool


@dataclass(slots=True)
class Window:
    """Chunks to embed together, with what happened while they were read.

    `bytes` is how far the input has advanced; `changed` are keys of documents that the index holds in another
    version.
    """

    entries: list[Entry] = field(default_factory=list)
    warnings: list[Warned] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    bytes: int = 0
    tokens: int = 0


class Feed:
    """Iterate over windows, read ahead by a thread; use it as a context manager so that the thread ends.

    Args:
        documents: documents and warnings, lazily.
        tokenize: the model's tokenizer.
        chunking: how to cut.
        state: (key, content hash) -> what the index holds (None when it is new); complete documents with the
            same content are skipped, half-written ones go on after their last chunk.
        window_tokens: tokens per window; may be changed while running.

    Attributes:
        keys: keys of all documents seen.
        documents, changed, unchanged: counts of documents read, embedded and skipped.
    """

    def __init__(
        self,
        documents: Iterable[Document | Warned],
        tokenize: Tokenize,
        chunking: ChunkOptions,
        state: Callable[[str, str], Known | None] | None,
        window_tokens: int,
    ) -> None:
        self._source, self._tokenize, self._chunking = documents, tokenize, chunking
        self._state = state or (lambda key, content_hash: None)
        self.window_tokens = window_tokens
        self.keys: set[str] = set()
        self.documents = self.changed = self.unchanged = 0
        self._queue: queue.Queue[Window | BaseException | None] = queue.Queue(maxsize=1)
        self._stop = threading.Event()
        self._window = Window()
        self._thread = threading.Thread(target=self._work, name="qwench-reader", daemon=True)

    def __enter__(self) -> Feed:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=0.05)
            except queue.Empty:
                continue

    def __iter__(self) -> Iterator[Window]:
        while (item := self._queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def _work(self) -> None:
        try:
            for item in self._source:
                if self._stop.is_set():
                    return
                if isinstance(item, Warned):
                    self._window.warnings.append(item)
                else:
                    self._read(item)
                self._maybe_send()
            self._send()
            self._put(None)
        except BaseException as error:
            self._put(error)

    def _maybe_send(self) -> None:
        window = self._window
        # Unchanged files and warnings move the bar too, so a window also ends by bytes and count.
        if window.tokens >= self.window_tokens or window.bytes >= 64 << 20 or len(window.warnings) >= 256:
            self._send()

    def _send(self) -> None:
        window, self._window = self._window, Window()
        self._put(window)

    def _put(self, item: Window | BaseException | None) -> None:
        """Never waits for good: an interrupt in the other thread's `get` can take the item and wake nobody."""
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.2)
            except queue.Full:
                continue
            return

    def _read(self, document: Document) -> None:
        key = document.key
        if key in self.keys:
            self._window.warnings.append(
                Warned("duplicate", f"two rows have the same id, the later one is left out: `{key}`", key, failed=True)
            )
            return
        self.keys.add(key)
        self.documents += 1
        known = self._state(key, document.content_hash)
        if known and known.complete and known.content_hash == document.content_hash:
            self.unchanged += 1
            self._window.bytes += document.size
            return
        done = known.n_chunks_done if known and known.content_hash == document.content_hash else 0
        if known and not done:
            self._window.changed.append(key)
        try:
            self._cut(document, done)
        except QwenchError as error:
            self._window.warnings.append(Warned("unreadable", error.message, document.path, failed=True))

    def _cut(self, document: Document, done: int) -> None:
        """Chunks of one document, with one chunk of look-ahead, since the last one is marked."""
        counted, held = 0, None
        for chunk in chunk_document(document, self._tokenize, self._chunking):
            if self._stop.is_set():
                return
            if held is not None and held.index >= done:
                counted = self._add(document, held, False, counted)
            held = chunk
        if held is None:
            self._window.warnings.append(
                Warned("empty", f"only white space, nothing to embed: `{document.path}`", document.path)
            )
        else:
            counted = self._add(document, held, True, counted)
            self.changed += 1
        self._window.bytes += max(document.size - counted, 0)

    def _add(self, document: Document, chunk: Chunk, last: bool, counted: int) -> int:
        self._window.entries.append(Entry(document, chunk, last))
        self._window.tokens += chunk.tokens
        if document.spans == "file" and chunk.end_byte > counted:
            self._window.bytes += chunk.end_byte - counted
            counted = chunk.end_byte
        self._maybe_send()
        return counted
