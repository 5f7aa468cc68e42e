"""A decoder gets its streams: built from a plan's tensors, prefixes seeded, and what of it is trained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..base.errors import QwenchError
from ..checkpoint.plan import Plan
from .modeling_parscale import FAMILIES, LIVE, is_added

if TYPE_CHECKING:
    from torch import Tensor, nn

#: keys of a config that say what it was, and not how it computes
_OLD = ("model_type", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version")
#: width of the re-parameterised prefixes
BOTTLENECK = 256


def check_family(config: dict[str, Any]) -> None:
    """Whether a model of this config.json can be given streams.

    Raises:
        QwenchError: a family without streams here, streams already, sliding windows.
    """
    kind = config.get("model_type")
    if kind not in FAMILIES:
        if str(kind).endswith("_parscale"):
            raise QwenchError("the model has parallel streams already", "give the model it was made from")
        raise QwenchError(
            f"parallel streams are for {', '.join(FAMILIES)}, and the model is `{kind}`", "give such a model"
        )
    if config.get("use_qk_norm") is False or config.get("qkv_bias"):
        raise QwenchError(
            "the model is a gated fork of Qwen3 with biases or without norms of queries and keys, which no class with "
            "streams has",
            "give stock Qwen3",
        )
    if config.get("use_sliding_window") and config.get("sliding_window"):
        raise QwenchError("the model has sliding windows, which its prefixes would fall out of", "give another model")


def build(config: dict[str, Any], plan: Plan, dtype: str, device: str) -> nn.Module:
    """The decoder of a plan's tensors as a model whose streams can be set; it has one now, and equals the base.

    Args:
        config: of a family that `check_family` passes.
        plan: of the base in transformers' names.
        dtype: that the decoder is held in.

    Raises:
        QwenchError: a tensor that is missing or left over.
    """
    import torch

    family = FAMILIES[config["model_type"]]
    made = family.config_class(**{k: v for k, v in config.items() if k not in _OLD})
    tensors = {o.name: o.whole().to(getattr(torch, dtype)) for o in plan.outputs}
    model, info = family.from_pretrained(
        None, config=made, state_dict=tensors, dtype=getattr(torch, dtype), output_loading_info=True
    )
    if wrong := sorted(info["missing_keys"]) + sorted(info["unexpected_keys"]):
        raise QwenchError(f"weights and config do not fit: `{wrong[0]}`", "download or copy the model again")
    return model.to(device)


def equals_base(model: nn.Module, config: dict[str, Any], ids: Tensor) -> bool:
    """Whether one stream gives the very logits of transformers' own class on ids (1, n)."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    own = AutoConfig.for_model(**{k: v for k, v in config.items() if k not in _OLD[1:]})
    # The tensors are shared, so that a second model costs no memory.
    with torch.device("meta"):
        stock = AutoModelForCausalLM.from_config(own, trust_remote_code=False)
    stock.load_state_dict(model.state_dict(), assign=True, strict=True)
    stock.tie_weights()
    for mine, theirs in zip(model.modules(), stock.modules(), strict=True):
        for name, buffer in mine.named_buffers(recurse=False):
            setattr(theirs, name, buffer)
    with torch.no_grad():
        return torch.equal(model.eval()(ids).logits, stock.eval()(ids).logits)


