"""Plans become files: tensors stream piece by piece to where their bytes belong, several at a time."""

from __future__ import annotations

import json
import os
import queue
import shutil
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..base.atomic import sync
from ..base.errors import QwenchError
from .cast import Losses, as_bytes, same_bits
from .gguf_file import GgufFile
from .gguf_plan import place
from .plan import Output, Plan, Shard
from .safetensors_reader import SafetensorsReader
from .staging import Staging
from .tensors import NAMES
from .torch_reader import TorchReader

#: bytes between two syncs with a line in the journal: what a kill loses at most, per worker
SYNC_BYTES = 256 << 20
#: bytes between two words of progress
TELL_BYTES = 8 << 20


def header_of(shard: Shard, metadata: dict[str, str]) -> tuple[bytes, dict[str, int]]:
    """(header with its length in front, name -> first byte in the file) of a safetensors shard."""
    entries: dict[str, object] = {"__metadata__": metadata | {"format": "pt"}}
    at, starts = 0, {}
    for o in shard.outputs:
        entries[o.name] = {"dtype": NAMES[o.dtype][0], "shape": list(o.shape), "data_offsets": [at, at + o.nbytes]}
        starts[o.name] = at
        at += o.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 8)
    head = struct.pack("<Q", len(text)) + text
    return head, {name: len(head) + start for name, start in starts.items()}


def check_room(plan: Plan, folder: Path, held: int = 0) -> None:
    """Refuse before the first byte when the disk is too small; `held` bytes of the output are there already.

    Raises:
        QwenchError: it is, with both figures.
    """
    free, need = shutil.disk_usage(folder).free, plan.nbytes - held
    if free < need:
        raise QwenchError(
            f"the output needs {need / 1e9:.1f} GB and there is room for {free / 1e9:.1f}: `{folder}`",
            "free some space, or write elsewhere",
        )


def write_tensors(
    plan: Plan, staging: Staging, losses: Losses, threads: int, release: Callable[[str], None]
) -> Iterator[int]:
    """Write what the journal does not have yet; yields bytes as they are done.

    Args:
        plan: with shards.
        staging: entered.
        losses: told of every cast.
        threads: tensors in flight.
        release: called with names of inputs that are not needed any more.

    Raises:
        OSError: disk full, read-only, ...
    """
    for shard in plan.shards:
        if shard.file.endswith((".safetensors", ".gguf")):
            yield from _placed(shard, plan.metadata, staging, losses, threads, release)
        else:
            yield from _torch(shard, staging, losses)


