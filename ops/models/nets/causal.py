"""Decoders that go on writing: the packed decoder with a language head and a cache that can be cut back.

An engine holds sequences in slots. `feed` takes any mix of prompts and single tokens in one pass over the weights,
so that a new sequence can join while others decode.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from ...base.errors import QwenchError
from ...kernels.choose import EAGER, Kernels
from ...kernels.native.step import MOST_ROWS, DecodeStep
from .decoder import DecoderEncoder
from .graph_step import GraphStep
from .linear import Linear, Maker, matrix_of
from .step import Part, Step
from .weights import Weights

if TYPE_CHECKING:
    from torch import Tensor, dtype

#: tokens of one pass: bounds the memory of a long prompt, and how long an interrupt waits; more keep a GPU at work
CHUNK, CHUNK_GPU = 1024, 4096


class Engine(Protocol):
    """What a decode loop needs of a model.

    Attributes:
        context: longest sequence in tokens.
        slots: number of sequences it can hold.
        forks: whether `fork` works.
    """

    context: int
    slots: int
    forks: bool

    def feed(self, new: dict[int, list[int]]) -> Tensor:
        """Append tokens to sequences, {slot: ids}; logits after the last of each, (len(new), vocab) float32."""
        ...

    def length(self, slot: int) -> int:
        """Tokens a slot holds."""
        ...

    def keep(self, slot: int, length: int) -> None:
        """Cut a sequence back to its first `length` tokens."""
        ...

    def swap(self, a: int, b: int) -> None:
        """Exchange two slots."""
        ...

    def fork(self, slot: int, into: int, length: int | None = None) -> None:
        """Copy a sequence, or its first `length` tokens, into another slot, whose own is lost."""
        ...


class CausalDecoder(DecoderEncoder):
    """A decoder with its language head and caches of keys and values, (slots, kv_heads, capacity, head_dim) a layer.

    Attributes:
        streams: rows of every token; a slot has as many in the cache, one after the other.
        tied: the head's weights are those of the words.
    """

    streams = 1
    forks = True

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
        import torch

        super().__init__(config, weights, dtype, device, linear, kernels)
        self.tied = config.get("tie_word_embeddings", False) or "lm_head.weight" not in weights
        shape = {"lm_head.weight": tuple(self.words.shape)}
        self.head = linear(self.words if self.tied else weights.matrix(shape, dtype, device), None)
        self.context, self.slots = self.max_positions, slots
        self._lengths = [0] * slots
        self._capacity = 0
        self._keys = [torch.empty(0)] * len(self.layers)
        self._values = [torch.empty(0)] * len(self.layers)
        self._tables: tuple[Tensor, Tensor] | None = None
        self._native: DecodeStep | None = None
        if DecodeStep.fits(self.layers, self.head_dim):
            self._native = DecodeStep(
                self.layers, self.norm, matrix_of(self.words), self.heads, self.kv_heads, self.head_dim, self.eps
            )
        self._graph = GraphStep(self) if GraphStep.fits(self) else None

    def length(self, slot: int) -> int:
        """See Engine."""
        return self._lengths[slot]

    def keep(self, slot: int, length: int) -> None:
        """See Engine."""
        self._lengths[slot] = min(length, self._lengths[slot])

    def swap(self, a: int, b: int) -> None:
        """See Engine."""
        import torch

        held = max(self._lengths[a], self._lengths[b])
        with torch.inference_mode():
            for cache in (*self._keys, *self._values):
                rows = cache.unflatten(0, (self.slots, self.streams))
                rows[[a, b], :, :, :held] = rows[[b, a], :, :, :held]
        self._lengths[a], self._lengths[b] = self._lengths[b], self._lengths[a]

    def fork(self, slot: int, into: int, length: int | None = None) -> None:
        """See Engine: contiguous rows of keys and values, one copy of each a layer."""
        import torch

        held = self._lengths[slot] if length is None else min(length, self._lengths[slot])
        if held and slot != into:
            with torch.inference_mode():
                for cache in (*self._keys, *self._values):
                    rows = cache.unflatten(0, (self.slots, self.streams))
                    rows[into, :, :, :held] = rows[slot, :, :, :held]
        self._lengths[into] = held

    def feed(self, new: dict[int, list[int]]) -> Tensor:
        """See Engine.

        Raises:
            QwenchError: a sequence outgrows the context; a token that the model does not have.
        """
        import torch

        words = len(self.words)
        for ids in new.values():
            if wrong := next((t for t in ids if not 0 <= t < words), None):
                raise QwenchError(
                    f"the tokenizer gives token {wrong}, and the model has {words} tokens", "it is of another model"
                )
        longest = max(self._lengths[s] + len(ids) for s, ids in new.items())
        if longest > self.context:
            raise QwenchError(f"{longest} tokens are more than the model's context of {self.context}")
        last: dict[int, Tensor] = {}
        queue = {slot: ids for slot, ids in sorted(new.items()) if ids}
        with torch.inference_mode():
            self._grow(longest)
            while queue:
                room, parts, ids, at = CHUNK if self.device == "cpu" else CHUNK_GPU, [], [], 0
                for slot in list(queue):
                    piece = queue[slot][:room]
                    if not piece:
                        break
                    parts.append(Part(slot, self._lengths[slot], at, len(piece)))
                    ids, at, room = ids + piece, at + len(piece), room - len(piece)
                    queue[slot] = queue[slot][len(piece) :]
                ended = [p for p in parts if not queue[p.slot]]
                found = self._pass(ids, parts, ended)
                for i, part in enumerate(ended):
                    last[part.slot] = found[i]
                    del queue[part.slot]
                for part in parts:
                    self._lengths[part.slot] += part.count
            if len(found) == len(new) and list(last) == list(new):
                return found
            return torch.stack([last[slot] for slot in new])

    def _pass(self, ids: list[int], parts: list[Part], ended: list[Part]) -> Tensor:
        """One run over the layers; logits after the last token of each of `ended`."""
        import torch

        single = len(ids) == len(parts)
        if self._graph and single and [p.slot for p in ended] == list(range(len(parts))):
            return self._graph(ids, [p.past for p in parts]).clone()
        native = self._native if single and len(ids) * self.streams <= MOST_ROWS else None
        if native:
            x = native(ids, [p.slot for p in parts], [p.past for p in parts], *self._rotary_table())
        else:
            at = torch.cat([torch.arange(p.past, p.past + p.count, device=self.device) for p in parts])
            x = self._spread(self._words(torch.tensor(ids, device=self.device)))
            cos, sin = (self._spread(table[at]).unsqueeze(1) for table in self._rotary_table())
            step = self._step(parts)
            for i, w in enumerate(self.layers):
                q, k, v, gate = self._qkv(w, x, cos, sin)
                x = w["out"](step.attend(q, k, v, self._keys[i], self._values[i], gate)).add_(x)
                x = self._mlp(w, x).add_(x)
        if not ended:
            return x[:0]
        if len(ended) < len(ids):
            last = torch.tensor([p.start + p.count - 1 for p in ended], device=self.device)
            x = x.unflatten(0, (-1, self.streams))[last].flatten(0, 1)
        return self.head(self._summed(x if native else self._rms(x, self.norm))).float()

    def _spread(self, x: Tensor) -> Tensor:
        """Rows of tokens, (T, ...), as rows of all their streams, (T * streams, ...)."""
        return x if self.streams == 1 else x.repeat_interleave(self.streams, 0)

    def _summed(self, x: Tensor) -> Tensor:
        """Streams of tokens after the final norm, (T * streams, h), as one row each."""
        return x

    def _step(self, parts: list[Part]) -> Step:
        """Attention of one pass."""
        return Step(self, parts)

    def _rotary_table(self) -> tuple[Tensor, Tensor]:
        """cos and signed sin of every position there is room for, (capacity, head_dim)."""
        import torch

        if self._tables is None or len(self._tables[0]) < self._capacity:
            at = torch.arange(self._capacity, device=self.device, dtype=torch.float32)[:, None] * self.inv_freq
            cos, sin = at.cos() * self.rope_scale, at.sin() * self.rope_scale
            self._tables = (
                torch.cat((cos, cos), -1).to(self.dtype),
                torch.cat((-sin, sin), -1).to(self.dtype),
            )
        return self._tables

    def _grow(self, length: int) -> None:
        """Room for `length` tokens in every slot."""
        import torch

        if length <= self._capacity:
            return
        # One less than the context is of no use, and twice what is there makes copies rare.
        capacity = min(max(length, 2 * self._capacity, 256), self.context)
        held = max(self._lengths)
        shape = self.slots * self.streams, self.kv_heads, capacity, self.head_dim

        def larger(old: Tensor) -> Tensor:
            # Zeros: a masked place still takes part in the product, and must not hold NaN.
            new = torch.zeros(shape, dtype=self.dtype, device=self.device)
            if held:
                new[:, :, :held] = old[:, :, :held]
            return new

        if self._graph:
            self._graph.forget()
        # Layer by layer, so that little is held twice; C kernels and graphs hold addresses, and this may fail midway.
        for i, (keys, values) in enumerate(zip(self._keys, self._values, strict=True)):
            keys, values = larger(keys), larger(values)
            if self._native:
                self._native.cache(i, keys, values)
            self._keys[i], self._values[i] = keys, values
        self._capacity = capacity
