"""Judges that hear: audio language models on this machine, by what they write or by a number of their hidden states."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ..base.errors import QwenchError
from ..base.events import Chose
from ..base.runtime import Runtime
from ..checkpoint.reader import Source
from ..models.device import pick_threads
from ..models.hub import Checkpoint, resolve
from .judge import Asking, Draw, Judge
from .omni import AUDIO, Heard, Listener
from .sounds import Sound

#: a linear layer over pooled states, as SDiaReward has it, and what belongs to pooling that is learnt
HEAD, POOLER = "score_head.weight", "pooler."
POOLS = ("mean", "last")
HEADS = ("auto", "text", "scalar")


class Model:
    """A checkpoint found, and not loaded yet.

    Attributes:
        head: text, or scalar where it has HEAD.

    Raises:
        QwenchError: nothing there, no audio language model, or not the head that is asked for.
    """

    def __init__(self, name: str, runtime: Runtime, head: str) -> None:
        self.runtime = runtime
        self.found: Checkpoint = resolve(name, runtime.revision, runtime.offline)
        if not self.found.path.is_dir():
            raise QwenchError(
                f"the model has no audio encoder: `{name}`",
                "use a checkpoint of Qwen2.5-Omni, Qwen3-Omni or Qwen2-Audio",
            )
        self.source = Source(self.found.path)
        there = HEAD in self.source.infos
        if head == "scalar" and not there:
            raise QwenchError(f"the model has no `{HEAD}`: `{name}`", "its head would be random: use --head text")
        self.head = head if head != "auto" else "scalar" if there else "text"
        self.why = "asked for" if head != "auto" else f"there is {'a' if there else 'no'} `{HEAD}`"

    def listener(self) -> Listener:
        """Its weights.

        Raises:
            QwenchError: see Listener.
        """
        import torch

        torch.set_num_threads(pick_threads(self.runtime.threads).value)
        # A head that nobody asks for is read past: text is what is asked for.
        return Listener(self.found.path, self.runtime.device, self.runtime.dtype, (HEAD, POOLER))

    def chosen(self, listener: Listener) -> Iterator[Chose]:
        """What was chosen in loading it."""
        yield Chose("head", self.head, self.why)
        yield Chose("device", listener.device, "where it runs")
        yield Chose("dtype", listener.dtype, "what it computes in")


class TextJudge(Judge):
    """A listener that writes its score."""

    kind = "text"

    def __init__(self, model: Model, asking: Asking) -> None:
        self.listener, self.asking = model.listener(), asking
        self.name, self.revision, self.rate = model.found.name, model.found.revision, self.listener.rate

    @property
    def settings(self) -> dict[str, Any]:
        """See Judge."""
        return {"revision": self.revision, "dtype": self.listener.dtype}

    def ready(self, sound: Sound) -> Heard:
        """See Judge."""
        return self.listener.heard(sound.whole, self.asking.prompt.text)

    def draws(self, ready: Sequence[Heard], seeds: Sequence[Sequence[int]]) -> list[list[Draw]]:
        """See Judge."""
        a = self.asking
        if not a.temperature:
            written = self.listener.write(ready, a.max_tokens)
            return [[a.draw(w.text, w.cut, s) for s in row] for w, row in zip(written, seeds, strict=True)]
        return [
            [a.draw(w.text, w.cut, s) for w, s in zip(self._drawn(one, row), row, strict=True)]
            for one, row in zip(ready, seeds, strict=True)
        ]

    def _drawn(self, one: Heard, seeds: Sequence[int]) -> list[Any]:
        return self.listener.write([one] * len(seeds), self.asking.max_tokens, self.asking.temperature, seeds)


class ScalarJudge(Judge):
    """A listener whose pooled hidden states a linear layer makes a number of, after SDiaReward.

    It reads the dialogue as its two turns, each with its words (where they are told) and its sound, and no prompt.

    Raises:
        QwenchError: pooling that is learnt or unknown, or a head of another shape.
    """

    kind = "scalar"

    def __init__(self, model: Model) -> None:
        names = model.source.infos
        config = model.source.config()
        self.pool = str(config.get("pooler") or "mean")
        if learnt := next((n for n in names if n.startswith(POOLER)), None):
            raise QwenchError(f"pooling that is learnt is not known here: `{learnt}`", "use a model that pools by mean")
        if self.pool not in POOLS:
            raise QwenchError(f"config.json names a pooler that is not known here: `{self.pool}`", "mean, last")
        self.listener = model.listener()
        self.name, self.revision, self.rate = model.found.name, model.found.revision, self.listener.rate
        self.weight = model.source.reader.load(HEAD).float().to(self.listener.device)
        hidden = self.listener.model.config.get_text_config().hidden_size
        if tuple(self.weight.shape) != (1, hidden):
            raise QwenchError(f"`{HEAD}` is {tuple(self.weight.shape)}, not (1, {hidden})", "copy the model again")

    @property
    def settings(self) -> dict[str, Any]:
        """See Judge."""
        return {"revision": self.revision, "dtype": self.listener.dtype, "pool": self.pool}

    def ready(self, sound: Sound) -> Heard:
        """See Judge."""
        turns = []
        for role, (_, words) in zip(("user", "assistant"), sound.heard, strict=True):
            turns.append((role, [*([{"type": "text", "text": words}] if words else []), AUDIO]))
        return self.listener.conversation(turns, [part for part, _ in sound.heard], False)

    def draws(self, ready: Sequence[Heard], seeds: Sequence[Sequence[int]]) -> list[list[Draw]]:
        """See Judge."""
        found = []
        for states, row in zip(self.listener.states(ready), seeds, strict=True):
            pooled = states.mean(0) if self.pool == "mean" else states[-1]
            value = float(self.weight[0] @ pooled)
            known = value == value and abs(value) != float("inf")
            draw = Draw(value) if known else Draw(None, "the model gave no number (NaN or infinite)")
            found.append([draw for _ in row])
        return found
