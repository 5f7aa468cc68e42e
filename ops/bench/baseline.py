"""Rows against those of an earlier run: suspects are measured again until they are slower or are not."""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import replace
from typing import Any

from ..base.errors import QwenchError
from ..base.events import Advanced, Event, Events, Produced, Started
from ..models.device import pick_device, pick_threads
from .measure import quantile
from .providers import providers
from .roofs import measured
from .run import BenchOptions, Run, settle
from .verdict import FAST_END, Key, Rows, Verdict, drift_of, judge, key_of

#: processes, besides the first, in which rows that are saved are measured
REPEATS = 4
#: times a suspect is measured again, and how many of them must be slower
ROUNDS, NEEDED = 7, 5
#: seconds between two of these, so that one slow moment of the machine is not all of them
PAUSE = 2.0
#: seconds, in all, that a comparison gives a machine to be again as it was
PATIENCE = 30.0


def fresh(work: list[BenchOptions]) -> list[dict[str, Any]]:
    """Rows measured in a new process, for how a process got its memory stays as it is until it ends."""
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    try:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            return pool.submit(measure, work).result()
    except BrokenProcessPool as error:
        raise QwenchError("a process that measures rows again has ended", "free memory and run again") from error


def measure(work: list[BenchOptions]) -> list[dict[str, Any]]:
    """Rows without roofs; all of `work` is for the same device and threads."""
    import torch

    where = pick_device(work[0].runtime.device).value
    settle(pick_threads(work[0].runtime.threads).value)
    rows = []
    with torch.inference_mode():
        measured(where, list(work[0].dtypes), 0.1)  # leaves the heap as a run does
        for options in work:
            events = Run(options, where, {}).all()
            rows += [event.row for event in events if isinstance(event, Produced)]
    return rows


def repeated(options: BenchOptions, rows: list[dict[str, Any]]) -> Events:
    """Gives rows further measurements (`again`, samples and pulses), each in a process of its own."""
    good = {key_of(row): row for row in rows if row["status"] == "ok"}
    yield Started("repeats", REPEATS, "processes")
    for row in good.values():
        row["again"] = []
    for _ in range(REPEATS):
        for found in fresh([replace(options, rule=replace(options.rule, warm=False))]):
            if found["status"] == "ok" and key_of(found) in good:
                good[key_of(found)]["again"].append({n: found[n] for n in ("samples", "pulses")})
        yield Advanced("repeats", 1)


def compare(options: BenchOptions, old: Rows, rows: list[dict[str, Any]]) -> Generator[Event, None, dict[str, Any]]:
    """What became slower (confirmed), faster, wrong or failing, is noise, or is in one run only."""
    new = {key_of(row): row for row in rows if row["status"] == "ok"}
    known = {key_of(row) for row in rows}
    both = [key for key in new if key in old]
    verdicts = {key: _judged(options, old, new, key) for key in both}
    suspects = [key for key in both if _judged(options, old, new, key, drift=False).slower]
    slower = yield from _confirmed(options, old, suspects)
    return {
        "threshold": options.threshold,
        "compared": len(both),
        "slower": [{"what": _name(key), "ratio": ratio} for key, ratio in slower.items()],
        "faster": [{"what": _name(key), "ratio": v.ratio} for key, v in verdicts.items() if v.faster],
        "noise": [_name(key) for key in suspects if key not in slower],
        "broken": [_name(key) for key in old if key in known - new.keys()],
        "only_old": [_name(key) for key in old.keys() - known],
        "only_new": [_name(key) for key in new.keys() - old.keys()],
    }


def _confirmed(options: BenchOptions, old: Rows, suspects: list[Key]) -> Generator[Event, None, dict[Key, float]]:
    """Suspects that are slower again and again and by enough in the middle, with the median of their ratios.

    A measurement that is not slower after the machine's own drift is taken off, with a drift of the threshold or more,
    says nothing: another takes its place, while there is patience.
    """
    ratios: dict[Key, list[float]] = {key: [] for key in suspects}
    misses, left, end = dict.fromkeys(suspects, 0), list(suspects), time.monotonic() + PATIENCE
    yield Started("suspects", len(suspects), "rows")
    while left:
        rows = fresh([_only(options, key) for key in left])
        new = {key_of(row): row for row in rows if row["status"] == "ok"}
        for key in list(left):
            verdict = _judged(options, old, new, key) if key in new else None
            if verdict and verdict.slower:
                ratios[key].append(verdict.ratio / verdict.drift)
            elif not verdict or verdict.drift <= 1 + options.threshold or time.monotonic() > end:
                misses[key] += 1
            if len(ratios[key]) == NEEDED or misses[key] > ROUNDS - NEEDED:
                left.remove(key)
                yield Advanced("suspects", 1, detail=_name(key))
        if left:
            time.sleep(PAUSE)
    middle = {key: quantile(found, 0.5) for key, found in ratios.items() if len(found) == NEEDED}
    return {key: ratio for key, ratio in middle.items() if ratio > _limit(options, old[key])}


def _judged(options: BenchOptions, old: Rows, new: Rows, key: Key, drift: bool = True) -> Verdict:
    """Against the middle one of the baseline's processes; faster is what is faster than all of them."""
    eager = (key[0], "eager", *key[2:])
    found = []
    for turn, before in enumerate(_processes(old[key])):
        pairs = [(samples, new[key]["pulses"][name]) for name, samples in before["pulses"].items()]
        if key != eager and eager in old and eager in new and turn < len(_processes(old[eager])):
            pairs.append((_processes(old[eager])[turn]["samples"], new[eager]["samples"]))
        machine = drift_of(pairs) if drift else 1.0
        found.append(judge(before["samples"], new[key]["samples"], options.threshold, machine))
    found.sort(key=lambda verdict: verdict.ratio / verdict.drift)
    return replace(found[len(found) // 2], faster=all(verdict.faster for verdict in found))


def _limit(options: BenchOptions, row: dict[str, Any]) -> float:
    """The ratio that counts: of the threshold, and of what the baseline's processes differ by, up to as much again.

    On some machines processes of the same code differ by more than a usual threshold.
    """
    ends = [quantile(process["samples"], FAST_END[0]) for process in _processes(row)]
    return 1 + options.threshold + min(options.threshold, max(ends) / min(ends) - 1)


def _processes(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [row, *row.get("again", [])]


def _only(options: BenchOptions, key: Key) -> BenchOptions:
    """Options of one row, with that of eager when the run has it."""
    kernel, provider, _, kind, _, batch, seq, streams = key
    who = [p.name for p in providers(list(options.provider_names)) if p.name in ("eager", provider)]
    return replace(
        options, kernels=(kernel,), dtypes=(kind,), provider_names=tuple(who), batch=(batch,), seq=(seq,),
        streams=(streams,), rule=replace(options.rule, warm=False),
    )  # fmt: skip


def _name(key: Key) -> str:
    kernel, provider, shape, kind, _, batch, seq, streams = key
    return f"{kernel} {provider} {shape} {kind} batch {batch} seq {seq} streams {streams}"
