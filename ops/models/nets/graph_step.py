"""A decode step on CUDA: every kernel from the words to the logits as one graph that is replayed.

A step of a small model is some hundred kernels of a few microseconds each, and launching them one by one takes longer
than they do. A graph launches them at once. What changes from step to step, tokens and places, lies in buffers that
the graph reads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .linear import Linear

if TYPE_CHECKING:
    from torch import Tensor

    from .causal import CausalDecoder


class GraphStep:
    """Steps of slots 0..n-1, one token each; a graph for every n, captured at its first use.

    Args:
        model: as `fits` says.

    Attributes:
        replays: False runs the step kernel by kernel instead, for a look at each of them.
    """

    def __init__(self, model: CausalDecoder) -> None:
        self.model, self.replays = model, True
        self._graphs: dict[int, tuple[Any, Tensor, Tensor]] = {}

    @staticmethod
    def fits(model: CausalDecoder) -> bool:
        """Whether a step is the same kernels whatever its tokens: not with experts, which the tokens choose."""
        return (
            model.device.startswith("cuda")
            and model.kernels.name == "triton"
            and all("experts" not in w and isinstance(w["qkv"], Linear) for w in model.layers)
        )

    def forget(self) -> None:
        """Caches or tables lie elsewhere now."""
        self._graphs.clear()

    def __call__(self, ids: list[int], past: list[int]) -> Tensor:
        """Tokens of slots 0..n-1 at places `past` -> logits (n, vocab) float32, valid until the next step."""
        import torch

        given = torch.tensor([ids, past])
        if not self.replays:
            return self.step(*given.to(self.model.device))
        if len(ids) not in self._graphs:
            self._graphs[len(ids)] = self._captured(given.to(self.model.device))
        graph, buffer, logits = self._graphs[len(ids)]
        buffer.copy_(given)
        graph.replay()
        return logits

    def _captured(self, buffer: Tensor) -> tuple[Any, Tensor, Tensor]:
        import torch

        graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream(buffer.device)
        # Once before, so that what is compiled or set up at a first call is not in the graph.
        side.wait_stream(torch.cuda.current_stream(buffer.device))
        with torch.cuda.stream(side):
            self.step(*buffer)
        torch.cuda.current_stream(buffer.device).wait_stream(side)
        with torch.cuda.graph(graph):
            logits = self.step(*buffer)
        return graph, buffer, logits

    def step(self, ids: Tensor, past: Tensor) -> Tensor:
        """What the graph holds: ids and past (n,) int64 on the device -> logits (n, vocab) float32."""
        from ...kernels.triton.elementwise import add_rms_norm, rms_norm

        m = self.model
        at = m._spread(past)
        x = m._spread(m._words(ids))
        y = rms_norm(x, m.layers[0]["norm1"], m.eps)
        for i, w in enumerate(m.layers):
            y, x = add_rms_norm(w["out"](self._attended(i, w["qkv"](y), at)), x, w["norm2"], m.eps)
            after = m.layers[i + 1]["norm1"] if i + 1 < len(m.layers) else m.norm
            y, x = add_rms_norm(w["down"](m.kernels.silu_mul(w["gate_up"](y))), x, after, m.eps)
        return m.head(m._summed(y)).float()

    def _attended(self, i: int, qkv: Tensor, at: Tensor) -> Tensor:
        """Attention of layer i, (rows, heads * d); keys and values go into the caches."""
        from ...kernels.triton.elementwise import prefix_attention, rotate_and_keep

        m, gate = self.model, None
        if m.gate_rows:
            qkv, gate = qkv.split((qkv.shape[-1] - m.gate_rows, m.gate_rows), dim=-1)
        cos, sin = m._rotary_table()
        keys, values = m._keys[i], m._values[i]
        q = rotate_and_keep(qkv, m.layers[i]["qk_norm"], m.eps, cos, sin, at, keys, values, m.heads)
        prefix = m.prefixes[i] if m.streams > 1 else ()
        y = prefix_attention(q, keys, values, at + 1, *prefix, token_major=True)
        return y if gate is None else m.kernels.gated(y, gate, m.heads)
