"""Rows that have rewards already, or get them now: what `reward eval` and `reward best-of` read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, BinaryIO

from ..base.errors import QwenchError
from ..base.events import Advanced, Event, Finished, Produced, Started
from ..base.runtime import Runtime
from ..scoring.reward_rows import answers_of
from ..text.rows import Malformed
from ..writing.local import LocalWriter
from ..writing.writer import Text
from .job import Job
from .rewards import RewardOptions, Rewards
from .rows import Table

Place = tuple[str, dict[str, Any]]


def scored_rows(options: RewardOptions, stdin: BinaryIO | None = None) -> Iterator[Event | list[Place]]:
    """Events, and (place, row) of all rows last: scored by the model that is named, or as they are where none is.

    Raises:
        QwenchError: a row that cannot be read; no rows.
    """
    o = options.job
    if not options.model and not options.runtime.server:
        yield _as_they_are(Table(o.rows, stdin, o.id_field), o.limit, o.keep_going)
        return
    rows: list[Place] = []
    for event in Job(Rewards(options), replace(o, out="-"), stdin).run():
        if isinstance(event, Produced):
            rows.append((f"row {len(rows) + 1}", event.row))
        elif not isinstance(event, Finished):
            yield event
    yield _some(rows, o.rows)


def _as_they_are(table: Table, limit: int, keep_going: bool) -> list[Place]:
    rows: list[Place] = []
    for row in table:
        if isinstance(row.value, Malformed):
            if not keep_going:
                raise QwenchError(f"{row.place} {row.value}", "correct it, or leave it out with --keep-going")
            continue
        rows.append((row.place, row.value))
        if len(rows) == limit:
            break
    return _some(rows, table.name)


def _some(rows: list[Place], name: str) -> list[Place]:
    if not rows:
        raise QwenchError(f"there are no rows: `{name}`", "give rows of prompts and answers")
    return rows


def with_logprobs(rows: list[Place], model: str, runtime: Runtime) -> Iterator[Event | list[Place]]:
    """Events, and the rows of pairs with logprob_chosen and logprob_rejected: the mean over an answer's tokens.

    Raises:
        QwenchError: a model that tells no log-probabilities.
    """
    writer = LocalWriter(model, replace(runtime, engine="torch"))
    yield from writer.load()
    tokenizer, template = writer.loaded.tokenizer, writer.loaded.template
    yield Started("log-probabilities", len(rows))
    found: list[Place] = []
    for place, row in rows:
        answers = answers_of(row)
        if len(answers.conversations) != 2:
            raise QwenchError(f"{place}: --logprob-model is for one chosen and one rejected answer", code=2)
        means = []
        for one in answers.conversations:
            opened = template.render([dict(m) for m in one.messages[:-1]])[0] if len(one.messages) > 1 else ""
            before, own = tokenizer.ids([opened])[0], tokenizer.ids([one.answer])[0]
            scored = next(iter(writer.score([Text(ids=[*before, *own])])))
            part = scored.logprobs[-len(own) :]
            means.append(sum(part) / len(part))
        found.append((place, row | {"logprob_chosen": means[0], "logprob_rejected": means[1]}))
        yield Advanced("log-probabilities", 1)
    yield found
