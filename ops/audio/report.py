"""What scored dialogues say of their judge: agreement, order inside a question, stability, and controls."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from ..base.stats import wilson
from ..jobs.job import FAILED
from .metrics import Score, agreement, ranking, stability
from .reward import gold_of


@dataclass(frozen=True, slots=True)
class _Row:
    score: Score
    gold: int | None
    question: str
    attribute: str | None
    samples: list[Score]
    controls: dict[str, Score]
    heard: frozenset[str]


class Report:
    """Rows as they are written.

    Args:
        controls: their names.
    """

    def __init__(self, controls: tuple[str, ...] = ()) -> None:
        self.controls = controls
        self._rows: list[_Row] = []
        self._exact = True

    def add(self, row: dict[str, Any]) -> None:
        """A row of the output; failed ones are not counted."""
        if FAILED in row and "score" not in row:
            return
        self._exact &= row.get("head") != "scalar"
        question = row.get("question_id") or row.get("question")
        controls = {name: (row.get("controls") or {}).get(name) or {} for name in self.controls}
        self._rows.append(
            _Row(
                row["score"],
                gold_of(row.get("gold")),
                # A row without a question is compared with none.
                str(question) if question is not None else f"\0{len(self._rows)}",
                row["attribute"] if isinstance(row.get("attribute"), str) else None,
                [s["score"] for s in row["samples"]] if isinstance(row.get("samples"), list) else [],
                {name: c.get("score") for name, c in controls.items()},
                frozenset(n for n, c in controls.items() if c.get("reason") != "no answer_neutral"),
            )
        )

    def result(self) -> dict[str, Any]:
        """JSON-able.

        Returns:
            labelled; agreement (None without labels or of a scalar head), ranking, attributes with their plain mean,
            stability, and controls: each with agreement and ranking of its own, and `same`, the share of rows with
            the very score of the dialogue itself.
        """
        labelled = [r for r in self._rows if r.gold is not None]
        drawn = [r.samples for r in self._rows if r.samples]
        attributes = self._attributes(labelled)
        shares = [a["accuracy"] for a in attributes.values()]
        return {
            "labelled": len(labelled),
            **self._measured(labelled, [r.score for r in labelled]),
            "attributes": attributes,
            "attribute_mean": sum(shares) / len(shares) if shares else None,
            "stability": {"rows": len(drawn), **stability(drawn)} if drawn else None,
            "controls": {name: self._control(name) for name in self.controls},
        }

    def _measured(self, rows: list[_Row], scores: list[Score]) -> dict[str, Any]:
        golds = [r.gold for r in rows if r.gold is not None]
        questions = [r.question for r in rows]
        formed = [i for i, g in enumerate(golds) if g >= 3]
        # Of pairs with one label 1, the words decide; of those without, the form.
        content = ranking(scores, [1 if g == 1 else 5 for g in golds], questions)
        form = ranking([scores[i] for i in formed], [golds[i] for i in formed], [questions[i] for i in formed])
        return {
            "agreement": agreement(scores, golds) if golds and self._exact else None,
            "ranking": ranking(scores, golds, questions) | {"content": content, "form": form} if golds else None,
        }

    def _attributes(self, rows: list[_Row]) -> dict[str, Any]:
        groups = defaultdict(list)
        for row in rows:
            if row.attribute is not None and self._exact:
                groups[row.attribute].append(row.score == row.gold)
        return {
            name: {"n": len(right), "accuracy": sum(right) / len(right), "interval": wilson(sum(right), len(right))}
            for name, right in sorted(groups.items())
        }

    def _control(self, name: str) -> dict[str, Any]:
        rows = [r for r in self._rows if name in r.heard]
        labelled = [r for r in rows if r.gold is not None]
        both = [(r.score, r.controls[name]) for r in rows if r.score is not None]
        same = sum(a == b for a, b in both)
        return {
            "rows": len(rows),
            "scored": sum(r.controls[name] is not None for r in rows),
            "same": same / len(both) if both else None,
            **self._measured(labelled, [r.controls[name] for r in labelled]),
        }
