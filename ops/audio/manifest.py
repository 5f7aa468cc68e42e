"""What is to be merged or judged: rows of a manifest, a folder of waves, or conversations."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ..base.errors import QwenchError
from ..jobs.rows import Table
from ..text.rows import Malformed
from .reward import gold_of

#: columns that hold the two turns of a conversation
TURNS = ("conversation", "conversations", "messages")
WAVES = (".wav", ".wave", ".flac", ".ogg", ".mp3")
#: columns with paths: of the parts, of the same words by a neutral voice, and of the whole
PARTS = ("question", "answer", "question_neutral", "answer_neutral")
PATHS = (*PARTS, "audio")
HINT = "rows need question and answer, or a conversation of two turns with audio"


def base_of(name: str) -> Path:
    """The folder that a manifest's paths are relative to; of standard input the one that the command runs in."""
    return Path.cwd() if name == "-" else Path(os.path.abspath(os.path.expanduser(name))).parent


def rows_of(name: str, stdin: BinaryIO | None = None) -> Iterator[tuple[str, dict[str, Any] | QwenchError]]:
    """(place, row or what is wrong with it) of a manifest or a folder; rows have an id.

    Raises:
        QwenchError: it cannot be read at all.
    """
    folder = Path(name).expanduser()
    if name != "-" and folder.is_dir():
        yield from ((f"`{row['answer']}`", row) for row in of_folder(folder))
        return
    for row in Table(name, stdin):
        if isinstance(row.value, Malformed):
            yield row.place, QwenchError(str(row.value), "correct it, or leave it out with --keep-going")
            continue
        try:
            yield row.place, {**flat(row.value), "id": str(row.key)}
        except QwenchError as error:
            yield row.place, error


def flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row with question and answer, or audio, as columns; gold is looked at.

    Raises:
        QwenchError: a column is no path, the gold is no score, or a conversation has no two spoken turns.
    """
    for name in TURNS:
        if isinstance(row.get(name), list) and "question" not in row and "audio" not in row:
            row = {k: v for k, v in row.items() if k != name} | _turns(row[name])
    for name in PATHS:
        if row.get(name) is not None and not (isinstance(row[name], str) and row[name]):
            raise QwenchError(f"`{name}` is no path", HINT)
    gold_of(row.get("gold"))
    return row


def _turns(turns: list[Any]) -> dict[str, Any]:
    if len(turns) != 2 or not all(isinstance(t, dict) and isinstance(t.get("content"), list) for t in turns):
        raise QwenchError("the conversation has no two turns with parts", HINT)
    found: dict[str, Any] = {}
    for what, turn in zip(("question", "answer"), turns, strict=True):
        parts = [p for p in turn["content"] if isinstance(p, dict)]
        waves = [p["audio"] for p in parts if isinstance(p.get("audio"), str)]
        if len(waves) != 1:
            raise QwenchError(f"the {what} has {len(waves)} sounds", "each turn has one part with audio")
        words = [p["text"] for p in parts if isinstance(p.get("text"), str)]
        found[what] = waves[0]
        if words:
            found[f"{what}_text"] = " ".join(words)
    return found


def of_folder(folder: Path) -> Iterator[dict[str, Any]]:
    """Pairs NAME.q.wav and NAME.a*.wav, by name.

    Raises:
        QwenchError: no pair, or a part without its other.
    """
    names = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in WAVES)
    found = [(match, name) for name in names if (match := re.fullmatch(r"(.+)\.(q|a[^.]*)\.\w+", name))]
    questions: dict[str, str] = {}
    for match, name in found:
        if match[2] == "q" and questions.setdefault(match[1], name) != name:
            raise QwenchError(f"two questions are called `{match[1]}`", "give each a name of its own")
    answers = [(match[1], name) for match, name in found if match[2] != "q"]
    if lone := sorted({name for of, name in answers if of not in questions}):
        raise QwenchError(f"`{lone[0]}` has no question", "call it NAME.q.wav")
    if lone := sorted(set(questions) - {of for of, _ in answers}):
        raise QwenchError(f"`{questions[lone[0]]}` has no answer", "call it NAME.a.wav")
    if not answers:
        raise QwenchError(f"no pairs are in the folder: `{folder}`", "call them NAME.q.wav and NAME.a.wav")
    for of, name in answers:
        yield {"id": Path(name).stem, "question_id": of, "question": questions[of], "answer": name}


def outside(row: dict[str, Any], base: Path) -> list[str]:
    """Those of a row's paths that lead out of the manifest's folder."""
    whole = base.resolve()
    found = [row[name] for name in PATHS if row.get(name)]
    return [name for name in found if not (base / name).resolve().is_relative_to(whole)]
