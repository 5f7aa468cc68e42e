"""PolyMath's questions, from its folder, from rows of any format, or from the hub."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ...base.errors import QwenchError
from ...base.paths import local
from ...jobs.rows import Key, Row, Table
from ...models.hub import HUB_ID
from ...models.hub_errors import hub_error
from ...text.rows import Malformed
from ..languages import LANGUAGES
from .levels import WEIGHTS, level_of

SUFFIXES = (".parquet", ".jsonl", ".ndjson", ".csv", ".tsv")
_ID = re.compile(r"(?P<level>[a-z]+)-(?P<language>[a-z]{2})-(?P<number>\d+)")


@dataclass(frozen=True, slots=True)
class QuestionOptions:
    """Which questions; names equal the flags.

    Attributes:
        data: folder of `{lang}/{level}.parquet` (or .jsonl, .csv), a file of rows, or a hub id.
        langs, levels: empty for all that are there.
        limit: of every language and level, 0 for all.
    """

    data: str
    langs: tuple[str, ...] = ()
    levels: tuple[str, ...] = ()
    limit: int = 0
    offline: bool = False


class Questions:
    """Rows as a job takes them: id, lang, level, idx, question, answer, and what else a row has.

    Attributes:
        counts: questions by (language, level), as of the last time they were gone through.

    Raises:
        QwenchError: no such data, or what is wrong with a row, with its file and line.
    """

    def __init__(self, options: QuestionOptions, stdin: BinaryIO | None = None) -> None:
        self.options, self._stdin = options, stdin
        self.counts: Counter[tuple[str, str]] = Counter()
        self._files = list(_files(options))
        self._tables: dict[str, Table] = {}

    def __iter__(self) -> Iterator[Row]:
        seen: set[str] = set()
        self.counts = Counter()
        number = 0
        for path, place in self._files:
            if path not in self._tables:
                self._tables[path] = Table(path, self._stdin)
            for row in self._tables[path]:
                at = row.place if path == "-" else f"`{path}`, {row.place}"
                if isinstance(row.value, Malformed):
                    yield Row(at, Key.of(f"{path}:{row.key}", number), "", row.value)
                    number += 1
                    continue
                found = self._question(row, at, place)
                if found is None:
                    continue
                if found["id"] in seen:
                    raise QwenchError(f"{at} has the id `{found['id']}` of another row", "every question needs its own")
                seen.add(found["id"])
                digest = hashlib.blake2b(json.dumps(found, sort_keys=True).encode(), digest_size=12).hexdigest()
                yield Row(at, Key.of(found["id"], number), digest, found)
                number += 1
        missing = [n for n in self.options.langs if not any(lang == n for lang, _ in self.counts)]
        missing += [n for n in self.options.levels if not any(level == n for _, level in self.counts)]
        if missing or not self.counts:
            what = f"no question of `{missing[0]}`" if missing else "no question"
            raise QwenchError(f"the data has {what}: `{self.options.data}`", "look at --langs and --levels")

    def _question(self, row: Row, at: str, place: tuple[str, str] | None) -> dict[str, Any] | None:
        """A row as a question; None for one that is not asked for, or is beyond the limit."""
        value, o = row.value, self.options
        assert isinstance(value, dict)
        language, level = place or _place(value, at)
        if (o.langs and language not in o.langs) or (o.levels and level not in o.levels):
            return None
        if not isinstance(value.get("question"), str) or not value["question"].strip():
            raise QwenchError(f"{at} has no text in its field `question`", "every row needs question and answer")
        answer = value.get("answer")
        if isinstance(answer, bool) or not isinstance(answer, str | int | float):
            raise QwenchError(f"{at} has no answer in its field `answer`", "every row needs question and answer")
        index = self.counts[language, level]
        if o.limit and index >= o.limit:
            return None
        self.counts[language, level] += 1
        name = value.get("id")
        name = name if isinstance(name, str) and name else f"{level}-{language}-{index + 1}"
        own = {"id": name, "lang": language, "level": level, "idx": index, "answer": str(answer)}
        return own | {"question": value["question"]} | ({"source": value["source"]} if "source" in value else {})


def _place(value: dict[str, Any], at: str) -> tuple[str, str]:
    """Language and level of a row, by its columns, else by its id."""
    language, level = value.get("lang", value.get("language")), value.get("level")
    if (found := _ID.fullmatch(str(value.get("id", "")))) and (language is None or level is None):
        language, level = language or found["language"], level or found["level"]
    known = level_of(str(level))
    if language not in LANGUAGES or known is None:
        raise QwenchError(
            f"{at} does not say its language and level: `{language}`, `{level}`",
            "give ids such as high-en-1, or columns lang and level",
        )
    return str(language), known


def _files(o: QuestionOptions) -> Iterator[tuple[str, tuple[str, str] | None]]:
    """(file, language and level of all its rows), in the benchmark's order; None where the rows are to say."""
    folder = Path(local(o.data, "the data")).expanduser()
    if o.data != "-" and not folder.exists() and HUB_ID.fullmatch(o.data):
        folder = _fetched(o)
    if not folder.is_dir():
        yield o.data, None
        return
    found = False
    for language in LANGUAGES:
        for level in WEIGHTS:
            for path in sorted((folder / language).glob("*")):
                if path.suffix in SUFFIXES and level_of(path.stem) == level:
                    found = True
                    if language in (o.langs or LANGUAGES) and level in (o.levels or WEIGHTS):
                        yield str(path), (language, level)
    if not found:
        raise QwenchError(
            f"the folder holds no questions: `{o.data}`",
            "it should have {lang}/{level}.parquet, such as en/low.parquet",
        )


def _fetched(o: QuestionOptions) -> Path:
    from huggingface_hub import snapshot_download

    wanted = [f"{lang}/{level}.parquet" for lang in o.langs or LANGUAGES for level in o.levels or WEIGHTS]
    try:
        return Path(snapshot_download(o.data, repo_type="dataset", allow_patterns=wanted, local_files_only=o.offline))
    except Exception as error:  # the hub library, its HTTP client and the system below them
        told = hub_error(o.data, None, error)
        hint = (told.hint or "").replace("hf download", "hf download --repo-type dataset")
        raise QwenchError(told.message.replace("the model", "the data set"), hint) from error
