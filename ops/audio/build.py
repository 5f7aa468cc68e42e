"""`wav build`: questions and answers become merged waves and a manifest of them."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..base.atomic import append, hidden, trouble, write
from ..base.errors import QwenchError
from ..base.events import Advanced, Event, Events, Finished, Kept, Started, Warned
from ..base.lock import Lock
from ..base.paths import local
from . import riff
from .manifest import HINT, PARTS, PATHS, base_of, outside, rows_of
from .waves import Merged, check_part, merge

ORDERS = ("qa", "aq")
MANIFEST = "manifest.jsonl"
#: of names of waves; other characters become a line, and a hash keeps them apart
PLAIN = re.compile(r"[^\w.-]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """Everything `qwench wav build` can be told.

    Attributes:
        manifest: rows, a folder, or - for standard input. out: folder of waves and their manifest.
        gap: seconds of the pause. rate: of the waves, in Hz.
        level_rms: decibels of full scale that both parts are brought to, None leaves them.
        order: qa, or aq for the control with the answer first.
        dry_run: read and check everything, write nothing. keep_going: rows that fail are left out.
    """

    manifest: str
    out: str
    gap: float = 1.0
    rate: int = 16_000
    level_rms: float | None = None
    order: str = "qa"
    dry_run: bool = False
    keep_going: bool = False

    def check(self) -> None:
        """Raises:
        QwenchError: a number or word that cannot be.
        """
        if self.order not in ORDERS:
            raise QwenchError(f"unknown --order: `{self.order}`", f"use {' or '.join(ORDERS)}", 2)
        if not 0 <= self.gap <= 60:
            raise QwenchError(f"--gap is 0 to 60 seconds, and not {self.gap:g}", "1 is the paper's", 2)
        if not riff.RATES[0] <= self.rate <= riff.RATES[1]:
            raise QwenchError(f"--rate is {riff.RATES[0]:,} to {riff.RATES[1]:,} Hz, not {self.rate:,}", "use 16000", 2)
        if self.level_rms is not None and not -80 < self.level_rms <= 0:
            raise QwenchError(f"--level-rms is above -80 and at most 0 dB, and not {self.level_rms:g}", "use -26", 2)


def build(options: BuildOptions, stdin: BinaryIO | None = None) -> Events:
    """Yields Advanced in rows and Warned, and Finished: rows, made, kept (there already), failed, seconds of sound.

    The same command goes on after a kill: waves whose parts and settings are the same are not made again.

    Raises:
        QwenchError: an option that cannot be; rows, a sound or the folder that cannot be read or written. Rows and
            sounds are looked at before anything is made, and with keep_going bad ones are left out.
    """
    o = options
    o.check()
    local(o.out, "the output")
    out = Path(o.out).expanduser()
    if out.exists() and not out.is_dir():
        raise QwenchError(f"a file is in the place of the folder: `{o.out}`", "choose another --out")
    base = Path(o.manifest).expanduser() if o.manifest != "-" and Path(o.manifest).is_dir() else base_of(o.manifest)
    # Nothing is made for an input that is bad.
    rows, lost = yield from _checked(o, base, out, stdin)
    if o.dry_run:
        yield from _built(o, base, out, rows, lost)
        return
    _made(out)
    with Lock(out / MANIFEST):
        yield from _built(o, base, out, rows, lost)


def _made(out: Path) -> None:
    try:
        out.mkdir(exist_ok=True)
    except OSError as error:
        raise trouble(error, out, "the output") from error


def _built(o: BuildOptions, base: Path, out: Path, rows: list[tuple[str, dict[str, Any]]], lost: int) -> Events:
    journal = hidden(out / MANIFEST, ".build")
    before = _before(journal) | _before(out / MANIFEST)
    if not o.dry_run:
        yield Kept(str(journal))
    counts: Counter[str] = Counter(failed=lost)
    told, seconds = [], 0.0
    yield Started("build", len(rows))
    for place, row in rows:
        try:
            found, warnings = _one(row, base, out, o, before)
        except QwenchError as error:
            if not o.keep_going:
                raise QwenchError(f"{place}: {error.message}", error.hint, error.code) from error
            counts["failed"] += 1
            yield Warned("failed", f"left out: {place}: {error.message}", row["id"], True)
        else:
            counts["kept" if found.pop("_kept") else "made"] += 1
            counts["warned"] += bool(warnings)
            for text in warnings:
                yield Warned("sound", f"{place}: {text}", row["id"])
            told.append(found)
            seconds += found["seconds"]
            if not o.dry_run:
                append(journal, json.dumps(found, ensure_ascii=False) + "\n")
        yield Advanced("build", 1)
    if not o.dry_run:
        write(out / MANIFEST, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in told), "the manifest")
        journal.unlink(missing_ok=True)
    numbers = {name: counts[name] for name in ("made", "kept", "failed", "warned")}
    yield Finished({"schema": 1, "rows": len(rows), **numbers, "seconds": round(seconds, 3), "out": str(out)})


def _checked(
    o: BuildOptions, base: Path, out: Path, stdin: BinaryIO | None
) -> Iterator[Event | tuple[list[tuple[str, dict[str, Any]]], int]]:
    """All rows and their sounds, before the first is made; returns the good ones, and how many are not."""
    found: list[tuple[str, dict[str, Any]]] = []
    names: dict[str, str] = {}
    far: list[str] = []
    lost = 0
    yield Started("check", None)
    for place, row in rows_of(o.manifest, stdin):
        try:
            if isinstance(row, QwenchError):
                raise row
            _check(row, place, base, names)
        except QwenchError as error:
            if not o.keep_going:
                raise QwenchError(f"{place}: {error.message}", error.hint, error.code) from error
            lost += 1
            yield Warned("rows", f"left out: {place}: {error.message}", None, True)
        else:
            found.append((place, row))
            far += outside(row, base)
        yield Advanced("check", 1)
    if not found:
        raise QwenchError(f"no dialogues are in the input: `{o.manifest}`", HINT)
    _apart(found, base, out)
    if far:
        yield Warned("outside", f"{len(far):,} waves lie outside the manifest's folder and are only read: `{far[0]}`")
    return found, lost


def _check(row: dict[str, Any], place: str, base: Path, names: dict[str, str]) -> None:
    """A row, before anything is made of it.

    Raises:
        QwenchError: no parts, an id that another row has, or a part that is no sound.
    """
    if not (row.get("question") and row.get("answer")):
        raise QwenchError("no question and answer", HINT)
    for part in ("question", "answer"):
        wave = riff.read(base / row[part])
        check_part(wave.samples.mean(1), wave.rate, f"the {part}")
    if (other := names.setdefault(wave_name(row["id"]).casefold(), place)) != place:
        raise QwenchError(f"its id `{row['id']}` is that of {other}", "every row needs its own")


def _apart(rows: list[tuple[str, dict[str, Any]]], base: Path, out: Path) -> None:
    """Refuse waves that would be written over a part, be it of their own row or of another."""
    parts = {(base / row[part]).resolve() for _, row in rows for part in PATHS if row.get(part)}
    for place, row in rows:
        if (out / wave_name(row["id"])).resolve() in parts:
            name = wave_name(row["id"])
            raise QwenchError(f"{place}: its wave would be written over `{name}`", "choose another --out")


def wave_name(identity: str) -> str:
    """A file's name for an id."""
    plain = PLAIN.sub("-", identity).lstrip(".-")[:100]
    if plain != identity or not plain:
        plain += "-" + hashlib.blake2b(identity.encode(), digest_size=6).hexdigest()
    return f"{plain.lstrip('-')}.wav"


