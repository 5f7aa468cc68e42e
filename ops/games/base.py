"""What a game is: a row of hidden data, replies to messages, legal messages, and players that need no model.

A game's state follows from its row, its quirks, its stream of random numbers and the messages so far, and from nothing
else: a game that was cut short goes on by hearing its messages again.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

from ..base.errors import QwenchError
from .parse import Form, TooLong, kept, read

T = TypeVar("T")
Row = dict[str, Any]
#: yields messages and is sent the replies
Solver = Generator[str, str, None]

KINDS = {
    "ip": ("information_query", "Information Probing"),
    "da": ("dynamic_adaptation", "Dynamic Adaptation"),
    "so": ("state_operation", "State Operation"),
    "sg": ("strategic_gaming", "Strategic Gaming"),
}
LEVELS = ("easy", "medium", "hard")
#: quirks of the reference that every game has: its loop looks for words in replies, its patterns take the first place
WORDS, FIRST = "loop.words", "parse.first"
COMMON = frozenset({WORDS, FIRST})
ENDS = ("invalid", "win", "lose")
OPPONENTS = ("random", "greedy", "best")
BROKEN = "Error parsing response"


@dataclass(frozen=True, slots=True)
class Step:
    """What came of a message.

    Attributes:
        result: what a transcript keeps of it: a text, a list of numbers, or None; feedback: the reply.
        valid: it was not refused; reason: why it was: form, range, rule.
        done: the game is over; solved: and won.
        answered: it was an answer, not a question or a move.
    """

    result: Any
    feedback: str
    valid: bool = True
    reason: str = ""
    done: bool = False
    solved: bool = False
    answered: bool = False


class Refused(Exception):
    """A message that is against the rules: the reply, and why."""

    def __init__(self, feedback: str, reason: str = "range", result: Any = "Invalid") -> None:
        super().__init__(feedback)
        self.feedback, self.reason, self.result = feedback, reason, result


def heard(result: Any, feedback: object) -> Step:
    """A reply that the game goes on after."""
    return Step(result, str(feedback))


def answer(result: Any, right: bool, yes: str = "Correct", no: str = "Incorrect") -> Step:
    """The reply to an answer; a wrong one does not end the game."""
    return Step(result, yes if right else no, done=right, solved=right, answered=True)


def over(result: Any, feedback: str, won: bool, answered: bool = False) -> Step:
    """A reply that ends the game."""
    return Step(result, feedback, done=True, solved=won, answered=answered)


class Game:
    """One game of a row; see each game's file.

    Class attributes:
        name, kind: of the task, and its class, a key of KINDS; title: what the reference calls it, where otherwise.
        LEVELS: parameters of `draw` by level; QUIRKS: defects of the reference that change play, by name.
        FORMS: how messages look, in the order the reference looks for them; NO_FORM: the reply to any other.
        FIELDS: the row's own fields and their types; DRAWN: those that the reference's rows lack.
        luck: even the best player does not always win.
        OPPONENTS: that a game against one offers.

    Args:
        rng: stream of the world: lies, opponents, shuffles. Only messages that are not refused draw from it.

    Raises:
        QwenchError: the row is not as the task's rows are.
    """

    name: ClassVar[str]
    kind: ClassVar[str]
    title: ClassVar[str] = ""
    LEVELS: ClassVar[dict[str, dict[str, Any]]]
    QUIRKS: ClassVar[tuple[str, ...]] = ()
    FORMS: ClassVar[tuple[Form, ...]]
    NO_FORM: ClassVar[str] = "Invalid"
    FIELDS: ClassVar[dict[str, type | tuple[type, ...]]]
    DRAWN: ClassVar[tuple[str, ...]] = ()
    luck: ClassVar[bool] = False
    OPPONENTS: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        row: Row,
        rng: random.Random,
        quirks: frozenset[str] = frozenset(),
        opponent: str = "random",
    ) -> None:
        self.row, self.rng, self.quirks, self.opponent = row, rng, quirks, opponent
        for field, kinds in self.FIELDS.items():
            if field in self.DRAWN and field not in row:
                continue
            if field not in row:
                raise QwenchError(f"a row of {self.name} has no field `{field}`")
            if not isinstance(row[field], kinds) or isinstance(row[field], bool):
                raise QwenchError(f"`{field}` of a row of {self.name} is of a wrong type: {str(row[field])[:60]!r}")
        try:
            self.begin()
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
            raise QwenchError(f"no row of {self.name}: {type(error).__name__}: {error}") from error

    @classmethod
    def make(cls, level: str, seed: int) -> Row:
        """A row by our own generator, JSON-able, with all that is hidden in it."""
        rng = random.Random(f"{cls.name}/{level}/{seed}/make")
        row: Row = {"task": cls.name, "title": cls.title or cls.name, "type": KINDS[cls.kind][0], "level": level}
        row |= {"difficulty": level, "seed": seed, "rules": "fixed", **cls.draw(rng, **cls.LEVELS[level])}
        return row | {"prompt": cls(row, world(row)).prompt()}

    @classmethod
    def draw(cls, rng: random.Random, **level: Any) -> Row:
        """The row's own fields."""
        raise NotImplementedError

    def begin(self) -> None:
        """Set up the state from the row."""
        raise NotImplementedError

    def tell(self) -> str:
        """The rules in our own words; examples of messages stand between backticks."""
        raise NotImplementedError

    def play(self, kind: str, said: list[Any]) -> Step:
        """The reply to a message of one of the forms.

        Raises:
            Refused: it is against the rules.
        """
        raise NotImplementedError

    def legal(self, rng: random.Random, most: int = 64) -> list[str]:
        """Messages that are not refused now, all of them or a sample."""
        raise NotImplementedError

    def solve(self, rng: random.Random, rounds: int) -> Solver:
        """A player that knows what the prompt tells, and no more."""
        raise NotImplementedError

    def spam(self) -> Iterator[str]:
        """Answers in the dumbest order; none where there is no form of an answer."""
        return iter(())

    def verdict(self, turns: Sequence[tuple[Any, str]]) -> bool:
        """Whether the reference's evaluator counts a game of these (result, reply) as won."""
        return last(turns, "Correct")

    def faults(self) -> list[tuple[str, str]]:
        """(kind, sentence) of what is wrong with the row."""
        return []

    def key(self) -> Any:
        """What makes two rows of a level the same; JSON-able."""
        return [self.row.get(field) for field in self.FIELDS]

    def prompt(self) -> str:
        """The rules, and a paragraph that begins with `Ready to start`."""
        return f"{self.tell()}\n\nReady to start? Send your first message."

    def limit(self, max_round: int) -> int:
        """Rounds at most."""
        return int(self.row["turns"]) if self.kind == "sg" else max_round

    def quirk(self, name: str) -> bool:
        """Whether a defect of the reference is in force."""
        return name in self.quirks

    def step(self, text: str) -> Step:
        """The reply to a message; any text at all has one."""
        try:
            found = read(kept(text), self.FORMS, FIRST in self.quirks)
            if found is None:
                raise Refused(self.NO_FORM, "form")
            step = self.play(*found)
        except TooLong:
            reference = FIRST in self.quirks
            step = Step(None if reference else "Invalid", BROKEN if reference else self.NO_FORM, False, "range")
        except Refused as refused:
            step = Step(refused.result, refused.feedback, False, refused.reason)
        if WORDS in self.quirks:
            words = any(word in step.feedback.lower() for word in ENDS)
            step = replace(step, done=words or (step.done and self.kind != "sg"))
        return step

    @classmethod
    def all_quirks(cls) -> frozenset[str]:
        """Those of the reference's rules."""
        return COMMON | frozenset(cls.QUIRKS)


