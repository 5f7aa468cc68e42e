"""Transcripts are played again: every message through the environment, every reply compared with the recorded one."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..base.errors import QwenchError
from .base import Game, Row, Step
from .match import Match, Rules, settled
from .parse import kept

#: draws that are tried for a reply of a game that tells no seed
TRIES = 200


@dataclass(frozen=True, slots=True)
class Difference:
    """Where a game went another way than recorded."""

    game: str
    round: int
    what: str
    expected: Any
    found: Any

    def __str__(self) -> str:
        return f"{self.game}, round {self.round}: {self.what} is {self.found!r}, and {self.expected!r} is recorded"


def row_of(record: Mapping[str, Any], rows: Mapping[tuple[str, str, int], Row]) -> Row:
    """The row that a transcript was played on: its own, else the one of `rows` with its task, level and id.

    Raises:
        QwenchError: there is none.
    """
    task = record.get("task") or record.get("title")
    known = {**record["row"], **({"task": task} if task else {})} if isinstance(record.get("row"), dict) else None
    if rows:
        asked = settled(known or record)
        key = (asked["task"], str(asked["level"]), asked["question_id"])
        found = rows.get(key) or rows.get((asked["task"], "", asked["question_id"]))
        if found is None:
            raise QwenchError(f"there is no row {asked['question_id']} of {asked['task']}, {asked['level']}")
        return found
    if known is None:
        raise QwenchError("the transcript does not hold its row", "give the rows with --rows")
    for name in ("question_id", "level", "seed"):
        if name in record and name not in known:
            known[name] = record[name]
    return settled(known)


def rules_of(record: Mapping[str, Any], asked: str | None) -> Rules:
    """The rules a game was played by, or those that are asked for.

    Raises:
        QwenchError: they are none.
    """
    given = {n: record[n] for n in ("rules", "invalid", "answers", "opponent", "max_round") if n in record}
    found = Rules(**given)
    return replace(found, rules=asked) if asked else found


def messages_of(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The turns of a transcript, each with its message under raw_output, output or say.

    Raises:
        QwenchError: it has none.
    """
    turns = record.get("turns")
    if not isinstance(turns, list) or not all(isinstance(t, dict) and isinstance(said(t), str) for t in turns):
        raise QwenchError("there are no `turns` with their messages", "transcripts are files of `qwench mtr run --out`")
    return turns


def said(turn: Mapping[str, Any]) -> Any:
    """The message of a turn."""
    return next((turn[name] for name in ("raw_output", "output", "say") if name in turn), None)


@dataclass(slots=True)
class Replay:
    """A game that was played again.

    Attributes:
        solved: by the rules in force.
        differences: to what is recorded.
    """

    name: str
    match: Match
    solved: bool
    differences: list[Difference]
    turns: list[dict[str, Any]]


def replay(record: Mapping[str, Any], row: Row, rules: Rules, trust: bool = False) -> Replay:
    """Play a transcript again.

    Args:
        trust: recorded replies are taken as they are, and give the verdict.

    Raises:
        QwenchError: it is no transcript, or its row none of the task.
    """
    turns = messages_of(record)
    match = Match(row, rules)
    name = f"{row['task']}/{row['level']}/{row['question_id']}"
    seeded = "seed" in record or "seed" in (record.get("row") or {})
    found: list[Difference] = []
    ended = 0
    for number, turn in enumerate(turns, 1):
        if trust:
            match.turns.append({**turn, "output": kept(said(turn)), "valid": turn.get("result") != "Invalid"})
            continue
        if not seeded:
            match.game = _drawn(match.game, said(turn), turn.get("feedback"))
        probe = copy.deepcopy(match.game) if "ends" in turn else None
        new = match.hear(said(turn))
        for what in ("result", "feedback"):
            if what in turn and turn[what] != new[what]:
                found.append(Difference(name, number, what, turn[what], new[what]))
        if probe is not None and (step := probe.step(said(turn))).done != turn["ends"]:
            found.append(Difference(name, number, "the end", turn["ends"], step.done))
        if not ended and (probe is not None and turn["ends"]):
            ended = number
    solved = _solved(match, record, trust, ended or len(turns))
    recorded = record.get("solved", record.get("success"))
    if not trust and isinstance(recorded, bool) and recorded != solved:
        found.append(Difference(name, len(turns), "the verdict", recorded, solved))
    return Replay(name, match, solved, found, match.turns)


def _solved(match: Match, record: Mapping[str, Any], trust: bool, ended: int) -> bool:
    if match.rules.rules == "reference":
        return match.game.verdict([(t.get("result"), str(t.get("feedback"))) for t in match.turns[:ended]])
    return bool(record.get("solved")) if trust else match.solved


def _drawn(game: Game, message: str, reply: Any) -> Game:
    """The game with a stream of draws that gives the recorded reply, where one does."""
    for number in range(TRIES):
        tried = copy.deepcopy(game)
        if number:
            tried.rng = random.Random(f"replay/{number}")
        state, stream = copy.deepcopy(tried), tried.rng.getstate()
        step: Step = tried.step(message)
        if step.feedback == reply:
            return state
        if tried.rng.getstate() == stream:
            return state  # nothing was drawn, so that no other draw would help
    return game


def replays(
    records: Iterator[tuple[str, Mapping[str, Any]]],
    rows: Mapping[tuple[str, str, int], Row],
    rules: str | None,
    trust: bool,
) -> Iterator[tuple[Mapping[str, Any], Replay]]:
    """(record, its replay) of each.

    Raises:
        QwenchError: one cannot be played again; says where it stands.
    """
    for place, record in records:
        try:
            messages_of(record)
            row = row_of(record, rows)
            yield record, replay(record, row, rules_of(record, rules), trust)
        except QwenchError as error:
            raise QwenchError(f"{place}: {error.message}", error.hint, error.code) from error
