"""Trees of answers become a table: the work behind `qwench polymath score`."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...base.atomic import write
from ...base.errors import QwenchError
from ...base.events import Chose, Event, Events, Finished, Warned
from ...base.paths import check_output, local
from ...base.plots import check_plot
from ...base.stats import ROUNDS
from ..languages import LANGUAGES
from ..symbolic import PARSER
from .grade import Grade, GradeOptions, Tally, graded
from .levels import QUESTIONS, check_levels
from .pairs import agreement, check_alike, compared
from .strings import check_languages
from .table import by_language, cells_of, right, score_json, total
from .tree import Answer, models, read

BY = ("lang", "level", "source")


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """Everything `qwench polymath score` can be told; names equal the flags.

    Attributes:
        dirs: models' folders, or folders above them.
        by: what the table's rows are.
        compare: another model's folder, whose differences are told.
        boot: resamples of an interval, 0 for none.
        plot: picture of accuracy by language and level.
        write_score: the reference's score.json into each model's folder.
    """

    dirs: tuple[str, ...]
    langs: tuple[str, ...] = ()
    levels: tuple[str, ...] = ()
    by: str = "lang"
    compare: str | None = None
    boot: int = ROUNDS
    seed: int = 0
    plot: Path | None = None
    write_score: bool = False
    grade: GradeOptions = field(default_factory=GradeOptions)


def score(options: ScoreOptions) -> Events:
    """Yields Warned for lines that count as wrong, and Finished: models, each with languages, total and agreement.

    Raises:
        QwenchError: an option that does not fit, no answers, a library of the extra `grading` that is not there.
    """
    levels = _checked(options)
    found = models(options.dirs)
    if options.compare is not None:
        found += models((options.compare,))
    if options.compare is not None and len(found) != 2:
        raise QwenchError("--compare compares one model with one other", "give one model's folder before it", 2)
    if options.plot and len(found) > 1:
        raise QwenchError("--plot draws one model", "give one model's folder", code=2)
    if options.write_score:
        for _, folder in found:
            check_output(folder / "score.json", "the scores")
    yield Chose("parser", PARSER, "what reads formulas")
    results, everything = [], []
    for name, folder in found:
        answers = yield from _answers(folder, options, levels)
        grades, tally = yield from graded(answers, options.grade)
        yield from _short(name, answers)
        cells = cells_of(grades)
        everything.append((name, grades, cells))
        results.append(_result(name, folder, grades, tally, cells, options))
        if options.write_score:
            text = json.dumps(score_json(cells, options.grade.graders[0]), ensure_ascii=False, indent=2)
            write(folder / "score.json", text + "\n", "the scores")
    comparison = None
    if options.compare is not None:
        (ours, theirs) = everything
        check_alike(ours[1], theirs[1], (ours[0], theirs[0]))
        told = compared(ours[2], theirs[2], options.grade.graders[0], options.boot, options.seed)
        comparison = {"a": ours[0], "b": theirs[0], **told}
    if options.plot:
        _drawn(results[0], options.plot)
    yield Finished({"schema": 1, "parser": PARSER, "models": results, "compare": comparison})


def _checked(options: ScoreOptions) -> tuple[str, ...]:
    check_languages(options.langs)
    for name in (*options.dirs, *filter(None, (options.compare,))):
        local(name, "the folder of answers")
    if options.by not in BY:
        raise QwenchError(f"unknown --by: `{options.by}`", f"use {', '.join(BY)}", code=2)
    if options.boot < 0:
        raise QwenchError("--boot is a number of resamples", code=2)
    if options.plot:
        check_plot(options.plot)
    options.grade.check()
    return check_levels(options.levels)


def _answers(folder: Path, options: ScoreOptions, levels: tuple[str, ...]) -> Iterator[Any]:
    answers: list[Answer] = []
    for item in read(folder, options.langs, levels):
        if isinstance(item, Warned):
            yield item
        else:
            answers.append(item)
    if not answers:
        raise QwenchError(f"no answers of these languages and levels: `{folder}`", "look at --langs and --levels")
    return answers


def _short(name: str, answers: list[Answer]) -> Iterator[Event]:
    """Say which cells have fewer questions than the benchmark: they are never padded."""
    seen: dict[tuple[str, str], set[int]] = defaultdict(set)
    for answer in answers:
        seen[answer.lang, answer.level].add(answer.question)
    few = {place: len(questions) for place, questions in seen.items() if len(questions) < QUESTIONS}
    if few:
        (lang, level), least = min(few.items(), key=lambda item: item[1])
        count = f"{len(few)} of {len(seen)} pairs of language and level have"
        yield Warned("short", f"`{name}`: {count} fewer than {QUESTIONS} questions ({lang}/{level} has {least})", name)


def _result(
    name: str, folder: Path, grades: list[Grade], tally: Tally, cells: Any, options: ScoreOptions
) -> dict[str, Any]:
    first, *others = options.grade.graders
    languages = by_language(cells, first, options.boot, options.seed)
    found = {
        "model": name,
        "folder": str(folder),
        "answers": len(grades),
        "grader": first,
        "control": sorted({g.of.control for g in grades if g.of.control}) or None,
        "languages": languages,
        "total": total(cells, languages, first, options.boot, options.seed),
        "agreement": agreement(cells, first, options.boot, options.seed),
        **{count: tally.counts[count] for count in ("timeouts", "died", "failed", "digits")},
        "several_boxes": sum(g.differ for g in grades),
        "unread": sorted(tally.unread),
    }
    if options.by != "lang":
        found["by"] = {options.by: _grouped(grades, first, options.by)}
    for other in others:
        found[other] = {lang: _brief(row) for lang, row in by_language(cells, other, 0, 0).items()}
        found["disagreements"] = _disagreements(grades, first, other)
    if tally.mix:
        found["mix"] = [
            {"lang": lang, "text": which, "share": {n: round(c / counts.total(), 4) for n, c in counts.most_common()}}
            for (lang, which), counts in tally.mix.items()
        ]
    return found


def _brief(row: dict[str, Any]) -> dict[str, Any]:
    return {"dw_acc": row["dw_acc"], **{level: cell["accuracy"] for level, cell in row["levels"].items()}}


def _grouped(grades: list[Grade], grader: str, by: str) -> list[dict[str, Any]]:
    groups: dict[str, list[Grade]] = defaultdict(list)
    for grade in grades:
        groups[getattr(grade.of, by) or "-"].append(grade)
    return [
        {by: group, "answers": len(some), "accuracy": round(100 * sum(right(g, grader) for g in some) / len(some), 2)}
        for group, some in groups.items()
    ]


def _disagreements(grades: list[Grade], first: str, other: str) -> list[dict[str, Any]]:
    """Answers that one grader alone finds right."""
    return [
        {
            "lang": g.of.lang,
            "level": g.of.level,
            "question": g.of.question,
            "answer": g.of.gold,
            first: g.verdicts[first],
            other: g.verdicts[other],
            "text": g.of.answer[-200:],
        }
        for g in grades
        if right(g, first) != right(g, other)
    ]


def _drawn(result: dict[str, Any], path: Path) -> None:
    from ..pictures import heat_map
    from .levels import WEIGHTS

    names = [lang for lang in LANGUAGES if lang in result["languages"]]
    values = [
        [result["languages"][lang]["levels"].get(level, {}).get("accuracy") for level in WEIGHTS] for lang in names
    ]
    heat_map(values, names, list(WEIGHTS), f"{result['model']}: accuracy, %", path)
