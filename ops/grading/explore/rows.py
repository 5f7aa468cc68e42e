"""`explore rows`: states of a run become rows to train on, in forms that trl and others read."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ...base.errors import QwenchError
from ...base.events import Events, Finished, Produced
from ...jobs import output
from ...jobs.rows import Table
from .questions import explored, together
from .values import advantages

FORMS = ("dpo", "pairs", "group", "stepwise", "sft")


@dataclass(frozen=True, slots=True)
class RowsOptions:
    """Everything `qwench explore rows` can be told; names equal the flags.

    Attributes:
        run: output of `explore run`, - for standard input.
        keep: states whose value is strictly between these are used.
        pairs_per_state: of --form dpo.
        balance: as many states of right hits as of wrong ones.
        drop_truncated: completions cut at their limit are no rows, and no part of an advantage.
        min_margin: least difference between the advantages of a pair.
    """

    run: str = "-"
    out: str = "-"
    form: str = "dpo"
    keep: str = "0.3,0.7"
    pairs_per_state: int = 1
    balance: bool = False
    drop_truncated: bool = True
    min_margin: float = 0.0
    seed: int = 0
    force: bool = False

    @property
    def ends(self) -> tuple[float, float]:
        """Both ends of `keep`.

        Raises:
            QwenchError: they are not two numbers in their order.
        """
        try:
            low, high = (float(part) for part in self.keep.split(","))
        except ValueError:
            low = high = 0.0
        if not low < high:
            hint = "give two numbers, such as 0.3,0.7 or 0.1,1.1"
            raise QwenchError(f"--keep takes a lower and a higher value: `{self.keep}`", hint, 2)
        return low, high

    def check(self) -> None:
        """Nothing.

        Raises:
            QwenchError: an option that does not fit.
        """
        if self.form not in FORMS:
            raise QwenchError(f"unknown --form: `{self.form}`", f"use {', '.join(FORMS)}", code=2)
        if self.pairs_per_state < 1:
            raise QwenchError("--pairs-per-state must be at least 1", code=2)
        if self.min_margin < 0:
            raise QwenchError("--min-margin must not be negative", code=2)
        _ = self.ends


class _Maker:
    """Rows of states, and what became of the states."""

    def __init__(self, options: RowsOptions) -> None:
        self.options, self.counts = options, Counter[str]()
        self._seen: set[tuple[str, str]] = set()

    def used(self, row: dict[str, Any]) -> bool:
        """Whether a state's value is within `keep`; counts those that are not."""
        low, high = self.options.ends
        self.counts["states"] += 1
        if row["prompt"] is None:
            raise QwenchError(
                "the run has no rendered prompts: its server rendered them (--api chat)",
                "run it with --api completions and --tokenizer",
            )
        kept = row["value"] is not None and low < row["value"] < high
        self.counts["used" if kept else "outside_keep"] += 1
        return kept

    def samples(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        """Completions that are judged, and not cut."""
        known = [s for s in row["samples"] if s["right"] is not None]
        kept = [s for s in known if not self.options.drop_truncated or s["finish"] != "length"]
        self.counts["dropped_truncated"] += len(known) - len(kept)
        return kept

    def rows(self, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Rows of a state."""
        samples = self.samples(row)
        scored = advantages([float(s["right"]) for s in samples])
        if self.options.form == "sft":
            yield from self._sft(row, samples)
        elif scored is None:
            self.counts["alike"] += 1
        else:
            yield from {"dpo": self._dpo, "pairs": self._pairs, "group": self._group}[self.options.form](
                row, samples, scored
            )

    def _cut(self, *samples: dict[str, Any]) -> dict[str, Any]:
        """Which completions were cut at their limit, where such are kept: no end belongs after them."""
        return {} if self.options.drop_truncated else {"truncated": [s["finish"] == "length" for s in samples]}

    def _dpo(self, row: dict[str, Any], samples: list[dict[str, Any]], scored: list[float]) -> Iterator[dict[str, Any]]:
        sides = [[n for n, s in enumerate(samples) if s["right"] is right] for right in (True, False)]
        pairs = [(a, b) for a in sides[0] for b in sides[1] if samples[a]["text"] != samples[b]["text"]]
        draw = random.Random(f"{self.options.seed}/{row['id']}/{row['episode']}/{row['state']}")
        for a, b in draw.sample(pairs, min(self.options.pairs_per_state, len(pairs))):
            if scored[a] - scored[b] >= self.options.min_margin:
                said = {"chosen": samples[a]["text"], "rejected": samples[b]["text"]}
                yield {"prompt": row["prompt"], **said, **self._cut(samples[a], samples[b])}
            else:
                self.counts["below_margin"] += 1

    def _pairs(
        self, row: dict[str, Any], samples: list[dict[str, Any]], scored: list[float]
    ) -> Iterator[dict[str, Any]]:
        for n in range(0, len(samples) - 1, 2):
            if abs(scored[n] - scored[n + 1]) < self.options.min_margin:
                self.counts["below_margin"] += 1
                continue
            said = {"advantage": scored[n : n + 2], "response": [s["text"] for s in samples[n : n + 2]]}
            said |= self._cut(*samples[n : n + 2])
            yield {"query": row["question"], "prompt": row["prefix"], **said, "rendered": row["prompt"]}
        self.counts["unpaired"] += len(samples) % 2

    def _group(
        self, row: dict[str, Any], samples: list[dict[str, Any]], scored: list[float]
    ) -> Iterator[dict[str, Any]]:
        texts = [s["text"] for s in samples]
        yield {"prompt": row["prompt"], "completions": texts, "advantages": scored, **self._cut(*samples)}

    def _sft(self, row: dict[str, Any], samples: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for text in (s["text"] for s in samples if s["right"]):
            if (row["prompt"], text) in self._seen:
                self.counts["duplicates"] += 1
                continue
            self._seen.add((row["prompt"], text))
            yield {"prompt": row["prompt"], "completion": text}

    def stepwise(self, states: list[dict[str, Any]]) -> dict[str, Any] | None:
        """The hit of a question in steps, each with the value of the state that it leads to."""
        root, hit = states[0], states[0]["hit"]
        self.counts["states"] += len(states)
        if hit is None or len(states) < 2 or any(s["value"] is None for s in states[1:]):
            self.counts["no_hit"] += 1
            return None
        if root["prompt"] is None:
            self.used(root)
        told = root["samples"][hit["index"]] if hit["index"] is not None else hit
        whole, marks = root["prefix"] + told["text"], [s["prefix"] for s in states]
        steps = [after[len(before) :] for before, after in zip(marks, [*marks[1:], whole], strict=True)]
        values = [s["value"] for s in states[1:]] + [float(bool(hit["right"]))]
        self.counts["used"] += len(states)
        return {"prompt": root["prompt"], "completions": steps, "labels": [v > 0 for v in values], "values": values}


def _balanced(states: list[dict[str, Any]], seed: int, counts: Counter[str]) -> list[dict[str, Any]]:
    """As many states of each kind of hit, in their order; those of no hit are left out."""
    kinds = [
        [n for n, s in enumerate(states) if s["hit"] is not None and s["hit"]["right"] is r] for r in (True, False)
    ]
    few, draw = min(map(len, kinds)), random.Random(seed)
    chosen = sorted(n for kind in kinds for n in draw.sample(kind, few))
    counts["unbalanced"] += len(states) - len(chosen)
    return [states[n] for n in chosen]


def _made(options: RowsOptions, maker: _Maker, stdin: BinaryIO | None) -> Iterator[dict[str, Any]]:
    states = explored(Table(options.run, stdin), options.run)
    if options.form == "stepwise":
        yield from filter(None, map(maker.stepwise, together(states)))
        return
    kept: Any = (row for row in states if maker.used(row))
    if options.balance:
        kept = _balanced(list(kept), options.seed, maker.counts)
    for row in kept:
        yield from maker.rows(row)


def rows(options: RowsOptions, stdin: BinaryIO | None = None) -> Events:
    """Yields Produced rows where they go to standard output, and Finished: rows, out, form, and counts of states.

    Raises:
        QwenchError: an option that does not fit; no run; an output that cannot be.
    """
    options.check()
    maker, count = _Maker(options), 0
    if options.out == "-":
        for row in _made(options, maker, stdin):
            count += 1
            yield Produced(row)
    else:
        path = output.check(options.out)
        if path.exists() and not options.force:
            raise QwenchError(f"the output is there: `{path}`", "choose another --out, or write over it with --force")
        if Path(options.run).expanduser().absolute() == path.absolute():
            raise QwenchError(f"--out is the run itself: `{path}`", "choose another --out")
        made = list(_made(options, maker, stdin))
        count = len(made)
        output.write(path, lambda: iter(made))
    yield Finished({"schema": 1, "form": options.form, "rows": count, "out": options.out, **dict(maker.counts)})
