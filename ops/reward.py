"""The door of `qwench reward`: answers get a number, pairs a report, samples a winner."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from .base.errors import QwenchError
from .base.events import Chose, Event, Events, Finished, Produced, Started, Warned
from .base.paths import local
from .base.plots import check_plot
from .jobs.job import Job, JobOptions
from .jobs.rewards import RewardOptions, Rewards
from .jobs.scored_rows import Place, scored_rows, with_logprobs
from .kernels.choose import prepared
from .scoring.best_of_rows import BY, default_sizes, samples_of, table, winner
from .scoring.process_reward import aggregate
from .scoring.reward_eval import EvalSettings, Scored, report
from .scoring.reward_plots import accuracy_picture, scaling_picture
from .scoring.reward_selftest import conversations, verdict
from .training.ranks import rank
from .training.reward_train import RewardTraining, RewardTrainOptions

__all__ = [
    "BestOptions",
    "EvalOptions",
    "JobOptions",
    "RewardOptions",
    "RewardTrainOptions",
    "best_of",
    "evaluate",
    "rank",
    "score",
    "selftest",
    "train",
]


@dataclass(frozen=True, slots=True)
class EvalOptions:
    """Everything `qwench reward eval` can be told.

    Attributes:
        against: rows of the same pairs, scored by another model.
        logprob_model: a model whose mean log-probability is one more ruler.
        plot: picture of accuracy by cell, or of loss against size.
    """

    against: str | None = None
    logprob_model: str | None = None
    plot: str | None = None
    settings: EvalSettings = field(default_factory=EvalSettings)
    rewards: RewardOptions = field(default_factory=RewardOptions)


@dataclass(frozen=True, slots=True)
class BestOptions:
    """Everything `qwench reward best-of` can be told.

    Attributes:
        sizes: n; none for the powers of two. by: rules, none for all.
        answer_field: column with the right answer.
        emit: give every row's winner by the one rule, in place of the table.
    """

    sizes: tuple[int, ...] = ()
    by: tuple[str, ...] = ()
    answer_field: str = "answer"
    emit: bool = False
    bootstrap: int = 1000
    seed: int = 0
    rewards: RewardOptions = field(default_factory=RewardOptions)


def score(options: RewardOptions, stdin: BinaryIO | None = None) -> Events:
    """Score every answer of every row; see `Job.run` and `Rewards`.

    Raises:
        QwenchError: see `Job.run` and `Rewards`; no model is named.
    """
    _named(options)
    yield from prepared(options.runtime)
    work = Rewards(options)
    for event in Job(work, options.job, stdin).run():
        if isinstance(event, Finished) and work.checked is not None:
            most, count = work.checked
            yield Chose("float32", f"{most:.2g}", f"largest difference to the rewards of {count} texts in float32")
        yield event


def _named(options: RewardOptions) -> None:
    if not options.model and not options.runtime.server:
        raise QwenchError("no reward model is named", "add --model: a folder, hub id, or what reward train made", 2)


def selftest(options: RewardOptions) -> Events:
    """The two answers of WorldPM's README: Finished has `right`, whether the good one is ahead."""
    _named(options)
    yield Started("load", None, "")
    yield from prepared(options.runtime)
    # Nothing is read: rows come from here.
    work = Rewards(options)
    yield from work.load(1)
    ready = [work.texts.ready(c) for c in conversations()]
    yield from work.remarks()
    values = [work.server.score(r) for r in ready] if work.server else work.model.score(ready) if work.model else []
    numbers = [aggregate(v, options.aggregate) if isinstance(v, list) else v for v in values]
    yield Finished({"schema": 1, "model": work.named, **verdict(work.named, (numbers[0], numbers[1]))})


def _rows(options: RewardOptions, stdin: BinaryIO | None, found: list[Place]) -> Iterator[Event]:
    for event in scored_rows(options, stdin):
        if isinstance(event, list):
            found += event
        else:
            yield event


def evaluate(options: EvalOptions, stdin: BinaryIO | None = None) -> Events:
    """Measure pairs, scored now or before; Finished has the report.

    Raises:
        QwenchError: see `scored_rows`, `Scored`, `report`; a picture that cannot be drawn.
    """
    o = options
    o.settings.check()
    if o.plot:
        check_plot(Path(o.plot))
    if o.against:
        local(o.against, "the other rows")
    rows: list[Place] = []
    yield from _rows(o.rewards, stdin, rows)
    if o.logprob_model:
        for event in with_logprobs(rows, o.logprob_model, replace(o.rewards.runtime, revision=None)):
            if isinstance(event, list):
                rows = event
            else:
                yield event
    other = None
    if o.against:
        plain = RewardOptions(job=JobOptions(rows=o.against))
        there: list[Place] = []
        yield from _rows(plain, None, there)
        other = Scored(there, EvalSettings(by=o.settings.by))
    scored = Scored(rows, o.settings)
    yield Started("measure", None, "")
    found = {"schema": 1, **report(scored, o.settings, other)}
    if found.get("aggregate"):
        yield Warned("steps", f"rewards of steps count by their {found['aggregate']} one: --aggregate")
    if o.plot:
        drawn = scaling_picture if o.settings.scaling else accuracy_picture
        drawn(found, Path(o.plot))
        found["plot"] = o.plot
    yield Finished(found)


def best_of(options: BestOptions, stdin: BinaryIO | None = None) -> Events:
    """What the best of n samples is worth, or with `emit` Produced rows with their winners.

    Raises:
        QwenchError: an unknown rule; see `scored_rows`, `samples_of`, `table`.
    """
    o = options
    by = o.by or (("reward",) if o.emit else BY)
    if wrong := [name for name in by if name not in BY]:
        raise QwenchError(f"unknown --by: `{wrong[0]}`", f"use {', '.join(BY)}", code=2)
    if o.emit and len(by) > 1:
        raise QwenchError("--emit takes one winner a row, and --by names several rules", "give one", code=2)
    rows: list[Place] = []
    yield from _rows(o.rewards, stdin, rows)
    failed = sum("failed" in row and "reward" not in row for _, row in rows)
    kept, found = [(place, row) for place, row in rows if "failed" not in row or "reward" in row], []
    for place, row in kept:
        try:
            found.append(samples_of(row, o.answer_field))
            if o.emit:
                at = winner(found[-1], by[0])
                one = found[-1]
                chosen = {"response": one.texts[at], "winner": one.numbers[at], "reward": one.rewards[at]}
                yield Produced({k: v for k, v in row.items() if k not in ("responses", "samples")} | chosen)
        except QwenchError as error:
            raise QwenchError(f"{place}: {error.message}", error.hint, error.code) from error
    result = {"schema": 1, "model": kept[0][1].get("model") if kept else None, "rows": len(found), "failed": failed}
    if o.emit or not found:
        yield Finished(result | {"sizes": []})
        return
    most = max(len(one.rewards) for one in found)
    yield Started("measure", None, "")
    yield Finished(result | table(found, o.sizes or default_sizes(most), by, o.bootstrap, o.seed))


def train(options: RewardTrainOptions, stdin: BinaryIO | None = None) -> Events:
    """Train a reward model on pairs; see `RewardTraining`.

    Raises:
        QwenchError: see there.
    """
    yield from prepared(options.runtime)
    yield from RewardTraining(options).run(stdin)
