"""The numbers of a run: accuracy by language and level, DW-ACC with its interval, consistency, and what was cut."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...base.stats import Interval, pass_at, percentiles
from ..languages import LANGUAGES
from .grade import Grade
from .levels import QUESTIONS, WEIGHTS, dw_acc

#: language and level -> question -> its grades, one for each sample
Cells = Mapping[tuple[str, str], Mapping[int, Sequence[Grade]]]


def cells_of(grades: Iterable[Grade]) -> dict[tuple[str, str], dict[int, list[Grade]]]:
    """Grades by language and level, then by question."""
    found: dict[tuple[str, str], dict[int, list[Grade]]] = defaultdict(lambda: defaultdict(list))
    for grade in grades:
        found[grade.of.lang, grade.of.level][grade.of.question].append(grade)
    return {place: dict(sorted(questions.items())) for place, questions in found.items()}


def right(grade: Grade, grader: str) -> bool:
    """Whether a grader finds an answer right."""
    return grade.verdicts[grader] == "right"


def shares(questions: Mapping[int, Sequence[Grade]], grader: str) -> NDArray[np.float64]:
    """Of every question the share of its samples that are right, (n,)."""
    return np.array([np.mean([right(g, grader) for g in samples]) for samples in questions.values()])


def draws(n: int, rounds: int, seed: Sequence[int]) -> NDArray[np.float64]:
    """How often each of n rows is in each resample, as shares: (rounds, n), so that `draws @ values` are means."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=rounds) / n


def by_language(cells: Cells, grader: str, rounds: int, seed: int) -> dict[str, dict[str, Any]]:
    """Of every language its levels and `dw_acc` with an interval, rows resampled inside each level."""
    found = {}
    for number, language in enumerate(LANGUAGES):
        levels = {level: cells[language, level] for level in WEIGHTS if (language, level) in cells}
        if not levels:
            continue
        told = {level: _cell(questions, grader) for level, questions in levels.items()}
        values = {level: shares(questions, grader) for level, questions in levels.items()}
        drawn = {
            level: 100 * draws(len(v), rounds, (seed, number, at)) @ v for at, (level, v) in enumerate(values.items())
        }
        everything = [g for questions in levels.values() for samples in questions.values() for g in samples]
        weighted = dw_acc({level: 100 * float(v.mean()) for level, v in values.items()})
        found[language] = {
            "levels": told,
            "dw_acc": rounded(weighted),
            "dw_acc_interval": None if weighted is None else told_interval(percentiles(_weighted(drawn)), rounds),
            **_of_levels(told),
            **_spent(everything),
        }
    return found


def _weighted(drawn: Mapping[str, Any]) -> Any:
    return sum(weight * drawn[level] for level, weight in WEIGHTS.items()) / sum(WEIGHTS.values())


def told_interval(interval: Interval | None, rounds: int) -> list[float] | None:
    """Both ends, rounded; None where nothing was drawn."""
    return None if interval is None or not rounds else [round(interval.low, 2), round(interval.high, 2)]


def rounded(value: float | None, places: int = 2) -> float | None:
    """Rounded, None stays."""
    return None if value is None else round(value, places)


def _cell(questions: Mapping[int, Sequence[Grade]], grader: str) -> dict[str, Any]:
    grades = [g for samples in questions.values() for g in samples]
    samples = {len(s) for s in questions.values()}
    k = min(samples)
    found: dict[str, Any] = {
        "questions": len(questions),
        "missing": max(QUESTIONS - len(questions), 0),
        "accuracy": round(100 * float(shares(questions, grader).mean()), 2),
        "verdicts": {v: n for v in VERDICTS if (n := sum(g.verdicts[grader] == v for g in grades))},
        **_consistency(grades),
    }
    if k > 1:
        passed = [pass_at(len(s), sum(right(g, grader) for g in s), k) for s in questions.values()]
        found |= {"samples": k, "pass_at_k": round(100 * float(np.mean(passed)), 2)}
    return found


VERDICTS = ("right", "wrong", "unparsed", "truncated", "timeout", "failed")


def _consistency(grades: Sequence[Grade]) -> dict[str, Any]:
    """Per cent of texts in the question's language, by detector and text; None of no texts.

    `thinking_compat` is the reference's number, for which no thought at all is a consistent one.
    """
    found: dict[str, Any] = {}
    for detector in ("compat", "lingua"):
        for which in ("thinking", "answer"):
            seen = [g.languages[detector, which] for g in grades if (detector, which) in g.languages]
            name = f"{which}_{detector}" if detector == "lingua" else which
            found[f"{name}_consistency"] = round(100 * float(np.mean(seen)), 2) if seen else None
    if any(("compat", "answer") in g.languages for g in grades):
        compat = [g.languages.get(("compat", "thinking"), True) for g in grades]
        found["thinking_compat"] = round(100 * float(np.mean(compat)), 2)
    return {name: value for name, value in found.items() if value is not None or "lingua" not in name}


