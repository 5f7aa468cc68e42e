"""On a CUDA device: the models say what they say on the CPU, on every choice of kernels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from qwench.ops.base.events import Finished
from qwench.ops.base.runtime import Runtime
from qwench.ops.bench.checkpoint_steps import bench_model
from qwench.ops.models.hub import resolve
from qwench.ops.models.nets import packed
from qwench.ops.scoring.embedder import Embedder, EmbedSettings
from qwench.ops.scoring.reranker import Reranker, RerankSettings
from qwench.ops.writing.load import load_causal

from tests import tiny
from tests.streams.test_parscale import streamed

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
KERNELS = ["eager", "triton"]


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "qwen3_moe", "llama", "qwen3 streams", "qwen2 streams"])
def test_decoding_on_cuda_is_decoding_on_the_cpu(tmp_path: Path, kind: str, kernels: str) -> None:
    """Prompts in pieces, three slots of different lengths, one cut back, two swapped, and room that grows."""
    name, _, streams = kind.partition(" ")
    room = {"max_position_embeddings": 1024}
    folder = streamed(tmp_path, name, **room) if streams else tiny.byte_decoder(tmp_path / "m", name, **room)
    made = torch.Generator().manual_seed(4)
    prompts = {s: torch.randint(256, (n,), generator=made).tolist() for s, n in ((0, 3), (1, 250), (2, 1))}
    tokens = torch.randint(256, (30, 3), generator=made).tolist()
    found = {}
    for device in ("cpu", "cuda"):
        mine = kernels if device == "cuda" else "eager"
        loaded = load_causal(
            resolve(str(folder)), slots=3, runtime=Runtime(device=device, dtype="float32", kernels=mine)
        )
        engine, said = loaded.engine, []
        said.append(engine.feed(prompts))
        for step, row in enumerate(tokens):
            if step == 15:
                engine.keep(1, 17)
            if step == 20:
                engine.swap(0, 1)
            said.append(engine.feed({slot: row[slot : slot + 1] for slot in range(3 if step < 10 else 2)}))
        # A prompt beside a running slot.
        engine.keep(2, 0)
        said.append(engine.feed({0: [5], 2: tokens[0]}))
        found[device] = [x.cpu() for x in said]
    for ours, theirs in zip(found["cuda"], found["cpu"], strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("kind", ["qwen3", "bert"])
def test_embedding_on_cuda(tmp_path: Path, kind: str, kernels: str) -> None:
    folder = tiny.qwen3_embedding(tmp_path / "m") if kind == "qwen3" else tiny.tiny_bert(tmp_path / "m")
    vectors = {}
    for device in ("cpu", "cuda"):
        settings = EmbedSettings(
            runtime=Runtime(device=device, dtype="float32", kernels=kernels if device == "cuda" else "eager")
        )
        model = Embedder(resolve(str(folder)), settings)
        limit = model.content_limit()
        ids = model.tokenizer.ids(tiny.real_texts(40))
        vectors[device] = model.embed([model.tokenizer.wrap(i[:limit]) for i in ids])
    assert (vectors["cpu"] * vectors["cuda"]).sum(1).min() >= 0.99999


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [0, 70])
def test_packed_attention_on_cuda(dtype: torch.dtype, causal: bool, length: int) -> None:
    """Sequences of many lengths, with a prefix that all see, and their last queries alone."""
    made = torch.Generator().manual_seed(5)
    lengths = [40, 40, 17, 5, 5, 5, 1]
    q, k, v = (torch.randn(sum(lengths), n, 24, generator=made).to(dtype) for n in (6, 2, 2))
    shared = tuple(torch.randn(length, 2, 24, generator=made).to(dtype) for _ in range(2)) if length else None
    ends = torch.tensor(lengths).cumsum(0) - 1
    for attention, queries, more in ((packed.attend, q, {"causal": causal}), (packed.attend_last, q[ends], {})):
        found = []
        for device, kind in (("cpu", torch.float32), ("cuda", dtype)):
            prefix = shared and tuple(t.to(device, kind) for t in shared)
            args = [t.to(device, kind) for t in (queries, k, v)]
            found.append(attention(*args, packed.runs_of(lengths), prefix=prefix, **more).cpu().float())
        torch.testing.assert_close(*found, atol=1e-5 if dtype == torch.float32 else 3e-2, rtol=1e-5)


@pytest.mark.parametrize("kernels", KERNELS)
def test_reranking_on_cuda(tmp_path: Path, kernels: str) -> None:
    folder, texts = tiny.qwen3_reranker(tmp_path / "lm"), tiny.real_texts(30)
    scores = {}
    for device in ("cpu", "cuda"):
        model = Reranker(
            resolve(str(folder)),
            RerankSettings(
                runtime=Runtime(device=device, dtype="float32", kernels=kernels if device == "cuda" else "eager")
            ),
        )
        scores[device] = [s.margin for s in model.score(model.question("How are errors handled?"), texts)]
    np.testing.assert_allclose(scores["cuda"], scores["cpu"], atol=1e-3)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("kind", ["qwen3", "qwen3 streams", "qwen3_moe"])
def test_a_model_is_split_by_kernel(tmp_path: Path, kind: str, kernels: str) -> None:
    """Every kernel has its time on the GPU, Triton's and those inside a graph too."""
    name, _, streams = kind.partition(" ")
    folder = streamed(tmp_path, name) if streams else tiny.byte_decoder(tmp_path / "m", name)
    (result,) = (
        e.result
        for e in bench_model(str(folder), Runtime(device="cuda", kernels=kernels), 32, (1, 2))
        if isinstance(e, Finished)
    )
    for step in result["steps"]:
        parts = step["parts"]
        inside = {"experts"} if kind == "qwen3_moe" else {"gate_up", "down"}
        assert {f"product {p}" for p in ("qkv", "out", "head", *inside)} <= parts.keys()
        assert all(parts[n] > 0 for n in parts if n != "the rest") and {"attention", "rms_norm"} <= parts.keys()
        assert ("aggregate" in parts) == bool(streams)
        assert sum(parts.values()) == pytest.approx(step["split_seconds"])
