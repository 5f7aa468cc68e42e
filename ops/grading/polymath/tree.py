"""Anyone's answers to PolyMath: `{level}/{lang}.jsonl` in a model's folder, as its own scorer reads them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...base.errors import QwenchError
from ...base.events import Warned
from ...base.paths import local
from ...jobs.rows import Table
from ...text.rows import Malformed
from ..languages import LANGUAGES
from .levels import MIDDLE, WEIGHTS

_ID = re.compile(r"[a-z]+-[a-z]{2}-(\d+)")


@dataclass(slots=True)
class Answer:
    """A line of a tree.

    Attributes:
        question: its number, the same in all languages.
        trouble: why it counts as wrong whatever it says, None for a good line.
        thoughts: whether the line has a thought, which may be empty.
        finish, thinking_tokens, control, sha: None where the line does not tell.
    """

    lang: str
    level: str
    question: int
    sample: int
    gold: str
    thinking: str
    answer: str
    trouble: str | None = None
    finish: str | None = None
    thinking_tokens: int | None = None
    source: str | None = None
    control: str | None = None
    sha: str | None = None

    @property
    def thoughts(self) -> bool:
        """Whether there is a thought."""
        return bool(self.thinking.strip())


def models(names: tuple[str, ...]) -> list[tuple[str, Path]]:
    """(name, folder) of every model below the folders given.

    Raises:
        QwenchError: a folder that is not there, or holds no answers.
    """
    found: list[tuple[str, Path]] = []
    for name in names:
        folder = Path(local(name, "the folder of answers")).expanduser()
        if not folder.is_dir():
            raise QwenchError(f"the folder of answers is not there: `{name}`", "give what `polymath run --out` made")
        below = [folder] if _is_tree(folder) else sorted(p for p in folder.iterdir() if p.is_dir() and _is_tree(p))
        if not below:
            raise QwenchError(
                f"the folder holds no answers: `{name}`", "it should have {level}/{lang}.jsonl, such as low/en.jsonl"
            )
        found += [(p.resolve().name, p) for p in below]
    names_seen = [name for name, _ in found]
    return [(name if names_seen.count(name) == 1 else str(path), path) for name, path in found]


def _is_tree(folder: Path) -> bool:
    return any((folder / level).is_dir() and any((folder / level).glob("*.jsonl")) for level in (*WEIGHTS, MIDDLE))


def read(folder: Path, langs: tuple[str, ...] = (), levels: tuple[str, ...] = ()) -> Iterator[Answer | Warned]:
    """All lines of a tree, by language and level, and warnings of those that count as wrong.

    Raises:
        QwenchError: a level under both its names, a question twice, or a file that cannot be read.
    """
    if (folder / "medium").is_dir() and (folder / MIDDLE).is_dir():
        raise QwenchError(f"the answers have both `medium` and `{MIDDLE}`: `{folder}`", "remove one")
    for language in langs or LANGUAGES:
        for level in levels or WEIGHTS:
            names = (level, MIDDLE) if level == "medium" else (level,)
            for path in (folder / name / f"{language}.jsonl" for name in names):
                if path.is_file():
                    yield from _file(path, language, level)


def _file(path: Path, language: str, level: str) -> Iterator[Answer | Warned]:
    seen: set[tuple[int, int]] = set()
    for number, row in enumerate(Table(str(path))):
        place = f"`{path}`, {row.place}"
        if isinstance(row.value, Malformed):
            yield Warned("rows", f"left out: {place} {row.value}", str(path), True)
            continue
        answer = _answer(row.value, language, level, number)
        if (answer.question, answer.sample) in seen:
            raise QwenchError(
                f"{place} answers question {answer.question} again", "a sample of it has its own `sample`"
            )
        seen.add((answer.question, answer.sample))
        if answer.trouble:
            yield Warned("rows", f"counted as wrong: {place} {answer.trouble}", str(path), True)
        yield answer


def _answer(value: dict[str, Any], language: str, level: str, number: int) -> Answer:
    trouble = None
    for name in ("answer_pred", "answer"):
        given = value.get(name)
        if not isinstance(given, str) and not (name == "answer" and isinstance(given, int | float)):
            what = "no" if given is None else "another kind of thing than text as"
            trouble = f"has {what} `{name}`"
    index, named = value.get("idx"), _ID.fullmatch(str(value.get("id", "")))
    if not isinstance(index, int):
        index = int(named[1]) - 1 if named else number  # an id counts from 1
    thinking, sample, tokens = value.get("thinking_pred"), value.get("sample", 0), value.get("thinking_tokens")
    if thinking is not None and not isinstance(thinking, str):
        trouble, thinking = "has another kind of thing than text as `thinking_pred`", ""
    return Answer(
        language,
        level,
        index,
        sample if isinstance(sample, int) else 0,
        str(value.get("answer", "")),
        thinking or "",
        value["answer_pred"] if isinstance(value.get("answer_pred"), str) else "",
        trouble,
        _text(value.get("finish")),
        tokens if isinstance(tokens, int) else None,
        _text(value.get("source")),
        _text(value.get("control")),
        _text(value.get("prompt_sha")),
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
