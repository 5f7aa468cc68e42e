"""Completions of a state: what they say, whether it is right, and the row that they become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...base.stats import wilson
from ...writing.reply import split_thought
from ...writing.writer import Turn
from .states import Units
from .verify import Verifier


@dataclass(frozen=True, slots=True)
class Completion:
    """What follows a state.

    Attributes:
        units: its ids, None where they are not known or say more than the text.
        whole: text and units are all that was said, so that it can be gone on from within.
        right: None where the verifier did not come to an end.
        logprob: of all of it, None where it was not asked for.
    """

    turn: Turn
    text: str
    units: list[Any] | None
    whole: bool
    verdict: str
    logprob: float | None

    @property
    def right(self) -> bool | None:
        return None if self.verdict == "timeout" else self.verdict == "right"

    @classmethod
    def of(cls, turn: Turn, units: Units, prefix: str, gold: str, verifier: Verifier) -> Completion:
        """A turn, judged with what is before it; of thinking models what follows the thought alone."""
        ids: list[Any] | None = None
        if turn.generated and turn.finish in ("stop", "length") and not turn.inserted_tokens:
            ids = turn.generated[:-1] if turn.finish == "stop" else list(turn.generated)
        text = turn.answer if ids is None else units.decode(ids)
        before = "" if turn.closed_by is not None else split_thought(prefix)[1]
        verdict = verifier.verdict(before + turn.answer, gold, turn.finish)
        logprob = sum(entry["logprob"] for entry in turn.logprobs) if turn.logprobs else None
        whole = ids is not None or (turn.closed_by is None and not turn.inserted_tokens)
        return cls(turn, text, ids, whole, verdict, logprob)

    @property
    def told(self) -> dict[str, Any]:
        """As a row has it."""
        t = self.turn
        found: dict[str, Any] = {"text": self.text, "ids": self.units, "right": self.right, "verdict": self.verdict}
        if self.units is None and t.closed_by is not None:
            found["thinking"] = t.thinking
        return found | {"finish": t.finish, "tokens": tokens(t), "seed": t.seed}


def tokens(turn: Turn) -> int:
    """How many were generated; a server tells no ids."""
    return len(turn.generated) or turn.thinking_tokens + turn.answer_tokens


def counted(turns: Sequence[Turn]) -> int:
    """Generated tokens of all."""
    return sum(map(tokens, turns))


def state_row(about: dict[str, Any], group: list[Completion], turns: list[Turn]) -> dict[str, Any]:
    """A state with its value: right / (right + wrong + unparsed + truncated), Wilson's interval, and its samples."""
    known = [c.right for c in group if c.right is not None]
    ends = wilson(sum(known), len(known))
    return about | {
        "n": len(known),
        "value": sum(known) / len(known) if known else None,
        "low": ends and ends.low,
        "high": ends and ends.high,
        "samples": [c.told for c in group],
        "prompt_tokens": sum(t.prompt_tokens for t in turns),
        "generated_tokens": counted(turns),
    }
