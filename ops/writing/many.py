"""Messages of rows, and the same prompts at several budgets of thinking."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..base.errors import QwenchError
from ..base.events import Advanced, Events, Finished, Produced, Started
from ..base.plots import check_plot
from ..text.rows import Malformed
from .right import right
from .session import Chat, ChatOptions
from .thinking import budget_of
from .writer import Prepared, Turn

#: what a request to a server may ask for beside its messages
REQUEST = (
    *("tools", "tool_choice", "functions", "response_format", "max_tokens", "max_completion_tokens", "temperature"),
    *("top_p", "top_k", "min_p", "stop", "n", "seed", "logprobs", "stream", "chat_template_kwargs", "enable_thinking"),
)
Rows = list[tuple[str, dict[str, Any]]]  # where it is, its object


def sweep(
    options: ChatOptions,
    rows: Iterable[tuple[str, Any]],
    budgets: list[str],
    answer_field: str = "answer",
    plot: Path | None = None,
) -> Events:
    """Answer the same questions at several thinking budgets (Qwen3 technical report, figure 2, for one's own model).

    Yields Produced rows, one for each budget: see `_point`.

    Args:
        rows: (where it is, as `line 3`, its object or what is wrong with it).
        budgets: as `--think-budget` takes them.
        answer_field: field of a line that holds the right answer; see `right`.
        plot: .png to draw accuracy, thinking tokens and time against the budget into.

    Raises:
        QwenchError: a line without the field; a model that does not think, and a budget above 0.
    """
    if plot:
        check_plot(plot)
    numbers = [budget_of(b) for b in budgets]
    objects = _objects(rows)
    for line, row in objects:
        if answer_field not in row:
            raise QwenchError(f"{line} has no field `{answer_field}`", "name it with --answer-field")
    if not objects:
        raise QwenchError("there are no prompts to answer", 'give {"prompt": "...", "answer": "..."} lines')
    # The largest is checked while the model is loaded, before any question is asked.
    chat = Chat(replace(_fitting(options, objects), think_budget=str(max(numbers))))
    yield from chat.load()
    points = []
    yield Started("sweep", len(objects) * len(numbers))
    for budget in numbers:
        chat.budget = budget
        begun = time.perf_counter()
        turns: list[dict[str, Any]] = []
        for _, turn in _in_order(chat, _prepared(chat, objects)):
            turns.append(turn)
            yield Advanced("sweep", 1)
        points.append(_point(budget, turns, [row[answer_field] for _, row in objects], time.perf_counter() - begun))
        yield Produced(points[-1])
    if plot:
        from ..base.plots import budget_curve

        budget_curve(points, chat.options.model, plot)
    drawn = {"plot": str(plot)} if plot else {}
    yield Finished({"schema": 1, "model": chat.options.model, "seed": chat.seed, "points": points} | drawn)


def _point(budget: int, turns: list[dict[str, Any]], wanted: list[Any], seconds: float) -> dict[str, Any]:
    """What a budget bought.

    budget, questions, right, accuracy, thinking_tokens and answer_tokens (means), cut (share of thoughts the budget
    closed), seconds and tokens_per_second of the whole.
    """
    good = sum(right(t["answer"], answer) for t, answer in zip(turns, wanted, strict=True))
    closed = Counter(t["closed_by"] for t in turns)
    return {
        "budget": budget,
        "questions": len(turns),
        "right": good,
        "accuracy": good / len(turns),
        "thinking_tokens": sum(t["thinking_tokens"] for t in turns) / len(turns),
        "answer_tokens": sum(t["answer_tokens"] for t in turns) / len(turns),
        "cut": closed["budget"] / len(turns),
        "seconds": round(seconds, 3),
        "tokens_per_second": round(sum(t["generated_tokens"] for t in turns) / seconds, 2),
    }


def _objects(rows: Iterable[tuple[str, Any]]) -> Rows:
    """The rows, all of them objects."""
    found = []
    for place, row in rows:
        if isinstance(row, Malformed):
            raise QwenchError(f"{place} {row}", 'give {"prompt": "..."} on every line')
        if not isinstance(row, dict):
            raise QwenchError(f"{place} is no JSON object", 'give {"prompt": "..."} on every line')
        found.append((place, row))
    return found


def _fitting(options: ChatOptions, objects: Rows) -> ChatOptions:
    """No more slots than prompts: every slot has keys and values of its own, used or not."""
    return replace(options, slots=max(min(options.slots, len(objects)), 1))


def _prepared(chat: Chat, objects: Rows) -> list[Prepared]:
    found = []
    for key, (place, row) in enumerate(objects):
        try:
            found.append(chat.writer.prepare(chat.ask(key, [*chat.messages, *messages_of(row)], chat.seed + key)))
        except QwenchError as error:
            raise QwenchError(f"{place}: {error.message}", error.hint, error.code) from error
    return found


def messages_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Messages of a row with `messages`, `prompt` or `question`, their contents as text.

    Raises:
        QwenchError: it has none of them, or a message without role or text.
    """
    hint = 'give {"prompt": "..."} or {"messages": [{"role": "user", "content": "..."}]} on every line'
    given = row.get("messages")
    if given is None:
        text = next((row[name] for name in ("prompt", "question") if isinstance(row.get(name), str)), None)
        if text is None:
            raise QwenchError("there is neither a prompt nor messages", hint)
        return [{"role": "user", "content": text}]
    if not isinstance(given, list) or not given or not all(isinstance(m, dict) for m in given):
        raise QwenchError("`messages` is no list of messages", hint)
    for message in given:
        if not isinstance(message.get("role"), str):
            raise QwenchError("a message has no role", hint)
    return [message | {"content": _text(message)} for message in given]


def _text(message: dict[str, Any]) -> str:
    """The content of a message, text parts joined."""
    content = message.get("content")
    if content is None and message["role"] == "assistant":
        return ""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [None]
    for part in parts:
        if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
            kind = part.get("type") if isinstance(part, dict) else None
            what = f"a part of type `{kind}`" if kind else "no text"
            raise QwenchError(
                f"the content of a message is {what}, and only text can be read", 'write "content": "..."'
            )
    return "".join(part["text"] for part in parts)


def _in_order(chat: Chat, prepared: list[Prepared]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, what `Chat.turn` tells), in the order of the asks.

    Raises:
        QwenchError: one that has no answer, which is no wrong one.
    """
    done: dict[int, dict[str, Any]] = {}
    shown = 0
    # Long prompts first: the short ones fill the gaps at the end.
    for item in chat.writer.run(sorted(prepared, key=lambda p: -(p.prompt_tokens or 0))):
        if not isinstance(item, Turn):
            continue
        if item.error:
            raise item.error
        done[item.key] = chat.report(item)
        while shown in done:
            yield shown, done.pop(shown)
            shown += 1
