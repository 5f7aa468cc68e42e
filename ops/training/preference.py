"""Losses on pairs of completions: DPO (arXiv 2305.18290), and MARGE's on advantages (arXiv 2505.12500)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .loss import token_logprobs

if TYPE_CHECKING:
    from torch import Tensor, nn

LOSSES = ("dpo", "pairs")


@dataclass(frozen=True, slots=True)
class Pair:
    """Two completions of one prompt, as ids, the end of the turn among them where there is one.

    Attributes:
        advantages: of each; of DPO 1 and -1, the chosen one first.
        reference: log-probability of each under the reference, its tokens' sum.
    """

    prompt: list[int]
    completions: tuple[list[int], list[int]]
    advantages: tuple[float, float] = (1.0, -1.0)
    reference: tuple[float, float] = (0.0, 0.0)

    @property
    def tokens(self) -> int:
        """Of both texts, the prompt's twice."""
        return 2 * len(self.prompt) + sum(map(len, self.completions))


def dpo_loss(policy: Tensor, reference: Tensor, beta: float) -> Tensor:
    """Mean of -log sigmoid(beta (log-ratio of the chosen less that of the rejected)).

    Args:
        policy, reference: (n, 2) log-probabilities of whole completions, the chosen first.
    """
    from torch.nn.functional import logsigmoid

    ratios = policy - reference
    return -logsigmoid(beta * (ratios[:, 0] - ratios[:, 1])).mean()


def pairs_loss(policy: Tensor, reference: Tensor, advantages: Tensor, beta: float) -> Tensor:
    """Mean of 1/2 sum over both of -a log pi + beta (log ref - log pi).

    Of fixed samples the second part is beta added to every advantage, and a constant: it does not pull the policy back.

    Args:
        policy, reference: (n, 2) log-probabilities of completions, means over their tokens. advantages: (n, 2).
    """
    return (-advantages * policy + beta * (reference - policy)).sum(1).mean() / 2


def preference_model(model: nn.Module, loss: str, beta: float) -> nn.Module:
    """What the Trainer trains: padded texts, all first completions before all second ones, -> their loss."""
    import torch
    from torch import nn

    class PreferenceModel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.config = model, model.config

        def logprobs(self, input_ids: Tensor, attention_mask: Tensor, said: Tensor) -> tuple[Tensor, Tensor]:
            """(2n, T) ids, their mask, and which are of completions -> (n, 2) sums and numbers of tokens, float32."""
            inner = self.model.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
            where = said[:, 1:]
            head = self.model.get_output_embeddings().weight
            values = token_logprobs(inner.last_hidden_state[:, :-1][where], head, input_ids[:, 1:][where])
            sums = torch.zeros(len(said), device=values.device).index_add(0, where.nonzero()[:, 0], values)
            return sums.view(2, -1).t(), where.sum(1).float().view(2, -1).t()

        def forward(self, reference: Tensor, advantages: Tensor, **texts: Tensor) -> dict[str, Tensor]:
            sums, counts = self.logprobs(**texts)
            if loss == "dpo":
                return {"loss": dpo_loss(sums, reference, beta)}
            return {"loss": pairs_loss(sums / counts, reference / counts, advantages, beta)}

    return PreferenceModel()


def collated(pairs: Sequence[Pair]) -> dict[str, Tensor]:
    """Both texts of every pair, padded on the right."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    rows = [torch.tensor(p.prompt + p.completions[side]) for side in (0, 1) for p in pairs]
    starts = torch.tensor([len(p.prompt) for p in pairs] * 2)[:, None]
    lengths = torch.tensor([len(r) for r in rows])[:, None]
    ids = pad_sequence(rows, batch_first=True)
    at = torch.arange(ids.shape[1])[None]
    return {
        "input_ids": ids,
        "attention_mask": (at < lengths).long(),
        "said": (at >= starts) & (at < lengths),
        "reference": torch.tensor([p.reference for p in pairs]),
        "advantages": torch.tensor([p.advantages for p in pairs]),
    }


def measured(module: Any, pairs: Sequence[Pair], batch: int) -> tuple[Tensor, Tensor]:
    """(log-probabilities of all completions, their numbers of tokens): (n, 2) float32 on the CPU, no gradients."""
    import torch

    found, device = [], next(module.parameters()).device
    module.eval()
    with torch.no_grad():
        for at in range(0, len(pairs), batch):
            texts = collated(pairs[at : at + batch])
            wanted = {n: texts[n].to(device) for n in ("input_ids", "attention_mask", "said")}
            found.append(tuple(t.cpu() for t in module.logprobs(**wanted)))
    return tuple(torch.cat(part) for part in zip(*found, strict=True))  # type: ignore[return-value]


def told(policy: Tensor, counts: Tensor, pairs: Sequence[Pair], loss: str, beta: float) -> dict[str, float]:
    """What the log-probabilities of all pairs come to: the loss, the share of pairs that are ordered, the drift.

    Ordered are pairs whose better completion has gained more than the other, equal ones half.
    """
    import torch

    reference = torch.tensor([p.reference for p in pairs])
    advantages = torch.tensor([p.advantages for p in pairs])
    ratios = policy - reference
    gap = (ratios if loss == "dpo" else ratios / counts).diff(dim=1)[:, 0] * advantages.diff(dim=1)[:, 0].sign()
    unequal = advantages[:, 0] != advantages[:, 1]
    share = ((gap > 0) + 0.5 * (gap == 0)).float()[unequal]
    if loss == "dpo":
        value = dpo_loss(policy, reference, beta)
    else:
        value = pairs_loss(policy / counts, reference / counts, advantages, beta)
    return {
        "loss": float(value),
        "ordered": float(share.mean()) if len(share) else float("nan"),
        "drift": float((-ratios / counts).mean()),
    }
