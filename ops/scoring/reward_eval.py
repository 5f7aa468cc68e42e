"""Scored pairs become a report: accuracy with intervals, rulers, length, style, benchmarks, another model beside it."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from ..base.errors import QwenchError
from ..base.stats import bootstrap_mean, holm, mcnemar
from .loss_curve import fit_curve
from .preference import averages, bt_losses, by_length, cell, interval, length_phi, rulers, wins
from .reward_bench import rewardbench, rewardbench2
from .reward_rows import answers_of
from .style import contrast, features, style_fits

BENCHMARKS = ("rewardbench", "rewardbench2")
#: fields that rows are parted by where none is named
CELLS = ("category", "subset")
Place = tuple[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class EvalSettings:
    """What is reported; names equal the flags.

    Attributes:
        by: field that parts the rows; None for the first of CELLS that is there.
        benchmark: one of BENCHMARKS. scaling: field of sizes, see `fit_curve`.
        folds: of the style fits. bootstrap: rounds, 0 for no intervals.
    """

    by: str | None = None
    benchmark: str | None = None
    scaling: str | None = None
    folds: int = 5
    bootstrap: int = 1000
    seed: int = 0

    def check(self) -> None:
        """Raises QwenchError: an unknown benchmark, or a number out of its range."""
        if self.benchmark is not None and self.benchmark not in BENCHMARKS:
            raise QwenchError(f"unknown --benchmark: `{self.benchmark}`", f"use {', '.join(BENCHMARKS)}", code=2)


@dataclass(frozen=True, slots=True)
class Pair:
    """A chosen and a rejected answer with their rewards.

    Attributes:
        name: what the same pair is called in another file. prompt: what is drawn together. cell: see EvalSettings.by.
        lengths: in tokens where both are known, else in characters. style: see `features`.
    """

    name: str
    prompt: str
    cell: str | None
    rewards: tuple[float, float]
    lengths: tuple[int, int]
    style: tuple[tuple[int, ...], tuple[int, ...]]
    counted: bool
    model: str | None = None
    size: float | None = None
    logprobs: tuple[float, float] | None = None

    @property
    def d(self) -> float:
        """Reward of the chosen answer less that of the rejected one."""
        return self.rewards[0] - self.rewards[1]


class Scored:
    """The pairs of scored rows.

    Attributes:
        rows: those with rewards. models: named in them.
        failed, skipped, identical: rows that failed; that were too long; with equal answers.

    Raises:
        QwenchError: a row without rewards, or rewards of several models.
    """

    def __init__(self, rows: Iterable[Place], settings: EvalSettings) -> None:
        self.rows: list[dict[str, Any]] = []
        self.pairs: list[Pair] = []
        self.failed = self.skipped = self.identical = 0
        self.models: Counter[str] = Counter()
        self.aggregates: Counter[str] = Counter()
        self.by = settings.by
        for place, row in rows:
            if "failed" in row and "reward_chosen" not in row:
                self.failed += 1
                continue
            try:
                self._add(row, settings)
            except QwenchError as error:
                raise QwenchError(f"{place}: {error.message}", error.hint, error.code) from error
        if len(self.models) > 1 and settings.scaling is None:
            told = ", ".join(f"`{m}`" for m in list(self.models)[:4])
            raise QwenchError(
                f"the rows have rewards of {len(self.models)} models: {told}", "rewards compare within one model alone"
            )

    def _add(self, row: dict[str, Any], settings: EvalSettings) -> None:
        sides = []
        for name in ("reward_chosen", "reward_rejected"):
            if name not in row:
                raise QwenchError(f"there is no `{name}`", "score the rows first: qwench reward score, or add --model")
            given = row[name] if isinstance(row[name], list) else [row[name]]
            if not all(v is None or (isinstance(v, int | float) and not isinstance(v, bool)) for v in given):
                raise QwenchError(f"`{name}` is no number", "rows of qwench reward score have numbers")
            sides.append(given)
        if any(v is None for side in sides for v in side):
            self.skipped += 1
            return
        answers = answers_of(row)
        count = answers.chosen
        if answers.form != "pair" or (count, len(answers.conversations) - count) != tuple(map(len, sides)):
            raise QwenchError("there are not as many rewards as answers", "score the rows again")
        if isinstance(row.get("model"), str):
            self.models[row["model"]] += 1
        if isinstance(row.get("aggregate"), str):
            self.aggregates[row["aggregate"]] += 1
        if self.by is None:
            self.by = next((name for name in CELLS if row.get(name) is not None), "")
        self.rows.append(row)
        self.pairs += self._pairs(row, answers, sides, settings)

    def _pairs(self, row: dict[str, Any], answers: Any, sides: list[list[float]], o: EvalSettings) -> Iterator[Pair]:
        part = str(row[self.by]) if self.by and row.get(self.by) is not None else None
        if o.by and part is None:
            raise QwenchError(f"there is no field `{o.by}` to part the rows by", "name another with --by")
        size = row.get(o.scaling) if o.scaling else None
        if o.scaling and (not isinstance(size, int | float) or isinstance(size, bool)):
            raise QwenchError(f"there is no number in the field `{o.scaling}`", "name another with --scaling")
        told, count = row.get("answer_tokens"), answers.chosen
        counted = isinstance(told, list) and len(told) == len(answers.conversations)
        for i, j in product(range(count), range(count, len(answers.conversations))):
            a, b = answers.conversations[i], answers.conversations[j]
            self.identical += a.answer == b.answer
            lengths = (told[i], told[j]) if counted else (len(a.answer), len(b.answer))
            likely = tuple(row.get(n) for n in ("logprob_chosen", "logprob_rejected"))
            prompt = json.dumps(a.messages[:-1], sort_keys=True)
            yield Pair(
                json.dumps([prompt, a.answer, b.answer]),
                prompt,
                part,
                (float(sides[0][i]), float(sides[1][j - count])),
                lengths,
                (features(a.answer, lengths[0]), features(b.answer, lengths[1])),
                counted,
                row.get("model"),
                size,
                likely if all(isinstance(v, int | float) for v in likely) else None,
            )


def report(scored: Scored, settings: EvalSettings, against: Scored | None = None) -> dict[str, Any]:
    """All measures of the pairs; see the module.

    Raises:
        QwenchError: no pairs; a benchmark's rows that are not its own; too few sizes.
    """
    pairs, o = scored.pairs, settings
    counts = {n: getattr(scored, n) for n in ("failed", "skipped", "identical")}
    found: dict[str, Any] = {
        "model": next(iter(scored.models), None) if len(scored.models) < 2 else list(scored.models),
        "aggregate": next(iter(scored.aggregates), None),
        **counts,
    }
    d = np.array([p.d for p in pairs])
    found |= cell(d)
    if not pairs:
        return found | {"by": {}, "phi_length": None, "rulers": {}, "style": None}
    prompts = [p.prompt for p in pairs]
    tokens = all(p.counted for p in pairs)
    lengths = np.array([p.lengths for p in pairs]) if tokens else np.array([_characters(p) for p in pairs])
    likely = [p.logprobs for p in pairs]
    whole = None if any(v is None for v in likely) else tuple(zip(*likely, strict=True))
    found |= averages(d, prompts, o.bootstrap, o.seed)
    about = length_phi(d, lengths[:, 0], lengths[:, 1])
    z = contrast([p.style[0] for p in pairs], [p.style[1] for p in pairs])
    found |= {
        "prompts": len(set(prompts)),
        "length_unit": "tokens" if tokens else "characters",
        "phi_length": about.pop("phi"),
        "length": about | by_length(d, lengths[:, 0], lengths[:, 1]),
        "rulers": rulers(lengths[:, 0], lengths[:, 1], o.seed, whole),
        "style": style_fits(d, z, prompts, o.folds, o.bootstrap, o.seed),
        "by_field": scored.by or None,
        "by": {name: cell([pairs[i].d for i in rows]) for name, rows in _cells(pairs).items()},
    }
    if o.benchmark:
        found["benchmark"] = {"name": o.benchmark} | _benchmark(scored, o.benchmark)
    if o.scaling:
        found["scaling"] = _scaling(pairs, o)
    if against is not None:
        found["against"] = compared(scored, against, o)
    return found


def _characters(pair: Pair) -> tuple[int, int]:
    """Lengths of a file in which some rows have tokens and others have none."""
    _, a, b = json.loads(pair.name)
    return len(a), len(b)


def _cells(pairs: list[Pair]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for i, pair in enumerate(pairs):
        if pair.cell is not None:
            found[pair.cell].append(i)
    return dict(found)


def _benchmark(scored: Scored, name: str) -> dict[str, Any]:
    if name == "rewardbench2":
        return rewardbench2(scored.rows)
    subsets: dict[str, list[float]] = defaultdict(list)
    for row in scored.rows:
        if isinstance(row["reward_chosen"], list) or isinstance(row["reward_rejected"], list):
            raise QwenchError(
                "RewardBench has one chosen and one rejected answer a row", "use --benchmark rewardbench2"
            )
        subsets[str(row.get("subset"))].append(float(row["reward_chosen"] > row["reward_rejected"]))
    return rewardbench({subset: sum(v) / len(v) for subset, v in subsets.items()})


def _scaling(pairs: list[Pair], o: EvalSettings) -> dict[str, Any]:
    """Mean loss of every model of every size, and the curve through them."""
    groups: dict[tuple[float, str], list[float]] = defaultdict(list)
    for pair in pairs:
        assert pair.size is not None
        groups[pair.size, str(pair.model)].append(pair.d)
    points = [
        {"size": size, "model": model, "bt_loss": float(bt_losses(d).mean()), "accuracy": float(wins(d).mean())}
        for (size, model), d in sorted(groups.items())
    ]
    curve = fit_curve([p["size"] for p in points], [p["bt_loss"] for p in points], o.bootstrap, o.seed)
    told = {name: getattr(curve, name) for name in ("a", "b", "c", "error", "constant", "constant_error", "noisy")}
    return {"field": o.scaling, "points": points, **told, "b_interval": interval(curve.b_interval)}


def compared(scored: Scored, other: Scored, o: EvalSettings) -> dict[str, Any]:
    """Paired differences of accuracy, this less the other: bootstrap over prompts, McNemar's p, Holm's over cells.

    Raises:
        QwenchError: the files have no pair in common.
    """
    there: dict[str, list[Pair]] = defaultdict(list)
    for pair in other.pairs:
        there[pair.name].append(pair)
    both = [(p, there[p.name].pop(0)) for p in scored.pairs if there.get(p.name)]
    if not both:
        raise QwenchError("the two files have no pair of answers in common", "score the same rows with both models")
    cells: dict[str | None, list[tuple[Pair, Pair]]] = {None: both}
    for pair in both:
        if pair[0].cell is not None:
            cells.setdefault(pair[0].cell, []).append(pair)
    rows = {}
    for name, some in cells.items():
        ours, theirs = (wins([p[side].d for p in some]) for side in (0, 1))
        only = [int((a & ~b).sum()) for a, b in ((ours == 1, theirs == 1), (theirs == 1, ours == 1))]
        gain = bootstrap_mean(ours - theirs, o.bootstrap, o.seed, clusters=[p.prompt for p, _ in some])
        rows[name] = {
            "n": len(some),
            "difference": float((ours - theirs).mean()),
            "interval": interval(gain),
            "only_this": only[0],
            "only_other": only[1],
            "p": mcnemar(*only),
        }
    total = rows.pop(None)
    if len(rows) > 1:
        for row, p in zip(rows.values(), holm([r["p"] for r in rows.values()]), strict=True):
            row["p_holm"] = p
    missing = len(scored.pairs) - len(both)
    return {"model": next(iter(other.models), None), "missing": missing, **total, "by": rows}
