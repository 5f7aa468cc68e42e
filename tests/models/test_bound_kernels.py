"""Kernels belong to the loaded model: two models in one process, each on its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from qwench.ops.base.runtime import Runtime
from qwench.ops.kernels.native import library as native_library
from qwench.ops.models.hub import resolve
from qwench.ops.models.load import load_encoder
from qwench.ops.writing.load import load_causal

from tests.streams.test_parscale import streamed
from tests.tiny import byte_decoder, qwen3_embedding

pytestmark = pytest.mark.skipif(not native_library.available().value, reason=native_library.available().reason)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each C function is called."""
    found: Counter[str] = Counter()
    lib = native_library.library()

    def counted(name: str, function: Callable[..., None]) -> Callable[..., None]:
        def call(*args: object) -> None:
            found[name] += 1
            function(*args)

        return call

    for name in ("linear", "widen", "rms_norm", "norm_rotate", "silu_mul", "gate", "attend", "join", "step"):
        function = getattr(lib, f"qwench_{name}")
        monkeypatch.setattr(lib, f"qwench_{name}", counted(name, function))
    return found


def embedding(folder: Path, kernels: str) -> Callable[[], torch.Tensor]:
    encoder = load_encoder(
        resolve(str(folder)), runtime=Runtime(device="cpu", dtype="float32", kernels=kernels)
    ).encoder

    def run() -> torch.Tensor:
        with torch.inference_mode():
            return encoder.hidden(torch.arange(50), [20, 30])

    return run


def writing(folder: Path, kernels: str) -> Callable[[], torch.Tensor]:
    engine = load_causal(
        resolve(str(folder)), slots=2, runtime=Runtime(device="cpu", dtype="float32", kernels=kernels)
    ).engine

    def run() -> torch.Tensor:
        engine.keep(0, 0)
        engine.keep(1, 0)
        found = [engine.feed({0: [5, 6, 7], 1: [8] * 30}), engine.feed({0: [9], 1: [70]}), engine.feed({1: [3, 4]})]
        return torch.cat(found)

    return run


@pytest.mark.parametrize("kind", ["embed", "chat", "chat with experts", "chat with streams"])
@pytest.mark.parametrize("first", ["native", "eager"])
def test_two_models_run_each_on_its_own(kind: str, first: str, tmp_path: Path, calls: Counter[str]) -> None:
    """In turn, whichever is loaded first; what each says is what it says alone."""
    if kind == "embed":
        load, folder = embedding, qwen3_embedding(tmp_path / "m")
    elif kind == "chat with streams":
        load, folder = writing, streamed(tmp_path, "qwen3")
    else:
        load, folder = writing, byte_decoder(tmp_path / "m", "qwen3_moe" if "experts" in kind else "qwen3")
    second = "eager" if first == "native" else "native"
    alone, counts = {}, {}
    for kernels in (first, second):
        run = load(folder, kernels)
        calls.clear()
        alone[kernels], counts[kernels] = run(), Counter(calls)
    assert not counts["eager"]
    wanted = {"rms_norm", "norm_rotate", "silu_mul"}  # products of many rows may be faster in torch
    wanted |= {"join", "step"} if "streams" in kind else {"step"} if kind == "chat" else set()
    assert wanted <= counts["native"].keys()
    models = {kernels: load(folder, kernels) for kernels in (first, second)}
    for kernels in (first, second, first, second, second, first):
        calls.clear()
        assert torch.equal(models[kernels](), alone[kernels])
        assert calls == counts[kernels]
    torch.testing.assert_close(alone["native"], alone["eager"], atol=1e-4, rtol=1e-4)


def test_kernels_that_the_dtype_rules_out_are_not_claimed(tmp_path: Path) -> None:
    folder = byte_decoder(tmp_path / "m")
    for dtype, wanted in (("float32", "native"), ("bfloat16", "eager")):
        runtime = Runtime(device="cpu", dtype=dtype, kernels="native")
        found = load_causal(resolve(str(folder)), runtime).kernels
        assert found.value == wanted
    assert "float32" in found.reason and "bfloat16" in found.reason
    embedding = qwen3_embedding(tmp_path / "e")
    assert load_encoder(resolve(str(embedding)), runtime).kernels.value == "eager"
