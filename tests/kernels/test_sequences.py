"""Triton's attention of whole sequences against a float64 re-computation, and the models on it against eager ones.

On a CUDA device where there is one, else in Triton's interpreter.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from qwench.ops.base.runtime import Runtime
from qwench.ops.kernels import choose
from qwench.ops.models.hub import resolve
from qwench.ops.models.nets import packed
from qwench.ops.models.nets.packed import Prefix, runs_of
from qwench.ops.writing.load import load_causal

from tests import tiny
from tests.checkpoint.test_checkpoint import run
from tests.kernels.test_kernels import DTYPES, check
from tests.streams.test_parscale import streamed

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
#: compiles the kernel for a GPU that need not be there; prints bytes of shared memory, and those that `_tile` counts
BUILD = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from qwench.ops.kernels.triton.sequences import _sequences_kernel as kernel
arch, width, stages = map(int, sys.argv[1:])
constants = {"CAUSAL": True, "GATED": True, "ROWS": 64, "KEYS": 64, "BLOCK": width}
pointers = {n: "*bf16" for n in ("q", "keys", "values", "pk", "pv", "gate", "y")} | {"table": "*i32", "scale": "fp32"}
kinds = {n: "constexpr" if n in constants else pointers.get(n, "i32") for n in kernel.arg_names}
sizes = [a + b for a in "qkvpgy" for b in "bhn"] + ["width", *pointers]
wide = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(kernel.arg_names) if n in sizes and n != "scale"}
source = ASTSource(kernel, kinds, constants, wide)
options = {"num_warps": 4, "num_stages": stages}
built = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
print(built.metadata.shared, (64 + 2 * stages * 64) * width * 2)
"""
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
#: sequences as (queries, keys before them)
MIXES = (((1, 0), (3, 40), (70, 5), (1, 66), (33, 31)), ((64, 0), (64, 64)), ((17, 0),))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def naive(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, past: int, causal: bool) -> torch.Tensor:
    """q (n, heads, d), keys (kv_heads, past + n, d) -> (n, heads, d), in float64; a prefix counts as past."""
    group = q.shape[1] // len(keys)
    keys, values = (t.double().repeat_interleave(group, 0) for t in (keys, values))
    scores = q.double().transpose(0, 1) @ keys.transpose(1, 2) * q.shape[2] ** -0.5
    if causal:
        scores = scores.masked_fill(~torch.ones_like(scores, dtype=torch.bool).tril(past), float("-inf"))
    return (scores.softmax(-1) @ values).transpose(0, 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("mix", "streams", "causal"), [(MIXES[0], 1, True), (MIXES[0], 3, True), (MIXES[1], 1, False), (MIXES[2], 2, False)]
)
def test_sequences_over_caches(mix: tuple, streams: int, causal: bool, dtype: torch.dtype) -> None:
    """Streams of a token are rows side by side; what is beyond a sequence in its cache is not read."""
    from qwench.ops.kernels.triton.sequences import sequence_attention

    kv_heads, group, width, prefix = 2, 2, 20, 37
    rows, capacity = streams * sum(n for n, _ in mix), max(sum(s) for s in mix) + 3
    with torch.device(DEVICE):
        q = torch.randn(rows, kv_heads * group + 2, width).to(dtype)[:, 1:-1]
        shape = streams * len(mix), kv_heads, capacity, width
        keys, values = (torch.randn(shape).to(dtype) for _ in range(2))
        before = tuple(torch.randn(streams, kv_heads, prefix, width).to(dtype) for _ in range(2))
        gates = [None, *(torch.randn(rows, 4 * each + 1).to(dtype)[:, :-1] for each in (1, width))]
    slots = list(reversed(range(len(mix))))
    table, at = [], 0
    for slot, (count, past) in zip(slots, mix, strict=True):
        table += [(at * streams + s, count, slot * streams + s, past) for s in range(streams)]
        at += count
    for _, count, cache, past in table:
        for t in (keys, values):
            t[cache, :, past + count :] = float("nan")
    for theirs, more in ((None, gates[:2]), (before, gates[2:])):
        truth = torch.zeros(rows, kv_heads * group, width, dtype=torch.float64, device=DEVICE)
        for i, (first, count, cache, past) in enumerate(table):
            k, v = (t[cache, :, : past + count] for t in (keys, values))
            if theirs:
                k, v = (torch.cat((p[i % streams], t), 1) for p, t in zip(theirs, (k, v), strict=True))
            own = slice(first, first + streams * (count - 1) + 1, streams)
            truth[own] = naive(q[own], k, v, past + (prefix if theirs else 0), causal)
        for gate in more:
            found = sequence_attention(
                q,
                keys,
                values,
                torch.tensor(table, dtype=torch.int32, device=DEVICE),
                max(n for n, _ in mix),
                streams=streams,
                prefix=theirs,
                gate=gate,
                causal=causal,
            )
            wanted = truth if gate is None else truth * gate.double().sigmoid().unflatten(1, (4, -1))
            check(found, wanted.flatten(1), dtype)


