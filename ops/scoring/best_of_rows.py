"""Rows of several scored answers become a table: the best of n by reward, by votes, by a perfect judge."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..base.errors import QwenchError
from ..base.stats import bootstrap_mean
from .answers import final_answer, normalised
from .best_of import best_of, exact, majority, oracle
from .preference import interval
from .reward_rows import answers_of

BY = ("reward", "majority", "weighted", "oracle")


@dataclass(frozen=True, slots=True)
class Samples:
    """The answers of one row.

    Attributes:
        rewards: one each. weights: of votes, 0 and more. answers: final ones, None where there is none.
        gold: the right one; right: of each answer; None where the row does not tell.
        numbers: places of the answers in the row; those without a reward are left out.
    """

    texts: tuple[str, ...]
    rewards: tuple[float, ...]
    weights: tuple[float, ...]
    answers: tuple[str | None, ...]
    right: tuple[float, ...] | None
    gold: str | None
    numbers: tuple[int, ...]
    probabilities: bool


def samples_of(row: dict[str, Any], answer_field: str) -> Samples:
    """The scored answers of a row, with `correct` of each, or the right answer in `answer_field`.

    Raises:
        QwenchError: no rewards, or not as many as answers.
    """
    answers, rewards = answers_of(row), row.get("reward")
    if answers.form != "several":
        raise QwenchError("there are no several answers", "a row has responses, or the samples of qwench sample")
    if not isinstance(rewards, list) or len(rewards) != len(answers.conversations):
        raise QwenchError("there is no reward of every answer in `reward`", "score the rows first, or add --model")
    kept = tuple(i for i, r in enumerate(rewards) if isinstance(r, int | float) and not isinstance(r, bool))
    if not kept:
        raise QwenchError("none of the answers has a reward", "leave the row out")
    texts = tuple(answers.conversations[i].answer for i in kept)
    numbers = tuple(float(rewards[i]) for i in kept)
    steps = "step_rewards" in row
    given = row.get("answers")
    if isinstance(given, list) and len(given) == len(rewards):
        final = tuple(None if given[i] is None else normalised(given[i]) for i in kept)
    else:
        final = tuple(map(final_answer, texts))
    gold = None if row.get(answer_field) is None else _gold(row[answer_field])
    correct, right = row.get("correct"), None
    if isinstance(correct, list) and len(correct) == len(rewards):
        right = tuple(float(bool(correct[i])) for i in kept)
        # The answer that is right, so that votes for it can be told.
        gold = next((a for a, r in zip(final, right, strict=True) if r and a is not None), gold)
    elif gold is not None:
        right = tuple(float(a == gold) for a in final)
    weights = numbers if steps else tuple(map(_sigmoid, numbers))
    return Samples(texts, numbers, weights, final, right, gold, kept, steps)


def _gold(value: Any) -> str | None:
    """A right answer as it is, or the final one of a worked solution."""
    text = str(value)
    return final_answer(text) if "\\boxed{" in text or "####" in text else normalised(text)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def default_sizes(most: int) -> list[int]:
    """1, 2, 4, ... and the most there are."""
    return sorted({*(2**i for i in range(most.bit_length()) if 2**i <= most), most})


def table(rows: Sequence[Samples], sizes: Sequence[int], by: Sequence[str], rounds: int, seed: int) -> dict[str, Any]:
    """A row for every n: mean correctness by each rule, over the rows that have n answers.

    Raises:
        QwenchError: a row that does not tell what is right; an n that no row has.
    """
    if any(row.right is None for row in rows):
        raise QwenchError(
            "rows do not tell which answers are right", "give `correct`, or name the right answer: --answer-field"
        )
    most = max(len(row.rewards) for row in rows)
    if wrong := [n for n in sizes if not 1 <= n <= most]:
        raise QwenchError(f"--sizes asks for {wrong[0]}, and rows have up to {most} answers", code=2)
    told = []
    for n in sizes:
        some = [row for row in rows if len(row.rewards) >= n]
        line: dict[str, Any] = {"n": n, "rows": len(some)}
        for rule in by:
            values = [_worth(row, rule, n, seed + i) for i, row in enumerate(some)]
            line[rule] = sum(values) / len(values)
            line[f"{rule}_interval"] = interval(bootstrap_mean(values, rounds, seed))
        line["exact"] = all(exact(len(row.rewards), n) for row in some)
        told.append(line)
    weights = "probability" if all(row.probabilities for row in rows) else "sigmoid of the reward"
    return {"sizes": told, "weights": weights, "without_answer": sum(a is None for row in rows for a in row.answers)}


def _worth(row: Samples, rule: str, n: int, seed: int) -> float:
    assert row.right is not None
    if rule == "reward":
        return best_of(row.rewards, row.right, n)
    if rule == "oracle":
        return oracle(row.right, n)
    return majority(row.answers, row.gold, n, row.weights if rule == "weighted" else None, seed)


def winner(row: Samples, rule: str) -> int:
    """Place of the answer that a rule takes, among `numbers`; ties go to the higher reward, then to the first.

    Raises:
        QwenchError: `oracle` of a row that does not tell what is right.
    """
    best = max(range(len(row.rewards)), key=lambda i: row.rewards[i])
    if rule == "reward":
        return best
    if rule == "oracle":
        if row.right is None:
            raise QwenchError("the row does not tell which answers are right", "name the answer with --answer-field")
        return max(range(len(row.rewards)), key=lambda i: ((row.right or ())[i], row.rewards[i]))
    votes: dict[str, float] = defaultdict(float)
    for answer, weight in zip(row.answers, row.weights, strict=True):
        if answer is not None:
            votes[answer] += weight if rule == "weighted" else 1.0
    if not votes:
        return best
    return max(range(len(row.rewards)), key=lambda i: (votes.get(row.answers[i] or "", -1.0), row.rewards[i]))
