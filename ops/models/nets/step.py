"""Attention of one pass of an engine: any mix of prompts, goings-on and single tokens over the caches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from .causal import CausalDecoder


@dataclass(frozen=True, slots=True)
class Part:
    """Tokens of one slot in a pass: `count` of them from `start` of the pack, after `past` that are cached."""

    slot: int
    past: int
    start: int
    count: int


class Step:
    """Attention of one pass, prepared once for all layers."""

    def __init__(self, model: CausalDecoder, parts: list[Part]) -> None:
        import torch

        self.parts, self.kv_heads, self.streams, self.kernels = parts, model.kv_heads, model.streams, model.kernels
        self.group = model.heads // model.kv_heads
        self.mask: Tensor | None = None
        # Single tokens of slots 0..n-1: one call for all, and a group of query heads reads its keys once.
        self.singles = [p.slot for p in parts] == list(range(len(parts))) and all(p.count == 1 for p in parts)
        ends = [p.past + 1 for p in parts]
        self.longest = max(ends)
        self.fast = None if self.singles else model.kernels.sequence_attention
        if self.fast:
            p, own = model.streams, range(model.streams)
            self.most = max(part.count for part in parts)
            at = torch.cat([torch.arange(s.past, s.past + s.count).repeat_interleave(p) for s in parts])
            rows = torch.cat([torch.arange(s.slot * p, (s.slot + 1) * p).repeat(s.count) for s in parts])
            self.at, self.rows = torch.stack((at, rows)).to(model.device)
            table = [(s.start * p + i, s.count, s.slot * p + i, s.past) for s in parts for i in own]
            self.table = torch.tensor(table, dtype=torch.int32).to(model.device)
        elif self.singles:
            self.rows = torch.arange(len(parts), device=model.device)
            self.at = torch.tensor([p.past for p in parts], device=model.device)
            if len(set(ends)) > 1:
                self.mask = torch.arange(self.longest, device=model.device) <= self.at[:, None]
                self.mask = self.mask[:, None, None, :].expand(-1, -1, self.group, -1)
        else:
            self.masks = [
                torch.ones(p.count, p.past + p.count, dtype=torch.bool, device=model.device).tril(p.past)
                if p.count > 1 and p.past
                else None
                for p in parts
            ]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, gate: Tensor | None) -> Tensor:
        """Attention of the next layer, gates applied: q (T, heads, d), k and v (T, kv_heads, d) -> (T, heads * d).

        k and v go into the caches. Rows are those of all streams.
        """
        if self.fast:
            return self._at_once(q, k, v, keys, values, gate)
        y = self._attended(q, k, v, keys, values)
        return y if gate is None else self.kernels.gated(y, gate, q.shape[1])

    def _at_once(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, gate: Tensor | None) -> Tensor:
        keys[self.rows, :, self.at], values[self.rows, :, self.at] = k, v
        more = {"streams": self.streams, "prefix": self._prefix(), "gate": gate}
        return self.fast(q, keys, values, self.table, self.most, **more)

    def _prefix(self) -> tuple[Tensor, Tensor] | None:
        """Keys and values before those of the next layer's streams."""
        return None

    def _attended(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        import torch
        from torch.nn.functional import scaled_dot_product_attention as sdpa

        if self.singles:
            if len(self.parts) == 1:
                keys[0, :, self.longest - 1], values[0, :, self.longest - 1] = k[0], v[0]
            else:
                keys[self.rows, :, self.at], values[self.rows, :, self.at] = k, v
            n = len(self.parts)
            out = sdpa(
                q.unflatten(1, (self.kv_heads, self.group)),
                keys[:n, :, : self.longest],
                values[:n, :, : self.longest],
                attn_mask=self.mask,
            )
            return out.flatten(1)
        outs = []
        for part, mask in zip(self.parts, self.masks, strict=True):
            own, end = slice(part.start, part.start + part.count), part.past + part.count
            keys[part.slot, :, part.past : end] = k[own].transpose(0, 1)
            values[part.slot, :, part.past : end] = v[own].transpose(0, 1)
            out = sdpa(
                q[own].transpose(0, 1).unsqueeze(0),
                keys[part.slot, :, :end].unsqueeze(0),
                values[part.slot, :, :end].unsqueeze(0),
                attn_mask=mask,
                is_causal=mask is None and part.count > 1,
                enable_gqa=self.group > 1,
            )
            outs.append(out[0].transpose(0, 1).flatten(1))
        return outs[0] if len(outs) == 1 else torch.cat(outs)