def test_nan_stays_nan() -> None:
    from qwench.ops.kernels.triton.sequences import sequence_attention

    q, k, v = torch.randn(3, 90, 2, 16, device=DEVICE)
    k[50, 0, 3] = float("nan")
    table = torch.tensor([[0, 90, 0, 0]], dtype=torch.int32, device=DEVICE)
    bad = sequence_attention(q, k, v, table, 90).isnan().unflatten(1, (2, 16))
    assert bad[50:, 0].all() and not bad[:50].any() and not bad[:, 1].any()


@pytest.mark.parametrize(("arch", "width", "stages"), [(80, 128, 2), (89, 64, 3), (90, 128, 3)])
def test_it_compiles_for_gpus_that_are_not_here(arch: int, width: int, stages: int) -> None:
    """And needs no more shared memory than what tiles are chosen by."""
    command = [sys.executable, "-c", BUILD, *map(str, (arch, width, stages))]
    done = subprocess.run(
        command, env=os.environ | {"TRITON_INTERPRET": "0"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    needed, counted = map(int, done.stdout.split())
    assert counted / 2 < needed <= counted


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("prefixed", [True, False])
def test_packs_are_what_they_are_in_eager_kernels(causal: bool, prefixed: bool) -> None:
    runs = runs_of([0, 3, 3, 80, 17, 17, 17, 1])
    dtype = torch.float32 if DEVICE == "cpu" else torch.bfloat16
    total = runs[-1].stop
    with torch.device(DEVICE):
        qkv = torch.randn(total, 8, 16).to(dtype)
        gate = torch.randn(total, 4).to(dtype)
        prefix = tuple(torch.randn(9, 2, 16).to(dtype) for _ in range(2)) if prefixed else None
    q, k, v = qkv.split((4, 2, 2), dim=1)
    found = {}
    for kernels in ("eager", "triton"):
        bound = choose.bind(kernels, dtype, DEVICE)
        assert (bound.sequence_attention is None) == (kernels == "eager")
        found[kernels] = [
            packed.attend(q, k, v, runs, causal=causal, prefix=prefix, gate=g, scale=s, kernels=bound)
            for g, s in ((None, None), (gate, None), (None, 0.5))
        ]
    close = {"atol": 1e-5, "rtol": 1e-5} if DEVICE == "cpu" else {"atol": 2e-2, "rtol": 2e-2}
    torch.testing.assert_close(found["triton"], found["eager"], **close)
    empty = packed.attend(q[:0], k[:0], v[:0], runs_of([0, 0]), causal=causal, prefix=prefix, kernels=bound)
    assert empty.shape == (0, 64)


@pytest.mark.parametrize(
    "kind",
    ["qwen2", "qwen3 elementwise", "qwen3 streams"]
    + [pytest.param(kind, marks=pytest.mark.slow) for kind in ("qwen3", "qwen3 headwise")],
)
def test_engines_say_what_they_say_with_eager_kernels(kind: str, tmp_path: Path) -> None:
    """Prompts together, goings-on of several tokens beside single ones, and a prefix that is reused."""
    name, _, extra = kind.partition(" ")
    if extra == "streams":
        folder = streamed(tmp_path, name)
    else:
        folder = tiny.byte_decoder(tmp_path / "m", name)
        if extra:
            folder = Path(run(folder, tmp_path / "gated", gate=extra)["out"])
    dtype = "float32" if DEVICE == "cpu" else "bfloat16"
    logits, vectors = {}, {}
    for kernels in ("eager", "triton"):
        engine = load_causal(
            resolve(str(folder)), slots=3, runtime=Runtime(device=DEVICE, dtype=dtype, kernels=kernels)
        ).engine
        made = torch.Generator(DEVICE).manual_seed(3)
        for layer in engine.layers if engine.gate_rows else ():
            layer["qkv"].weight[-engine.gate_rows :].normal_(generator=made)  # inserted gates are all alike
        logits[kernels] = [
            engine.feed({0: [7] * 40, 1: [5, 6], 2: list(range(90))}),
            engine.feed({0: [9, 8, 7], 1: [3], 2: [1, 2]}),
            engine.feed({1: [4] * 20, 2: [3]}),
        ]
        if extra != "streams":
            with torch.inference_mode():
                before = engine.prefill(torch.arange(10, device=DEVICE))
                assert isinstance(before, Prefix)
                ids = torch.arange(60, device=DEVICE)
                vectors[kernels] = engine.last_hidden(ids, [20, 40], before), engine.hidden(ids, [20, 40])
    close = {"atol": 1e-4, "rtol": 1e-4} if DEVICE == "cpu" else {"atol": 0.2, "rtol": 0.05}
    torch.testing.assert_close(logits["triton"], logits["eager"], **close)
    torch.testing.assert_close(vectors.get("triton"), vectors.get("eager"), **close)


@pytest.mark.skipif(DEVICE == "cpu", reason="there is no CUDA device")
def test_more_sequences_than_a_grid_has_rows() -> None:
    lengths = [1, 2, 3] * 2000
    q, k, v = torch.randn(3, sum(lengths), 16, 32, device=DEVICE, dtype=torch.bfloat16)
    found = {}
    for kernels in ("eager", "triton"):
        bound = choose.bind(kernels, torch.bfloat16, DEVICE)
        found[kernels] = packed.attend(q, k, v, runs_of(lengths), causal=True, kernels=bound)
    torch.testing.assert_close(found["triton"], found["eager"], atol=2e-2, rtol=2e-2)
