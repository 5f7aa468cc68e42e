"""The model-free reward of a judge of spoken dialogue, for training it and for measuring it.

Source: arXiv 2505.09558 (v2): R_a = 10 exp(-(p - g)^2 / (2 sigma^2)) where |p - g| <= 4, R_f = 5 for the form. It
names neither sigma nor whether R_f is part of the advantage; what is taken here is told as assumed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..base.errors import QwenchError
from .verdicts import SCALE, Verdict, verdict

SHAPES = ("gauss", "exact")
#: the greatest accuracy reward of each shape, the width, the reach, and the reward of the form
GAUSS, EXACT, SIGMA, REACH, FORMAT = 10.0, 5.0, 1.0, 4, 5.0


def accuracy_reward(score: float | None, gold: float, sigma: float = SIGMA, shape: str = "gauss") -> float:
    """R_a; 0 for no score.

    Raises:
        QwenchError: an unknown shape, or a sigma that is not above 0.
    """
    if shape not in SHAPES:
        raise QwenchError(f"unknown --shape: `{shape}`", f"use {' or '.join(SHAPES)}", 2)
    if not (sigma > 0 and math.isfinite(sigma)):
        raise QwenchError(f"--sigma is a number above 0, and not {sigma:g}", "1 is what is assumed", 2)
    if score is None:
        return 0.0
    if shape == "exact":
        return EXACT if score == gold else 0.0
    apart = abs(score - gold)
    # Divided before it is squared, by a product: the square of a small sigma is 0, and a power may overflow.
    widths = apart / sigma
    return GAUSS * math.exp(-widths * widths / 2) if apart <= REACH else 0.0


def advantages(rewards: Sequence[float]) -> list[float]:
    """(r - mean) / std of one group, by the population's std; zeros where all are equal."""
    if not rewards:
        return []
    mean = math.fsum(rewards) / len(rewards)
    std = math.sqrt(math.fsum((r - mean) ** 2 for r in rewards) / len(rewards))
    # The mean of equal numbers may differ from them in the last place.
    if max(rewards) == min(rewards) or std == 0:
        return [0.0] * len(rewards)
    return [(r - mean) / std for r in rewards]


def k3(log_ratio: float) -> float:
    """The estimate of the divergence: r - log r - 1 with log r = log pi_ref - log pi."""
    return math.expm1(log_ratio) - log_ratio


def gold_of(value: Any) -> int | None:
    """The label in a column: a number of the scale, its text, or a score element; None where there is none.

    Raises:
        QwenchError: it is something else.
    """
    if value is None:
        return None
    if isinstance(value, str):
        found = verdict(value).score if "<" in value else None
        value = found if found is not None else value.strip()
        if isinstance(value, str) and value in {str(s) for s in SCALE}:
            value = int(value)
    elif hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float) or value not in SCALE:
        raise QwenchError(f"gold is {value!r}, and none of {', '.join(map(str, SCALE))}", "correct the label")
    return int(value)


def text_of(completion: Any) -> str:
    """What a judge has said: a string, or the assistant's messages, whose content may be a list of parts.

    Raises:
        QwenchError: it is neither.
    """
    if isinstance(completion, str):
        return completion
    if isinstance(completion, dict) and "content" in completion:
        return text_of(completion["content"])
    if isinstance(completion, dict) and isinstance(completion.get("text"), str):
        return completion["text"]
    if isinstance(completion, list) and all(isinstance(part, dict | str) for part in completion):
        spoken = [p for p in completion if not isinstance(p, dict) or p.get("role", "assistant") == "assistant"]
        return "".join(map(text_of, spoken))
    raise QwenchError("the completion is neither a text nor messages", "give strings, or lists of role and content")


def rewarded(found: Verdict, gold: int, sigma: float, shape: str, form: float) -> tuple[float, float]:
    """(accuracy reward, format reward) of a verdict."""
    return accuracy_reward(found.score, gold, sigma, shape), form if found.form else 0.0


def wav_reward(
    completions: Sequence[Any],
    solution: Sequence[Any] | Any = None,
    *,
    sigma: float = SIGMA,
    shape: str = "gauss",
    form: float = FORMAT,
    think: bool = False,
    **columns: Any,
) -> list[float | None]:
    """R_a + R_f of every completion, with the signature that trainers call rewards by.

    Args:
        completions: strings, or lists of messages.
        solution: a label for each; where there is none the column `gold` is taken.
        think: a closed thought is part of the form.
        columns: whatever else the data has (prompts, token ids, the trainer's state): not looked at, but for `gold`.
            A column of the data called sigma, shape, form or think would be taken for the setting: rename it.

    Returns:
        A reward for each; None, which trainers leave out, where a row has no label.

    Raises:
        QwenchError: another number of labels than completions, a label outside 1 to 5, no label at all.
    """
    golds = columns.get("gold") if solution is None else solution
    if golds is None:
        raise QwenchError("there are no labels: neither a column solution nor gold", "name the data's label so")
    if isinstance(golds, str) or not hasattr(golds, "__len__"):
        golds = [golds] * len(completions)
    if len(golds) != len(completions):
        raise QwenchError(f"{len(completions)} completions have {len(golds)} labels", "give one for each")
    rewards: list[float | None] = []
    for number, (completion, label) in enumerate(zip(completions, golds, strict=True), 1):
        try:
            gold, text = gold_of(label), text_of(completion)
        except QwenchError as error:
            raise QwenchError(f"completion {number}: {error.message}", error.hint) from error
        rewards.append(None if gold is None else sum(rewarded(verdict(text, think=think), gold, sigma, shape, form)))
    return rewards