def world(row: Mapping[str, Any]) -> random.Random:
    """The stream of lies, opponents and shuffles of a row."""
    return random.Random(f"{row['task']}/{row['level']}/{row['seed']}/world")


def last(turns: Sequence[tuple[Any, str]], *replies: str) -> bool:
    """The last reply is one of these."""
    return bool(turns) and turns[-1][1] in replies


def last_answer(turns: Sequence[tuple[Any, str]], begins: str, *replies: str) -> bool:
    """The reply to the last answer is one of these."""
    found = [reply for result, reply in turns if isinstance(result, str) and result.startswith(begins)]
    return bool(found) and found[-1] in replies


def ends_in(turns: Sequence[tuple[Any, str]], begins: str, reply: str) -> bool:
    """The last turn is an answer, with this reply."""
    return bool(turns) and str(turns[-1][0]).startswith(begins) and turns[-1][1] == reply


def before(turns: Sequence[tuple[Any, str]], good: str, *bad: str) -> bool:
    """A reply with `good` comes before any with one of `bad`."""
    for _, reply in turns:
        if good in reply.lower():
            return True
        if any(word in reply.lower() for word in bad):
            return False
    return False


# Draws by `random()` alone: it is all that stays the same from one Python to the next.


def pick(rng: random.Random, n: int) -> int:
    """One of 0..n-1."""
    return int(rng.random() * n)


def between(rng: random.Random, low: int, high: int) -> int:
    """One of low..high."""
    return low + int(rng.random() * (high - low + 1))


def choice(rng: random.Random, values: Sequence[T]) -> T:
    """One of the values."""
    return values[int(rng.random() * len(values))]


def shuffled(rng: random.Random, values: Sequence[T]) -> list[T]:
    """The values in another order."""
    found = list(values)
    for at in range(len(found) - 1, 0, -1):
        other = int(rng.random() * (at + 1))
        found[at], found[other] = found[other], found[at]
    return found


def sample(rng: random.Random, values: Sequence[T], most: int) -> list[T]:
    """At most so many of the values, in another order."""
    return shuffled(rng, values)[:most]


def spaced(values: Sequence[Any]) -> str:
    """Values with blanks between them."""
    return " ".join(map(str, values))
