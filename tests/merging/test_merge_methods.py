"""Merge methods against plain float64 formulas, and those that draw at random against mergekit seeded alike."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import torch
from mergekit.merge_methods.api import merge_tensors
from qwench.ops.merging import ties as ties_module
from qwench.ops.merging.arithmetic import Job, slerp
from qwench.ops.merging.methods import find_method
from qwench.ops.merging.ties import _bracketed, _counted

A, B, C, BASE = (
    torch.randn(24, 33, generator=torch.Generator().manual_seed(0))
    + 0.3 * bool(i) * torch.randn(24, 33, generator=torch.Generator().manual_seed(i))
    for i in range(1, 5)
)
WIDE = [t.double().numpy() for t in (A, B, C, BASE)]
GTA = {"int8_mask": False, "normalize": True, "rescale": False, "lambda": 1.0}


def run(method: str, tensors: dict[str, torch.Tensor], base: str | None, parameters: dict, seed: int = 0) -> np.ndarray:
    names = tuple(tensors)
    job = Job(find_method(method), "w", names, names.index(base) if base else None, parameters, torch.float32, seed)
    return torch.cat(list(job.run(list(tensors.values())))).view(24, 33).double().numpy()


def trimmed(delta: np.ndarray, density: float, outliers: float = 0.0) -> np.ndarray:
    """The largest magnitudes, the very largest left out: by a plain sort."""
    order = np.argsort(np.abs(delta), axis=None)
    count, top = int(density * delta.size), int(outliers * delta.size)
    low = max(0, delta.size - count - top)
    kept = np.zeros(delta.size)
    kept[order[low : low + count]] = 1
    return delta * kept.reshape(delta.shape)


def elected(deltas: list[np.ndarray], weights: list[float]) -> np.ndarray:
    """Mean by weight of what has the sign of the sum, counted one element at a time."""
    out = np.zeros(deltas[0].size)
    for i, column in enumerate(zip(*(d.reshape(-1) for d in deltas), strict=True)):
        sign = 1 if sum(w * d for w, d in zip(weights, column, strict=True)) >= 0 else -1
        agree = [(w, d) for w, d in zip(weights, column, strict=True) if w * d * sign > 0]
        out[i] = sum(w * d for w, d in agree) / sum(w for w, _ in agree) if agree else 0
    return out.reshape(deltas[0].shape)


def near(got: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(got, wanted, rtol=2e-6, atol=2e-6)


def test_plain_formulas() -> None:
    a, b, c, base = WIDE
    abc, both = {"a": A, "b": B, "c": C}, {"a": A, "b": B, "base": BASE}
    weights = {"a": 0.5, "b": 1.5, "c": 1.0}
    two = {"a": 0.7, "b": 0.4}
    near(run("linear", abc, None, {"weight": weights, "normalize": True}), (0.5 * a + 1.5 * b + c) / 3)
    near(run("linear", abc, None, {"weight": weights, "normalize": False}), 0.5 * a + 1.5 * b + c)
    plain = {"weight": two, "density": {"a": 1.0, "b": 1.0}}
    wanted = base + 0.7 * (a - base) + 0.4 * (b - base)
    near(run("task_arithmetic", both, "base", GTA | plain | {"normalize": False}), wanted)
    sparse = {"weight": two, "density": {"a": 0.4, "b": 0.7}}
    deltas = [trimmed(a - base, 0.4), trimmed(b - base, 0.7)]
    near(run("ties", both, "base", GTA | sparse), base + elected(deltas, [0.7, 0.4]))
    near(run("ties", both, "base", GTA | sparse | {"lambda": 0.5}), base + 0.5 * elected(deltas, [0.7, 0.4]))
    gamma = {"gamma": {"a": 0.05, "b": 0.05}}
    deltas = [trimmed(a - base, 0.4, 0.05), trimmed(b - base, 0.7, 0.05)]
    summed = base + 0.7 * deltas[0] + 0.4 * deltas[1]
    near(run("breadcrumbs", both, "base", GTA | sparse | gamma | {"normalize": False}), summed)
    near(run("breadcrumbs_ties", both, "base", GTA | sparse | gamma), base + elected(deltas, [0.7, 0.4]))
    share = np.clip(0.2 / np.maximum(np.abs(a - b), 1e-6), 0, 1)
    near(run("nearswap", {"a": A, "b": B}, "a", {"t": 0.2}), share * b + (1 - share) * a)


def test_plain_formulas_of_angles() -> None:
    a, b, _, base = WIDE

    def angle(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.arccos((x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y)))

    theta = angle(a, b)
    wanted = (np.sin(0.7 * theta) * a + np.sin(0.3 * theta) * b) / np.sin(theta)
    got = torch.cat(list(slerp(A.reshape(-1), B.reshape(-1), 0.3, torch.float32))).view(24, 33).numpy()
    near(got, wanted)
    near(run("slerp", {"a": A, "b": B}, "a", {"t": 0.3}), wanted)
    x, y = a - base, b - base
    k = np.cos(angle(x, y))
    t = 2 * k / (1 + k)
    both = {"a": A, "b": B, "base": BASE}
    near(run("model_stock", both, "base", {"filter_wise": False}), t * (a + b) / 2 + (1 - t) * base)


@pytest.mark.parametrize("method", ["dare_ties", "dare_linear", "della", "della_linear"])
def test_random_methods_are_mergekits_from_the_same_seed(method: str) -> None:
    names, tensors = ("a", "b", "base"), [A, B, BASE]
    known = {p.name for p in find_method(method).spec.parameters}
    parameters = GTA | {"weight": {"a": 0.7, "b": 0.4}, "density": {"a": 0.5, "b": 0.6}}
    parameters |= {"epsilon": {"a": 0.1, "b": 0.1}} if "epsilon" in known else {}
    parameters["rescale"] = True
    got = run(method, dict(zip(names, tensors, strict=True)), "base", parameters, seed=5)
    torch.manual_seed(5 ^ zlib.crc32(b"w"))
    wanted = merge_tensors(tensors, method, parameters=parameters, ids=names, base_index=2, dtype=torch.float32)
    assert np.array_equal(got, wanted.double().numpy())
    again = run(method, dict(zip(names, tensors, strict=True)), "base", parameters, seed=6)
    assert not np.array_equal(got, again)


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "equal", "one"])
@pytest.mark.parametrize("density", [1e-6, 0.1, 0.5, 0.999])
def test_the_rank_of_a_threshold(kind: str, density: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a sample, from histograms and from a sort; where values repeat, too."""
    count = 1 << 18
    base = torch.randn(count, generator=torch.Generator().manual_seed(1))
    tensor = base + torch.randn(count, generator=torch.Generator().manual_seed(2))
    if kind == "bfloat16":
        base, tensor = base.bfloat16(), tensor.bfloat16()
    elif kind in ("equal", "one"):
        base, tensor = torch.zeros(count), (tensor - base).round() if kind == "equal" else torch.ones(count)
    sizes = np.abs(tensor.float().numpy() - base.float().numpy())
    wanted = max(1, int(density * count))
    least = np.sort(sizes)[::-1][wanted - 1]
    truth = (float(least), wanted - int((sizes > least).sum()), int((sizes == least).sum()))
    assert _counted(base, tensor, wanted) == truth
    assert _bracketed(base, tensor, wanted) == truth
    monkeypatch.setattr(ties_module, "KEPT", 10)
    assert kind == "float32" or _bracketed(base, tensor, wanted) in (None, truth)
