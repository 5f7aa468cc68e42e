"""ParScale's own two steps (arXiv 2505.10475): streams joined after the last norm, and attention over shared prefixes.

To attention, streams are the slow dimension: row p * B + b of a batch is sequence b in stream p. To the aggregator, the
streams of a token lie side by side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def stream_major(weight: Tensor, streams: int) -> Tensor:
    """The published `aggregate_layer.0.weight` (H_out, H * P), feature h * P + p, with feature p * H + h instead."""
    return weight.unflatten(1, (-1, streams)).transpose(1, 2).flatten(1).contiguous()


def published(weight: Tensor, streams: int) -> Tensor:
    """Back from feature p * H + h to h * P + p."""
    return weight.unflatten(1, (streams, -1)).transpose(1, 2).flatten(1).contiguous()


def aggregate_reference(h: Tensor, w0: Tensor, b0: Tensor, w2: Tensor, b2: Tensor, smooth: float) -> Tensor:
    """`aggregate` in float64, from the published layout: X (T, H * P), feature h * P + p."""
    import torch

    h, w0, b0, w2, b2 = (t.double() for t in (h, w0, b0, w2, b2))
    x, streams = h.transpose(1, 2).flatten(1), h.shape[1]
    z = torch.nn.functional.silu(x @ published(w0, streams).t() + b0) @ w2.t() + b2
    weights = z.softmax(-1) * (1 - smooth) + smooth / streams
    return torch.einsum("tp,tph->th", weights, h)


def aggregate(h: Tensor, w0: Tensor, b0: Tensor, w2: Tensor, b2: Tensor, smooth: float) -> Tensor:
    """The weighted sum of the streams (section 3.2).

    Args:
        h: (T, P, H), after the final norm.
        w0: (H_out, P * H), see `stream_major`; no permuted copy of h is made then.
        b0: (H_out,). w2: (P, H_out). b2: (P,).
        smooth: share of every weight that is uniform.

    Returns:
        (T, H), dtype of h.
    """
    import torch

    return join(torch.nn.functional.linear(h.flatten(1), w0, b0), h, w2, b2, smooth)


def join(hidden: Tensor, h: Tensor, w2: Tensor, b2: Tensor, smooth: float) -> Tensor:
    """What follows the first product of `aggregate`, hidden (T, H_out): softmax over streams, smoothing, sum."""
    import torch

    z = torch.nn.functional.linear(torch.nn.functional.silu(hidden), w2, b2)
    weights = z.float().softmax(-1) * (1 - smooth) + smooth / h.shape[1]
    return (weights.unsqueeze(1) @ h.float()).squeeze(1).to(h.dtype)


def prefix_attention_reference(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: list[int],
    prefix_keys: Tensor | None = None,
    prefix_values: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """`prefix_attention` in float64, one row and head at a time."""
    import torch

    q, keys, values = q.double(), keys.double(), values.double()
    rows, heads, width = q.shape
    group = heads // keys.shape[1]
    out = torch.empty((rows, heads, values.shape[-1]), dtype=torch.float64, device=q.device)
    for row in range(rows):
        for head in range(heads):
            k, v = (t[row, head // group, : lengths[row]] for t in (keys, values))
            if prefix_keys is not None:
                stream = row // (rows // len(prefix_keys))
                k = torch.cat((prefix_keys[stream, head // group].double(), k))
                v = torch.cat((prefix_values[stream, head // group].double(), v))
            out[row, head] = (k @ q[row, head] * (scale or width**-0.5)).softmax(0) @ v
    return out.flatten(1)


def prefix_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: list[int],
    prefix_keys: Tensor | None = None,
    prefix_values: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """One query per row over its own keys and the prefix of its stream, which is read in place for the whole batch.

    The two softmaxes are joined by their log-sum-exp (arXiv 2402.05099, section 3).

    Args:
        q: (P * B, heads, d), heads a multiple of kv_heads.
        keys, values: (P * B, kv_heads, n, d), of which row r has the first `lengths[r]`.
        prefix_keys, prefix_values: (P, kv_heads, T, d) shared by the B rows of a stream, or None.
        scale: of the scores, d ** -0.5 by default.

    Returns:
        (P * B, heads * d), dtype of q.
    """
    import torch

    rows, heads, width = q.shape
    kv_heads, scale = keys.shape[1], scale or width**-0.5
    own = q.unflatten(1, (kv_heads, heads // kv_heads))
    longest = max(lengths)
    scores = torch.matmul(own, keys[:, :, :longest].transpose(2, 3)).float() * scale
    if min(lengths) < longest:
        seen = torch.arange(longest, device=q.device) < torch.tensor(lengths, device=q.device)[:, None]
        scores = scores.masked_fill(~seen[:, None, None], float("-inf"))
    if prefix_keys is None:
        return torch.matmul(scores.softmax(-1).to(q.dtype), values[:, :, :longest]).flatten(1)
    streams = len(prefix_keys)
    # All rows of a stream are one long block of queries to its prefix.
    theirs = own.unflatten(0, (streams, rows // streams)).transpose(1, 2).flatten(2, 3)
    their_scores = torch.matmul(theirs, prefix_keys.transpose(2, 3)).float() * scale
    their_scores = their_scores.unflatten(2, (rows // streams, -1)).transpose(1, 2).flatten(0, 1)
    top = torch.maximum(scores.amax(-1, keepdim=True), their_scores.amax(-1, keepdim=True))
    mine, other = (scores - top).exp(), (their_scores - top).exp()
    total = mine.sum(-1, keepdim=True) + other.sum(-1, keepdim=True)
    other = other.to(q.dtype).unflatten(0, (streams, rows // streams)).transpose(1, 2).flatten(2, 3)
    shared = torch.matmul(other, prefix_values).unflatten(2, (rows // streams, -1)).transpose(1, 2).flatten(0, 1)
    out = torch.matmul(mine.to(q.dtype), values[:, :, :longest]) + shared
    return (out.float() / total).to(q.dtype).flatten(1)
