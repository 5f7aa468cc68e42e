"""Games as the work of a job: played by a script, written by a model, or chosen by one among legal messages."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..base.atomic import append, hidden, remove, trouble, write
from ..base.errors import QwenchError
from ..base.events import Events
from ..jobs.job import JobOptions
from ..jobs.prompts import Prompts
from ..jobs.rows import Key
from ..jobs.samples import seed_of_row
from ..jobs.work import Work
from ..writing.session import ChatOptions
from ..writing.writer import Ask, Turn
from .base import Row
from .input import Which
from .match import PLAYERS, Match, Rules, player_stream, scripted
from .registry import unknown

#: players that need a model: it writes freely, or chooses among legal messages
MODELS = ("write", "choose")
#: ending of the file of turns beside an output
TURNS = ".turns"
#: messages that a choice is made among
CANDIDATES = 64


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Everything `qwench mtr run` can be told.

    Attributes:
        player: of PLAYERS or MODELS; seed: of what a player leaves to chance.
        rules: by which is played; which: the rows; chat: how a model is asked; job: where transcripts go.
        split: folder for the reference's files, None for none.
    """

    player: str = "write"
    seed: int = 0
    split: Path | None = None
    rules: Rules = field(default_factory=Rules)
    which: Which = field(default_factory=Which)
    chat: ChatOptions = field(default_factory=ChatOptions)
    job: JobOptions = field(default_factory=JobOptions)


def work_of(options: RunOptions) -> Work:
    """The work that a player does.

    Raises:
        QwenchError: there is no such player.
    """
    if options.player in PLAYERS:
        return Script(options)
    if options.player == "write":
        return Written(options)
    if options.player == "choose":
        return Chosen(options)
    raise unknown("player", options.player, [*PLAYERS, *MODELS])


class Script(Work):
    """Games of a player without a model; see Work. A game that was cut short begins again: it costs little."""

    name = "play"

    def __init__(self, options: RunOptions) -> None:
        self._options = options

    @property
    def settings(self) -> dict[str, Any]:
        """See Work."""
        o = self._options
        return {"player": o.player, "seed": o.seed, **asdict(o.rules)}

    def begin(self, row: dict[str, Any], key: Key) -> Callable[[], Any]:
        """See Work."""
        o = self._options
        return lambda: scripted(o.player, Match(row["row"], o.rules), o.seed)

    def finish(self, row: dict[str, Any], results: list[Any]) -> dict[str, Any]:
        """See Work."""
        return told(results[0], self._options.player, "", {})


def told(match: Match, player: str, model: str, about: Mapping[str, Any]) -> dict[str, Any]:
    """The line of a game, without its row, which the job has."""
    found = match.told()
    del found["row"]
    return found | {"player": player, "model": model, **({"about": dict(about)} if about else {})}


class Written(Prompts):
    """Games of a model that writes freely; every turn is kept as it comes, so that a game goes on in its middle."""

    name = "play"

    def __init__(self, options: RunOptions) -> None:
        super().__init__(replace(options.chat, seed=options.seed))
        self._run = options
        self._turns: Turns | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """See Work."""
        return super().settings | {"player": self._run.player, **asdict(self._run.rules)}

    def _kept(self) -> Turns:
        if self._turns is None:
            job = self._run.job
            out = None if job.out == "-" or job.dry_run else Path(job.out).expanduser()
            self._turns = Turns(out, self.settings, job.force)
        return self._turns

    def _match(self, row: Row) -> Match:
        match = Match(row, self._run.rules)
        for turn in self._kept().of(digest(row)):
            match.hear(turn["raw_output"]).update({k: v for k, v in turn.items() if k not in ("key", "round")})
        return match

    def begin(self, row: dict[str, Any], key: Key) -> Sequence[Ask]:
        """See Work."""
        return self._asks(self._match(row["row"]))

    def _asks(self, match: Match) -> Sequence[Ask]:
        if match.ended is not None:
            return []
        seed = seed_of_row(self.chat.seed, f"{digest(match.row)}/{len(match.turns) + 1}")
        return [self.chat.ask(None, [*self.before, *match.messages], seed)]

    def finish(self, row: dict[str, Any], results: list[Turn]) -> dict[str, Any] | Sequence[Ask]:
        """See Work."""
        if results:
            turn = results[-1]
            said = {"raw_output": _raw(turn), "prompt_tokens": turn.prompt_tokens}
            said |= {"answer_tokens": turn.answer_tokens, "thinking_tokens": turn.thinking_tokens}
            self._kept().add(digest(row["row"]), said)
        match = self._match(row["row"])
        if match.ended is None:
            return self._asks(match)
        return told(match, self._run.player, self.chat.writer.name, self.chat.writer.about)

    def count(self, results: list[Turn]) -> dict[str, int]:
        """See Work."""
        return {"messages": len(results), "generated_tokens": super().count(results)["generated_tokens"]}

    def done(self) -> None:
        """All games are over and written: their turns are in the transcripts."""
        if self._turns is not None:
            self._turns.remove()


