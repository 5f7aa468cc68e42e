"""bench-kernels: the work it counts, what it lets through, and how it judges two runs."""

from __future__ import annotations

import json
import random
from itertools import combinations, pairwise
from pathlib import Path

import pytest
import torch
from qwench.ops import bench_kernels as op
from qwench.ops.base.errors import QwenchError
from qwench.ops.base.events import Finished
from qwench.ops.base.runtime import Runtime
from qwench.ops.bench import baseline as bench_compare
from qwench.ops.bench import providers, roofs
from qwench.ops.bench import run as bench_run
from qwench.ops.bench.cases import KERNELS, Make, Size, cases
from qwench.ops.bench.checkpoint_steps import bench_model
from qwench.ops.bench.measure import Rule, Sampler, fault, interval, quantile, truth
from qwench.ops.bench.providers import Provider
from qwench.ops.bench.shapes import SHAPES, Shape
from qwench.ops.bench.verdict import judge, rank_chance
from qwench.ops.kernels import eager

from tests.streams.test_parscale import streamed
from tests.tiny import byte_decoder

TINY = Shape("tiny", 16, 2, 4, 2, 8, 24)
SWEEPS = {"batch": [2], "seq": [3], "streams": [1, 2]}
RULE = Rule(seconds=0.02, least=5, warm=False)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "tiny", TINY)
    planted = roofs.Roof("planted", 1e10, {"float32": 1e12})
    monkeypatch.setattr(op, "measured", lambda device, kinds: planted)
    monkeypatch.setattr(bench_compare, "measured", lambda device, kinds, seconds: planted)
    # What these tests plant lives in this process alone; the command is tested with new ones.
    monkeypatch.setattr(bench_compare, "fresh", bench_compare.measure)
    monkeypatch.setattr("qwench.ops.bench.measure.COLD_BYTES", 1 << 16)


def finished(events) -> dict:
    return list(events)[-1].result


def options(**changed) -> op.BenchOptions:
    given = {
        "shape": "tiny",
        "batch": (2,),
        "seq": (3,),
        "streams": (1, 2),
        "runtime": Runtime(device="cpu"),
        "rule": RULE,
    }
    return op.BenchOptions(**given | changed)


def plant(monkeypatch: pytest.MonkeyPatch, name: str, wrap) -> None:
    found = Provider(name, lambda function, kind, device: wrap(getattr(eager, function)))
    monkeypatch.setitem(providers.PROVIDERS, name, found)


def test_work_is_what_a_hand_counts() -> None:
    """Two sequences of three tokens, hidden 16, 4 query heads and 2 key heads of 8, inner 24, float32."""
    found = {(c.kernel, c.size.streams): (c.flops, c.bytes) for c in cases(list(KERNELS), TINY, 4, SWEEPS)}
    assert found["rms_norm", 1] == (4 * 6 * 16, (2 * 6 * 16 + 16) * 4)
    assert found["add_rms_norm", 1] == (5 * 6 * 16, (4 * 6 * 16 + 16) * 4)
    assert found["qk_norm_rope", 1] == (7 * 6 * 6 * 8, (2 * 6 * 6 * 8 + 2 * 6 * 8 + 6 * 8) * 4)
    assert found["swiglu", 1] == (5 * 6 * 24, 3 * 6 * 24 * 4)
    assert found["gate_elementwise", 1] == (5 * 6 * 32, 3 * 6 * 32 * 4)
    assert found["gate_headwise", 1] == (6 * 32, (2 * 6 * 32 + 6 * 4) * 4)
    # Token i sees i + 1 keys: 6 pairs a head and sequence, two products of 8 multiplications and additions each.
    assert found["gated_attention", 1] == (2 * 4 * 6 * 4 * 8, 2 * 3 * 8 * (3 * 4 + 2 * 2) * 4)
    assert found["decode_attention", 1] == (2 * 4 * 3 * 4 * 8, (2 * 2 * 2 * 3 * 8 + 2 * 2 * 4 * 8) * 4)
    own, prefix, q = 2 * 4 * 3 * 2 * 8, 2 * 2 * 48 * 2 * 8, 2 * 4 * 4 * 8
    assert found["prefix_attention", 2] == (4 * 4 * 4 * 51 * 8, (own + prefix + q) * 4)
    assert found["parscale_aggregate", 2] == (2 * 2 * 2 * 256 + 4 * 2 * 2 * 16, (512 + 32 + 64 + 32) * 4)
    assert found["rerank_head", 1] == (4 * 2 * 16, (32 + 32 + 2) * 4)
    assert found["decode_product", 2] == (2 * 4 * 16 * 48, (48 * 16 + 4 * 16 + 4 * 48) * 4)


