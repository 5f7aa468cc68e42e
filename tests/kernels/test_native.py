"""The C kernels: against float64, odd shapes, and what happens where they cannot be built."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import gguf
import pytest
import torch
from qwench.ops.kernels.native import build, check
from qwench.ops.kernels.native import library as native_library
from qwench.ops.kernels.native import rows as native
from qwench.ops.kernels.native.linear import BlockLinear, NativeLinear, to_blocks

from tests.kernels.test_cache import Compiler

built = pytest.mark.skipif(not native_library.available().value, reason=native_library.available().reason)


@built
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 9, 31])
def test_product_equals_float64(kind: torch.dtype, rows: int) -> None:
    for inner, outer in ((1, 1), (15, 7), (64, 24), (100, 51), (1024, 97)):
        x, weight, bias = torch.randn(rows, inner), torch.randn(outer, inner).to(kind), torch.randn(outer)
        for b in (None, bias):
            truth = torch.nn.functional.linear(x.double(), weight.double(), None if b is None else b.double())
            for found in (native.linear(x, weight, b), NativeLinear(weight, b).wide(x)):
                torch.testing.assert_close(found.double(), truth, rtol=1e-5, atol=2e-6 * inner**0.5 + 1e-6)


def values(blocks: torch.Tensor, kind: str) -> torch.Tensor:
    return torch.from_numpy(gguf.quants.dequantize(blocks.numpy(), gguf.GGMLQuantizationType[kind.upper()]))


@built
@pytest.mark.parametrize("kind", ["q8_0", "q4_1"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_blocks_are_gguf_s(kind: str, dtype: torch.dtype) -> None:
    weight = torch.randn(70, 96) * torch.logspace(-6, 4, 70)[:, None]
    weight[3] = 0.0
    weight[4] = 1.5
    weight[5] = torch.arange(96.0)
    weight = weight.to(dtype)
    expected = gguf.quants.quantize(weight.float().numpy(), gguf.GGMLQuantizationType[kind.upper()])
    assert torch.equal(to_blocks(weight, kind), torch.from_numpy(expected))


@built
@pytest.mark.parametrize("kind", ["q8_0", "q4_1"])
def test_blocks_of_any_layout_and_of_no_numbers(kind: str) -> None:
    weight = torch.randn(1024, 1000).t()
    assert torch.equal(to_blocks(weight, kind), to_blocks(weight.contiguous(), kind))
    bad = torch.randn(3, 64)
    bad[0, 0] = bad[1, 40] = float("nan")
    bad[2, 63] = float("inf")
    spoilt = values(to_blocks(bad, kind), kind).isnan().unflatten(1, (2, 32)).any(2)
    assert spoilt.tolist() == [[True, False], [False, True], [False, True]]


@built
@pytest.mark.parametrize("kind", ["q8_0", "q4_1"])
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 9, 31])
def test_product_with_blocks_equals_float64(kind: str, rows: int) -> None:
    for inner, outer in ((32, 1), (64, 24), (96, 51), (1024, 97)):
        x, bias = torch.randn(rows, inner), torch.randn(outer)
        stored = to_blocks(torch.randn(outer, inner), kind)
        for b in (None, bias):
            layer = BlockLinear(stored, kind, (outer, inner), b)
            assert layer.parameters == outer * (inner + (b is not None))
            truth = x.double() @ values(stored, kind).double().t() + (0 if b is None else b.double())
            for found in (layer.narrow(x), layer.wide(x)):
                torch.testing.assert_close(found.double(), truth, rtol=1e-5, atol=2e-6 * inner**0.5 + 1e-6)


@built
def test_strided_rows_and_threads() -> None:
    whole, weight = torch.randn(6, 300), torch.randn(40, 100)
    expected = whole[:, 100:200] @ weight.t()
    torch.testing.assert_close(native.linear(whole[:, 100:200], weight), expected)
    torch.testing.assert_close(native.linear(whole.t()[:100].t(), weight), whole[:, :100] @ weight.t())
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        torch.testing.assert_close(native.linear(whole[:, 100:200], weight), expected)
    finally:
        torch.set_num_threads(before)


@built
def test_native_linear_takes_any_number_of_rows() -> None:
    layer = NativeLinear(torch.randn(33, 70).bfloat16(), torch.randn(33))
    layer.few = 4
    assert layer.parameters == 33 * 71
    for rows in (1, 4, 5, 50):
        x = torch.randn(rows, 70)
        torch.testing.assert_close(layer(x), torch.nn.functional.linear(x, layer.weight.float(), layer.bias))


def child(home: Path, code: str, **env: str) -> subprocess.Popen:
    shared = {k: v for k, v in os.environ.items() if k != "QWENCH_NATIVE_CACHE"}
    env = shared | {"QWENCH_HOME": str(home), **env}
    return subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True)


SAY = """
import json
from qwench.ops.kernels.native.library import available
c = available()
print(json.dumps([c.value, c.reason]))
"""


@built
def test_first_uses_at_once_and_why_not(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong-cc"
    wrong.write_text("#!/bin/sh\necho 'a.c: error: planted'; echo 'error: planted' >&2\ntest \"$1\" = --version\n")
    wrong.chmod(0o755)
    fake = Compiler(tmp_path)
    both = [child(tmp_path / "home", SAY, CC=f"'{fake.path}'") for _ in range(2)]
    none = child(tmp_path / "none", SAY, PATH="/nowhere", CC="")
    failed = child(tmp_path / "none", SAY, CC=str(wrong))
    for process in both:
        assert json.loads(process.communicate()[0])[0] is True
    kept = tmp_path / "home/cache/kernels"
    said = json.loads(next(kept.glob("*.json")).read_text())
    assert said["fault"] is None and {p.name for p in kept.glob("*.so")} >= {said["file"]}
    assert "no C compiler" in json.loads(none.communicate()[0])[1]
    value, reason = json.loads(failed.communicate()[0])
    assert not value
    assert "planted" in reason


@built
def test_a_wrong_library_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever of its functions does nothing: what was in memory stays."""
    lib = native_library.library()
    steps = ("rms_norm", "add_rms_norm", "norm_rotate", "silu_mul", "gate", "attend", "join", "step")
    for name in ("linear", "widen", "to_blocks", *steps):
        with monkeypatch.context() as patch:
            patch.setattr(lib, f"qwench_{name}", lambda *args: None)
            assert "wrong" in (check.fault_of() or ""), name
    assert check.fault_of() is None


def test_the_key_names_compiler_and_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    before = build.key(build.compiler())
    monkeypatch.setattr(build, "cpu_words", lambda: "another CPU")
    assert build.key(build.compiler()) != before
