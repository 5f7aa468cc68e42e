"""A checkpoint that turns token ids into vectors: encoder, the model's own modules, slice, normalise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..base.errors import QwenchError
from ..base.runtime import Runtime
from ..models.device import Choice, pick_threads, steady_heap
from ..models.hub import Checkpoint
from ..models.layouts import DECODERS, Layout, read_layout
from ..models.load import Loaded, load_encoder, load_static, model_folder
from ..models.tokenizer import TextTokenizer
from ..text.prompts import EMBED_EOS
from .pooling import Chain
from .schedule import Schedule

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class EmbedSettings:
    """What decides a vector besides model and text.

    Attributes:
        dim: keep the first `dim` coordinates, then normalise (Matryoshka); None keeps all as the model makes them.
        task, prompt_name: see `Layout.prompt`.
        max_tokens: cap on the input length, special tokens included; None takes the model's own.
    """

    dim: int | None = None
    task: str | None = None
    prompt_name: str | None = None
    max_tokens: int | None = None
    batch_tokens: int = 0
    runtime: Runtime = field(default_factory=Runtime)


class Embedder:
    """Loads a checkpoint and embeds token ids.

    Attributes:
        tokenizer, layout, dim: as read from the checkpoint and the settings.
        max_tokens: longest input, special tokens included.
        choices: name -> Choice (device, dtype, threads, engine, pooling, batch_tokens) for reports.

    Raises:
        QwenchError: see `load_encoder`, `read_layout` and `TextTokenizer.load`; dim or max_tokens out of range.
    """

    def __init__(self, checkpoint: Checkpoint, settings: EmbedSettings) -> None:
        import torch

        self.checkpoint, self.settings = checkpoint, settings
        self.layout = read_layout(model_folder(checkpoint))
        steady_heap()
        threads = pick_threads(settings.runtime.threads)
        torch.set_num_threads(threads.value)
        if self.layout.static:
            loaded = load_static(self.layout.folder, settings.runtime)
        else:
            loaded = load_encoder(replace(checkpoint, path=self.layout.folder), settings.runtime)
        self.encoder = loaded.encoder
        self.tokenizer, self._ended = load_embed_tokenizer(self.layout, loaded.config)
        self.chain = Chain(self.layout.steps, self.encoder.hidden_size, loaded.device.value)
        self.full_dim = self.chain.out_features
        cut = self.layout.dim if settings.dim is None else settings.dim
        self.dim = _checked_dim(cut, self.full_dim)
        # Coordinates are cut first, then normalised (Qwen3 Embedding report; the order changes the length).
        self._again = cut is not None
        stated = self.layout.max_tokens or (self.tokenizer.cut if self.layout.static else None)
        self.max_tokens = _checked_max(settings.max_tokens, self.encoder.max_positions, stated)
        self.device: str = loaded.device.value
        parameters = getattr(self.encoder, "matmul_parameters", None)
        self.schedule = Schedule(self.device, threads.value, parameters, settings.batch_tokens)
        self.choices = self._choices(loaded, threads)

    def _choices(self, loaded: Loaded, threads: Choice) -> dict[str, Choice]:
        return {
            "device": loaded.device,
            "dtype": loaded.dtype,
            "threads": threads,
            "engine": loaded.engine,
            "kernels": loaded.kernels,
            "pooling": Choice(self.layout.pooling, self.layout.reason),
            "batch_tokens": self.schedule.choice,
        }

    def content_limit(self, prompt: str = "") -> int:
        """Most content tokens a text may have, after special tokens and prompt."""
        return self.max_tokens - self.tokenizer.specials - (len(self.tokenizer.ids([prompt])[0]) if prompt else 0)

    def query_ids(self, texts: Sequence[str], prompt: str) -> list[list[int]]:
        """Input ids of prompt + text, tokenised together, special tokens around.

        Raises:
            QwenchError: a text does not fit into the model.
        """
        rows = [self.tokenizer.wrap(ids) for ids in self.tokenizer.ids([prompt + t for t in texts])]
        for row, text in zip(rows, texts, strict=True):
            if len(row) > self.max_tokens:
                raise QwenchError(
                    f"a query has {len(row)} tokens and the model takes {self.max_tokens}: `{text[:60]}...`",
                    "shorten the query",
                )
        return rows

    def embed(self, rows: Sequence[list[int]]) -> np.ndarray:
        """Vectors of input ids (special tokens included): (n, dim) float32, in the order given."""
        import numpy as np

        out = np.empty((len(rows), self.dim), np.float32)
        for batch, vectors in self.batches(rows):
            out[batch] = vectors
        return out

    def batches(self, rows: Sequence[list[int]]) -> Iterator[tuple[list[int], np.ndarray]]:
        """Like `embed`, batch by batch as they are ready: (row indices, (len, dim) float32)."""
        yield from self.schedule.run([len(r) for r in rows], lambda batch: self._vectors([rows[i] for i in batch]))

    def _vectors(self, rows: list[list[int]]) -> np.ndarray:
        import torch

        lengths = [len(r) for r in rows]
        ids = torch.tensor([t for row in rows for t in row], dtype=torch.int64)
        x = self._chained(ids.to(self.device), lengths)[:, : self.dim]
        if self._again:
            x = torch.nn.functional.normalize(x, dim=1)
        return x.float().cpu().numpy()

    def _chained(self, ids: Tensor, lengths: list[int]) -> Tensor:
        """Vectors of a packed batch; a text without a token has no hidden state, and is pooled to zeros."""
        some = [n for n in lengths if n]
        if self.chain.last_only and len(some) == len(lengths) and hasattr(self.encoder, "last_hidden"):
            return self.chain.after_last(self.encoder.last_hidden(ids, lengths))
        hidden = self.encoder.hidden(ids, some) if some else self._nothing()
        return self.chain(hidden, lengths)

    def _nothing(self) -> Tensor:
        import torch

        return torch.empty((0, self.encoder.hidden_size), device=self.device)

    def describe(self) -> dict[str, Any]:
        """What decides the vectors, for the fingerprint of an index."""
        return {
            "model": self.checkpoint.name,
            "model_kind": self.checkpoint.kind,
            "revision": self.checkpoint.revision,
            "pooling": self._how(),
            "normalize": self.layout.normalize or self._again,
            "dim": self.dim,
            "dtype": self.choices["dtype"].value,
            "quantize": self.settings.runtime.quantize,
            "max_tokens": self.max_tokens,
        }

    def _how(self) -> str:
        """The pooling, and what else earlier versions did otherwise: old vectors are not mixed with new ones."""
        sides = "" if self.encoder.causal or not hasattr(self.encoder, "last_hidden") else ", attention to both sides"
        return self.layout.pooling + sides + self._ended


def load_embed_tokenizer(layout: Layout, config: dict[str, Any]) -> tuple[TextTokenizer, str]:
    """The checkpoint's tokenizer, and a word about its ends for the fingerprint.

    The contract of Qwen3-Embedding has `<|endoftext|>` at the end of every text; its tokenizer appends it, but base
    tokenizers and fine-tunes saved again do not, so it is added where the contract is what a folder is read by. A
    modules.json says all there is to do, and nothing is added then.

    Raises:
        QwenchError: the end token is not in the vocabulary.
    """
    tokenizer = TextTokenizer.load(layout.folder, layout.lowercase)
    if layout.static:
        tokenizer.before, tokenizer.after = [], []
        if layout.drop_unknown:
            tokenizer.drop_unknown()
        return tokenizer, ""
    if "lasttoken" not in layout.pooling or config.get("model_type") not in DECODERS or tokenizer.after:
        return tokenizer, ""
    if not layout.bare:
        return tokenizer, ", no end token"
    eos = tokenizer.token_id(EMBED_EOS)
    if eos is None:
        raise QwenchError(
            f"the tokenizer neither appends an end token nor knows `{EMBED_EOS}`: `{layout.folder}`",
            "last-token pooling needs one",
        )
    tokenizer.after = [eos]
    return tokenizer, ""


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors at length 1, for cosines by dot product; models without a Normalize module give them any length."""
    import numpy as np

    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def _checked_dim(asked: int | None, full: int) -> int:
    if asked is None:
        return full
    if not 1 <= asked <= full:
        raise QwenchError(f"--dim must be from 1 to {full} for this model, not {asked}", code=2)
    return asked


def _checked_max(asked: int | None, positions: int, layout: int | None) -> int:
    limit = min(positions, layout) if layout else positions
    if asked is None:
        return limit
    if not 1 <= asked <= positions:
        raise QwenchError(f"--max-tokens must be from 1 to {positions} for this model, not {asked}", code=2)
    return asked
