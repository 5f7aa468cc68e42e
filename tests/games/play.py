"""Games for tests: rows, and steps of a fresh game."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from qwench.ops.games.base import Game, Step, world
from qwench.ops.games.match import Match, Rules, scripted, settled
from qwench.ops.games.registry import TASKS, game
from qwench.ops.games.rows import seed_of

NAMES = [task.name for task in TASKS]
ORACLES = Path(__file__).parents[3] / "shared" / "data" / "mtr_oracles.jsonl"


def oracles() -> list[dict[str, Any]]:
    """Games with the reference's exact replies; the test is skipped where they are not."""
    if not ORACLES.exists():
        pytest.skip(f"no oracles at {ORACLES}")
    return [json.loads(line) for line in ORACLES.read_text().splitlines()]


def row(name: str, level: str = "easy", number: int = 0) -> dict[str, Any]:
    """A row of our own."""
    return settled({**game(name).make(level, seed_of(5, number)), "question_id": number + 1})


def opened(name: str, fields: dict[str, Any] | None = None, quirks: frozenset[str] = frozenset()) -> Game:
    """A game of a row of our own, or of given fields."""
    given = row(name) if fields is None else {"task": name, "level": "easy", "seed": 0, **fields}
    return game(name)(given, world(given), quirks)


def said(made: Game, *messages: str) -> list[Step]:
    """The replies to messages."""
    return [made.step(message) for message in messages]


def played(player: str, name: str, level: str = "easy", number: int = 0, **rules: Any) -> Match:
    """A match of a scripted player, played to its end."""
    return scripted(player, Match(row(name, level, number), Rules(**rules)))