def _placed(
    shard: Shard,
    metadata: dict[str, str],
    staging: Staging,
    losses: Losses,
    threads: int,
    release: Callable[[str], None],
) -> Iterator[int]:
    """Files whose header says where each tensor's bytes belong."""
    head, starts = place(shard) if shard.said else header_of(shard, metadata)
    end = max((starts[o.name] + o.nbytes for o in shard.outputs), default=len(head))
    there = (staging.part / shard.file).is_file()  # the journal is of no use without it
    todo = [o for o in shard.outputs if not (there and o.name in staging.done)]
    yield shard.nbytes - sum(o.nbytes for o in todo)
    handle = os.open(staging.part / shard.file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if hasattr(os, "posix_fallocate"):
            # A full disk shows here, not in the middle of the work.
            os.posix_fallocate(handle, 0, end)
        os.pwrite(handle, head, 0)
        yield from _parallel(todo, handle, starts, staging, losses, threads, release)
        os.fdatasync(handle)
        staging.journal([o.name for o in todo if o.name not in staging.done and losses.whole(o)])
    finally:
        os.close(handle)


def _parallel(
    todo: list[Output],
    handle: int,
    starts: dict[str, int],
    staging: Staging,
    losses: Losses,
    threads: int,
    release: Callable[[str], None],
) -> Iterator[int]:
    """Worker threads write tensors; this thread journals them and tells of progress."""
    done: queue.SimpleQueue[tuple[Output | None, int]] = queue.SimpleQueue()
    stop = threading.Event()

    def write(output: Output) -> None:
        at, told = starts[output.name], starts[output.name]
        for piece in output.pieces(losses):
            if stop.is_set():
                return
            data = as_bytes(piece)
            _pwrite(handle, data, at)
            at += len(data)
            # Not for each piece: this thread and the one that listens would wait for one another.
            if at - told >= TELL_BYTES:
                done.put((None, at - told))
                told = at
        for name in output.sources:
            release(name)
        done.put((output, at - told))

    with ThreadPoolExecutor(threads, initializer=_one_thread) as pool:
        futures = [pool.submit(write, output) for output in todo]
        left, unsynced, names = len(todo), 0, []
        try:
            while left:
                try:
                    output, count = done.get(timeout=0.2)
                except queue.Empty:
                    for future in futures:
                        if future.done():
                            future.result()
                    continue
                unsynced += count
                if count:
                    yield count
                if output is not None:
                    left -= 1
                    names += [output.name] if losses.whole(output) else []
                if unsynced >= SYNC_BYTES and names:
                    os.fdatasync(handle)
                    staging.journal(names)
                    unsynced, names = 0, []
        finally:
            stop.set()
            for future in futures:
                future.cancel()


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _pwrite(handle: int, data: memoryview, at: int) -> None:
    while len(data):
        written = os.pwrite(handle, data, at)
        data, at = data[written:], at + written


def _torch(shard: Shard, staging: Staging, losses: Losses) -> Iterator[int]:
    """A .bin shard is pickled as a whole, so it is held in memory."""
    import torch

    path = staging.part / shard.file
    if shard.file not in staging.done or not path.is_file():
        torch.save({o.name: o.whole(losses) for o in shard.outputs}, path)
        sync(path)
        if all(losses.whole(o) for o in shard.outputs):
            staging.journal([shard.file])
    yield shard.nbytes


def write_sides(plan: Plan, folder: Path, source: Path) -> None:
    """Side files into `folder` and, where there are several shards, the index."""
    for name in plan.copies:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target)
    sides = dict(plan.side)
    if len(plan.shards) > 1:
        suffix = Path(plan.shards[0].file).suffix
        stem = "model.safetensors" if suffix == ".safetensors" else "pytorch_model.bin"
        weight_map = {o.name: s.file for s in plan.shards for o in s.outputs}
        index = {"metadata": {"total_size": plan.nbytes}, "weight_map": dict(sorted(weight_map.items()))}
        sides[f"{stem}.index.json"] = (json.dumps(index, indent=2) + "\n").encode()
    for name, content in sides.items():
        target = folder / name
        if content is None:
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)


def verify_bits(plan: Plan, folder: Path) -> Iterator[tuple[str, int, bool]]:
    """Read what was written and make it again from the input: (name, bytes, equal to the bit), tensor by tensor."""
    files = [folder / s.file for s in plan.shards]
    if files[0].suffix == ".gguf":
        yield from _verify_bytes(plan, GgufFile(files[0]))
        return
    kind = SafetensorsReader if files[0].suffix == ".safetensors" else TorchReader
    reader = kind(files)
    for output in plan.outputs:
        info = reader.infos.get(output.name)
        if info is None or info.shape != output.shape or info.dtype != output.dtype:
            yield output.name, output.nbytes, False
            continue
        flat, at, same = reader.load(output.name).reshape(-1), 0, True
        for piece in output.pieces(None):
            same = same and same_bits(flat[at : at + piece.numel()], piece)
            at += piece.numel()
        reader.release(output.name)
        yield output.name, output.nbytes, same and at == flat.numel()


def _verify_bytes(plan: Plan, file: GgufFile) -> Iterator[tuple[str, int, bool]]:
    """The same for a GGUF file, block by block as they are stored."""
    stored = {t.name: t for t in file.tensors}
    with memoryview(file.map) as bytes_:
        for output in plan.outputs:
            found = stored.get(output.name)
            same = found is not None and (found.shape, found.kind) == (output.shape, output.dtype)
            at = found.offset if found else 0
            for piece in output.pieces(None) if same else ():
                data = as_bytes(piece)
                same = same and bytes_[at : at + len(data)] == data
                at += len(data)
            yield output.name, output.nbytes, same