def _of_levels(told: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Plain means over the levels that are there."""
    names = list(
        dict.fromkeys(n for level in told.values() for n in level if "consistency" in n or n == "thinking_compat")
    )
    found = {}
    for name in names:
        values = [level[name] for level in told.values() if level.get(name) is not None]
        found[name] = round(float(np.mean(values)), 2) if values else None
    return found


def _spent(grades: Sequence[Grade]) -> dict[str, Any]:
    tokens = [g.of.thinking_tokens for g in grades if g.of.thinking_tokens is not None]
    finishes = [g.of.finish for g in grades if g.of.finish is not None]
    texts = [(g, w) for g in grades for w in (("thinking", "answer") if g.of.thoughts else ("answer",))]

    def share(count: int, of: Sequence[Any]) -> float | None:
        return round(100 * count / len(of), 2) if of else None

    return {
        "thinking_tokens": round(float(np.mean(tokens)), 1) if tokens else None,
        "cut": share(sum(f in ("length", "context") for f in finishes), finishes),
        "without_box": share(sum(not g.boxed for g in grades), grades),
        "several_boxes": share(sum(g.differ for g in grades), grades),
        "short": share(sum(w in g.short for g, w in texts), texts) if any(g.languages for g in grades) else None,
    }


def total(
    cells: Cells, languages: Mapping[str, Mapping[str, Any]], grader: str, rounds: int, seed: int
) -> dict[str, Any]:
    """The mean over the 18 languages, None unless all are there with all levels.

    Questions are the same in all languages, so they are resampled for all of them together.
    """
    missing = [f"{lang}/{level}" for lang in LANGUAGES for level in WEIGHTS if (lang, level) not in cells]
    means = {"dw_acc": None, "dw_acc_interval": None, "thinking_consistency": None, "answer_consistency": None}
    if missing:
        return {"complete": False, "missing": missing, **means}
    drawn = {}
    for at, level in enumerate(WEIGHTS):
        table = question_table(cells, level, LANGUAGES, grader)
        drawn[level] = 100 * draws(len(table), rounds, (seed, 99, at)) @ np.nanmean(table, axis=1)
    for name in ("dw_acc", "thinking_consistency", "answer_consistency"):
        values = [row[name] for row in languages.values() if row.get(name) is not None]
        means[name] = round(float(np.mean(values)), 2) if values else None
    means["dw_acc_interval"] = told_interval(percentiles(_weighted(drawn)), rounds) if rounds else None
    return {"complete": True, "missing": [], **means}


def question_table(cells: Cells, level: str, languages: Sequence[str], grader: str) -> NDArray[np.float64]:
    """Share of right samples by question and language, (questions, languages), NaN where a language has none."""
    numbers = sorted({q for lang in languages for q in cells.get((lang, level), {})})
    table = np.full((len(numbers), len(languages)), np.nan)
    for column, language in enumerate(languages):
        questions = cells.get((language, level), {})
        for row, number in enumerate(numbers):
            if number in questions:
                table[row, column] = np.mean([right(g, grader) for g in questions[number]])
    return table


def score_json(cells: Cells, grader: str) -> dict[str, Any]:
    """What the reference's scorer writes: one decimal, None while something is missing, `middle` for medium."""
    found: dict[str, Any] = {}
    for language in LANGUAGES:
        levels = {}
        for level in WEIGHTS:
            cell = _cell(cells[language, level], grader) if (language, level) in cells else {}
            levels[level] = {
                "accuracy": rounded(cell.get("accuracy"), 1),
                "thinking_lang_cons": rounded(cell.get("thinking_compat"), 1),
                "answer_lang_cons": rounded(cell.get("answer_consistency"), 1),
            }
        row: dict[str, Any] = {"middle" if level == "medium" else level: told for level, told in levels.items()}
        row["benchmark_weighted_acc"] = rounded(dw_acc({n: c["accuracy"] for n, c in levels.items()}), 1)
        for name in ("thinking_lang_cons", "answer_lang_cons"):
            values = [c[name] for c in levels.values()]
            row[f"benchmark_{name}"] = None if None in values else rounded(float(np.mean(values)), 1)
        found[language] = row
    return found
