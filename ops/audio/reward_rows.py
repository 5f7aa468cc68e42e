"""`wav reward`: rows of completions and labels, with their rewards and what they are worth in their group."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from ..base.errors import QwenchError
from ..base.events import Event, Events, Finished, Produced, Started, Warned
from ..jobs.output import check, write
from ..jobs.rows import Row, Table
from ..text.fields import beside
from ..text.rows import Malformed
from .reward import FORMAT, SIGMA, accuracy_reward, advantages, gold_of, rewarded, text_of
from .verdicts import PROMPTS, verdict


@dataclass(frozen=True, slots=True)
class RewardOptions:
    """Everything `qwench wav reward` can be told.

    Attributes:
        out: .jsonl or .parquet, - for standard output.
        sigma, shape: of the accuracy reward, see `accuracy_reward`.
        form: reward of the form. prompt: published, or think, where a closed thought is part of the form.
        group: column whose rows are samples of one input; an advantage needs it.
        format_in_advantage: the reward of the form counts in the advantage, too.
        keep_going: bad rows are left out.
    """

    rows: str = "-"
    out: str = "-"
    sigma: float = SIGMA
    shape: str = "gauss"
    form: float = FORMAT
    prompt: str = "published"
    group: str = "question_id"
    format_in_advantage: bool = True
    keep_going: bool = False
    sigma_given: bool = False


def reward(options: RewardOptions, stdin: BinaryIO | None = None) -> Events:
    """Yields Produced rows where they go to standard output, and Finished with their numbers and what was assumed.

    Raises:
        QwenchError: an unknown word, a bad row unless keep_going, rows that cannot be read or written.
    """
    o = options
    accuracy_reward(None, 1, o.sigma, o.shape)
    if o.prompt not in PROMPTS:
        raise QwenchError(f"unknown --prompt: `{o.prompt}`", f"use {' or '.join(PROMPTS)}", 2)
    out = None if o.out == "-" else check(o.out)
    yield Started("reward", None)
    found: list[tuple[dict[str, Any], dict[str, Any]]] = []
    bad, where = 0, list[str]()
    for row in Table(o.rows, stdin):
        try:
            found.append(_one(row, o))
            where.append(row.place)
        except QwenchError as error:
            if not o.keep_going:
                raise QwenchError(f"{row.place}: {error.message}", error.hint, error.code) from error
            bad += 1
            yield Warned("rows", f"left out: {row.place}: {error.message}", row.key, True)
    groups = yield from _with_advantages(found, where, o)
    rows = [beside(given, ours) for given, ours in found]
    if out is not None:
        write(out, lambda: iter(rows))
    else:
        yield from (Produced(row) for row in rows)
    yield Finished({"schema": 1, "out": o.out, "bad": bad, **_summary([ours for _, ours in found], groups, o)})


def _one(row: Row, o: RewardOptions) -> tuple[dict[str, Any], dict[str, Any]]:
    if isinstance(row.value, Malformed):
        raise QwenchError(str(row.value), "correct it, or leave it out with --keep-going")
    for name in ("completion", "gold"):
        if row.value.get(name) is None:
            raise QwenchError(f"no `{name}`", "rows need completion and gold")
    gold = gold_of(row.value["gold"])
    assert gold is not None
    said = verdict(text_of(row.value["completion"]), think=PROMPTS[o.prompt][1])
    accuracy, form = rewarded(said, gold, o.sigma, o.shape, o.form)
    told = {"parsed": said.score, "reason": said.reason, "accuracy_reward": accuracy, "format_reward": form}
    return row.value, told | {"reward": accuracy + form, "advantage": None}


def _with_advantages(
    found: list[tuple[dict[str, Any], dict[str, Any]]], where: list[str], o: RewardOptions
) -> Iterator[Event]:
    """Put the advantages in; returns the number of groups."""
    groups = defaultdict(list)
    for at, (given, _) in enumerate(found):
        if (name := given.get(o.group)) is not None:
            groups[str(name)].append(at)
        elif any(o.group in row for row, _ in found):
            raise QwenchError(f"{where[at]} has no `{o.group}`, and others have", "name every row's group, or none")
    if found and not groups:
        yield Warned("group", f"no row has a `{o.group}`, so there are no advantages: --group COLUMN")
    for rows in groups.values():
        told = [found[at][1] for at in rows]
        counted = [t["reward"] if o.format_in_advantage else t["accuracy_reward"] for t in told]
        for one, value in zip(told, advantages(counted), strict=True):
            one["advantage"] = value
    lone = sum(len(rows) == 1 for rows in groups.values())
    if lone:
        yield Warned("group", f"{lone:,} of {len(groups):,} groups have one row, whose advantage is 0")
    return len(groups)


def _summary(told: list[dict[str, Any]], groups: int, o: RewardOptions) -> dict[str, Any]:
    count = len(told)
    assumed: dict[str, Any] = {"format_in_advantage": o.format_in_advantage, "std": "population"}
    if o.shape == "gauss" and not o.sigma_given:
        assumed["sigma"] = o.sigma
    return {
        "rows": count,
        "parsed": sum(t["parsed"] is not None for t in told),
        "right_form": sum(t["format_reward"] != 0 for t in told),
        "mean_reward": sum(t["reward"] for t in told) / count if count else None,
        "groups": groups,
        "shape": o.shape,
        "sigma": o.sigma if o.shape == "gauss" else None,
        "assumed": assumed,
    }
