"""From logits to a token: penalties, temperature, top-k, top-p, min-p, each in transformers' order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..base.errors import QwenchError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn; the published defaults of Qwen3 are `THINKING` and `PLAIN` (model card, best practices).

    Attributes:
        temperature: 0 takes the most likely token.
        top_k: 0 for all; top_p: 1 for all; min_p: share of the most likely token's probability, 0 for all.
        repetition_penalty: divides logits of tokens of prompt and answer, 1 for none (CTRL, arXiv 1909.05858).
        presence_penalty, frequency_penalty: subtracted from logits of generated tokens, once or per occurrence.

    Raises:
        QwenchError: a value out of its range.
    """

    temperature: float = 0.7
    top_p: float = 0.8
    top_k: int = 20
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

    def __post_init__(self) -> None:
        ranges = {
            "temperature": self.temperature >= 0,
            "top_p": 0 < self.top_p <= 1,
            "top_k": self.top_k >= 0,
            "min_p": 0 <= self.min_p < 1,
            "repetition_penalty": self.repetition_penalty > 0,
        }
        for name, fits in ranges.items():
            if not fits:
                raise QwenchError(f"--{name.replace('_', '-')} is out of range: {getattr(self, name)}", code=2)


THINKING = Sampling(0.6, 0.95, 20)
PLAIN = Sampling(0.7, 0.8, 20)


class Sampler:
    """Draws the tokens of one sequence, with a random state of its own.

    Args:
        exempt: ids no penalty touches (ends and thinking tags).
    """

    def __init__(self, sampling: Sampling, seed: int, prompt: Iterable[int] = (), exempt: Iterable[int] = ()) -> None:
        import torch

        self.sampling = sampling
        self._random = torch.Generator().manual_seed(seed)
        self._prompt = set(prompt) if sampling.repetition_penalty != 1 else set()
        self._exempt = set(exempt)
        self._seen: Counter[int] = Counter()

    def saw(self, token: int) -> None:
        """A token became part of the answer."""
        if token not in self._exempt:
            self._seen[token] += 1

    def draw(self, logits: Tensor) -> int:
        """One token from logits (vocab,) float32, which are left as they are."""
        import torch

        s = self.sampling
        logits = self._penalised(logits)
        if s.temperature == 0:
            return int(logits.argmax())
        if s.top_k and s.top_k < len(logits):
            values, ids = logits.topk(s.top_k)
        else:
            values, ids = logits.sort(descending=True)
        # What is left is small: on a GPU each further step would be a launch of its own.
        values, ids = values.cpu(), ids.cpu()
        shares = (values / s.temperature).softmax(-1)
        if s.top_p < 1:
            # A token stays while those before it have less than top_p: the first always does.
            shares = shares * (shares.cumsum(-1) - shares < s.top_p)
        if s.min_p:
            shares = shares * (shares >= s.min_p * shares[0])
        return int(ids[torch.multinomial(shares, 1, generator=self._random)])

    def _penalised(self, logits: Tensor) -> Tensor:
        import torch

        s = self.sampling
        if not self._seen and not self._prompt:
            return logits
        if s.repetition_penalty == 1 and not s.presence_penalty and not s.frequency_penalty:
            return logits
        logits = logits.clone()
        if s.repetition_penalty != 1:
            ids = torch.tensor(sorted((self._prompt | set(self._seen)) - self._exempt), device=logits.device)
            found = logits[ids]
            logits[ids] = torch.where(found < 0, found * s.repetition_penalty, found / s.repetition_penalty)
        if self._seen and (s.presence_penalty or s.frequency_penalty):
            ids = torch.tensor(list(self._seen), device=logits.device)
            counts = torch.tensor(list(self._seen.values()), dtype=torch.float32, device=logits.device)
            logits[ids] -= s.presence_penalty + s.frequency_penalty * counts
        return logits
