"""Rows of answers become the rows with a reward for each: by a model here, or by a server."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from ..base.errors import QwenchError
from ..base.events import Chose, Events, Warned
from ..base.runtime import Runtime
from ..models.device import pick_device, pick_dtype
from ..models.load_reward import template_hash
from ..scoring.process_reward import AGGREGATES, aggregate
from ..scoring.reward import RewardModel, Value, opened_texts
from ..scoring.reward_rows import Answers, answers_of
from ..scoring.reward_texts import Ready, TextSettings
from .job import JobOptions
from .remote_rewards import RewardServer
from .rows import Key
from .work import Batched, Call, Work

#: tokens that are worked on together, so that a kill costs no more; several batches, so that lengths can be sorted
WINDOW = 8
#: texts whose rewards are computed in float32 again for --explain
CHECKED = 8
ARCHITECTURE = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")


@dataclass(frozen=True, slots=True)
class RewardOptions:
    """How answers are scored; names equal the flags.

    Attributes:
        model: of a server the served name, "" for the only one.
        head: auto, mlp, linear or process.
        aggregate: of a process model's steps.
        api: of a server: auto, pooling or classify.
        explain: rows have the text that is read, and numbers are compared with float32.
        texts: how a conversation is read. job: which rows, and where they go.
    """

    model: str = ""
    head: str = "auto"
    aggregate: str = "last"
    batch_tokens: int = 0
    api: str = "auto"
    explain: bool = False
    texts: TextSettings = field(default_factory=TextSettings)
    runtime: Runtime = field(default_factory=Runtime)
    job: JobOptions = field(default_factory=JobOptions)


class Rewards(Work):
    """See Work: `reward`, or `reward_chosen` and `reward_rejected`; `step_rewards` of a process model; tokens,
    answer_tokens, truncated, pooled_token and model.

    Raises:
        QwenchError: an unknown word.
    """

    name = "score"

    def __init__(self, options: RewardOptions) -> None:
        if options.aggregate not in AGGREGATES:
            raise QwenchError(f"unknown --aggregate: `{options.aggregate}`", f"use {', '.join(AGGREGATES)}", code=2)
        options.texts.check()
        self.options = options
        self.model: RewardModel | None = None
        self.server: RewardServer | None = None
        self.sizes: list[int] = []
        self.answers = 0
        self.checked: tuple[float, int] | None = None

    def load(self, rows: int) -> Events:
        """See Work; for a dry run no weights are read."""
        o = self.options
        name = o.model
        if o.runtime.server:
            self.server = RewardServer(o.model, o.runtime, o.api, o.texts)
            yield from self.server.begin()
            name = self.server.tokenizer
        self.opened, self.kind, self.texts = opened_texts(name, o.runtime, o.head, o.texts)
        if o.aggregate != "last" and self.kind.value != "process":
            raise QwenchError(f"--aggregate {o.aggregate} is for the steps of process models", "leave it out", code=2)
        if self.server is not None:
            self.server.check(self.kind.value, self.opened.config)
            return
        if o.job.dry_run:
            yield Chose("head", self.kind.value, self.kind.reason)
            return
        self.model = RewardModel(self.opened, self.kind, o.runtime, o.batch_tokens)
        self.window = WINDOW * self.model.schedule.batch_tokens
        yield from (Chose(name, c.value, c.reason) for name, c in self.model.choices.items())

    def close(self) -> None:
        """See Work: nobody waits for a server any more."""
        if self.server is not None:
            self.server.client.close()

    @property
    def named(self) -> str:
        """The model as rows tell it."""
        return self.server.name if self.server is not None else self.options.model

    @property
    def settings(self) -> dict[str, Any]:
        """See Work."""
        o, local = self.options, self.model
        own = {"revision": self.opened.checkpoint.revision, "dtype": local.loaded.dtype.value} if local else {}
        return {
            "model": self.named,
            **own,
            **(self.server.about if self.server else {}),
            "head": self.kind.value,
            "quantize": o.runtime.quantize,
            "pool": o.texts.pool,
            "system": self.texts.system,
            "max_tokens": self.texts.limit,
            "long": o.texts.long,
            "aggregate": o.aggregate if self.kind.value == "process" else None,
            "step_separator": o.texts.step_separator if self.kind.value == "process" else None,
            "template": template_hash(self.texts.template)[:16],
        }

    def begin(self, row: dict[str, Any], key: Key) -> Batched | Call:
        """See Work."""
        answers = answers_of(row)
        ready = [self.texts.ready(c) for c in answers.conversations]
        if self.model is None:
            self.sizes += [r.tokens for r in ready if not r.skipped]
            self.answers += len(ready)
        if self.server is not None:
            server = self.server
            return lambda: (answers, ready, [math.nan if r.skipped else server.score(r) for r in ready])
        return Batched(sum(len(r.ids) for r in ready), (answers, ready))

    def together(self, contents: list[Any]) -> list[Any]:
        """See Work: rows with their values."""
        assert self.model is not None
        texts = [r for _, ready in contents for r in ready if not r.skipped]
        values = self.model.score(texts)
        if self.options.explain and self.checked is None and texts:
            self.checked = self._against_float32(texts[:CHECKED], values[:CHECKED])
        left = iter(values)
        return [(a, ready, [math.nan if r.skipped else next(left) for r in ready]) for a, ready in contents]

    def finish(self, row: dict[str, Any], results: list[Any]) -> dict[str, Any]:
        """See Work."""
        answers, ready, values = results[-1]
        for text, value in zip(ready, values, strict=True):
            numbers = value if isinstance(value, list) else [value]
            if not text.skipped and not all(map(math.isfinite, numbers)):
                raise QwenchError("the model gave no number (NaN or infinite)", "try --dtype float32")
        return self._fields(answers, ready, values)

    def _fields(self, answers: Answers, ready: list[Ready], values: list[Value]) -> dict[str, Any]:
        rewards = [None if r.skipped else self._number(v) for r, v in zip(ready, values, strict=True)]

        def shaped(found: list[Any]) -> Any:
            return found[0] if answers.form == "one" else found

        told: dict[str, Any]
        if answers.form == "pair":
            sides = rewards[: answers.chosen], rewards[answers.chosen :]
            told = {
                name: side if several else side[0]
                for name, side, several in zip(("reward_chosen", "reward_rejected"), sides, answers.lists, strict=True)
            }
        else:
            told = {"reward": shaped(rewards)}
        if self.kind.value == "process":
            told["step_rewards"] = shaped([None if r.skipped else v for r, v in zip(ready, values, strict=True)])
            told["aggregate"] = self.options.aggregate
        told |= {
            "tokens": shaped([r.tokens for r in ready]),
            "answer_tokens": shaped([r.answer_tokens for r in ready]),
            "truncated": shaped([r.truncated for r in ready]),
            "pooled_token": shaped([self.texts.pooled_token(r) for r in ready]),
            "model": self.named,
        }
        return told | ({"text": shaped([r.text for r in ready])} if self.options.explain else {})

    def _number(self, value: Value) -> float:
        return aggregate(value, self.options.aggregate) if isinstance(value, list) else value

    def count(self, results: list[Any]) -> dict[str, int]:
        """See Work."""
        answers, ready, _ = results[-1]
        same = answers.form == "pair" and len({c.answer for c in answers.conversations}) == 1
        return {
            "answers": len(ready),
            "scored": sum(not r.skipped for r in ready),
            "skipped": sum(r.skipped for r in ready),
            "truncated": sum(r.truncated for r in ready),
            "identical": int(same),
            "tokens": sum(r.tokens for r in ready if not r.skipped),
        }

    def remarks(self) -> Iterator[Warned]:
        """See Work: what is odd about the texts."""
        return (Warned(kind, text) for kind, text in self.texts.notes.items())

    def planned(self) -> dict[str, Any]:
        """See Work: tokens, longest and memory."""
        return {
            "answers": self.answers,
            "skipped": self.answers - len(self.sizes),
            "tokens": sum(self.sizes),
            "longest": max(self.sizes, default=0),
            "memory": None if self.server else self._memory(),
        }

    def _memory(self) -> int:
        """Bytes of the weights in the dtype that is computed in, and of one batch beside them."""
        o, config = self.options, self.opened.config
        where = pick_device(o.runtime.device).value
        stored = str(config.get("dtype") or config.get("torch_dtype") or "float32")
        numbers = pick_dtype(o.runtime.dtype, where, stored).value
        wide = {"float32": 4}.get(numbers, 2)
        weights = sum(self.opened.tensors.values())
        if self.opened.checkpoint.path.is_dir():
            weights = weights * wide // {"float32": 4}.get(stored, 2)
        batch = max(o.batch_tokens or (4096 if where == "cpu" else 32_768), max(self.sizes, default=0))
        hidden, inner, *_ = (int(config.get(name) or 0) for name in ARCHITECTURE)
        return weights + batch * wide * (6 * hidden + 3 * inner)

    def _against_float32(self, texts: list[Ready], values: list[Value]) -> tuple[float, int] | None:
        """(largest difference, of how many texts), None where float32 is computed in."""
        assert self.model is not None
        if self.model.loaded.dtype.value == "float32" and self.options.runtime.quantize == "none":
            return None
        wide = replace(self.options.runtime, dtype="float32", quantize="none")
        there = RewardModel(self.opened, self.kind, wide, self.options.batch_tokens).score(texts)
        pairs = zip(values, there, strict=True)
        return max(abs(self._number(a) - self._number(b)) for a, b in pairs), len(texts)
