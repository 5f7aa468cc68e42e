"""A decode step's products in Triton: a few rows times a weight, with what comes before and after them.

With so few rows a product is the reading of its weight. The norm before it, SwiGLU or the residual sum after it are
done on the way, so that they cost no kernels of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from .triton_attention import WIDEN, processors, rows_of

if TYPE_CHECKING:
    from torch import Tensor

#: rows of one call: those of one tile of the matrix units
MOST_ROWS = 16


@triton.jit
def _thin_kernel(
    x, norm, weight, bias, y, rows, n, k, ldx, eps, NORM: tl.constexpr, GATED: tl.constexpr, ADD: tl.constexpr,
    BIAS: tl.constexpr, ROWS: tl.constexpr, OUTS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    at, r, c = tl.program_id(0) * OUTS + tl.arange(0, OUTS), tl.arange(0, ROWS), tl.arange(0, DEPTH)
    live, there, kind = r < rows, at < n, y.dtype.element_ty
    scale = tl.full((ROWS,), 1.0, tl.float32)
    if NORM:
        squares = tl.zeros((ROWS,), tl.float32)
        for first in range(0, k, DEPTH):
            both = live[:, None] & (first + c[None, :] < k)
            part = tl.load(x + r[:, None] * ldx + first + c[None, :], mask=both, other=0.0).to(tl.float32)
            squares += tl.sum(part * part, 1)
        scale = 1.0 / tl.sqrt(squares / k + eps)
    mine = weight + at[:, None].to(tl.int64) * k + c[None, :]
    upper = mine + n.to(tl.int64) * k
    total, second = tl.zeros((OUTS, ROWS), tl.float32), tl.zeros((OUTS, ROWS), tl.float32)
    for first in range(0, k, DEPTH):
        inside = first + c < k
        part = tl.load(x + r[:, None] * ldx + first + c[None, :], mask=live[:, None] & inside[None, :], other=0.0)
        if NORM:
            gain = tl.load(norm + first + c, mask=inside, other=0.0).to(tl.float32)
            part = ((part.to(tl.float32) * scale[:, None]).to(kind).to(tl.float32) * gain[None, :]).to(kind)
        held = there[:, None] & inside[None, :]
        w = tl.load(mine + first, mask=held, other=0.0)
        if WIDEN:
            part, w = part.to(tl.float32), w.to(tl.float32)
        total = tl.dot(w, tl.trans(part), total, input_precision="ieee")
        if GATED:
            u = tl.load(upper + first, mask=held, other=0.0)
            if WIDEN:
                u = u.to(tl.float32)
            second = tl.dot(u, tl.trans(part), second, input_precision="ieee")
    if BIAS:
        total += tl.load(bias + at, mask=there, other=0.0).to(tl.float32)[:, None]
    # Rounded where the kernels one by one would round.
    out = total.to(kind)
    if GATED:
        gate = out.to(tl.float32)
        out = (gate * tl.sigmoid(gate) * second.to(kind).to(tl.float32)).to(kind)
    where, kept = y + r[None, :] * n + at[:, None], there[:, None] & live[None, :]
    if ADD:
        out = (out.to(tl.float32) + tl.load(where, mask=kept, other=0.0).to(tl.float32)).to(kind)
    tl.store(where, out, mask=kept)


def thin_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    norm: Tensor | None = None,
    eps: float = 0.0,
    gated: bool = False,
    residual: Tensor | None = None,
) -> Tensor:
    """x (rows, k) times weight (n, k) contiguous, at most MOST_ROWS rows, sums in float32.

    Args:
        bias: (n,).
        norm: (k,), RMSNorm of x first, with `eps`.
        gated: the upper half of the weight's rows are gates: silu(gate) * up, (rows, n / 2).
        residual: (rows, n) contiguous, what the product is added to in place.

    Returns:
        (rows, n), dtype of x; `residual` where it is given.
    """
    x, (n, k) = rows_of(x), weight.shape
    n = n // 2 if gated else n
    y = torch.empty((len(x), n), dtype=x.dtype, device=x.device) if residual is None else residual
    outs = 16 if n <= 32 * processors(x.device) else 32
    _thin_kernel[(triton.cdiv(n, outs),)](
        x, x if norm is None else norm, weight, x if bias is None else bias, y, len(x), n, k, x.stride(0), eps,
        norm is not None, gated, residual is not None, bias is not None, MOST_ROWS, outs, 256, num_stages=4,
    )  # fmt: skip
    return y
