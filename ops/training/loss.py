"""Language head and log-probabilities in one step, a few tokens at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

#: logits held at a time, in elements
ROOM = 1 << 26


def token_losses(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of every token in nats, without gradients: hidden (N, H), head (V, H), labels (N,) -> (N,)."""
    import torch
    from torch.nn import functional as F

    step = max(ROOM // len(head), 1)
    with torch.no_grad():
        parts = [
            F.cross_entropy(F.linear(h, head).float(), y, reduction="none")
            for h, y in zip(hidden.split(step), labels.split(step), strict=True)
        ]
    return torch.cat(parts)


def token_logprobs(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """Log-probability of every token in nats, with gradients: hidden (N, H), head (V, H), labels (N,) -> (N,) float32.

    Logits are computed once more for the gradient, chunk by chunk, so that (N, V) never exist as a whole.
    """
    import torch
    from torch.nn import functional as F
    from torch.utils.checkpoint import checkpoint

    def part(h: Tensor, y: Tensor) -> Tensor:
        return -F.cross_entropy(F.linear(h, head.to(h.dtype)).float(), y, reduction="none")

    step = max(ROOM // len(head), 1)
    pieces = zip(hidden.split(step), labels.split(step), strict=True)
    return torch.cat([checkpoint(part, h, y, use_reentrant=False) for h, y in pieces])


def head_loss(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy in nats, with gradients to hidden and, where it is trained, to head.

    The gradient is computed chunk by chunk along with the loss, so that logits (N, V) never exist as a whole and are
    not computed twice.
    """
    return _function().apply(hidden, head, labels)


def _function() -> Any:
    """The autograd function; torch is imported when it is first needed."""
    global _HeadLoss
    if _HeadLoss is None:
        import torch
        from torch.nn import functional as F

        class HeadLoss(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
                step = max(ROOM // len(head), 1)
                total = torch.zeros((), dtype=torch.float32, device=hidden.device)
                grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
                grad_head = torch.zeros_like(head, dtype=torch.float32) if ctx.needs_input_grad[1] else None
                for at in range(0, len(hidden), step):
                    h, y = hidden[at : at + step], labels[at : at + step]
                    log = F.linear(h, head).float().log_softmax(-1)
                    total += F.nll_loss(log, y, reduction="sum")
                    if grad is None and grad_head is None:
                        continue
                    slope = log.exp_()
                    slope[torch.arange(len(y), device=y.device), y] -= 1
                    slope = slope.div_(len(hidden)).to(head.dtype)
                    if grad is not None:
                        torch.mm(slope, head, out=grad[at : at + step])
                    if grad_head is not None:
                        grad_head += slope.t() @ h
                ctx.save_for_backward(grad, grad_head)
                ctx.head_dtype = head.dtype
                return total / len(hidden)

            @staticmethod
            def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
                grad, grad_head = ctx.saved_tensors
                return (
                    None if grad is None else grad * outer.to(grad.dtype),
                    None if grad_head is None else (grad_head * outer).to(ctx.head_dtype),
                    None,
                )

        _HeadLoss = HeadLoss
    return _HeadLoss


_HeadLoss: Any = None