class Chosen(Written):
    """Games of a model that chooses among legal messages by their mean log-probability, or draws at a temperature."""

    def load(self, rows: int) -> Events:
        """See Work."""
        # Candidates of one message go side by side.
        self._options = replace(self._options, slots=max(self._options.slots, 1))
        yield from super().load(max(rows, CANDIDATES))
        if "choose" not in self.writer.can:
            raise QwenchError(f"`{self.writer.name}` cannot compare given messages", "play with --player write", code=2)
        self._chooser, self.writer = self.writer, None

    def begin(self, row: dict[str, Any], key: Key) -> Any:
        """See Work."""
        return lambda: self._played(row["row"])

    def _played(self, row: Row) -> Match:
        match = self._match(row)
        rng = player_stream(row, self._run.seed, "choose")
        drawn = dict(self._run.chat.sampling).get("temperature", 0)
        for number in range(10**6):
            if match.ended is not None:
                return match
            # A game that goes on draws the candidates that it would have drawn.
            rng = player_stream(row, self._run.seed, f"choose/{len(match.turns)}")
            candidates = match.game.legal(rng, CANDIDATES)
            if not candidates:
                match.ended = "stopped"
                return match
            ask = replace(self.chat.ask(None, [*self.before, *match.messages], number), budget=0, logprobs=None)
            means = [scored.mean for scored in self._chooser.choose(ask, candidates)]
            at = max(range(len(means)), key=means.__getitem__)
            if drawn:
                at = _drawn([math.exp((m - means[at]) / drawn) for m in means], rng.random())
            self._kept().add(digest(row), {"raw_output": candidates[at]})
            match.hear(candidates[at])
        return match

    def finish(self, row: dict[str, Any], results: list[Any]) -> dict[str, Any]:
        """See Work."""
        return told(results[0], self._run.player, self._chooser.name, self._chooser.about)

    def count(self, results: list[Any]) -> dict[str, int]:
        """See Work."""
        return {"messages": len(results[0].turns)}


def _drawn(weights: list[float], share: float) -> int:
    left = share * sum(weights)
    for at, weight in enumerate(weights):
        left -= weight
        if left <= 0:
            return at
    return len(weights) - 1


def _raw(turn: Turn) -> str:
    """What the model wrote, its thought too."""
    return f"<think>\n{turn.thinking}\n</think>\n\n{turn.answer}" if turn.closed_by is not None else turn.answer


def digest(row: Row) -> str:
    """Which game a row is, by its content."""
    return hashlib.blake2b(json.dumps(row, sort_keys=True).encode(), digest_size=12).hexdigest()


class Turns:
    """Turns of games that are not over, a line each beside the output, on the disk before the next is asked for.

    Args:
        out: the output, None to keep them in memory alone.
        settings: what changes play; turns of other settings count for nothing.
        force: begin anew.

    Raises:
        QwenchError: the file cannot be read or written.
    """

    def __init__(self, out: Path | None, settings: Mapping[str, Any], force: bool = False) -> None:
        self._path = None if out is None else hidden(out, TURNS)
        self._kept: dict[str, list[dict[str, Any]]] = {}
        first = json.dumps({"settings": settings}, ensure_ascii=False, sort_keys=True)
        if self._path is None:
            return
        try:
            lines = [] if force else self._path.read_text("utf-8").split("\n")
        except FileNotFoundError:
            lines = []
        except (OSError, UnicodeDecodeError) as error:
            raise QwenchError(f"the turns cannot be read: `{self._path}`", "begin anew with --force") from error
        if not lines or lines[0] != first:
            write(self._path, first + "\n", "the turns")
            return
        for line in lines[1:]:
            try:
                turn = json.loads(line)
                self._take(turn["key"], turn)
            except (ValueError, KeyError, TypeError):
                continue  # cut short by a kill

    def _take(self, key: str, turn: dict[str, Any]) -> bool:
        kept = self._kept.setdefault(key, [])
        if turn["round"] != len(kept) + 1:
            return False
        kept.append(turn)
        return True

    def of(self, key: str) -> list[dict[str, Any]]:
        """The turns of a game so far."""
        return self._kept.get(key, [])

    def add(self, key: str, said: dict[str, Any]) -> None:
        """Keep a turn.

        Raises:
            QwenchError: it cannot be written.
        """
        turn = {"key": key, "round": len(self.of(key)) + 1, **said}
        if self._path is not None:
            append(self._path, json.dumps(turn, ensure_ascii=False), "the turns")
        self._take(key, turn)

    def remove(self) -> None:
        """All of them are elsewhere.

        Raises:
            QwenchError: the file cannot be removed.
        """
        if self._path is not None:
            try:
                remove(self._path)
            except OSError as error:
                raise trouble(error, self._path, "the turns") from error