def test_arguments_are_the_bytes_that_are_counted() -> None:
    """What a case reads is no more than its model says."""
    for case in cases(list(KERNELS), TINY, 4, SWEEPS):
        args = case.make(Make(torch.float32, "cpu", 0))
        assert sum(t.nbytes for t in args if isinstance(t, torch.Tensor)) <= case.bytes, case.kernel


def test_every_provider_is_right_or_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofs, "sheet", lambda device: roofs.Roof("none"))
    names = ("eager", "native", "triton", "torch", "sdpa", "sdpa-math", "sdpa-cudnn", "liger", "flash-attn")
    rows = finished(op.bench(options(provider_names=names)))["rows"]
    assert {r["kernel"] for r in rows} == set(KERNELS)
    assert [r for r in rows if r["status"] in ("wrong", "failed")] == []
    for row in rows:
        assert (row["median"] is None) == (row["status"] != "ok")
        assert bool(row["reason"]) == (row["status"] != "ok")
        assert row["floor_sheet"] is None and row["of_roof_sheet"] is None
        if row["status"] == "ok":
            assert row["p10"] <= row["median"] <= row["p90"]
            assert row["of_roof_measured"] == pytest.approx(row["floor_measured"] / row["median"])
            assert len(row["samples"]) >= 3
    assert all(r["speedup"] == 1 for r in rows if r["provider"] == "eager")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda f: lambda *a: f(*a) * 1.01 if isinstance(f(*a), torch.Tensor) else f(*a), "error"),
        (lambda f: lambda *a: torch.empty_like(a[0]), ""),
        (lambda f: lambda *a: f(*a)[:1], "shape"),
        (lambda f: lambda *a: (a[0].mul_(1.5), f(*a))[1], "changes its inputs"),
    ],
)
def test_a_wrong_kernel_is_named_and_not_timed(wrong, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, "planted", wrong)
    rows = finished(op.bench(options(kernels=("rms_norm",), provider_names=("eager", "planted"))))["rows"]
    assert [r["status"] for r in rows] == ["ok", "wrong"]
    assert words in rows[1]["reason"]
    assert rows[1]["median"] is None
    assert rows[1]["samples"] == []


def test_what_a_package_raises_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(function):
        def call(*args):
            raise RuntimeError("planted\nsecond line")

        return call

    plant(monkeypatch, "planted", broken)
    rows = finished(op.bench(options(kernels=("swiglu",), provider_names=("planted", "eager"))))["rows"]
    assert [(r["status"], r["reason"]) for r in rows] == [("failed", "planted"), ("ok", None)]


