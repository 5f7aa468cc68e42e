"""Every kernel against its float64 reference: eager, C, Triton in its interpreter; and the models' steps on each."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from qwench.ops.base.errors import QwenchError
from qwench.ops.base.runtime import Runtime
from qwench.ops.kernels import choose, eager, parscale, reference
from qwench.ops.kernels.native import library as native_library
from qwench.ops.kernels.native import rows as native
from qwench.ops.kernels.native import step as native_step
from qwench.ops.models.hub import resolve
from qwench.ops.models.nets.graph_step import GraphStep
from qwench.ops.writing.load import load_causal

from tests import tiny
from tests.streams.test_parscale import streamed

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
needs_native = pytest.mark.skipif(not native_library.available().value, reason=native_library.available().reason)


@pytest.fixture(autouse=True)
def seeded(request: pytest.FixtureRequest):
    """Triton's kernels run on a CUDA device where there is one."""
    torch.manual_seed(0)
    params = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    ours = "triton" in params.values() or "on_cuda" in request.fixturenames
    with torch.device("cuda" if ours and torch.cuda.is_available() else "cpu"):
        yield


@pytest.fixture
def on_cuda() -> None:
    """Marks a test of Triton alone, see `seeded`."""


def triton_kernels():
    from qwench.ops.kernels.triton import elementwise as found

    return found


def implementations() -> list:
    return [
        pytest.param("eager"),
        pytest.param("native", marks=needs_native),
        pytest.param("triton", marks=needs_triton),
    ]


def module(name: str):
    return {"eager": lambda: eager, "native": lambda: native, "triton": triton_kernels}[name]()


