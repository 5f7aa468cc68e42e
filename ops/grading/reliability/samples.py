"""Rows of sampled answers: qwench's own, and lm-evaluation-harness's logs of samples."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ...base.errors import QwenchError
from ...base.events import Warned
from ...jobs.job import FAILED
from ...jobs.rows import Table
from ...text.rows import Malformed
from .extract import Extraction, Label, answer_of, label_of, options_of

LABELS = ("label", "answer", "target")
FORMATS = ("auto", "rows", "lm-eval")
_LM_EVAL = re.compile(r"samples_(?P<task>.+?)_\d{4}-\d\d-\d\dT.*")
#: of answers that cannot be read, how many are shown
EXAMPLES = 3


@dataclass(slots=True)
class Question:
    """A question and its samples, read.

    Attributes:
        answers: of every sample, None where it cannot be read; cut: how many ended at a limit of tokens.
        examples: texts that cannot be read; temperature: None where nothing tells.
    """

    id: str
    task: str
    condition: str
    label: Label
    answers: list[Any]
    options: int
    cut: int = 0
    examples: list[str] = field(default_factory=list)
    temperature: float | None = None
    tells_finish: bool = False


@dataclass(frozen=True, slots=True)
class Reading:
    """How rows are read; names equal the flags.

    Attributes:
        format: auto, rows or lm-eval.
        task_field: column with the task; None takes `task`, where it is there.
        first: samples of each question that count, 0 for all.
    """

    format: str = "auto"
    task_field: str | None = None
    first: int = 0
    keep_going: bool = False
    extraction: Extraction = field(default_factory=Extraction)


def named(files: Sequence[str]) -> list[tuple[str | None, str]]:
    """(condition, file) of `NAME=FILE` or `FILE`; with several files a file's stem names its condition."""
    found = []
    for given in files:
        name, mark, file = given.partition("=")
        if not mark or Path(given).exists() or "/" in name:
            name, file = "", given
        found.append((name or (None if len(files) == 1 else Path(file).name.partition(".")[0]), file))
    names = [name for name, _ in found if name]
    if twice := next((n for n in names if names.count(n) > 1), None):
        raise QwenchError(f"two files have the condition `{twice}`", "name them: NAME=FILE", code=2)
    return found


def read(files: Sequence[str], how: Reading, stdin: BinaryIO | None = None) -> Iterator[Question | Warned]:
    """Questions of all files; a Warned for each that is left out.

    Raises:
        QwenchError: a row that is not as it should be, unless keep_going; an id twice in a condition.
    """
    for condition, file in named(files):
        seen: dict[tuple[str, str, str], str] = {}
        filters: dict[str, Any] = {}
        for row in Table(file, stdin):
            place = f"{'standard input' if file == '-' else f'`{file}`'}, {row.place}"
            try:
                if isinstance(row.value, Malformed):
                    raise QwenchError(str(row.value))
                if _repeated(row.value, filters, how):
                    continue
                found = _question(row.value, str(row.key), file, condition, how)
            except QwenchError as error:
                if not how.keep_going:
                    hint = error.hint or "correct it, or leave it out with --keep-going"
                    raise QwenchError(f"{place}: {error.message}", hint, error.code) from error
                yield Warned("rows", f"left out: {place}: {error.message}", str(row.key), True)
                continue
            if found is None:
                yield Warned("incomplete", f"left out, it has no answers: {place}", str(row.key))
                continue
            place_of = seen.setdefault((found.condition, found.task, found.id), place)
            if place_of != place:
                raise QwenchError(f"{place} has the id `{found.id}` of {place_of}", "every question needs its own")
            yield found


def _is_log(value: dict[str, Any], how: Reading) -> bool:
    return how.format == "lm-eval" or (how.format == "auto" and "resps" in value and "doc_id" in value)


def _repeated(value: dict[str, Any], filters: dict[str, Any], how: Reading) -> bool:
    """A harness logs a document once for each of its filters, with the same texts."""
    if not _is_log(value, how):
        return False
    first = filters.setdefault("filter", value.get("filter"))
    return value.get("filter") != first


def _question(value: dict[str, Any], key: str, file: str, condition: str | None, how: Reading) -> Question | None:
    log = _is_log(value, how)
    doc = value.get("doc") if log and isinstance(value.get("doc"), dict) else {}
    given = value.get("target") if log else next((value[n] for n in LABELS if value.get(n) is not None), None)
    if not log and FAILED in value and "samples" not in value:
        return None
    if given is None or isinstance(given, dict | list | bool):
        raise QwenchError("there is no label", f"every row needs one of {', '.join(LABELS)}")
    samples = _responses(value) if log else value.get("samples")
    if not isinstance(samples, list) or not samples:
        raise QwenchError("there are no samples", 'give "samples": ["...", ...], as `qwench sample` makes them')
    if how.first:
        if len(samples) < how.first:
            raise QwenchError(f"it has {len(samples)} samples, fewer than --first {how.first}")
        samples = samples[: how.first]
    asked = next((v for n in ("question", "prompt") if isinstance(v := value.get(n, doc.get(n)), str)), "")
    options = options_of(value.get("options", doc.get("options", doc.get("choices"))), asked)
    label = label_of(given, options, how.extraction.compare)
    name = value.get(how.task_field) if how.task_field else value.get("task")
    if how.task_field and not isinstance(name, str):
        raise QwenchError(f"there is no task in the field `{how.task_field}`")
    own = value.get("doc_id" if log else "id")
    found = Question(
        str(own) if isinstance(own, str | int) and own != "" else key,
        str(name) if isinstance(name, str) else _task_of(file) if log else "",
        condition or str(value.get("condition") or ""),
        label,
        [],
        len(label.options),
    )
    for sample in samples:
        _add(found, sample, asked, how)
    told = value.get("temperature")
    found.temperature = float(told) if isinstance(told, int | float) else found.temperature
    return found


def _responses(value: dict[str, Any]) -> list[str]:
    """Texts of a harness's log: a list of lists, one for each request of the document."""
    found = value.get("resps")
    flat = [text for some in found for text in (some if isinstance(some, list) else [some])] if found else []
    if not all(isinstance(text, str) for text in flat):
        raise QwenchError("its `resps` are no texts: the task compares likelihoods, and samples nothing")
    return flat


def _task_of(file: str) -> str:
    name = _LM_EVAL.fullmatch(Path(file).name)
    return name["task"] if name else ""


def _add(found: Question, sample: Any, asked: str, how: Reading) -> None:
    """Read a sample; a question that it repeats is no part of its answer."""
    given = sample if isinstance(sample, dict) else {"text": sample}
    text = given.get("text")
    if not isinstance(text, str):
        raise QwenchError("a sample is no text", 'give texts, or objects with "text"')
    if asked and asked in text:
        text = text.replace(asked, "", 1)
    answer = answer_of(text, found.label, how.extraction)
    found.answers.append(answer)
    found.cut += given.get("finish") == "length"
    found.tells_finish |= "finish" in given
    if isinstance(given.get("temperature"), int | float):
        found.temperature = float(given["temperature"])
    if answer is None and len(found.examples) < EXAMPLES:
        found.examples.append(text)
