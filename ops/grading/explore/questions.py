"""What is asked: rows of questions with their answers, and the prompts of MARGE's models."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...base.errors import QwenchError
from ...jobs.rows import ID, Key, Row, Table
from ...models.tokenizer import TextTokenizer
from ...text.rows import Malformed
from ...writing.many import messages_of
from .verify import Verifier

#: styles that are the model's own template: with the sentence after the question, or with nothing
OWN = ("template", "bare")
#: what follows a question, in the prompts of most styles
SENTENCE = r"Please reason step by step, and put your final answer within \boxed{}."
_CHATML = "<|im_start|>system\n%s<|im_end|>\n<|im_start|>user\n%s<|im_end|>\n<|im_start|>assistant\n"
#: name -> prompt, of which `{query}` is replaced; the first three sentences of a system have no full stop
STYLES = {
    "qwen": _CHATML % ("You are a helpful assistant", "{query}\n" + SENTENCE),
    "qwenmath": _CHATML % (SENTENCE, "{query}"),
    "acemath": "<|im_start|>user\n{query}\nPlease give a step-by-step answer and use a \\boxed command to denote the "
    "final answer.<|im_end|>\n<|im_start|>assistant\n",
    "llama3": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nYou're a helpful assistant<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n{query}\n" + SENTENCE + "<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s> [INST] You're a helpful assistant\n\n{query}\n" + SENTENCE + " [/INST]",
    "metamath": "Below is an instruction that describes a task. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\n{query}\n" + SENTENCE + "\n\n### Response: Let's think step by step.",
}
#: tokens without which a style means nothing to a model
MARKS = {
    **dict.fromkeys(("qwen", "qwenmath", "acemath"), ("<|im_start|>", "<|im_end|>")),
    "llama3": ("<|start_header_id|>", "<|eot_id|>"),
    "mistral": ("[INST]", "[/INST]"),
}


def check_style(style: str, tokenizer: TextTokenizer | None) -> None:
    """Nothing.

    Raises:
        QwenchError: an unknown style, or one whose marks the tokenizer lacks.
    """
    if style not in (*OWN, *STYLES):
        raise QwenchError(f"unknown --prompt-style: `{style}`", f"use {', '.join((*OWN, *STYLES))}", code=2)
    for mark in MARKS.get(style, ()) if tokenizer is not None else ():
        # Older Mistral models have their marks as plain text.
        if style != "mistral" and tokenizer.backend.token_to_id(mark) is None:
            raise QwenchError(f"the model's tokenizer has no `{mark}`, which --prompt-style {style} needs")


@dataclass(frozen=True, slots=True)
class Question:
    """A row: its id, its text, the messages it is asked with, its right answer, a solution it brings."""

    id: str
    text: str
    messages: list[dict[str, Any]]
    gold: str
    hit: str | None


def question_of(row: dict[str, Any], verifier: Verifier, style: str) -> Question:
    """What a row asks.

    Raises:
        QwenchError: no question, no answer, or one that the verifier cannot read.
    """
    own = row if row.get("messages") is not None or "query" not in row else row | {"question": row["query"]}
    messages = messages_of(own)
    if style not in OWN and (len(messages) > 1 or messages[0]["role"] != "user"):
        raise QwenchError(f"--prompt-style {style} has one question, and the row has a conversation")
    if messages[-1]["role"] != "user":
        raise QwenchError("the last message is not the user's", "give the question last")
    given = row["answer"] if row.get("answer") is not None else row.get("gt")
    hit = row.get("hit")
    if hit is not None and not isinstance(hit, str):
        raise QwenchError("there is no text in the field `hit`", "give a solution as text, or leave it out")
    return Question(row[ID], messages[-1]["content"], messages, verifier.gold(given), hit or None)


def asked(question: Question, style: str, before: list[dict[str, Any]]) -> dict[str, Any]:
    """The prompt of an Ask: messages, with the sentence at their end or without, or a text by one of STYLES."""
    if style in OWN:
        last = question.messages[-1]
        more = last | {"content": f"{last['content']}\n{SENTENCE}"} if style == "template" else last
        return {"messages": (*before, *question.messages[:-1], more), "text": None}
    return {"messages": None, "text": STYLES[style].replace("{query}", question.text)}


class Questions:
    """Rows of a table, each with an id: its own, else its number and a hash.

    Attributes:
        unnamed: rows without an id of their own, once they have been gone through.

    Raises:
        QwenchError: an id twice, while they are gone through: seeds and resuming depend on it.
    """

    def __init__(self, table: Table) -> None:
        self._table, self.unnamed = table, 0

    def __iter__(self) -> Iterator[Row]:
        seen: set[str] = set()
        self.unnamed = 0
        for row in self._table:
            if not isinstance(row.value, Malformed):
                field = self._table.id_field or ID
                named = str(row.key) == str(row.value.get(field))
                if not named and (given := row.value.get(field)) is not None and str(given) in seen:
                    raise QwenchError(f"{row.place} repeats the id `{given}`", "every question needs its own")
                self.unnamed += not named
                seen.add(str(row.key))
                row = replace(row, value=row.value | {ID: str(row.key)})
            yield row


@dataclass(frozen=True, slots=True)
class Old:
    """A question in the run before: its episode, its text, how answers were made to begin, and its hit, if any."""

    episode: int
    question: str
    prefix: str
    text: str | None
    ids: list[int] | None
    right: bool | None


def previous(name: str) -> tuple[dict[str, Old], str]:
    """(questions of a run by id, hash of its file)

    Raises:
        QwenchError: it cannot be read, or is no output of `explore run`.
    """
    found = {}
    for row in explored(Table(name), name):
        if row["state"] == 0:
            hit = row["hit"] or {}
            told = hit if hit.get("index") is None else row["samples"][hit["index"]]
            found[row["id"]] = Old(
                row["episode"], row["question"], row["prefix"], told.get("text"), told.get("ids"), hit.get("right")
            )
    return found, hashlib.sha256(Path(name).expanduser().read_bytes()).hexdigest()


def explored(rows: Iterable[Row], name: str) -> Iterator[dict[str, Any]]:
    """Rows of a run.

    Raises:
        QwenchError: they are none.
    """
    empty = True
    for row in rows:
        value = row.value
        if isinstance(value, Malformed) or not {"id", "state", "samples", "prefix", "hit", "episode"} <= set(value):
            raise QwenchError(f"{row.place} is no state of `explore run`: `{name}`", "give the file it wrote")
        empty = False
        yield value
    if empty:
        raise QwenchError(f"there are no states: `{name}`", "give the file that `explore run` wrote")


def together(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """States of one question after another."""
    held: list[dict[str, Any]] = []
    for row in rows:
        if row["state"] == 0 and held:
            yield held
            held = []
        held.append(row)
    if held:
        yield held


def seed_of_state(seed: int, key: Key | str, episode: int, state: str) -> int:
    """Seed of a state's first sample, 31 bits: independent of the order and of what is drawn beside it."""
    told = f"{seed}/{episode}/{state}/{key}"
    return int.from_bytes(hashlib.sha256(told.encode()).digest()[:4], "big") >> 1
