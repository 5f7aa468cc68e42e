"""The reader thread ends, whatever happened to the thread that takes its windows."""

from __future__ import annotations

import threading
import time

from qwench.ops.base.events import Warned
from qwench.ops.text.chunks import ChunkOptions
from qwench.ops.text.feed import Feed


def feed(count: int) -> Feed:
    notes = (Warned("empty", f"note {i}") for i in range(count))
    return Feed(notes, lambda texts: [], ChunkOptions(8), None, 1_000)


def test_everything_arrives_in_order() -> None:
    with feed(1_000) as found:
        assert [w.message for window in found for w in window.warnings] == [f"note {i}" for i in range(1_000)]


def test_leaving_early_ends_the_thread() -> None:
    with feed(100_000) as found:
        next(iter(found))
    assert not found._thread.is_alive()


def test_an_interrupt_inside_get_does_not_hang_the_reader() -> None:
    found = feed(256)
    found.__enter__()
    next(iter(found))
    deadline = time.monotonic() + 10
    while not found._queue.not_full._waiters and time.monotonic() < deadline:
        time.sleep(0.01)
    with found._queue.mutex:
        # What an interrupt between the two halves of `get` leaves: the item gone, and nobody told.
        found._queue._get()
    leaving = threading.Thread(target=found.__exit__, daemon=True)
    leaving.start()
    leaving.join(10)
    assert not leaving.is_alive()