def _before(manifest: Path) -> dict[str, dict[str, Any]]:
    """Rows that were made before, by their hash; a line that a kill cut short counts for nothing."""
    found: dict[str, dict[str, Any]] = {}
    try:
        lines = manifest.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return found
    for line in lines:
        try:
            row = json.loads(line)
            found[str(row["hash"])] = row
        except (ValueError, KeyError, TypeError):
            continue
    return found


def _one(
    row: dict[str, Any], base: Path, out: Path, o: BuildOptions, before: dict[str, dict[str, Any]]
) -> tuple[dict[str, Any], list[str]]:
    """The row of the new manifest, with `_kept`, and what is odd about its sound."""
    name = wave_name(row["id"])
    mark = hashlib.blake2b(json.dumps([row, o.gap, o.rate, o.level_rms, o.order]).encode(), digest_size=12)
    for part in ("question", "answer"):
        mark.update(_bytes(base / row[part]))
    there = before.get(mark.hexdigest())
    if there is not None and there.get("audio") == name and _digest(out / name) == there.get("audio_hash"):
        return there | {"_kept": True}, list(there.get("warnings") or [])
    parts = [riff.read(base / row[part]) for part in ("question", "answer")]
    merged = merge(*parts, gap=o.gap, rate=o.rate, order=o.order, level=o.level_rms)
    data = riff.encode(merged.samples, merged.rate)
    if not o.dry_run:
        write(out / name, data, "the wave")
    told = _told(row, merged, base, out, o)
    found = {"audio": name, **told, "hash": mark.hexdigest()}
    found["audio_hash"] = hashlib.blake2b(data, digest_size=12).hexdigest()
    return row | found | {"_kept": False}, list(merged.warnings)


def _told(row: dict[str, Any], merged: Merged, base: Path, out: Path, o: BuildOptions) -> dict[str, Any]:
    """What is new of a row; paths are relative to the new manifest."""
    paths = {p: os.path.relpath((base / row[p]).resolve(), out.resolve()) for p in PARTS if row.get(p)}
    times = {"seconds": round(merged.seconds, 4), "gap_at": round(merged.first / merged.rate, 4), "gap": o.gap}
    level = {} if o.level_rms is None else {"level_rms": o.level_rms}
    return {**paths, **times, "order": o.order, **level, "warnings": list(merged.warnings)}


def _bytes(path: Path) -> bytes:
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=16).digest()
    except OSError as error:
        why = "is not there" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise QwenchError(f"the sound {why}: `{path}`", "paths are relative to the manifest") from error


def _digest(path: Path) -> str | None:
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=12).hexdigest()
    except OSError:
        return None
