"""A model that gives answers a number: texts in batches, beginnings that several share computed once."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..base.errors import QwenchError
from ..base.runtime import Runtime
from ..models.device import Choice, pick_threads, steady_heap
from ..models.load_reward import Opened, load_network, open_reward
from ..models.nets.decoder import DecoderEncoder
from ..models.reward_heads import take_linear, take_mlp
from .process_reward import step_rewards
from .reward_kind import OUTPUTS, decide_kind
from .reward_texts import Ready, RewardTexts, TextSettings
from .schedule import Schedule
from .scorers import PairScorer

if TYPE_CHECKING:
    import numpy as np

#: a shared beginning shorter than this is not worth a group of its own
SHARE = 16
#: a number, or the probability of every step
Value = float | list[float]


def opened_texts(name: str, runtime: Runtime, asked: str, settings: TextSettings) -> tuple[Opened, Choice, RewardTexts]:
    """(what the name stands for, the kind of its head, how its texts are read), without its weights.

    Raises:
        QwenchError: no reward model; see `open_reward`, `decide_kind`, `RewardTexts`.
    """
    opened = open_reward(name, runtime)
    note = opened.note
    if note is None:
        kind = decide_kind(opened.config, opened.tensors, name, asked)
    else:
        kind = Choice(note.kind, f"a head over `{note.base}`")
        if asked not in ("auto", note.kind):
            raise QwenchError(f"--head {asked}, and the folder holds a head of kind {note.kind}: `{name}`", code=2)
        if settings.pool != note.pool:
            raise QwenchError(f"--pool {settings.pool}, and the head was trained with --pool {note.pool}", code=2)
    texts = RewardTexts(opened.tokenizer, opened.template, kind.value, opened.limit, opened.pad, settings)
    if note is not None:
        # A head is read as it was trained, and not as the class of its base is.
        texts.adopt(note.system)
    return opened, kind, texts


class RewardModel:
    """Loads the weights of a model that `opened_texts` has opened.

    Args:
        kind: one of KINDS, or `hidden` for a base whose hidden states are wanted.

    Attributes:
        choices: name -> Choice for reports.

    Raises:
        QwenchError: a tensor of the head or of the network is missing; an architecture that cannot be run.
    """

    def __init__(self, opened: Opened, kind: Choice, runtime: Runtime, batch_tokens: int = 0) -> None:
        import torch

        steady_heap()
        threads = pick_threads(runtime.threads)
        torch.set_num_threads(threads.value)
        self.kind: str = kind.value
        self._pairs: PairScorer | None = None
        if self.kind == "pair":
            self._pairs = PairScorer(opened.checkpoint, runtime)
            loaded, parameters = self._pairs.loaded, self._pairs.parameters
        else:
            own = None
            if opened.head is None and self.kind != "hidden":
                own = take_linear if self.kind == "linear" else take_mlp(OUTPUTS[self.kind])
            loaded = load_network(opened, runtime, own)
            parameters = getattr(loaded.encoder, "matmul_parameters", None)
        if self.kind in ("mlp", "process") and loaded.head is None:
            raise QwenchError(f"the network runs on transformers, which has no such head: `{opened.checkpoint.name}`")
        self.loaded, self.encoder, self.device = loaded, loaded.encoder, loaded.device.value
        self.words = len(self.encoder.words) if isinstance(self.encoder, DecoderEncoder) else None
        self.schedule = Schedule(self.device, threads.value, parameters, batch_tokens)
        self.choices: dict[str, Choice] = {
            "head": kind,
            "device": loaded.device,
            "dtype": loaded.dtype,
            "threads": threads,
            "engine": loaded.engine,
            "kernels": loaded.kernels,
            "batch_tokens": self.schedule.choice,
        }

    def score(self, texts: Sequence[Ready]) -> list[Value]:
        """Values in the order given; NaN and infinities are given as they come.

        Raises:
            QwenchError: a token that the model does not have; a text that does not fit into memory.
        """
        self._known(texts)
        if self.kind != "process":
            return self._vectors(texts)[:, 0].tolist()
        found: list[Value] = [math.nan] * len(texts)
        lengths, most = [len(t.ids) for t in texts], max((len(t.marks) for t in texts), default=0)
        for batch, rows in self.schedule.run(lengths, lambda b: self._steps([texts[i] for i in b], most)):
            for i, row in zip(batch, rows, strict=True):
                found[i] = row[: len(texts[i].marks)].tolist()
        return found

    def features(self, texts: Sequence[Ready]) -> np.ndarray:
        """Hidden states at the token that is read, (n, hidden_size) float32, of kind `hidden`.

        Raises:
            QwenchError: see `score`; a base that runs on transformers.
        """
        if not isinstance(self.encoder, DecoderEncoder):
            raise QwenchError(
                "the base runs on transformers, and a head needs a decoder of our own", "use --method full"
            )
        self._known(texts)
        return self._vectors(texts)

    def _known(self, texts: Sequence[Ready]) -> None:
        if self.words is None:
            return
        most = max((max(t.ids) for t in texts if t.ids), default=0)
        if most >= self.words:
            raise QwenchError(
                f"the tokenizer gives token {most}, and the model has {self.words} tokens", "it is of another model"
            )

    def _vectors(self, texts: Sequence[Ready]) -> np.ndarray:
        """(n, K) float32: rewards of one value, or hidden states."""
        import numpy as np

        groups = self._groups(texts)
        lengths = [len(head) + sum(len(texts[i].ids) - len(head) for i in members) for head, members in groups]
        most = max((len(members) for _, members in groups), default=0)
        width = self.encoder.hidden_size if self.kind == "hidden" else 1
        found = np.full((len(texts), width), np.nan, np.float32)
        for batch, rows in self.schedule.run(lengths, lambda b: self._rows(texts, [groups[g] for g in b], most)):
            for g, row in zip(batch, rows, strict=True):
                found[groups[g][1]] = row[: len(groups[g][1])]
        return found

    def _groups(self, texts: Sequence[Ready]) -> list[tuple[list[int], list[int]]]:
        """(the ids they share, numbers of texts), each within the token budget."""
        if self.kind == "pair" or not isinstance(self.encoder, DecoderEncoder):
            return [([], [i]) for i in range(len(texts))]
        by_prompt: dict[str, list[int]] = defaultdict(list)
        for i, text in enumerate(texts):
            by_prompt[text.prompt].append(i)
        groups: list[tuple[list[int], list[int]]] = []
        for members in by_prompt.values():
            members.sort(key=lambda i: len(texts[i].ids))
            shared = _shared([texts[i].ids for i in members]) if len(members) > 1 else 0
            if shared < SHARE:
                groups += [([], [i]) for i in members]
                continue
            head, room = texts[members[0]].ids[:shared], 0
            for i in members:
                own = len(texts[i].ids) - shared
                if not groups or groups[-1][0] is not head or own > room:
                    groups.append((head, []))
                    room = self.schedule.batch_tokens - shared
                groups[-1][1].append(i)
                room -= own
        return groups

    def _rows(self, texts: Sequence[Ready], groups: list[tuple[list[int], list[int]]], most: int) -> np.ndarray:
        """(groups, most, K) values, NaN beyond a group's own number."""
        import numpy as np

        # Those that share nothing are one group of many texts, and come last.
        order = sorted(range(len(groups)), key=lambda g: not groups[g][0])
        alone = [g for g in order if not groups[g][0]]
        tails = [[texts[i].ids[len(groups[g][0]) :] for i in groups[g][1]] for g in order if groups[g][0]]
        heads = [groups[g][0] for g in order if groups[g][0]]
        if alone:
            alone.sort(key=lambda g: len(texts[groups[g][1][0]].ids))
            order = [*order[: len(heads)], *alone]
            heads.append([])
            tails.append([texts[groups[g][1][0]].ids for g in alone])
        values = self._values(texts, groups, order, heads, tails)
        rows, at = np.full((len(groups), most, values.shape[1]), np.nan, np.float32), 0
        for g in order:
            count = len(groups[g][1])
            rows[g, :count] = values[at : at + count]
            at += count
        return rows

    def _values(self, texts: Any, groups: Any, order: list[int], heads: Any, tails: Any) -> np.ndarray:
        """Values of all texts of the groups in the given order, (n, K)."""
        import torch

        if self._pairs is not None:
            return self._paired([texts[groups[g][1][0]] for g in order])
        flat = [ids for group in tails for ids in group]
        lengths = [len(ids) for ids in flat]
        if isinstance(self.encoder, DecoderEncoder) and heads != [[]]:
            hidden = self.encoder.shared_hidden(heads, tails)
        else:
            ids = torch.tensor([i for row in flat for i in row], device=self.device)
            if not isinstance(self.encoder, DecoderEncoder):
                return self.encoder.logits(ids, lengths, torch.zeros_like(ids)).cpu().numpy()
            hidden = self.encoder.last_hidden(ids, lengths)
        found = hidden.float() if self.kind == "hidden" else self.loaded.head(hidden)
        return found.cpu().numpy()

    def _paired(self, texts: list[Ready]) -> np.ndarray:
        """Logits of an encoder, one question's answers together."""
        import numpy as np

        assert self._pairs is not None
        by_question, found = defaultdict(list), np.full((len(texts), 1), np.nan, np.float32)
        for i, text in enumerate(texts):
            by_question[text.pair[0] if text.pair else ""].append(i)
        for question, members in by_question.items():
            rows = self._pairs.margins(self._pairs.question(question), [texts[i].ids for i in members])
            found[members] = rows
        return found

    def _steps(self, texts: list[Ready], most: int) -> np.ndarray:
        """(n, most) probabilities at step marks, NaN beyond a text's own number."""
        import numpy as np
        import torch

        ids = torch.tensor([i for t in texts for i in t.ids], device=self.device)
        hidden = self.encoder.hidden(ids, [len(t.ids) for t in texts])
        starts = np.cumsum([0, *(len(t.ids) for t in texts)])
        places = [int(start) + mark for start, t in zip(starts, texts, strict=False) for mark in t.marks]
        found = step_rewards(self.loaded.head(hidden[places])).cpu().numpy()
        rows, at = np.full((len(texts), most), np.nan), 0
        for row, text in zip(rows, texts, strict=True):
            row[: len(text.marks)] = found[at : at + len(text.marks)]
            at += len(text.marks)
        return rows


def _shared(rows: list[list[int]]) -> int:
    """Tokens that all begin with, leaving each at least one of its own."""
    least = min(len(r) for r in rows) - 1
    first = rows[0]
    return next((n for n in range(least) if any(r[n] != first[n] for r in rows)), max(least, 0))