def test_stale_memory_is_no_result() -> None:
    case = cases(["swiglu"], TINY, 4, SWEEPS)[0]
    args = case.make(Make(torch.float32, "cpu", 0))
    right = truth(case, args)
    assert fault(eager.silu_mul, args, right)[0] is None

    # A kernel that leaves its last row unwritten must not pass because the reference lay in the same memory.
    def partly(gate_up):
        out = torch.full((len(gate_up), gate_up.shape[1] // 2), float("nan"))
        out[:-1] = eager.silu_mul(gate_up[:-1])
        return out

    assert "not finite" in fault(partly, args, right)[0]


def noisy(seed: int, scale: float = 1.0, count: int = 30) -> list[float]:
    """Samples as a busy machine gives them: a sharp fast end and a long slow one."""
    rng = random.Random(seed)
    return [scale * (1 + 0.01 * rng.random() + (rng.expovariate(2) if rng.random() < 0.4 else 0)) for _ in range(count)]


def test_statistics_on_a_noisy_machine() -> None:
    assert not any(judge(noisy(2 * i), noisy(2 * i + 1), 0.05).slower for i in range(500))
    assert all(judge(noisy(2 * i), noisy(2 * i + 1, 1.2), 0.05).slower for i in range(100))
    fast = [judge(noisy(2 * i), noisy(2 * i + 1, 0.7), 0.05) for i in range(100)]
    assert not any(v.slower for v in fast)
    assert sum(v.faster for v in fast) > 90
    # A machine that is slower as a whole explains a row that is.
    assert not judge(noisy(0), noisy(1, 1.2), 0.05, drift=1.2).slower
    # A faster machine excuses nothing and blames nobody.
    assert not judge(noisy(0), noisy(1), 0.05, drift=0.5).slower


def test_rank_chance_is_that_of_all_orders() -> None:
    """Against counting: of all ways to draw the ranks of `new`, how many have a sum as large."""
    rng = random.Random(1)
    for shift in (-1.0, 0.0, 0.5, 1.5):
        old, new = [rng.gauss(0, 1) for _ in range(8)], [rng.gauss(shift, 1) for _ in range(7)]
        ranks = {v: i + 1 for i, v in enumerate(sorted(old + new))}
        drawn = sum(ranks[v] for v in new)
        sums = [sum(c) for c in combinations(range(1, 16), 7)]
        exact = (sum(x > drawn for x in sums) + sum(x == drawn for x in sums) / 2) / len(sums)
        assert rank_chance(old, new) == pytest.approx(exact, abs=0.01)
    assert rank_chance([1.0, 1.0], [1.0, 1.0]) == 1.0
    assert rank_chance([1.0, 2.0, 2.0, 3.0], [1.0, 2.0, 2.0, 3.0]) == pytest.approx(0.5)


def test_quantiles_and_interval() -> None:
    import numpy as np

    values = noisy(3)
    for at in (0, 0.1, 0.5, 0.9, 1):
        assert quantile(values, at) == pytest.approx(np.quantile(values, at))
    assert interval([1.0] * 20) == 0
    assert interval(noisy(0, count=1000)) < interval(noisy(0, count=20))


def test_samplers_go_through_their_inputs() -> None:
    seen: list[int] = []
    sampler = Sampler(lambda i: seen.append(i), [(0,), (1,), (2,)], "cpu")
    sampler.sample()
    assert [b - a for a, b in pairwise(seen) if b - a not in (1, -2)] == []


class Clock:
    """A clock that only a planted kernel and looking at it move; the kernel takes `factor` noisy milliseconds."""

    def __init__(self, seed: int) -> None:
        self.now, self.factor, self.rng = 0.0, 1.0, random.Random(seed)

    def __call__(self) -> float:
        self.now += 1e-6
        return self.now

    def wrap(self, function):
        def call(*args):
            late = self.rng.expovariate(2) if self.rng.random() < 0.4 else 0
            self.now += 1e-3 * self.factor * (1 + 0.01 * self.rng.random() + late)
            return function(*args)

        return call


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock(0)
    plant(monkeypatch, "planted", found.wrap)
    monkeypatch.setattr("qwench.ops.bench.measure.time.perf_counter", found)
    monkeypatch.setattr(bench_run, "pulses", lambda device: {"none": Sampler(lambda: None, [()], device)})
    monkeypatch.setattr(bench_compare, "PAUSE", 0)
    return found


PLANTED = {"kernels": ("swiglu", "rerank_head"), "provider_names": ("planted",), "rule": Rule(0.1, 30, 0, warm=False)}


def test_a_slow_down_is_confirmed_and_a_speed_up_listed(clock: Clock, tmp_path: Path) -> None:
    saved = tmp_path / "old.json"
    finished(op.bench(options(save=saved, **PLANTED)))
    assert {"environment", "roofs", "rows", "clocks"} <= json.loads(saved.read_text()).keys()
    clock.factor = 0.7
    found = finished(op.bench(options(baseline=saved, **PLANTED)))["comparison"]
    assert (len(found["slower"]), len(found["faster"])) == (0, 2)
    clock.factor = 1.2
    found = finished(op.bench(options(baseline=saved, **PLANTED)))["comparison"]
    assert found["compared"] == len(found["slower"]) == 2
    assert all("planted" in row["what"] and 1.1 < row["ratio"] < 1.3 for row in found["slower"])


def test_the_same_code_on_a_noisy_clock_passes(clock: Clock, tmp_path: Path) -> None:
    finished(op.bench(options(save=tmp_path / "old.json", **PLANTED)))
    for _ in range(20):
        assert finished(op.bench(options(baseline=tmp_path / "old.json", **PLANTED)))["comparison"]["slower"] == []


def test_a_suspect_that_is_not_slow_again_is_noise(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    finished(op.bench(options(save=tmp_path / "old.json", **PLANTED)))
    clock.factor = 1.2

    def fresh(work: list[op.BenchOptions]) -> list[dict]:
        clock.factor = 1.0
        return bench_compare.measure(work)

    monkeypatch.setattr(bench_compare, "fresh", fresh)
    found = finished(op.bench(options(baseline=tmp_path / "old.json", **PLANTED)))["comparison"]
    assert found["slower"] == []
    assert len(found["noise"]) == 2


def test_slower_means_slower_than_every_process_of_the_baseline(clock: Clock, tmp_path: Path) -> None:
    """A process that was lucky once makes no slow-down of the others."""
    saved = tmp_path / "old.json"
    finished(op.bench(options(save=saved, **PLANTED)))
    found = json.loads(saved.read_text())
    assert all(len(row["again"]) == bench_compare.REPEATS for row in found["rows"])
    for row in found["rows"]:
        row["samples"] = [s / 1.3 for s in row["samples"]]
    saved.write_text(json.dumps(found))
    assert finished(op.bench(options(baseline=saved, **PLANTED)))["comparison"]["slower"] == []
    for row in found["rows"]:
        row["again"] = []
    saved.write_text(json.dumps(found))
    assert len(finished(op.bench(options(baseline=saved, **PLANTED)))["comparison"]["slower"]) == 2


def test_all_kernels_are_repeated_when_none_is_named(tmp_path: Path) -> None:
    rows = finished(op.bench(options(save=tmp_path / "old.json", provider_names=("eager",))))["rows"]
    assert {row["kernel"] for row in rows} == set(KERNELS)
    assert all(len(run["samples"]) >= 3 for row in rows for run in row["again"])
    assert {len(row["again"]) for row in rows} == {bench_compare.REPEATS}


def test_a_row_that_became_wrong_is_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plant(monkeypatch, "planted", lambda f: f)
    given = {"kernels": ("swiglu",), "provider_names": ("planted",)}
    finished(op.bench(options(save=tmp_path / "old.json", **given)))
    plant(monkeypatch, "planted", lambda f: lambda *a: -f(*a))
    found = finished(op.bench(options(baseline=tmp_path / "old.json", **given)))["comparison"]
    assert len(found["broken"]) == 1
    assert found["slower"] == []


@pytest.mark.slow
def test_the_same_code_passes_twenty_times(qwench, tmp_path: Path) -> None:
    args = ["bench-kernels", "rms_norm", "swiglu", "decode_product", "--providers", "eager,native", "--json"]
    args += ["--shape", "smollm2-135m", "--quick", "--streams", "1,4", "--device", "cpu"]
    assert qwench(*args, "--save", str(tmp_path / "old.json")).returncode == 0
    again = [qwench(*args, "--baseline", str(tmp_path / "old.json")) for _ in range(20)]
    assert [json.loads(done.stdout)["comparison"]["slower"] for done in again] == [[]] * 20
    assert {done.returncode for done in again} == {0}


FIFTH_SLOWER = """
import os, time
from qwench.ops.kernels import eager
from qwench.ops.bench.providers import Provider

def fifth(gate_up):
    begun = time.perf_counter()
    out = eager.silu_mul(gate_up)
    done = time.perf_counter()
    if os.path.exists(os.environ["SLOW"]):
        while time.perf_counter() - done < 0.2 * (done - begun):
            pass
    return out

PROVIDERS = {"planted": Provider("planted", lambda function, kind, device: fifth)}
"""


@pytest.mark.slow
def test_twenty_per_cent_are_seen(qwench, tmp_path: Path) -> None:
    """Through the command, so that the slow-down is confirmed in processes of their own."""
    (tmp_path / "planted.py").write_text(FIFTH_SLOWER)
    slow, old = tmp_path / "slow", tmp_path / "old.json"
    env = {"PYTHONPATH": str(tmp_path), "QWENCH_BENCH_PROVIDERS": "planted", "SLOW": str(slow)}
    args = ["bench-kernels", "swiglu", "--providers", "eager,planted", "--shape", "qwen3-0.6b", "--json"]
    args += ["--seq", "64,256,512", "--device", "cpu", "--quick"]
    assert qwench(*args, "--save", str(old), env=env).returncode == 0
    slow.touch()
    done = qwench(*args, "--baseline", str(old), env=env)
    assert done.returncode == 3, done.stderr
    found = json.loads(done.stdout)["comparison"]["slower"]
    assert {tuple(row["what"].split()[:2]) for row in found} == {("swiglu", "planted")}


def test_roofs_are_bounds_and_unknown_is_none() -> None:
    roof = roofs.Roof("planted", 100.0, {"float32": 1000.0})
    assert roof.floor(500, 10, "float32") == (0.5, "compute")
    assert roof.floor(50, 10, "float32") == (0.1, "memory")
    assert roof.floor(50, 10, "bfloat16") == (None, None)
    assert roofs.sheet("cpu").bandwidth is None
    found = roofs.measured("cpu", ["float32"], 0.02)
    assert found.bandwidth > 1e8
    assert found.peak["float32"] > 1e8
    assert "measured" in found.source


@pytest.mark.parametrize(
    "changed", [{"kernels": ("none",)}, {"shape": "none"}, {"dtypes": ("int3",)}, {"provider_names": ("none",)}]
)
def test_unknown_names(changed: dict) -> None:
    with pytest.raises(QwenchError, match="unknown") as caught:
        finished(op.bench(options(**changed)))
    assert caught.value.code == 2


def test_a_baseline_must_be_one(tmp_path: Path) -> None:
    for content in ("", "[]", '{"schema": 9}'):
        (tmp_path / "b.json").write_text(content)
        with pytest.raises(QwenchError, match="baseline"):
            finished(op.bench(options(baseline=tmp_path / "b.json")))


def test_pictures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from qwench.ops.base.plots import latency_by_streams, roofline

    row = {"kernel": "swiglu", "provider": "eager", "shape": "tiny", "dtype": "float32", "batch": 1, "seq": 1}
    row |= {"status": "ok", "flops": 10, "bytes": 20, "median": 1e-3, "floor_measured": 1e-4}
    roofline([row | {"streams": 1}], {"bandwidth": 1e9, "peak": {"float32": 1e10}}, tmp_path / "roofline.svg")
    assert "swiglu" in (tmp_path / "roofline.svg").read_text()
    latency_by_streams([row | {"streams": p} for p in (1, 2)], tmp_path / "streams.png")
    assert (tmp_path / "streams.png").stat().st_size > 1000


def test_command(qwench, tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text(
        "from qwench.ops.bench.providers import Provider\n"
        "PROVIDERS = {'planted': Provider('planted', lambda f, k, d: lambda g: g.chunk(2, -1)[0])}\n"
    )
    env = {"PYTHONPATH": str(tmp_path), "QWENCH_BENCH_PROVIDERS": "planted"}
    args = [
        "bench-kernels",
        "swiglu",
        "--shape",
        "smollm2-135m",
        "--seq",
        "8",
        "--max-seconds",
        "0.05",
        "--device",
        "cpu",
    ]
    done = qwench(*args, "--providers", "eager,planted,triton", "--explain", env=env)
    assert done.returncode == 3, done.stderr
    assert "5 T I FLOP" in done.stdout
    assert "WRONG" in done.stdout
    assert "unavailable: " in done.stdout
    assert "roof, measured" in done.stderr
    done = qwench("bench-kernels", "--list", "--json")
    assert set(json.loads(done.stdout)["kernels"]) == set(KERNELS)


def test_size_is_one_point_of_the_sweeps() -> None:
    found = cases(["rms_norm", "decode_product"], TINY, 4, {"batch": [1, 2], "seq": [3, 4], "streams": [1, 2]})
    assert [c.size for c in found if c.kernel == "rms_norm"] == [Size(b, s, 1) for b in (1, 2) for s in (3, 4)]
    assert [c.size for c in found if c.kernel == "decode_product"] == [Size(b, 3, p) for b in (1, 2) for p in (1, 2)]


@pytest.mark.parametrize("kind", ["qwen3", "qwen3 streams", "qwen3_moe"])
def test_a_model_is_split_by_kernel(tmp_path: Path, kind: str) -> None:
    """Every kernel has its time, streams' own attention too, and the parts are the whole."""
    name, _, streams = kind.partition(" ")
    folder = streamed(tmp_path, name) if streams else byte_decoder(tmp_path / "m", name)
    events = bench_model(str(folder), Runtime(device="cpu", dtype="float32"), 32, (1, 2))
    (result,) = (e.result for e in events if isinstance(e, Finished))
    assert [(s["step"], s["batch"]) for s in result["steps"]] == [
        (step, rows) for rows in (1, 2) for step in ("prefill", "decode")
    ]
    inside = {"experts"} if kind == "qwen3_moe" else {"gate_up", "down"}
    for step in result["steps"]:
        parts = step["parts"]
        assert {f"product {p}" for p in ("qkv", "out", "head", *inside)} | {"attention", "rms_norm"} <= parts.keys()
        assert ("aggregate" in parts) == bool(streams)
        assert all(seconds > 0 for name, seconds in parts.items() if name != "the rest")
        assert sum(parts.values()) == pytest.approx(step["split_seconds"])
