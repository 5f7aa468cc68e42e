"""ParScale decoders that go on writing (arXiv 2505.10475): P streams of every token share each read of the weights.

Rows are token-major: stream p of token t is row t * P + p. The prefix of a stream is read in place by all sequences,
and joined with what they say themselves by log-sum-exp; nothing of it is copied into caches.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...base.errors import QwenchError
from ...checkpoint.safetensors_reader import SafetensorsReader
from ...checkpoint.sidecars import json_of
from ...kernels.choose import EAGER, Kernels
from ...kernels.parscale import stream_major
from .causal import CausalDecoder
from .linear import Linear, Maker
from .packed import joined
from .step import Part, Step
from .weights import Weights

if TYPE_CHECKING:
    from torch import Tensor, dtype

SUFFIX = "_parscale"


def adapter_name(streams: int) -> str:
    """Path of the tensors of so many streams below a checkpoint."""
    return f"adapters/p{streams}.safetensors"


def is_added(name: str) -> bool:
    """Whether a tensor belongs to the streams and not to the decoder under them."""
    return name.endswith((".prefix_k", ".prefix_v")) or "aggregate_layer." in name


def base_config(config: dict[str, Any]) -> dict[str, Any]:
    """The config of the decoder under the streams: the same with the decoder's own model_type."""
    kind = str(config.get("model_type"))
    return config | {"model_type": kind.removesuffix(SUFFIX)} if kind.endswith(SUFFIX) else config


def choose_streams(folder: Path, config: dict[str, Any], weights: Weights, streams: int) -> dict[str, Any]:
    """The config for so many streams, with their tensors where they come from an adapter.

    Args:
        folder: the checkpoint; other numbers of streams than its own lie in its `adapters`.
        weights: what is not of these streams is taken from its account.
        streams: 0 for the checkpoint's own; 1 for the decoder alone.

    Returns:
        `config` with parscale_n and, from an adapter, the key `adapter`: bare name -> tensor.

    Raises:
        QwenchError: no such streams; says which there are.
    """
    own = config.get("parscale_n", 1)
    if config.get("parscale_prefix_only"):
        raise QwenchError(f"one stream with a prefix is a baseline to measure, not to run: `{folder}`")
    wanted = streams or own
    if wanted == own:
        return config
    weights.discard(is_added)
    if wanted == 1:
        return config | {"parscale_n": 1}
    file = folder / adapter_name(wanted)
    if not file.is_file():
        there = sorted({own, *(int(p.stem[1:]) for p in file.parent.glob("p*.safetensors") if p.stem[1:].isdigit())})
        raise QwenchError(
            f"the checkpoint has no {wanted} streams: `{folder}`", f"it has {', '.join(map(str, there))}, and 1"
        )
    reader = SafetensorsReader([file])
    said = json_of(reader.metadata.get("parscale", "{}"), file / "config.json")
    if said.get("parscale_n") != wanted:
        raise QwenchError(f"no adapter of {wanted} streams: `{file}`", "copy it again")
    tensors = {name.removeprefix("model."): reader.load(name) for name in reader.infos}
    return config | said | {"adapter": tensors}


class ParallelDecoder(CausalDecoder):
    """A decoder with `config["parscale_n"]` streams, at least 2; tensor names as published."""

    def __init__(
        self,
        config: dict[str, Any],
        weights: Weights,
        dtype: dtype,
        device: str = "cpu",
        linear: Maker = Linear,
        slots: int = 1,
        kernels: Kernels = EAGER,
    ) -> None:
        super().__init__(config, weights, dtype, device, linear, slots, kernels)
        adapter: dict[str, Tensor] = config.get("adapter", {})
        self.streams: int = config["parscale_n"]
        self.smooth: float = config["parscale_attn_smooth"]
        p, h = self.streams, self.hidden_size

        def take(name: str, *shape: int) -> Tensor:
            large = name.endswith("layer.0.weight")
            if not adapter:
                return (
                    weights.matrix({name: shape}, dtype, device) if large else weights.take(name, dtype, shape, device)
                )
            if name not in adapter or tuple(adapter[name].shape) != shape:
                raise QwenchError(f"the adapter does not fit the model: `{name}`", "use the adapters of this model")
            kept = large and str(adapter[name].dtype)[6:] in weights.as_stored
            return adapter[name].to(device, adapter[name].dtype if kept else dtype)

        shape = (p, self.kv_heads, config["parscale_n_tokens"], self.head_dim)
        if shape[2] < 1:
            raise QwenchError("the config says streams without a prefix, which would all be alike", "copy it again")
        self.prefixes = [
            tuple(take(f"layers.{i}.self_attn.prefix_{n}", *shape).contiguous() for n in "kv")
            for i in range(len(self.layers))
        ]
        if self._native:
            self._native.prefixes(*(list(side) for side in zip(*self.prefixes, strict=True)))
        first = stream_major(take("aggregate_layer.0.weight", h, p * h), p)
        self.mix = linear(first, take("aggregate_layer.0.bias", h))
        self.mix_last = take("aggregate_layer.2.weight", p, h), take("aggregate_layer.2.bias", p)

    def _summed(self, x: Tensor) -> Tensor:
        """The weighted sum of streams (section 3.2, smoothing included): (T * P, h) -> (T, h)."""
        streams = x.unflatten(0, (-1, self.streams))
        return self.kernels.join(self.mix(streams.flatten(1)), streams, *self.mix_last, self.smooth)

    def _step(self, parts: list[Part]) -> Step:
        return _ParallelStep(self, parts)


