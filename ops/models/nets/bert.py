"""BERT encoders on packed batches (model_type `bert`: MiniLM, BGE, GTE, E5 and their kin).

Post-norm transformer of Devlin et al., arXiv 1810.04805, with absolute positions and exact (erf) GELU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...base.errors import QwenchError
from ...kernels.choose import EAGER, Kernels
from .linear import Linear, Maker
from .packed import attend, positions_of, runs_of
from .weights import Weights

if TYPE_CHECKING:
    from torch import Tensor, dtype

PREFIXES = ("bert.",)
UNUSED = ("pooler.", "cls.", "embeddings.position_ids", "classifier.")
ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu")


def supports(config: dict[str, Any]) -> str | None:
    """None when this file can run the config, else the reason why not."""
    if config.get("position_embedding_type", "absolute") != "absolute":
        return f"position_embedding_type `{config['position_embedding_type']}`"
    if config.get("hidden_act", "gelu") not in ACTIVATIONS:
        return f"hidden_act `{config['hidden_act']}`"
    return "it is a decoder" if config.get("is_decoder") else None


class BertEncoder:
    """A BERT encoder: token ids in, hidden states out.

    Attributes:
        hidden_size: width of the hidden states.
        max_positions: longest sequence, special tokens included.
        parameters: number of parameters used; matmul_parameters: those that every token is multiplied with.

    Raises:
        QwenchError: heads that cannot be; see `Weights`.
    """

    causal = False

    def __init__(
        self,
        config: dict[str, Any],
        weights: Weights,
        dtype: dtype,
        device: str = "cpu",
        linear: Maker = Linear,
        kernels: Kernels = EAGER,
    ) -> None:
        self.hidden_size: int = config["hidden_size"]
        self.heads: int = config["num_attention_heads"]
        if self.heads < 1 or self.hidden_size % self.heads:
            raise QwenchError(
                f"the config says {self.heads} attention heads for {self.hidden_size} values, which they do not share",
                "download or copy the model again",
            )
        self.eps: float = config.get("layer_norm_eps", 1e-12)
        self.act: str = config.get("hidden_act", "gelu")
        self.max_positions: int = config["max_position_embeddings"]
        self.device, self.kernels = device, kernels
        h, ff = self.hidden_size, config["intermediate_size"]

        def take(name: str, *shape: int) -> Tensor:
            return weights.take(name, dtype, shape, device)

        self.words = take("embeddings.word_embeddings.weight", config["vocab_size"], h)
        # Most tokens are of type 0, so its vector is added to the positions once; others add the difference.
        types = take("embeddings.token_type_embeddings.weight", config["type_vocab_size"], h)
        self.positions = take("embeddings.position_embeddings.weight", self.max_positions, h) + types[0]
        self.types = types - types[0]
        self.norm = (take("embeddings.LayerNorm.weight", h), take("embeddings.LayerNorm.bias", h))
        self.layers: list[dict[str, Any]] = []
        for i in range(config["num_hidden_layers"]):
            at, out = f"encoder.layer.{i}.attention.", f"encoder.layer.{i}."
            qkv = [f"{at}self.{n}" for n in ("query", "key", "value")]
            self.layers.append(
                {
                    "qkv": linear(
                        weights.joined({f"{n}.weight": (h, h) for n in qkv}, dtype, device),
                        weights.joined({f"{n}.bias": (h,) for n in qkv}, dtype, device),
                    ),
                    "out": linear(take(f"{at}output.dense.weight", h, h), take(f"{at}output.dense.bias", h)),
                    "norm1": (take(f"{at}output.LayerNorm.weight", h), take(f"{at}output.LayerNorm.bias", h)),
                    "up": linear(
                        take(f"{out}intermediate.dense.weight", ff, h), take(f"{out}intermediate.dense.bias", ff)
                    ),
                    "down": linear(take(f"{out}output.dense.weight", h, ff), take(f"{out}output.dense.bias", h)),
                    "norm2": (take(f"{out}output.LayerNorm.weight", h), take(f"{out}output.LayerNorm.bias", h)),
                }
            )
        self.matmul_parameters = sum(w[n].parameters for w in self.layers for n in ("qkv", "out", "up", "down"))
        self.parameters = self.matmul_parameters + self.words.numel() + self.positions.numel()

    def hidden(self, ids: Tensor, lengths: list[int], types: Tensor | None = None) -> Tensor:
        """Last hidden states of a packed batch: ids (T,) int64 -> (T, hidden_size); `types` (T,) 0 or 1, for pairs."""
        from torch.nn import functional as F

        size, heads = (self.hidden_size,), self.heads
        runs = runs_of(lengths)
        x = F.embedding(ids, self.words) + F.embedding(positions_of(lengths, self.device), self.positions)
        if types is not None:
            x += F.embedding(types, self.types)
        x = F.layer_norm(x, size, *self.norm, self.eps)
        for w in self.layers:
            q, k, v = w["qkv"](x).unflatten(-1, (3 * heads, -1)).chunk(3, dim=1)
            y = w["out"](attend(q, k, v, runs, causal=False, kernels=self.kernels))
            x = F.layer_norm(y.add_(x), size, *w["norm1"], self.eps)
            y = w["down"](self._activate(w["up"](x)))
            x = F.layer_norm(y.add_(x), size, *w["norm2"], self.eps)
        return x

    def _activate(self, x: Tensor) -> Tensor:
        from torch.nn import functional as F

        if self.act == "relu":
            return F.relu_(x)
        return F.gelu(x, approximate="none" if self.act == "gelu" else "tanh")
