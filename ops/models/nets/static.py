"""Static embeddings: a table with one vector a token (sentence-transformers' StaticEmbedding, model2vec)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...base.errors import QwenchError
from .weights import Weights

if TYPE_CHECKING:
    from torch import Tensor, dtype

#: longest text in tokens; a table knows no positions, so this only bounds a batch
LONGEST = 1 << 20


class StaticEncoder:
    """Tokens in, their rows of the table out; the mean over a text is left to pooling.

    Attributes:
        hidden_size: width of the rows.
        max_positions: LONGEST.
        parameters: number of parameters; nothing is multiplied with them.

    Raises:
        QwenchError: no such table among the weights, or something else beside it.
    """

    causal = False

    def __init__(self, weights: Weights, dtype: dtype, device: str = "cpu") -> None:
        import torch

        if "embedding.weight" in weights:
            table = weights.take("embedding.weight", dtype, None, device)
        else:
            # model2vec: rows shared by tokens (`mapping`), and a weight a token.
            table = weights.take("embeddings", dtype, None, device)
            if "mapping" in weights:
                table = table[weights.take("mapping", torch.int64, None, device)]
            if "weights" in weights:
                table = table * weights.take("weights", torch.float32, None, device)[:, None].to(dtype)
        weights.close()
        if table.dim() != 2:
            raise QwenchError(
                f"the table of embeddings has shape {tuple(table.shape)}: `{weights.folder}`", "it takes two dimensions"
            )
        self.table: Tensor = table
        self.device = device
        self.hidden_size: int = table.shape[1]
        self.max_positions = LONGEST
        self.parameters: int = table.numel()

    def hidden(self, ids: Tensor, lengths: list[int]) -> Tensor:
        """Rows of tokens: ids (T,) int64 -> (T, hidden_size)."""
        from torch.nn.functional import embedding

        return embedding(ids, self.table)
