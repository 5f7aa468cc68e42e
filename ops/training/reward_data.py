"""Pairs to train a reward model on: read from rows or votes, made ready, parted by prompt from those to validate."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from ..base.errors import QwenchError
from ..base.events import Advanced, Event, Started, Warned
from ..jobs.rows import Table
from ..scoring.reward_rows import answers_of
from ..scoring.reward_texts import Ready, RewardTexts
from ..text.rows import Malformed

#: bad rows that are told one by one
TOLD = 20


@dataclass(frozen=True, slots=True)
class PairOptions:
    """Which pairs; names equal the flags.

    Attributes:
        pairs: file of rows. validation: another, else a share of the prompts.
        group_by: field whose equal values are never parted; `prompt` is the conversation before the answers.
        margin_field: number that D must be above 0 by.
        from_votes: field of the score of every answer of `answers`; min_gap: least difference of two scores;
            pairs_per_prompt: how many unequal pairs of a row are drawn.
        limit: training pairs at most, 0 for all; drawn by the seed.
    """

    pairs: str = "-"
    validation: str | None = None
    validation_share: float = 0.1
    group_by: str = "prompt"
    margin_field: str | None = None
    from_votes: str | None = None
    min_gap: float = 1.0
    pairs_per_prompt: int = 1
    limit: int = 0
    keep_going: bool = False
    seed: int = 0

    def check(self) -> None:
        """Raises QwenchError: a number out of its range."""
        if not 0 < self.validation_share < 1 and self.validation is None:
            raise QwenchError("--validation-share is a share between 0 and 1", "the default is 0.1", code=2)
        if self.min_gap <= 0:
            raise QwenchError("--min-gap must be above 0: equal votes prefer neither answer", code=2)


@dataclass(frozen=True, slots=True)
class TrainPair:
    """A chosen and a rejected text, the margin between them, what is never parted from it, and its row."""

    chosen: Ready
    rejected: Ready
    group: str
    margin: float = 0.0
    row: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class PairSet:
    """Pairs to train on and to validate with.

    Attributes:
        skipped: pairs with a text that is too long. bad: rows that were left out. identical: pairs of equal texts.
    """

    train: list[TrainPair]
    validation: list[TrainPair]
    skipped: int = 0
    bad: int = 0
    identical: int = 0

    @property
    def digest(self) -> str:
        """Of all texts and their order."""
        seen = hashlib.blake2b(digest_size=16)
        for part in (self.train, self.validation):
            seen.update(b"|")
            for pair in part:
                seen.update(json.dumps([pair.chosen.ids, pair.rejected.ids, pair.margin]).encode())
        return seen.hexdigest()


def read_pairs(options: PairOptions, texts: RewardTexts, stdin: Any = None) -> Iterator[Event | PairSet]:
    """Events, and the pairs last.

    Raises:
        QwenchError: a bad row, unless keep_going; no pairs to train on or to validate with.
    """
    o, found = options, PairSet([], [])
    o.check()
    yield Started("pairs")
    for event in _file(o, o.pairs, texts, found, stdin):
        if isinstance(event, TrainPair):
            found.train.append(event)
        else:
            yield event
    if o.validation is not None:
        for event in _file(o, o.validation, texts, found, None):
            if isinstance(event, TrainPair):
                found.validation.append(event)
            else:
                yield event
    else:
        found.train, found.validation = parted(found.train, o.validation_share, o.seed)
    if o.limit and o.limit < len(found.train):
        found.train = random.Random(o.seed).sample(found.train, o.limit)
    for part, what in ((found.train, "to train on"), (found.validation, "to validate with")):
        if not part:
            raise QwenchError(f"there are no pairs {what}: `{o.pairs}`", "give more prompts, or --validation FILE")
    yield found


def parted(pairs: list[TrainPair], share: float, seed: int) -> tuple[list[TrainPair], list[TrainPair]]:
    """(training, validation): about a share of the groups, at least one where there are two."""
    groups = sorted({p.group for p in pairs}, key=lambda g: hashlib.sha256(f"{seed}:{g}".encode()).digest())
    count = max(round(len(groups) * share), 1) if len(groups) > 1 else 0
    held = set(groups[:count])
    return [p for p in pairs if p.group not in held], [p for p in pairs if p.group in held]


def _file(o: PairOptions, name: str, texts: RewardTexts, found: PairSet, stdin: Any) -> Iterator[Event | TrainPair]:
    for row in Table(name, stdin):
        try:
            if isinstance(row.value, Malformed):
                raise QwenchError(str(row.value))
            for one in _rows(o, row.value, row.key):
                pair = _pair(o, one, texts)
                if pair.chosen.skipped or pair.rejected.skipped:
                    found.skipped += 1
                    continue
                found.identical += pair.chosen.ids == pair.rejected.ids
                yield pair
        except QwenchError as error:
            told = f"{row.place}{'' if isinstance(row.value, Malformed) else ':'} {error.message}"
            if not o.keep_going:
                raise QwenchError(told, error.hint, error.code) from error
            found.bad += 1
            if found.bad <= TOLD:
                yield Warned("rows", f"left out: {told}", row.key, True)
        yield Advanced("pairs", 1)


def _rows(o: PairOptions, row: dict[str, Any], key: str) -> Iterable[dict[str, Any]]:
    return [row] if o.from_votes is None else pairs_of_votes(row, o, key)


def pairs_of_votes(row: dict[str, Any], o: PairOptions, key: str) -> list[dict[str, Any]]:
    """Rows of chosen and rejected from {prompt, answers: [{text, score}]}: random unequal pairs, the same for a seed.

    Raises:
        QwenchError: answers without text or number.
    """
    answers, votes = row.get("answers"), o.from_votes or "score"
    if not isinstance(answers, list) or not all(
        isinstance(a, dict) and isinstance(a.get("text"), str) for a in answers
    ):
        raise QwenchError("`answers` is no list of objects with a text", "write answers: [{text, score}]")
    for answer in answers:
        if not isinstance(answer.get(votes), int | float) or isinstance(answer.get(votes), bool):
            raise QwenchError(f"an answer has no number in `{votes}`", "name another with --from-votes")
    unequal = [(a, b) for a, b in combinations(answers, 2) if abs(a[votes] - b[votes]) >= o.min_gap]
    dice = random.Random(f"{o.seed}:{key}")
    drawn = dice.sample(unequal, min(o.pairs_per_prompt, len(unequal)))
    ordered = [(a, b) if a[votes] > b[votes] else (b, a) for a, b in drawn]
    return [row | {"chosen": a["text"], "rejected": b["text"]} for a, b in ordered]


def _pair(o: PairOptions, row: dict[str, Any], texts: RewardTexts) -> TrainPair:
    answers = answers_of(row)
    if answers.form != "pair" or len(answers.conversations) != 2:
        raise QwenchError("there is no pair of one chosen and one rejected answer", "training takes such rows")
    chosen, rejected = (texts.ready(c) for c in answers.conversations)
    group = chosen.prompt
    if o.group_by != "prompt":
        if row.get(o.group_by) is None:
            raise QwenchError(f"there is nothing in the field `{o.group_by}`", "name another with --group-by")
        group = str(row[o.group_by])
    margin = 0.0
    if o.margin_field is not None:
        given = row.get(o.margin_field)
        if not isinstance(given, int | float) or isinstance(given, bool):
            raise QwenchError(f"there is no number in the field `{o.margin_field}`", "name another: --margin-field")
        margin = float(given)
    return TrainPair(chosen, rejected, group, margin, row)