class _ParallelStep(Step):
    """Attention of one pass over streams."""

    def __init__(self, model: ParallelDecoder, parts: list[Part]) -> None:
        import torch

        super().__init__(model, parts)
        self.prefixes = iter(model.prefixes)
        if self.singles:
            n, p = len(parts), model.streams
            self.rows = torch.arange(n * p, device=model.device)
            self.at = self.at.repeat_interleave(p)
            self.mask = None if self.mask is None else self.mask.repeat_interleave(p, 0)

    def _prefix(self) -> tuple[Tensor, Tensor]:
        return next(self.prefixes)

    def _attended(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        import torch

        prefix = self._prefix()
        p, outs = self.streams, []
        if self.singles:
            n = len(self.parts)
            keys[self.rows, :, self.at], values[self.rows, :, self.at] = k, v
            # (B, P, kv, G, d): to a prefix, the queries of all sequences are one.
            grouped = q.unflatten(1, (self.kv_heads, self.group)).unflatten(0, (n, p))
            own = _attention(
                grouped.flatten(0, 1), keys[: n * p, :, : self.longest], values[: n * p, :, : self.longest], self.mask
            )
            theirs = _attention(grouped.permute(1, 2, 0, 3, 4).flatten(2, 3), *prefix)
            there = [x.unflatten(2, (n, -1)).permute(2, 0, 1, 3, *range(4, x.dim() + 1)).flatten(0, 1) for x in theirs]
            return joined(*own, *there).flatten(1)
        for part, mask in zip(self.parts, self.masks, strict=True):
            own_rows = slice(part.start * p, (part.start + part.count) * p)
            slot, end = slice(part.slot * p, (part.slot + 1) * p), part.past + part.count
            # (P, heads, count, d)
            q_, k_, v_ = (t[own_rows].unflatten(0, (-1, p)).permute(1, 2, 0, 3) for t in (q, k, v))
            keys[slot, :, part.past : end], values[slot, :, part.past : end] = k_, v_
            own = _attention(
                q_, keys[slot, :, :end], values[slot, :, :end], mask, is_causal=mask is None and part.count > 1
            )
            out = joined(*own, *_attention(q_, *prefix))
            outs.append(out.permute(2, 0, 1, 3).flatten(0, 1).flatten(1))
        return outs[0] if len(outs) == 1 else torch.cat(outs)


def _attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, is_causal: bool = False
) -> tuple[Tensor, Tensor]:
    """Attention and its log-sum-exp.

    Args:
        q: (B, heads, n, d); k, v: (B, kv_heads, m, d); mask: bool, broadcast to (B, heads, n, m), True is seen.

    Returns:
        (B, heads, n, d) and (B, heads, n).
    """
    import torch

    if q.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, is_causal, attn_mask=_float(mask, q)
        )
    group = q.shape[1] // k.shape[1]
    if group > 1:
        k, v = (t.repeat_interleave(group, 1) for t in (k, v))
    if q.device.type == "cuda" and q.shape[-1] % 8 == 0:
        fused = torch.ops.aten._scaled_dot_product_efficient_attention
        out, lse, *_ = fused(q, k, v, _aligned(mask, q, k.shape[2]), True, 0.0, is_causal)
        return out, lse[..., : q.shape[2]]
    scores = (q.float() @ k.float().transpose(-1, -2)) * q.shape[-1] ** -0.5
    if is_causal:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    lse = scores.logsumexp(-1)
    return ((scores - lse.unsqueeze(-1)).exp() @ v.float()).to(q.dtype), lse


def _float(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """A boolean mask as the kernel takes it."""
    import torch

    if mask is None:
        return None
    return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill_(~mask, float("-inf"))


def _aligned(mask: Tensor | None, q: Tensor, keys: int) -> Tensor | None:
    """A boolean mask as PyTorch's fused attention on CUDA takes it: (B, heads, n, keys), rows 8 places apart."""
    import torch

    if mask is None:
        return None
    wide = torch.zeros((*mask.shape[:-1], -(-keys // 8) * 8), dtype=q.dtype, device=q.device)
    return wide[..., :keys].masked_fill_(~mask, float("-inf")).expand(*q.shape[:3], keys)
