"""Parallel streams over Qwen2, Qwen3, Qwen3-MoE and Llama: ParScale (arXiv 2505.10475) for transformers 5.

P streams run through one decoder. Each sees its own prefix of keys and values in every attention, and their last
hidden states are summed with weights that a small network computes per token. The decoder's own code is untouched:
prefixes are put before the keys by an attention function, and a thin wrapper replicates inputs and sums outputs.

This file stands alone: it lies beside every checkpoint that `qwench parscale-recycle` writes, where
`AutoModelForCausalLM.from_pretrained(..., trust_remote_code=True)` finds it. Tensor names and config keys are those of
the published Qwen2 checkpoints.
"""

from __future__ import annotations

import json

import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Model,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    Qwen3MoeModel,
)
from transformers import initialization as init
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface
from transformers.models.llama.modeling_llama import eager_attention_forward
from transformers.utils.generic import can_return_tuple

#: attention implementations that take a prefix are named PREFIXED + the stock name
PREFIXED = "parscale_"
#: what training computes prefixes from may set (keys, values) under this name in an attention module
LIVE = "live_prefix"


def _prefix_of(module: nn.Module, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Prefix keys and values for every row of `key` [P*B, K, n, D], stream-major: [P*B, K, T, D] each."""
    pair = getattr(module, LIVE, None) or (module.prefix_k, module.prefix_v)
    return tuple(p.to(key.dtype).repeat_interleave(len(key) // len(p), 0) for p in pair)


def _prefixed(stock: str):
    """An attention function that lets every query see the prefix, then does what `stock` does.

    The prefix has no positions and is not rotated (section 3 of the paper's code): it is put before the keys after
    rotary positions, and nothing masks it.
    """

    def forward(module, query, key, value, attention_mask, **kwargs):
        prefix_k, prefix_v = _prefix_of(module, key)
        key, value = torch.cat((prefix_k, key), 2), torch.cat((prefix_v, value), 2)
        if attention_mask is not None:
            seen = True if attention_mask.dtype == torch.bool else 1 if attention_mask.dim() == 2 else 0.0
            attention_mask = F.pad(attention_mask, (prefix_k.shape[2], 0), value=seen)
        function = ALL_ATTENTION_FUNCTIONS.get_interface(stock, eager_attention_forward)
        return function(module, query, key, value, attention_mask, **kwargs)

    return forward


def _full_mask(*args, q_length: int, allow_is_causal_skip: bool = True, **kwargs):
    """sdpa's mask, but a prompt's is always made: `is_causal` would be aligned wrongly beside a prefix."""
    return sdpa_mask(*args, q_length=q_length, allow_is_causal_skip=allow_is_causal_skip and q_length == 1, **kwargs)


def _register() -> None:
    for stock in ("eager", "sdpa", "flash_attention_2", "flash_attention_3"):
        AttentionInterface.register(PREFIXED + stock, _prefixed(stock))
        mask = _full_mask if stock == "sdpa" else ALL_MASK_ATTENTION_FUNCTIONS[stock]
        AttentionMaskInterface.register(PREFIXED + stock, mask)
    # Experts are stored apart and held together, as in the stock class.
    experts = get_checkpoint_conversion_mapping("qwen3_moe")
    register_checkpoint_conversion_mapping("qwen3_moe_parscale", experts, overwrite=True)


_register()


class _Prefixed:
    """What model and head share: which attention they ask for, and how a fresh prefix is filled."""

    def _check_and_adjust_attn_implementation(self, attn_implementation, *args, **kwargs):
        wanted = attn_implementation and attn_implementation.removeprefix(PREFIXED)
        found = super()._check_and_adjust_attn_implementation(wanted, *args, **kwargs)
        if not prefixed(self.config):
            return found
        if PREFIXED + found not in ALL_ATTENTION_FUNCTIONS.valid_keys():
            raise ValueError(f"attention `{found}` cannot take a prefix; use sdpa, eager or flash_attention_2")
        return PREFIXED + found

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        for name in ("prefix_k", "prefix_v"):
            if isinstance(getattr(module, name, None), nn.Parameter):
                init.normal_(getattr(module, name), mean=0.0, std=self.config.initializer_range)


def prefixed(config) -> bool:
    """Whether attention sees a prefix: more than one stream, or one stream with a prefix alone (prefix tuning)."""
    return config.parscale_n > 1 or config.parscale_prefix_only


class _Streams(_Prefixed):
    """A decoder's body with `config.parscale_n` streams."""

    def __init__(self, config):
        super().__init__(config)
        self.attach()
        self.post_init()

    def attach(self) -> None:
        """Make the tensors that the config's streams need, unfilled, in the place of those of another number."""
        config, like = self.config, self.embed_tokens.weight
        streams, size = config.parscale_n, config.hidden_size
        made = {"device": like.device, "dtype": like.dtype}
        for layer in self.layers:
            shape = (streams, config.num_key_value_heads, config.parscale_n_tokens, layer.self_attn.head_dim)
            for name in ("prefix_k", "prefix_v"):
                empty = nn.Parameter(torch.empty(shape, **made)) if prefixed(config) else None
                layer.self_attn.register_parameter(name, empty)
        self.aggregate_layer = None
        if streams > 1:
            self.aggregate_layer = nn.Sequential(
                nn.Linear(streams * size, size, **made), nn.SiLU(), nn.Linear(size, streams, **made)
            )

    def run_streams(self, input_ids=None, attention_mask=None, position_ids=None, inputs_embeds=None, **kwargs):
        """The body over all streams; `last_hidden_state` [P*B, S, H] is stream-major (row p*B + b), after the norm.

        Args:
            input_ids, attention_mask, position_ids, inputs_embeds: as the stock model takes them, for B rows.
        """
        streams = self.config.parscale_n
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if position_ids is not None and len(position_ids) > 1:
            position_ids = position_ids.repeat(streams, 1)
        return super().forward(
            inputs_embeds=inputs_embeds.repeat(streams, 1, 1),
            attention_mask=_repeated(attention_mask, streams),
            position_ids=position_ids,
            **kwargs,
        )

    def aggregate(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The weighted sum of streams (section 3.2 of the paper, label smoothing included).

        Args:
            hidden: [P*B, S, H], stream-major.

        Returns:
            the sum [B, S, H] in the dtype of `hidden`, and the weights [B, S, P] in float32.
        """
        split = hidden.unflatten(0, (self.config.parscale_n, -1))
        first, _, last = self.aggregate_layer
        # The feature of stream p and hidden unit h is number h * P + p.
        z = split.permute(1, 2, 3, 0).flatten(2)
        for layer in (first, last):
            z = F.linear(F.silu(z) if layer is last else z, layer.weight.to(z.dtype), layer.bias.to(z.dtype))
        weights = z.float().softmax(-1)
        smooth = self.config.parscale_attn_smooth
        weights = weights * (1 - smooth) + smooth / self.config.parscale_n
        return torch.einsum("pbsh,bsp->bsh", split.float(), weights).to(hidden.dtype), weights

    @can_return_tuple
    def forward(self, *args, **kwargs):
        if self.config.parscale_n == 1:
            return super().forward(*args, **kwargs)
        out = self.run_streams(*args, **kwargs)
        out.last_hidden_state, _ = self.aggregate(out.last_hidden_state)
        if out.get("hidden_states"):
            out.hidden_states = (*out.hidden_states[:-1], out.last_hidden_state)
        return out


def _repeated(mask, streams: int):
    """An attention mask for every stream: 2-D, 4-D, a dict of them, or none."""
    if isinstance(mask, dict):
        return {name: _repeated(part, streams) for name, part in mask.items()}
    if not isinstance(mask, torch.Tensor) or (mask.dim() == 4 and len(mask) == 1):
        return mask
    return mask.repeat(streams, *[1] * (mask.dim() - 1))


class _Head(_Prefixed):
    """A causal language model over a `_Streams` body; `body` names its class."""

    body: type

    def __init__(self, config):
        # Not the stock constructor, which would make a stock body first.
        PreTrainedModel.__init__(self, config)
        self.model = self.body(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if hasattr(config, "num_experts_per_tok"):
            self.router_aux_loss_coef = config.router_aux_loss_coef
            self.num_experts, self.num_experts_per_tok = config.num_experts, config.num_experts_per_tok
        self.post_init()

    def _reorder_cache(self, past_key_values, beam_idx):
        """Beams are reordered within every stream: the cache has P rows for each sequence, stream-major."""
        streams = self.config.parscale_n
        steps = torch.arange(streams, device=beam_idx.device)[:, None] * len(beam_idx)
        past_key_values.reorder_cache((steps + beam_idx).flatten())
        return past_key_values

    def set_streams(self, **said) -> None:
        """Attach streams anew, unfilled, over the same decoder.

        Args:
            said: config keys that change: parscale_n, parscale_n_tokens, parscale_attn_smooth, parscale_prefix_only.
        """
        for key, value in said.items():
            setattr(self.config, key, value)
        self.model.attach()
        attention = self.config._attn_implementation.removeprefix(PREFIXED)
        self.config._attn_implementation = (PREFIXED if prefixed(self.config) else "") + attention

    @torch.no_grad()
    def load_streams(self, path) -> None:
        """Take prefixes and aggregator of another number of streams, from a file of the `adapters` folder.

        Args:
            path: .safetensors file; its metadata say how many streams it is for. Caches made before are of no use.

        Raises:
            ValueError: the file is no such adapter, or is of a model of another shape.
        """
        from safetensors import safe_open

        with safe_open(str(path), "pt") as file:
            said = json.loads((file.metadata() or {}).get("parscale", "null"))
            if said is None:
                raise ValueError(f"no adapter of parallel streams: {path}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
        self.set_streams(**said)
        own = {n: p for n, p in self.named_parameters() if is_added(n)}
        wrong = [n for n in {*own, *tensors} if n not in own or n not in tensors or own[n].shape != tensors[n].shape]
        if wrong:
            raise ValueError(f"the adapter does not fit the model at {sorted(wrong)[0]}: {path}")
        for name, tensor in tensors.items():
            own[name].copy_(tensor)


def is_added(name: str) -> bool:
    """Whether a tensor belongs to the streams and not to the decoder under them."""
    return name.endswith((".prefix_k", ".prefix_v")) or ".aggregate_layer." in name


class Qwen2ParScaleConfig(Qwen2Config):
    """Qwen2 with the three published keys: streams, prefix tokens, smoothing of their weights."""

    model_type = "qwen2_parscale"
    parscale_n: int = 1
    parscale_n_tokens: int = 48
    parscale_attn_smooth: float = 0.01
    parscale_prefix_only: bool = False


class Qwen3ParScaleConfig(Qwen3Config):
    """The same over Qwen3."""

    model_type = "qwen3_parscale"
    parscale_n: int = 1
    parscale_n_tokens: int = 48
    parscale_attn_smooth: float = 0.01
    parscale_prefix_only: bool = False


class Qwen3MoeParScaleConfig(Qwen3MoeConfig):
    """The same over Qwen3-MoE."""

    model_type = "qwen3_moe_parscale"
    parscale_n: int = 1
    parscale_n_tokens: int = 48
    parscale_attn_smooth: float = 0.01
    parscale_prefix_only: bool = False


class LlamaParScaleConfig(LlamaConfig):
    """The same over Llama."""

    model_type = "llama_parscale"
    parscale_n: int = 1
    parscale_n_tokens: int = 48
    parscale_attn_smooth: float = 0.01
    parscale_prefix_only: bool = False


class Qwen2ParScaleModel(_Streams, Qwen2Model):
    config_class = Qwen2ParScaleConfig


class Qwen3ParScaleModel(_Streams, Qwen3Model):
    config_class = Qwen3ParScaleConfig


class Qwen3MoeParScaleModel(_Streams, Qwen3MoeModel):
    config_class = Qwen3MoeParScaleConfig


class LlamaParScaleModel(_Streams, LlamaModel):
    config_class = LlamaParScaleConfig


class Qwen2ParScaleForCausalLM(_Head, Qwen2ForCausalLM):
    config_class, body = Qwen2ParScaleConfig, Qwen2ParScaleModel


class Qwen3ParScaleForCausalLM(_Head, Qwen3ForCausalLM):
    config_class, body = Qwen3ParScaleConfig, Qwen3ParScaleModel


class Qwen3MoeParScaleForCausalLM(_Head, Qwen3MoeForCausalLM):
    config_class, body = Qwen3MoeParScaleConfig, Qwen3MoeParScaleModel


class LlamaParScaleForCausalLM(_Head, LlamaForCausalLM):
    config_class, body = LlamaParScaleConfig, LlamaParScaleModel


#: model_type of the decoder -> its class with streams
FAMILIES = {
    "qwen2": Qwen2ParScaleForCausalLM,
    "qwen3": Qwen3ParScaleForCausalLM,
    "qwen3_moe": Qwen3MoeParScaleForCausalLM,
    "llama": LlamaParScaleForCausalLM,
}
