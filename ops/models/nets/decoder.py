"""Qwen3, Qwen2 and Llama decoders as text encoders, on packed batches.

Pre-norm decoder with RMSNorm, rotary positions, SwiGLU, grouped-query attention, and per-head
QK-norm where the config's family has it (Qwen3 technical report, arXiv 2505.09388, section 2).
Checkpoints come with or without the `model.` prefix (Qwen3-Embedding has none).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...base.errors import QwenchError
from ...checkpoint.gates import STOCK
from ...checkpoint.gguf_blocks import Blocks
from ...kernels.choose import EAGER, Kernels
from .gated import gates_of, unknown_next
from .linear import Linear, Maker
from .moe import Experts, experts_of
from .packed import Group, Prefix, Run, attend, attend_groups, attend_last, positions_of, runs_of
from .rope import KINDS, frequencies, rope_parameters
from .weights import Weights

if TYPE_CHECKING:
    from torch import Tensor, dtype

KeysValues = tuple["Tensor", "Tensor"]
PREFIXES = ("model.",)
UNUSED = ("lm_head.", "score.", "rotary_emb.")


def supports(config: dict[str, Any]) -> str | None:
    """None when this file can run the config, else the reason why not."""
    if config.get("use_sliding_window") and (config.get("sliding_window") or 0) > 0:
        return "sliding-window attention"
    if config.get("hidden_act", "silu") != "silu":
        return f"hidden_act `{config['hidden_act']}`"
    if config.get("mlp_bias"):
        return "a feed-forward layer with biases"
    if config.get("model_type") == STOCK and (reason := unknown_next(config)):
        return reason
    if rope_parameters(config).get("rope_type", "default") not in KINDS:
        return f"rope_type `{rope_parameters(config)['rope_type']}`"
    return None


def uneven(heads: int, kv_heads: int, width: int) -> str | None:
    """What is wrong with the heads that a config names, None where they can be computed with."""
    if heads < 1 or kv_heads < 1 or heads % kv_heads:
        return f"{heads} attention heads over {kv_heads} key-value heads, which do not share them evenly"
    return f"heads of {width} values, which have no two halves" if width < 2 or width % 2 else None


def sparse(config: dict[str, Any], layer: int) -> bool:
    """Whether a layer of Qwen3-MoE has experts."""
    step = config.get("decoder_sparse_step", 1)
    return layer not in (config.get("mlp_only_layers") or ()) and experts_of(config) > 0 and (layer + 1) % step == 0


class DecoderEncoder:
    """A causal decoder read for its hidden states.

    Args:
        dtype: of activations, norms and biases.
        linear: class of the products; kernels: of the steps between them.

    Attributes:
        causal: a token sees those before it alone; embedding models may say `is_causal: false`.
        hidden_size: width of the hidden states.
        max_positions: longest sequence, special tokens included.
        parameters: number of parameters used; matmul_parameters: those that every token is multiplied with.

    Raises:
        QwenchError: heads that cannot be; see `Weights`.
    """

    def __init__(
        self,
        config: dict[str, Any],
        weights: Weights,
        dtype: dtype,
        device: str = "cpu",
        linear: Maker = Linear,
        kernels: Kernels = EAGER,
    ) -> None:
        import torch

        self.causal: bool = config.get("is_causal") is not False
        self.hidden_size: int = config["hidden_size"]
        self.heads: int = config["num_attention_heads"]
        self.kv_heads: int = config.get("num_key_value_heads") or self.heads
        self.head_dim: int = config.get("head_dim") or self.hidden_size // max(self.heads, 1)
        if reason := uneven(self.heads, self.kv_heads, self.head_dim):
            raise QwenchError(f"the config says {reason}", "download or copy the model again")
        self.eps: float = config.get("rms_norm_eps", 1e-6)
        self.max_positions: int = config["max_position_embeddings"]
        self.device, self.dtype, self.kernels = device, dtype, kernels
        h, ff, d = self.hidden_size, config["intermediate_size"], self.head_dim
        kind = config["model_type"]
        # The gated fork may go without norms, and has a key of its own for biases.
        qk_norm = kind in ("qwen3", "qwen3_moe", STOCK) and config.get("use_qk_norm", True)
        # Qwen2 has biases on q, k and v alone, whatever its config says.
        bias = kind == "qwen2" or config.get("qkv_bias", config.get("attention_bias", False))
        out_bias = bias and kind != "qwen2"

        def take(name: str, *shape: int) -> Tensor:
            return weights.take(name, dtype, shape, device)

        def norm(name: str, size: int) -> Tensor:
            # Qwen3-Next stores the weights of its norms less one.
            return take(name, size) + 1 if kind == STOCK else take(name, size)

        def matrix(parts: dict[str, tuple[int, ...]]) -> Tensor | Blocks:
            return weights.matrix(parts, dtype, device)

        def projection(at: str) -> Tensor | Blocks:
            """Queries, keys, values, and the gates below them."""
            rows = matrix({f"{at}{n}_proj.weight": (size, h) for n, size in sizes.items()})
            return rows if order is None else rows[order]

        def projected(at: str) -> Tensor:
            """And their biases."""
            found = weights.joined({f"{at}{n}_proj.bias": (size,) for n, size in sizes.items()}, dtype, device)
            return found if order is None else found[order]

        self.words = matrix({"embed_tokens.weight": (config["vocab_size"], h)})
        self.norm = norm("norm.weight", h)
        self.layers: list[dict[str, Any]] = []
        sizes = {"q": self.heads * d, "k": self.kv_heads * d, "v": self.kv_heads * d}
        order = None
        if (found := gates_of(weights.height("layers.0.self_attn.q_proj.weight"), config)) is not None:
            sizes["q"] = len(found[0]) + len(found[1])
            total = sum(sizes.values())
            order = torch.tensor([*found[0], *range(sizes["q"], total), *found[1]], device=device)
        self.gate_rows = len(found[1]) if found else 0
        for i in range(config["num_hidden_layers"]):
            at, mlp = f"layers.{i}.self_attn.", f"layers.{i}.mlp."
            self.layers.append(
                {
                    "qkv": linear(projection(at), projected(at) if bias else None),
                    "qk_norm": self._qk_norm(norm(f"{at}q_norm.weight", d), norm(f"{at}k_norm.weight", d))
                    if qk_norm
                    else None,
                    "out": linear(
                        matrix({f"{at}o_proj.weight": (h, self.heads * d)}),
                        take(f"{at}o_proj.bias", h) if out_bias else None,
                    ),
                    "norm1": norm(f"layers.{i}.input_layernorm.weight", h),
                    "norm2": norm(f"layers.{i}.post_attention_layernorm.weight", h),
                }
            )
            if kind == "qwen3_moe" and sparse(config, i):
                self.layers[-1]["experts"] = Experts(config, weights, mlp, dtype, device, linear, kernels)
            else:
                self.layers[-1] |= {
                    "gate_up": linear(matrix({f"{mlp}{n}_proj.weight": (ff, h) for n in ("gate", "up")}), None),
                    "down": linear(matrix({f"{mlp}down_proj.weight": (h, ff)}), None),
                }
        products = ("qkv", "out", "gate_up", "down", "experts")
        self.matmul_parameters = sum(w[n].parameters for w in self.layers for n in products if n in w)
        self.parameters = self.matmul_parameters + self.words.numel()
        self.inv_freq, self.rope_scale = frequencies(config, d, device)

    def _qk_norm(self, q: Tensor, k: Tensor) -> Tensor:
        """Norm weights of every query and key head, (heads + kv_heads, head_dim)."""
        import torch

        return torch.cat((q.expand(self.heads, -1), k.expand(self.kv_heads, -1)))

    def hidden(self, ids: Tensor, lengths: list[int]) -> Tensor:
        """Hidden states after the final norm, of a packed batch: ids (T,) int64 -> (T, hidden_size)."""
        runs = runs_of(lengths)
        cos, sin = self._rotary(lengths)
        x = self._words(ids)
        for w in self.layers:
            x = self._layer(w, x, runs, cos, sin)
        return self._rms(x, self.norm)

    def last_hidden(self, ids: Tensor, lengths: list[int], prefix: Prefix | None = None) -> Tensor:
        """`hidden` at the last token of each sequence, (n, hidden_size); the last layer computes no other.

        With a `prefix`, every sequence goes on where the prefix ends.
        """
        import torch

        runs = runs_of(lengths)
        cos, sin = self._rotary(lengths, prefix.length if prefix else 0)
        before = prefix.layers if prefix else [None] * len(self.layers)
        x = self._words(ids)
        for w, kv in zip(self.layers[:-1], before, strict=False):
            x = self._layer(w, x, runs, cos, sin, kv)
        ends = torch.tensor(lengths, device=self.device).cumsum(0) - 1
        return self._rms(self._last_layer(self.layers[-1], x, runs, cos, sin, ends, before[-1]), self.norm)

    def shared_hidden(self, heads: list[list[int]], tails: list[list[list[int]]]) -> Tensor:
        """`hidden` at the last token of texts that share beginnings, (n, hidden_size): each beginning is computed once.

        Args:
            heads: ids of every group's beginning; empty ones come last.
            tails: ids of what follows it, at least one each, group by group; the result is in this order.
        """
        import torch

        lengths = [len(h) for h in heads if h]
        size, groups, at = sum(lengths), [], 0
        row, spans = size, [range(n) for n in lengths]
        for head, group in zip(heads, tails, strict=True):
            runs = runs_of([len(t) for t in group])
            groups.append(Group(range(at, at + len(head)), tuple(Run(r.start + row, r.count, r.length) for r in runs)))
            spans += [range(len(head), len(head) + len(t)) for t in group]
            at, row = at + len(head), groups[-1].rows.stop
        ids = [i for h in heads for i in h] + [i for group in tails for t in group for i in t]
        positions = torch.cat([torch.arange(s.start, s.stop) for s in spans]).to(self.device)
        table = torch.arange(max(s.stop for s in spans), device=self.device, dtype=torch.float32)
        cos, sin = self._rotary_at(table, positions)
        ends = (torch.tensor([len(t) for group in tails for t in group]).cumsum(0) + size - 1).tolist()
        beginnings, x = runs_of(lengths), self._words(torch.tensor(ids, device=self.device))
        for i, w in enumerate(self.layers):
            q, k, v, gate = self._qkv(w, x, cos, sin)
            only = None if i + 1 < len(self.layers) else ends
            if only:
                q, x, gate = q[only], x[only], None if gate is None else gate[only]
            y = attend_groups(q, k, v, beginnings, groups, gate=gate, ends=only, kernels=self.kernels)
            x = w["out"](y).add_(x)
            x = self._mlp(w, x).add_(x)
        return self._rms(x, self.norm)

    def prefill(self, ids: Tensor, prefix: Prefix | None = None) -> Prefix:
        """Keys and values of ids (T,) int64, after those of `prefix` where there is one."""
        import torch

        runs = [Run(0, 1, len(ids))]
        cos, sin = self._rotary([len(ids)], prefix.length if prefix else 0)
        x, layers = self._words(ids), []
        for i, w in enumerate(self.layers):
            q, k, v, gate = self._qkv(w, x, cos, sin)
            before = prefix.layers[i] if prefix else None
            # Copies, so that the whole projection they are views of is not kept.
            own = (k.clone(), v.clone())
            layers.append(own if before is None else tuple(map(torch.cat, zip(before, own, strict=True))))
            if i + 1 < len(self.layers):
                x = w["out"](self._attend(q, k, v, runs, before, gate)).add_(x)
                x = self._mlp(w, x).add_(x)
        return Prefix(len(ids) + (prefix.length if prefix else 0), layers)

    def _words(self, ids: Tensor) -> Tensor:
        from torch.nn import functional as F

        if isinstance(self.words, Blocks):
            return self.words[ids].values().to(self.dtype)
        return F.embedding(ids, self.words).to(self.dtype)

    def _rotary(self, lengths: list[int], start: int = 0) -> tuple[Tensor, Tensor]:
        """cos and signed sin, each (T, 1, head_dim) in the model's dtype; sin is negative in the first half."""
        import torch

        table = torch.arange(start, start + max(lengths), device=self.device, dtype=torch.float32)
        return self._rotary_at(table, positions_of(lengths, self.device))

    def _rotary_at(self, table: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        """As `_rotary`, for rows `at` (T,) of a table of positions in float32."""
        import torch

        angles = table[:, None] * self.inv_freq
        cos, sin = angles.cos() * self.rope_scale, angles.sin() * self.rope_scale
        cos = torch.cat((cos, cos), -1).to(self.dtype)
        sin = torch.cat((-sin, sin), -1).to(self.dtype)
        return cos[at].unsqueeze(1), sin[at].unsqueeze(1)

    def _rms(self, x: Tensor, weight: Tensor) -> Tensor:
        return self.kernels.rms_norm(x, weight, self.eps)

    def _qkv(
        self, w: dict[str, Any], x: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        qkv, gate = w["qkv"](self._rms(x, w["norm1"])), None
        if self.gate_rows:
            qkv, gate = qkv.split((qkv.shape[-1] - self.gate_rows, self.gate_rows), dim=-1)
        qkv = qkv.unflatten(-1, (-1, self.head_dim))
        qk, v = qkv.split((self.heads + self.kv_heads, self.kv_heads), dim=1)
        turned = self.kernels.norm_rotate(qk, w["qk_norm"], self.eps, cos, sin)
        q, k = turned.split((self.heads, self.kv_heads), dim=1)
        return q, k, v, gate

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, runs: list[Run], prefix: KeysValues | None, gate: Tensor | None
    ) -> Tensor:
        return attend(q, k, v, runs, causal=self.causal, prefix=prefix, gate=gate, kernels=self.kernels)

    def _mlp(self, w: dict[str, Any], x: Tensor) -> Tensor:
        x = self._rms(x, w["norm2"])
        return w["experts"](x) if "experts" in w else w["down"](self.kernels.silu_mul(w["gate_up"](x)))

    def _layer(
        self, w: dict[str, Any], x: Tensor, runs: list[Run], cos: Tensor, sin: Tensor, prefix: KeysValues | None = None
    ) -> Tensor:
        q, k, v, gate = self._qkv(w, x, cos, sin)
        x = w["out"](self._attend(q, k, v, runs, prefix, gate)).add_(x)
        return self._mlp(w, x).add_(x)

    def _last_layer(
        self,
        w: dict[str, Any],
        x: Tensor,
        runs: list[Run],
        cos: Tensor,
        sin: Tensor,
        ends: Tensor,
        prefix: KeysValues | None,
    ) -> Tensor:
        q, k, v, gate = self._qkv(w, x, cos, sin)
        y = attend_last(q[ends], k, v, runs, prefix=prefix)
        x = w["out"](y if gate is None else self.kernels.gated(y, gate[ends], self.heads)).add_(x[ends])
        return self._mlp(w, x).add_(x)
