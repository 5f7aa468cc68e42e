"""One game played to its end: who says what, when it is over, and what is told of it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..base.errors import QwenchError
from .base import OPPONENTS, Game, Row, Step, world
from .parse import kept
from .registry import game, unknown

RULES = ("fixed", "reference")
INVALID = ("end", "retry", "ignore:N")
ANSWERS = ("many", "once")
READY = "\n\nReady to start"
#: put before READY in prompts of the reference's rows, but for games against an opponent
REFERENCE_LIMIT = (
    "\n- You have {n} attempts to find the answer, which means you need to output your answer in the {n}-th round or "
    "before this round."
)
LIMIT = "\nYou may send {n} messages in all, one form in each; what does not fit a form {bad}."
BAD = {"end": "ends the game", "retry": "is lost", "ignore": "is refused"}


@dataclass(frozen=True, slots=True)
class Rules:
    """By which rules games are played; names equal the flags.

    Attributes:
        rules: fixed, or reference (its defects included).
        invalid: a refused message ends the game (by the reference's rules: where its loop ends it), costs a round
            (retry), or costs nothing, N times a game (ignore:N).
        answers: many, or once: a wrong answer ends the game.
        opponent: random, greedy, best; of games that have one.
        max_round: messages at most; games of the class sg have their own number.

    Raises:
        QwenchError: one that is none.
    """

    rules: str = "fixed"
    invalid: str = "end"
    answers: str = "many"
    opponent: str = "random"
    max_round: int = 15

    def __post_init__(self) -> None:
        name, _, count = self.invalid.partition(":")
        if name not in BAD or (name == "ignore") != count.isdigit():
            raise QwenchError(f"unknown --invalid: `{self.invalid}`", f"use {', '.join(INVALID)}", code=2)
        for what, value, known in (
            ("rules", self.rules, RULES),
            ("answers", self.answers, ANSWERS),
            ("opponent", self.opponent, OPPONENTS),
        ):
            if value not in known:
                raise QwenchError(f"unknown --{what}: `{value}`", f"use {', '.join(known)}", code=2)
        if self.max_round < 1:
            raise QwenchError("--max-round must be at least 1", code=2)


def settled(row: Mapping[str, Any], seed: int = 0) -> Row:
    """A row with its task, level, seed and a number for an id; those of the reference have another way to say so.

    Raises:
        QwenchError: no task, or no id that is a number.
    """
    name = row.get("task") or row.get("title")
    if not isinstance(name, str):
        raise QwenchError("the row has neither `task` nor `title`", "rows are those of `qwench mtr make`")
    number = row.get("question_id", 0)
    if isinstance(number, str) and number.strip().isdigit():
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, int):
        raise QwenchError(f"`question_id` is no number: {str(number)[:40]!r}")
    task = game(name.partition(".")[0]).name
    level = row.get("level") or row.get("difficulty") or "easy"
    return {**row, "task": task, "level": level, "question_id": number, "seed": row.get("seed", f"{seed}/{number}")}


def opened(row: Row, rules: Rules) -> Game:
    """The game of a settled row.

    Raises:
        QwenchError: the row is not as it should be; the game offers no such opponent.
    """
    kind = game(row["task"])
    if rules.opponent != "random" and kind.OPPONENTS and rules.opponent not in kind.OPPONENTS:
        raise QwenchError(
            f"{kind.name} has no opponent `{rules.opponent}`", f"it has {', '.join(kind.OPPONENTS)}", code=2
        )
    quirks = kind.all_quirks() if rules.rules == "reference" else frozenset()
    return kind(row, world(row), quirks, rules.opponent if kind.OPPONENTS else "random")


class Match:
    """A game, its messages and its end.

    Args:
        row: settled; see `settled`.

    Attributes:
        turns: round, raw_output, output, result, feedback, valid, reason of each message.
        ended: solved, refused, limit, lost; None while it goes on.

    Raises:
        QwenchError: see `opened`.
    """

    def __init__(self, row: Row, rules: Rules) -> None:
        self.row, self.rules = row, rules
        self.game = opened(row, rules)
        self.limit = self.game.limit(rules.max_round)
        self.turns: list[dict[str, Any]] = []
        self.ended: str | None = None
        mode, _, count = rules.invalid.partition(":")
        self._mode, self._free = mode, int(count or 0)
        self._spent = 0
        self._messages = [{"role": "user", "content": self._opening()}]

    @property
    def messages(self) -> list[dict[str, str]]:
        """What a model is shown: the prompt, and all turns without their thoughts."""
        return list(self._messages)

    @property
    def left(self) -> int:
        """Rounds left."""
        return self.limit - self._spent

    @property
    def solved(self) -> bool:
        """Whether it is won, by the rules in force: the game's own, or the reference's evaluator."""
        if self.rules.rules == "reference":
            return self.game.verdict([(t["result"], t["feedback"]) for t in self.turns])
        return self.ended == "solved"

    def _opening(self) -> str:
        # Other rules than those that a row was made for have another prompt.
        own = self.row.get("rules", self.rules.rules) == self.rules.rules
        prompt = (own and self.row.get("prompt")) or self.game.prompt()
        if "rules" not in self.row:
            told = "" if self.game.kind == "sg" else REFERENCE_LIMIT.format(n=self.rules.max_round)
        else:
            told = LIMIT.format(n=self.limit, bad=BAD[self._mode])
        return prompt.replace(READY, told + READY, 1)

    def hear(self, raw: str) -> dict[str, Any]:
        """A message; returns its turn."""
        step = self.game.step(raw)
        free = not step.valid and self._mode == "ignore" and self._free > 0
        self._free -= free
        self._spent += not free
        turn = {"round": len(self.turns) + 1, "raw_output": raw, "output": kept(raw), "result": step.result}
        turn |= {"feedback": step.feedback, "valid": step.valid, "reason": step.reason}
        self.turns.append(turn)
        self._messages.append({"role": "assistant", "content": turn["output"]})
        self._messages.append({"role": "user", "content": step.feedback})
        self.ended = self._end(step)
        return turn

    def _end(self, step: Step) -> str | None:
        if not step.valid and self._mode == "end" and (step.done or self.rules.rules == "fixed"):
            return "refused"
        if step.solved and step.done:
            return "solved"
        if step.valid and step.done:
            return "solved" if self.rules.rules == "reference" and self.solved else "lost"
        if self.rules.answers == "once" and step.answered and not step.solved:
            return "lost"
        return "limit" if self.left <= 0 else None

    def told(self) -> dict[str, Any]:
        """The line of a transcript."""
        row = self.row
        found = {"question_id": row["question_id"], "turns": self.turns, "task": row["task"], "level": row["level"]}
        found |= {"seed": row["seed"], "quirks": sorted(self.game.quirks), **asdict(self.rules)}
        found |= {"solved": self.solved, "rounds": len(self.turns), "ended": self.ended}
        return found | {"row": {k: v for k, v in row.items() if k not in ("prompt", "id")}}


def player_stream(row: Row, seed: int, name: str) -> random.Random:
    """The stream of a scripted player."""
    return random.Random(f"{row['task']}/{row['level']}/{row['seed']}/player/{name}/{seed}")


PLAYERS = ("random", "solver", "spam")


class Scripted:
    """A player that needs no model.

    Args:
        name: random, solver or spam.

    Raises:
        QwenchError: there is none of this name.
    """

    def __init__(self, name: str, match: Match, seed: int = 0) -> None:
        if name not in PLAYERS:
            raise unknown("player", name, list(PLAYERS))
        self._name, self._match = name, match
        self._rng = player_stream(match.row, seed, name)
        # It is no part of the game it plays: a game of its own tells it what the prompt tells.
        twin = opened(match.row, match.rules)
        self._moves = twin.solve(self._rng, match.limit) if name == "solver" else twin.spam()
        self._begun = False

    def say(self) -> str | None:
        """The next message, None where the player has no more to say."""
        if self._name == "random":
            found = self._match.game.legal(self._rng)
            return found[int(self._rng.random() * len(found))] if found else None
        try:
            if self._name == "spam" or not self._begun:
                self._begun = True
                return next(self._moves)
            return self._moves.send(self._match.turns[-1]["feedback"])
        except StopIteration:
            return None


def scripted(name: str, match: Match, seed: int = 0) -> Match:
    """Play a match to its end by a scripted player."""
    player = Scripted(name, match, seed)
    while match.ended is None:
        said = player.say()
        if said is None:
            match.ended = "stopped"
        else:
            match.hear(said)
    return match
