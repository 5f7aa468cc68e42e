"""Texts that share beginnings, computed once: the same hidden states as each text on its own."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from qwench.ops.base.runtime import Runtime
from qwench.ops.models.hub import resolve
from qwench.ops.models.load import load_encoder
from qwench.ops.models.nets import packed
from qwench.ops.models.nets.packed import Group, Run, attend_groups, runs_of

from tests.tiny import byte_decoder

HEADS = [list(range(40, 71)), list(range(90, 99)), []]
TAILS = [[[1, 2, 3], [4], [5, 6, 7, 8, 9]], [[7, 7], [8, 8]], [[1, 2, 3, 4], [9, 9, 9, 9], [6]]]


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama"])
@pytest.mark.parametrize("kernels", ["eager", "native"])
def test_hidden_states_are_those_of_whole_texts(kind: str, kernels: str, tmp_path: Path) -> None:
    folder = byte_decoder(tmp_path / "m", kind)
    loaded = load_encoder(resolve(str(folder)), Runtime(device="cpu", dtype="float32", kernels=kernels)).encoder
    with torch.inference_mode():
        for cut in (slice(0, 3), slice(0, 2), slice(2, 3)):
            found = loaded.shared_hidden(HEADS[cut], TAILS[cut])
            whole = [h + t for h, group in zip(HEADS[cut], TAILS[cut], strict=True) for t in group]
            wanted = [loaded.last_hidden(torch.tensor(ids), [len(ids)]) for ids in whole]
            assert torch.allclose(found, torch.cat(wanted), atol=1e-5)


def varlen(q: Any, k: Any, v: Any, starts: Any, key_starts: Any, *rest: Any, scale: float | None = None) -> Any:
    """What PyTorch's flash attention computes of sequences laid end to end, in float32 and by the definition."""
    causal, heads = rest[3], q.shape[1]
    out, lse = torch.zeros_like(q), torch.zeros(heads, len(q))
    k, v = (t.repeat_interleave(heads // t.shape[1], 1) for t in (k, v))
    for i in range(len(starts) - 1):
        rows, keys = slice(starts[i], starts[i + 1]), slice(key_starts[i], key_starts[i + 1])
        scores = torch.einsum("qhd,khd->hqk", q[rows], k[keys]) * (scale or q.shape[-1] ** -0.5)
        if causal:
            n, m = scores.shape[1:]
            scores = scores.masked_fill(~torch.ones(n, m, dtype=torch.bool).tril(m - n), -math.inf)
        lse[:, rows] = scores.logsumexp(-1)
        out[rows] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[keys])
    return out, lse


@pytest.mark.parametrize("only", [False, True])
@pytest.mark.parametrize("cut", [slice(0, 3), slice(0, 2), slice(2, 3)])
def test_two_calls_for_all_groups(only: bool, cut: slice, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of a GPU, its kernel's place taken by the definition, against the one that goes group by group."""
    heads, groups, at = [len(h) for h in HEADS[cut] if h], [], 0
    row = sum(heads)
    for head, tails in zip(HEADS[cut], TAILS[cut], strict=True):
        runs = [Run(r.start + row, r.count, r.length) for r in runs_of([len(t) for t in tails])]
        groups.append(Group(range(at, at + len(head)), tuple(runs)))
        at, row = at + len(head), groups[-1].rows.stop
    torch.manual_seed(0)
    q, k, v = torch.randn(row, 4, 8), torch.randn(row, 2, 8), torch.randn(row, 2, 8)
    lengths = [len(t) for tails in TAILS[cut] for t in tails]
    ends = (torch.tensor(lengths).cumsum(0) + sum(heads) - 1).tolist() if only else None
    asked = q[ends] if ends else q
    one_by_one = attend_groups(asked, k, v, runs_of(heads), groups, ends=ends)
    monkeypatch.setattr(packed, "_one_call", lambda _: True)
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", varlen)
    at_once = attend_groups(asked, k, v, runs_of(heads), groups, ends=ends)
    assert at_once.shape == one_by_one.shape == (len(lengths) if only else row, 32)
    assert torch.allclose(at_once, one_by_one, atol=1e-5)