def check(found, truth, dtype: torch.dtype) -> None:
    pairs = zip(found, truth, strict=True) if isinstance(truth, tuple) else [(found, truth)]
    for a, b in pairs:
        assert a.dtype == dtype
        torch.testing.assert_close(a.double(), b, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def wide(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """Rows that are not side by side in memory."""
    return torch.randn(shape[0], *shape[1:-1], 2 * shape[-1]).to(dtype)[..., : shape[-1]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", implementations())
def test_elementwise(name: str, dtype: torch.dtype) -> None:
    if name == "native" and dtype != torch.float32:
        pytest.skip("the C steps are float32")
    kernels = module(name)
    for rows, heads, width in ((1, 1, 8), (3, 5, 70)):
        x, weight = wide(rows, width, dtype=dtype), torch.randn(width).to(dtype)
        check(kernels.rms_norm(x, weight, 1e-6), reference.rms_norm(x, weight, 1e-6), dtype)
        other = torch.randn(rows, width).to(dtype)
        check(kernels.add_rms_norm(x, other, weight, 1e-6), reference.add_rms_norm(x, other, weight, 1e-6), dtype)
        qk, per_head = torch.randn(rows, heads + 2, width).to(dtype)[:, 1:-1], torch.randn(heads, width).to(dtype)
        angle = torch.randn(rows, 1, width // 2)
        cos = torch.cat((angle.cos(), angle.cos()), -1).to(dtype)
        sin = torch.cat((-angle.sin(), angle.sin()), -1).to(dtype)
        for w in (per_head, None):
            truth = reference.norm_rotate(qk, w, 1e-6, cos, sin)
            check(kernels.norm_rotate(qk, w, 1e-6, cos, sin), truth, dtype)
        gate_up = wide(rows, 2 * width, dtype=dtype) * 4
        check(kernels.silu_mul(gate_up), reference.silu_mul(gate_up), dtype)
        y = torch.randn(rows, heads * width).to(dtype)
        for each in (1, width):
            gate = wide(rows, heads * each, dtype=dtype)
            check(kernels.gated(y.clone(), gate, heads), reference.gated(y, gate, heads), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["eager", pytest.param("triton", marks=needs_triton)])
def test_gated_attention(name: str, dtype: torch.dtype) -> None:
    for batch, heads, kv_heads, length, width, each in (
        (1, 1, 1, 1, 8, 1),
        (2, 6, 2, 37, 24, 24),
        (1, 4, 4, 33, 16, 1),
    ):
        q = torch.randn(batch, length, heads, width).to(dtype).transpose(1, 2)
        k, v = (torch.randn(batch, kv_heads, length, width).to(dtype) for _ in range(2))
        gate = wide(batch * length, heads * each, dtype=dtype)
        check(module(name).gated_attention(q, k, v, gate), reference.gated_attention(q, k, v, gate), dtype)


@pytest.mark.parametrize("streams", [1, 2, 3, 8])
@pytest.mark.parametrize("name", implementations())
def test_prefix_attention(name: str, streams: int) -> None:
    for dtype in DTYPES if streams == 2 else DTYPES[:1]:
        if name == "native" and dtype != torch.float32:
            continue
        attend = native_step.attend if name == "native" else module(name).prefix_attention
        for heads, kv_heads, width, count in ((1, 1, 8, 1), (6, 2, 20, 37)):
            rows = 2 * streams
            q = torch.randn(rows, heads, width).to(dtype)
            keys, values = (torch.randn(rows, kv_heads, count + 3, width).to(dtype)[:, :, :count] for _ in range(2))
            lengths = [1 + 31 * r % count for r in range(rows)]
            prefix = [torch.randn(streams, kv_heads, 5, width).to(dtype) for _ in range(2)]
            for args in ((), prefix):
                truth = reference.prefix_attention(q, keys, values, lengths, *args)
                check(attend(q, keys, values, lengths, *args), truth, dtype)


@pytest.mark.parametrize("name", [p for p in implementations() if "eager" not in p.values])
def test_attention_does_not_hide_nan(name: str) -> None:
    attend = native_step.attend if name == "native" else module(name).prefix_attention
    for count in (9, 300):
        q, keys, values = torch.randn(1, 2, 16), torch.randn(1, 2, count, 16), torch.randn(1, 2, count, 16)
        keys[0, 1, 4, 3] = float("nan")
        out = attend(q, keys, values, [count]).unflatten(1, (2, 16))
        assert out[0, 0].isfinite().all()
        assert out[0, 1].isnan().all()
        # What lies behind the length is not looked at.
        assert attend(q, keys, values, [4]).isfinite().all()


@needs_triton
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_long_rows_are_cut_into_chunks_and_joined(dtype: torch.dtype, on_cuda: None) -> None:
    attend = triton_kernels().prefix_attention
    streams, rows, heads, kv_heads, width, capacity = 3, 6, 6, 2, 20, 500
    q = torch.randn(rows, heads, width).to(dtype)
    keys, values = (torch.randn(rows, kv_heads, capacity, width).to(dtype) for _ in range(2))
    prefix = [torch.randn(streams, kv_heads, 70, width).to(dtype) for _ in range(2)]
    lengths = [500, 1, 64, 65, 129, 333]
    for args in ((), prefix):
        truth = reference.prefix_attention(q, keys, values, lengths, *args)
        check(attend(q, keys, values, lengths, *args), truth, dtype)
        # As a tensor the lengths are not known when the chunks are laid out.
        check(attend(q, keys, values, torch.tensor(lengths), *args), truth, dtype)
    # Rows of a token side by side: the same rows in another order.
    order = torch.arange(rows).view(streams, -1).t().flatten()
    ends = torch.tensor(lengths)[order]
    found = attend(q[order], keys[order], values[order], ends, *prefix, token_major=True)
    check(found, truth[order], dtype)


@needs_triton
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rotated_keys_and_values_go_to_their_places(dtype: torch.dtype, on_cuda: None) -> None:
    rows, heads, kv_heads, width, capacity = 3, 4, 2, 24, 9
    qkv = wide(rows, (heads + 2 * kv_heads) * width, dtype=dtype)
    weight = torch.randn(heads + kv_heads, width).to(dtype)
    cos, sin = (torch.randn(capacity, width).to(dtype) for _ in range(2))
    at = torch.tensor([8, 0, 3])
    qk, v = qkv.unflatten(1, (-1, width)).split((heads + kv_heads, kv_heads), 1)
    for w in (weight, None):
        keys, values = (torch.full((rows + 1, kv_heads, capacity, width), 7.0).to(dtype) for _ in range(2))
        q = triton_kernels().rotate_and_keep(qkv, w, 1e-6, cos, sin, at, keys, values, heads)
        truth = reference.norm_rotate(qk, w, 1e-6, cos[at].unsqueeze(1), sin[at].unsqueeze(1))
        check(q, truth[:, :heads], dtype)
        row = torch.arange(rows)
        check(keys[row, :, at], truth[:, heads:], dtype)
        assert torch.equal(values[row, :, at], v)
        # Everything else stays.
        keys[row, :, at], values[row, :, at] = 7.0, 7.0
        assert (keys == 7).all() and (values == 7).all()


@pytest.mark.parametrize("streams", range(1, 9))
@pytest.mark.parametrize("name", implementations())
def test_aggregate(name: str, streams: int) -> None:
    for dtype in DTYPES if streams == 4 and name != "native" else DTYPES[:1]:
        width, tokens = 22, 3
        published = torch.randn(width, width * streams).to(dtype) * 0.3
        h = torch.randn(tokens, streams, width).to(dtype)
        b0, w2, b2 = (torch.randn(s).to(dtype) for s in ((width,), (streams, width), (streams,)))
        w2 *= 0.3
        w0 = parscale.stream_major(published, streams)
        assert torch.equal(parscale.published(w0, streams), published)
        truth = reference.aggregate(h, w0, b0, w2, b2, 0.1)
        check(module(name).aggregate(h, w0, b0, w2, b2, 0.1), truth, dtype)


def test_aggregate_reference_is_the_published_formula() -> None:
    """Feature order h * P + p, and no weight below smooth / P."""
    streams, width, tokens = 3, 4, 2
    w, h = torch.randn(width, width * streams).double(), torch.randn(tokens, streams, width).double()
    b0, w2, b2 = torch.randn(width).double(), torch.randn(streams, width).double() * 40, torch.randn(streams).double()
    for t in range(tokens):
        x = torch.tensor([h[t, p, i] for i in range(width) for p in range(streams)], dtype=torch.float64)
        z = w2 @ torch.nn.functional.silu(w @ x + b0) + b2
        share = z.softmax(0) * 0.9 + 0.1 / streams
        assert share.min() >= 0.1 / streams
        expected = sum(share[p] * h[t, p] for p in range(streams))
        args = (h, parscale.stream_major(w, streams), b0, w2, b2, 0.1)
        torch.testing.assert_close(parscale.aggregate_reference(*args)[t], expected)


@pytest.mark.parametrize("name", ["eager", pytest.param("triton", marks=needs_triton)])
def test_two_rows(name: str) -> None:
    for dtype in DTYPES:
        h, head = wide(5, 130, dtype=dtype), torch.randn(2, 130).to(dtype) * 0.1
        check(module(name).two_rows(h, head), reference.two_rows(h, head), dtype)


@pytest.mark.parametrize("name", [p for p in implementations() if "eager" not in p.values])
def test_the_models_steps_are_equal_on_all_kernels(name: str) -> None:
    x, weight, gate_up = torch.randn(5, 6, 16), torch.randn(6, 16), torch.randn(5, 32)
    cos, sin = torch.randn(5, 1, 16), torch.randn(5, 1, 16)

    def run(kernels: choose.Kernels) -> list[torch.Tensor]:
        return [
            kernels.norm_rotate(x, weight, 1e-6, cos, sin),
            kernels.silu_mul(gate_up),
            kernels.rms_norm(x.flatten(1), torch.arange(96.0), 1e-6),
        ]

    bound = choose.bind(name, torch.float32, str(x.device))
    assert bound.silu_mul is not choose.EAGER.silu_mul
    for a, b in zip(run(bound), run(choose.EAGER), strict=True):
        torch.testing.assert_close(a, b)


def test_choices_have_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose.pick_kernels("eager", "cpu").value == "eager"
    monkeypatch.setattr(choose, "_no_native", lambda device: "planted")
    assert choose.pick_kernels("auto", "cpu") == choose.Choice("eager", "planted")
    with pytest.raises(QwenchError, match="planted"):
        choose.pick_kernels("native", "cpu")
    with pytest.raises(QwenchError, match="unknown kernels") as caught:
        choose.pick_kernels("fast", "cpu")
    assert caught.value.code == 2
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    choose.no_triton.cache_clear()
    assert "triton" in choose.no_triton("cpu").lower()
    choose.no_triton.cache_clear()


@needs_triton
@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama", "gated", "qwen3 streams"])
def test_the_step_of_the_graph_is_the_step(tmp_path: Path, kind: str) -> None:
    """What a CUDA graph holds, without one: a token each of slots of different lengths."""
    name, _, streams = kind.partition(" ")
    if kind == "gated":
        folder = tmp_path
        for file in tiny.reference("gated-headwise").iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        tiny.byte_tokenizer(folder)
    else:
        folder = streamed(tmp_path, name) if streams else tiny.byte_decoder(tmp_path / "m", name)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    engine = load_causal(
        resolve(str(folder)), slots=3, runtime=Runtime(device=device, dtype="float32", kernels="eager")
    ).engine
    engine.feed({0: [5, 6, 7], 1: list(range(40)), 2: [8]})
    past = [engine.length(slot) for slot in range(3)]
    for n in (3, 2):
        expected = engine.feed({slot: [9 + slot] for slot in range(n)})
        for slot in range(n):
            engine.keep(slot, past[slot])
        engine.kernels = choose.bind("triton", torch.float32, device)
        ids = torch.tensor([9 + slot for slot in range(n)], device=device)
        with torch.inference_mode():
            found = GraphStep(engine).step(ids, torch.tensor(past[:n], device=device))
        engine.kernels = choose.EAGER
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
