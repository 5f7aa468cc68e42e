"""`qwench diff` beside infinities, NaN and whole numbers that float64 cannot tell apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from qwench.ops.diff import diff
from safetensors.torch import save_file

INF, NAN = float("inf"), float("nan")


def compared(folder: Path, a: torch.Tensor, b: torch.Tensor, tolerance: float = 0.0) -> dict[str, Any]:
    for name, tensor in (("a", a), ("b", b)):
        save_file({"x": tensor}, folder / f"{name}.safetensors")
    return list(diff(*(str(folder / f"{n}.safetensors") for n in "ab"), tolerance))[-1].result


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ([1.0, INF, 2.0], [1.0, INF, 5.0], False),
        ([1.0, INF, 2.0], [1.0, 65504.0, 2.0], False),
        ([1.0, INF, 2.0], [1.0, INF, 2.0], True),
        ([1.0, INF], [1.0, -INF], False),
        ([NAN, 1.0], [NAN, 1.0], True),
        ([NAN, 1.0], [NAN, 1.5], False),
        ([INF, INF], [INF, 1.0], False),
    ],
)
@pytest.mark.parametrize("tolerance", [0.0, 1e-3])
def test_infinities_hide_nothing(a: list[float], b: list[float], same: bool, tolerance: float, tmp_path: Path) -> None:
    assert compared(tmp_path, torch.tensor(a), torch.tensor(b), tolerance)["same"] is same


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint64])
def test_whole_numbers_are_compared_to_the_last(dtype: torch.dtype, tmp_path: Path) -> None:
    a, b = (torch.tensor([2**62 + n, 7], dtype=torch.int64).to(dtype) for n in (0, 1))
    assert compared(tmp_path, a, b)["same"] is False
    assert compared(tmp_path, a, a)["same"] is True
