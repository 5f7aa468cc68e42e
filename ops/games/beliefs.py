"""What a player may believe: hidden states that fit the replies, and the question that tells most of them apart."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, TypeVar

from .base import sample

S = TypeVar("S")
Q = TypeVar("Q")


def entropy(weights: Iterable[float]) -> float:
    """In bits, of weights that need not sum to one."""
    values = [w for w in weights if w > 0]
    total = sum(values)
    return math.log2(total) - sum(w * math.log2(w) for w in values) / total if total > 0 else 0.0


def best_split(
    states: Sequence[S],
    questions: Sequence[Q],
    reply: Callable[[S, Q], Hashable],
    rng: random.Random | None = None,
    most: int = 0,
) -> Q:
    """The question whose reply is least certain over equally likely states.

    Args:
        most: states that are looked at, 0 for all.
    """
    looked = sample(rng, states, most) if rng is not None and most and len(states) > most else states
    return max(questions, key=lambda q: entropy(Counter(reply(s, q) for s in looked).values()))


Replies = Callable[[S, Q], Iterable[tuple[Hashable, S, float]]]


def _after(
    weights: dict[S, float], question: Q, replies: Replies, answer_of: Callable[[S], Hashable]
) -> Iterable[dict[Any, float]]:
    """Weights of answers after each reply to a question."""
    after: dict[Any, dict[Any, float]] = {}
    for state, weight in weights.items():
        key = answer_of(state)
        for reply, _, chance in replies(state, question):
            named = after.setdefault(reply, {})
            named[key] = named.get(key, 0.0) + weight * chance
    return after.values()


def sharpest(
    weights: dict[S, float], questions: Sequence[Q], replies: Replies, answer_of: Callable[[S], Hashable]
) -> Q:
    """The question after which the answer is least open, on average.

    Args:
        replies: (reply, next state, probability) of a state and a question.
    """

    def left(question: Q) -> float:
        after = _after(weights, question, replies, answer_of)
        return sum(sum(named.values()) * entropy(named.values()) for named in after)

    return min(questions, key=left)


def least_left(
    weights: dict[S, float],
    questions: Sequence[Q],
    replies: Replies,
    answer_of: Callable[[S], Hashable],
    rounds: int,
) -> tuple[float, Q | None]:
    """(chance to win, question) when after it the likeliest answers are given one a round; None for giving them now.

    Args:
        replies: see `sharpest`.
        rounds: that are left, the question's own included.
    """
    best: tuple[float, Q | None] = (top(weights, answer_of, rounds), None)
    total = sum(weights.values())
    for question in questions:
        after = _after(weights, question, replies, answer_of)
        value = sum(sum(sorted(named.values(), reverse=True)[: rounds - 1]) for named in after) / total
        if value > best[0] + 1e-9 or (value > best[0] - 1e-9 and best[1] is None and rounds > 2):
            best = value, question
    return best


def top(weights: dict[S, float], answer_of: Callable[[S], Hashable], count: int) -> float:
    """Share of the so many likeliest answers."""
    named = by_answer(weights, answer_of)
    return sum(sorted(named.values(), reverse=True)[:count]) / sum(named.values())


def by_answer(weights: dict[S, float], answer_of: Callable[[S], Hashable]) -> dict[Any, float]:
    """Weights of answers."""
    named: dict[Any, float] = {}
    for state, weight in weights.items():
        key = answer_of(state)
        named[key] = named.get(key, 0.0) + weight
    return named


def merged(pairs: Iterable[tuple[S, float]]) -> dict[S, float]:
    """Weights of states, scaled to a sum of one."""
    found: dict[S, float] = {}
    for state, weight in pairs:
        found[state] = found.get(state, 0.0) + weight
    total = sum(found.values())
    return {s: w / total for s, w in found.items()} if total > 0 else {}
