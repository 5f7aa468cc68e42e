"""A decode step in the C kernels: any number of threads, and what must not reach memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from qwench.ops.base.errors import QwenchError
from qwench.ops.base.runtime import Runtime
from qwench.ops.kernels.native import library as native_library
from qwench.ops.kernels.native.linear import BlockLinear
from qwench.ops.models.hub import resolve
from qwench.ops.models.nets.causal import CausalDecoder
from qwench.ops.models.nets.linear import Linear
from qwench.ops.writing.load import load_causal

from tests.streams.test_parscale import streamed
from tests.tiny import byte_decoder

pytestmark = pytest.mark.skipif(not native_library.available().value, reason=native_library.available().reason)


def engine_of(folder: Path, kernels: str, quantize: str = "none") -> CausalDecoder:
    runtime = Runtime(device="cpu", dtype="float32", kernels=kernels, quantize=quantize)
    return load_causal(resolve(str(folder)), runtime, slots=2).engine


def decoded(engine: CausalDecoder) -> list[torch.Tensor]:
    """Logits of three steps of two sequences after prompts."""
    engine.keep(0, 0)
    engine.keep(1, 0)
    return [engine.feed({0: [5, 6, 7], 1: [8] * 30}), *(engine.feed({0: [9 + i], 1: [70 + i]}) for i in range(3))]


@pytest.mark.parametrize("streams", [1, 3])
def test_any_number_of_threads_gives_the_same(streams: int, tmp_path: Path) -> None:
    """More threads than there are cores too, where a waiting one must make room."""
    folder = streamed(tmp_path, "qwen3") if streams > 1 else byte_decoder(tmp_path / "m")
    expected = decoded(engine_of(folder, "eager"))
    engine = engine_of(folder, "native")
    assert engine._native is not None
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 9):
            torch.set_num_threads(threads)
            for _ in range(5):
                torch.testing.assert_close(decoded(engine), expected, atol=1e-4, rtol=1e-4)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("quantize", ["int8", "int4"])
@pytest.mark.parametrize("kind", ["qwen3", "qwen2", "qwen3_moe", "qwen3 streams"])
def test_blocks_give_what_their_values_give(kind: str, quantize: str, tmp_path: Path) -> None:
    """One step in the C kernels, and a prompt, against plain PyTorch on the widened weights."""
    name, _, streams = kind.partition(" ")
    folder = streamed(tmp_path, name) if streams else byte_decoder(tmp_path / "m", name)
    engine, plain = engine_of(folder, "native", quantize), engine_of(folder, "eager")
    assert (engine._native is None) == (kind == "qwen3_moe")

    def widened(layer: object) -> Linear:
        assert isinstance(layer, BlockLinear)
        identity = torch.eye(layer.matrix.k)
        weight = layer.wide(identity) - (0 if layer.bias is None else layer.bias)
        return Linear(weight.t().contiguous(), layer.bias)

    for own, other in zip(engine.layers, plain.layers, strict=True):
        for product in ("qkv", "out", "gate_up", "down"):
            if product in own:
                other[product] = widened(own[product])
        if "experts" in own:
            other["experts"].experts = [tuple(map(widened, pair)) for pair in own["experts"].experts]
    plain.head = widened(engine.head)
    if streams:
        plain.mix = widened(engine.mix)
    torch.testing.assert_close(decoded(engine), decoded(plain), atol=2e-4, rtol=1e-4)


def test_fewer_threads_than_asked_for(tmp_path: Path) -> None:
    folder = byte_decoder(tmp_path / "m")
    code = (
        f"import torch; torch.set_num_threads(4); import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
        "from tests.models.test_step import decoded, engine_of; from pathlib import Path\n"
        "a, b = (decoded(engine_of(Path(sys.argv[1]), k)) for k in ('native', 'eager'))\n"
        "torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)"
    )
    done = subprocess.run(
        ["env", "OMP_THREAD_LIMIT=2", sys.executable, "-c", code, folder], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kernels", ["native", "eager"])
@pytest.mark.parametrize("token", [-1, 272, 10**9])
def test_a_token_that_the_model_lacks_is_named(kernels: str, token: int, tmp_path: Path) -> None:
    engine = engine_of(byte_decoder(tmp_path / "m"), kernels)
    for ids in ([token], [5, token, 6]):
        with pytest.raises(QwenchError, match=f"token {token}, and the model has 272"):
            engine.feed({0: [5], 1: ids})
    assert engine.length(0) == engine.length(1) == 0


@pytest.mark.parametrize("kernels", ["native", "eager"])
def test_no_room_for_a_longer_sequence_leaves_the_others(
    kernels: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Caches that could not all grow are still those that the kernels read."""
    folder = byte_decoder(tmp_path / "m", max_position_embeddings=1024)
    engine, calm = engine_of(folder, kernels), engine_of(folder, "eager")
    for one in (engine, calm):
        one.feed({0: [7] * 20, 1: [5, 6]})
    zeros, calls = torch.zeros, []

    def full(*args: object, **options: object) -> torch.Tensor:
        calls.append(args)
        if len(calls) == 3:
            raise MemoryError
        return zeros(*args, **options)

    monkeypatch.setattr(torch, "zeros", full)
    with pytest.raises(MemoryError):
        engine.feed({0: [7] * 300})
    monkeypatch.undo()
    taken = [zeros(2, 2, 256, 16).normal_() for _ in range(8)]  # memory that was given up is used by others
    for token in (9, 10):
        torch.testing.assert_close(engine.feed({1: [token]}), calm.feed({1: [token]}), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(engine.feed({0: [7] * 300}), calm.feed({0: [7] * 300}), atol=1e-4, rtol=1e-4)
    assert len(taken) == 8
