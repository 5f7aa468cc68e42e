"""The same questions twice: in two languages of a run, or in two runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from ...base.errors import QwenchError
from ...base.stats import holm, mcnemar, percentiles
from ..languages import LANGUAGES
from .grade import Grade
from .levels import WEIGHTS
from .table import Cells, draws, question_table, rounded, told_interval


def agreement(cells: Cells, grader: str, rounds: int, seed: int) -> dict[str, Any] | None:
    """How languages agree on the questions that all of them have; None of fewer than two languages.

    questions; all_right and none_right, per cent (all samples of all languages, no sample of any); pairs: differences
    of accuracy by question with interval, exact McNemar p where a question has one sample, and Holm's for all pairs.
    """
    languages = [n for n in LANGUAGES if any(lang == n for lang, _ in cells)]
    if len(languages) < 2:
        return None
    table = np.concatenate([question_table(cells, level, languages, grader) for level in WEIGHTS])
    table = table[~np.isnan(table).any(axis=1)]
    if not len(table):
        return {"questions": 0, "all_right": None, "none_right": None, "pairs": []}
    weights = draws(len(table), rounds, (seed, 98)) if rounds else None
    pairs = [
        {"a": languages[i], "b": languages[j], **_difference(table[:, i], table[:, j], weights)}
        for i, j in combinations(range(len(languages)), 2)
    ]
    return {
        "questions": len(table),
        "all_right": round(100 * float((table == 1).all(axis=1).mean()), 2),
        "none_right": round(100 * float((table == 0).all(axis=1).mean()), 2),
        "pairs": _corrected(pairs),
    }


def _difference(a: Any, b: Any, weights: Any) -> dict[str, Any]:
    """b - a in points of accuracy."""
    single = set(np.unique(np.concatenate([a, b]))) <= {0.0, 1.0}
    interval = percentiles(100 * weights @ (b - a)) if weights is not None else None
    return {
        "questions": len(a),
        "difference": round(100 * float((b - a).mean()), 2),
        "interval": told_interval(interval, 1),
        "only_a": int(((a == 1) & (b == 0)).sum()),
        "only_b": int(((b == 1) & (a == 0)).sum()),
        "p": mcnemar(int(((a == 1) & (b == 0)).sum()), int(((b == 1) & (a == 0)).sum())) if single else None,
    }


def _corrected(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    with_p = [row for row in rows if row["p"] is not None]
    for row, p in zip(with_p, holm([row["p"] for row in with_p]), strict=True):
        row["p_holm"] = p
    return rows


def check_alike(ours: Iterable[Grade], theirs: Iterable[Grade], names: Sequence[str]) -> None:
    """Nothing.

    Raises:
        QwenchError: two runs asked otherwise: with another control, or another prompt of the same question.
    """
    controls = [{g.of.control for g in grades if g.of.control} for grades in (ours, theirs)]
    if all(controls) and controls[0] != controls[1]:
        told = [" and ".join(sorted(c)) for c in controls]
        raise QwenchError(
            f"`{names[0]}` was asked with --control {told[0]}, and `{names[1]}` with {told[1]}",
            "a sentence of control changes accuracy too: compare runs that were asked alike",
        )
    prompts = [{(g.of.lang, g.of.level, g.of.question): g.of.sha for g in grades} for grades in (ours, theirs)]
    for place in prompts[0].keys() & prompts[1].keys():
        if prompts[0][place] and prompts[1][place] and prompts[0][place] != prompts[1][place]:
            raise QwenchError(
                f"`{names[0]}` and `{names[1]}` were asked otherwise: question {place[2]} of {place[0]}/{place[1]}",
                "another joiner or other questions: compare runs that were asked alike",
            )


def compared(ours: Cells, theirs: Cells, grader: str, rounds: int, seed: int) -> dict[str, Any]:
    """Theirs - ours on the questions both have, of every language; of DW-ACC where all levels are there."""
    rows = []
    for number, language in enumerate(LANGUAGES):
        columns, weighted, drawn = [], 0.0, 0.0
        complete = True
        for at, level in enumerate(WEIGHTS):
            pair = _both(ours.get((language, level), {}), theirs.get((language, level), {}))
            if not pair:
                complete = False
                continue
            joined = {("a", level): pair[0], ("b", level): pair[1]}
            table = question_table(joined, level, ("a", "b"), grader)
            columns.append(table)
            change = 100 * (table[:, 1] - table[:, 0])
            share = WEIGHTS[level] / sum(WEIGHTS.values())
            weighted += share * float(change.mean())
            drawn = drawn + share * (draws(len(change), max(rounds, 1), (seed, number, at)) @ change)
        if columns:
            table = np.concatenate(columns)
            weights = draws(len(table), rounds, (seed, number, 9)) if rounds else None
            row = {"lang": language, **_difference(table[:, 0], table[:, 1], weights)}
            row["dw_acc"] = rounded(weighted) if complete else None
            row["dw_acc_interval"] = told_interval(percentiles(drawn), rounds) if complete and rounds else None
            rows.append(row)
    return {"languages": _corrected(rows)}


def _both(ours: Mapping[int, Sequence[Grade]], theirs: Mapping[int, Sequence[Grade]]) -> tuple[Any, Any] | None:
    common = ours.keys() & theirs.keys()
    return tuple({q: side[q] for q in sorted(common)} for side in (ours, theirs)) if common else None  # type: ignore[return-value]