def give_streams(
    model: nn.Module, streams: int, heads: Tensor, *, init: str, smooth: float, prefix_only: bool, seed: int
) -> None:
    """Set a number of streams and fill their tensors, in float32.

    Args:
        model: with one stream or any other number.
        heads: (k, T) token ids that prefixes may be seeded with; T is the number of prefix tokens.
        init: prompts, random or reparam (whose prefixes come from `Reparameterised`).
        prefix_only: with one stream: a prefix all the same.
    """
    import torch

    made = torch.Generator().manual_seed(seed)
    model.set_streams(parscale_n=1, parscale_prefix_only=False)
    chosen = heads[torch.randperm(len(heads), generator=made)[:streams]]
    if init == "prompts" and len(chosen) < streams:
        raise QwenchError(
            f"{streams} streams need as many documents to begin with, and there are {len(heads)}",
            "give more data, or --init random",
        )
    seeded = init == "prompts" and (streams > 1 or prefix_only)
    seeds = _keys_values(model, chosen) if seeded else None
    model.set_streams(
        parscale_n=streams,
        parscale_n_tokens=heads.shape[1],
        parscale_attn_smooth=smooth,
        parscale_prefix_only=prefix_only,
    )
    std = model.config.initializer_range
    added = [p for _, p in added_parameters(model)]
    for parameter in added:
        fresh = torch.empty(parameter.shape).normal_(0, std, generator=made)
        parameter.data = (fresh if parameter.dim() > 1 else torch.zeros(parameter.shape)).to(parameter.device)
    if seeds is not None:
        for layer, (k, v) in zip(model.model.layers, seeds, strict=True):
            layer.self_attn.prefix_k.data, layer.self_attn.prefix_v.data = k, v
    if streams > 1 and init == "prompts":
        # Equal weights at first: the streams are good already.
        torch.nn.init.zeros_(model.model.aggregate_layer[2].weight)


def _keys_values(model: nn.Module, prompts: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of prompts (P, T) per layer, (P, kv_heads, T, head_dim) in float32.

    Rotary positions are -T to -1: what comes after from position 0 sees them as its own past (parity of
    [prompt; text] by the relativity of RoPE).
    """
    import torch

    ids = prompts.long().to(model.device)
    at = torch.arange(-ids.shape[1], 0, device=model.device).unsqueeze(0)
    with torch.no_grad():
        cache = model.eval().model(input_ids=ids, position_ids=at, use_cache=True).past_key_values
    return [(layer.keys.float().clone(), layer.values.float().clone()) for layer in cache.layers]


def added_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Prefixes and aggregator, by name."""
    return ((n, p) for n, p in model.named_parameters() if is_added(n))


def reparameterised(model: nn.Module, seed: int) -> nn.Module:
    """A module that makes all prefixes from a small table through an MLP (Li and Liang, arXiv 2101.00190, 4.3).

    Its `live()` hands the prefixes to the attention modules for one pass; `merge()` writes them into the model.
    """
    import torch
    from torch import nn

    config, layers = model.config, [layer.self_attn for layer in model.model.layers]
    shape = layers[0].prefix_k.shape

    class Reparameterised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            width = 2 * len(layers) * shape[1] * shape[3]
            self.table = nn.Parameter(torch.empty(shape[0], shape[2], BOTTLENECK))
            self.first, self.last = nn.Linear(BOTTLENECK, BOTTLENECK), nn.Linear(BOTTLENECK, width)

        def pairs(self) -> Tensor:
            """(L, 2, P, K, T, D)"""
            out = self.last(torch.tanh(self.first(self.table)))
            return out.unflatten(-1, (len(layers), 2, shape[1], shape[3])).permute(2, 3, 0, 4, 1, 5)

        def live(self) -> None:
            for attention, pair in zip(layers, self.pairs(), strict=True):
                setattr(attention, LIVE, (pair[0], pair[1]))

        @torch.no_grad()
        def merge(self) -> None:
            for attention, pair in zip(layers, self.pairs(), strict=True):
                attention.prefix_k.copy_(pair[0])
                attention.prefix_v.copy_(pair[1])
                if hasattr(attention, LIVE):
                    delattr(attention, LIVE)

    made = Reparameterised().to(model.device)
    fresh = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        made.table.copy_(torch.empty(made.table.shape).normal_(0, 1, generator=fresh))
        for layer in (made.first, made.last):
            layer.weight.copy_(torch.empty(layer.weight.shape).normal_(0, config.initializer_range, generator=fresh))
            layer.bias.zero_()
    return made
