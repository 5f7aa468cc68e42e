"""Wrong inputs of every kind are refused before C sees them, and the memory around right ones stays as it is."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from qwench.ops.base.errors import QwenchError
from qwench.ops.base.runtime import Runtime
from qwench.ops.kernels.native import border, rows
from qwench.ops.kernels.native import library as native_library
from qwench.ops.kernels.native.border import Matrix
from qwench.ops.kernels.native.linear import BlockLinear, NativeLinear, linear, to_blocks
from qwench.ops.kernels.native.step import DecodeStep, attend
from qwench.ops.models.hub import resolve
from qwench.ops.models.load import load_encoder
from qwench.ops.writing.load import load_causal

from tests.streams.test_parscale import streamed
from tests.tiny import byte_decoder, tiny_bert

pytestmark = pytest.mark.skipif(not native_library.available().value, reason=native_library.available().reason)

Call = tuple[Callable[..., Any], dict[str, Any]]


def r(*shape: int) -> torch.Tensor:
    return torch.randn(*shape)


def calls() -> dict[str, Call]:
    """A right call of every wrapper."""
    cache = {"q": r(4, 6, 8), "keys": r(4, 2, 5, 8), "values": r(4, 2, 5, 8), "lengths": [5, 1, 2, 3]}
    return {
        "rms_norm": (rows.rms_norm, {"x": r(3, 8), "weight": r(8), "eps": 1e-6}),
        "add_rms_norm": (rows.add_rms_norm, {"x": r(3, 8), "residual": r(3, 8), "weight": r(8), "eps": 1e-6}),
        "norm_rotate": (
            rows.norm_rotate,
            {"x": r(3, 2, 8), "weight": r(2, 8), "eps": 1e-6, "cos": r(3, 1, 8), "sin": r(3, 1, 8)},
        ),
        "silu_mul": (rows.silu_mul, {"gate_up": r(3, 8)}),
        "gated": (rows.gated, {"y": r(3, 8), "gate": r(3, 2), "heads": 2}),
        "join": (rows.join, {"hidden": r(3, 8), "h": r(3, 2, 8), "w2": r(2, 8), "b2": r(2), "smooth": 0.1}),
        "linear": (linear, {"x": r(3, 8), "weight": r(5, 8), "bias": r(5)}),
        "attend": (attend, cache | {"prefix_keys": r(2, 2, 3, 8), "prefix_values": r(2, 2, 3, 8)}),
    }


TENSORS = [(name, key) for name, (_, given) in calls().items() for key, v in given.items() if torch.is_tensor(v)]


@pytest.mark.parametrize("name", calls())
def test_right_inputs_are_taken(name: str) -> None:
    call, given = calls()[name]
    assert all(t.isfinite().all() for t in (call(**given), torch.zeros(1)) if torch.is_tensor(t))


@pytest.mark.parametrize(("name", "key"), TENSORS)
def test_dtypes_devices_and_kinds(name: str, key: str) -> None:
    call, given = calls()[name]
    right = given[key]
    wrong = [right.double(), right.to("meta"), right.tolist(), right.to_sparse()]
    if key != "weight" or name != "linear":
        wrong.append(right.bfloat16())
    for bad in wrong:
        with pytest.raises(TypeError, match="must be"):
            call(**given | {key: bad})


@pytest.mark.parametrize(("name", "key"), TENSORS)
def test_shapes(name: str, key: str) -> None:
    """Less or more of any dimension, and one too many or too few."""
    call, given = calls()[name]
    right = given[key]
    # Nothing else tells how many rows there are.
    free = {("rms_norm", "x", 0), ("silu_mul", "gate_up", 0), ("linear", "x", 0)}
    for at in range(right.dim()):
        shorter = right.narrow(at, 0, right.shape[at] - 1).contiguous()
        longer = torch.cat((right, right.narrow(at, 0, 1)), at)
        for bad in () if (name, key, at) in free else (shorter, longer):
            with pytest.raises(ValueError):
                call(**given | {key: bad})
    for bad in (right.unsqueeze(0), right[0]):
        with pytest.raises((TypeError, ValueError)):
            call(**given | {key: bad})


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("gated", {"heads": 3}, "heads"),
        ("gated", {"heads": 0}, "heads"),
        ("norm_rotate", {"x": r(3, 2, 7), "weight": r(2, 7), "cos": r(3, 1, 7), "sin": r(3, 1, 7)}, "halves"),
        ("silu_mul", {"gate_up": r(3, 7)}, "halves"),
        ("rms_norm", {"x": r(3, 0), "weight": r(0)}, "may be 0"),
        ("linear", {"x": r(3, 0), "weight": r(5, 0)}, "may be 0"),
        ("linear", {"x": r(3, 8), "weight": r(8, 5).t()}, "contiguous"),
        ("attend", {"lengths": [5, 1, 2, 6]}, "cache of 5"),
        ("attend", {"lengths": [5, 1, 2, -1]}, "cache of 5"),
        ("attend", {"lengths": [5, 1, 2]}, "go together"),
        ("attend", {"prefix_keys": None}, "must be a tensor"),
        ("attend", {"prefix_keys": None, "prefix_values": None, "lengths": [5, 0, 2, 1]}, "cache of 5"),
        ("attend", {"q": r(4, 5, 8)}, "no multiple"),
        ("attend", {"q": r(4, 6, 520), "keys": r(4, 2, 5, 520), "values": r(4, 2, 5, 520)}, "512 wide"),
        ("attend", {"values": r(4, 2, 8, 5).transpose(2, 3)}, "lie alike"),
        ("attend", {"prefix_keys": r(3, 2, 3, 8), "prefix_values": r(3, 2, 3, 8)}, "go together"),
    ],
)
def test_what_does_not_go_together(name: str, change: dict[str, Any], said: str) -> None:
    call, given = calls()[name]
    with pytest.raises((TypeError, ValueError), match=said):
        call(**given | change)


def test_rows_of_no_tokens_and_any_layout() -> None:
    """What is right stays so: nothing at all, transposed, expanded, every other."""
    for name in ("rms_norm", "add_rms_norm", "silu_mul"):
        call, given = calls()[name]
        none = {key: v[:0] if torch.is_tensor(v) and v.dim() == 2 else v for key, v in given.items()}
        found = call(**given | none)
        assert len(found if torch.is_tensor(found) else found[0]) == 0
    assert linear(r(0, 8), r(5, 8)).shape == (0, 5)
    weight = r(16)[::2]
    torch.testing.assert_close(rows.rms_norm(r(8, 3).t() * 0 + 1, weight, 0.0), weight.expand(3, 8))
    x = r(1, 8).expand(3, 8)
    torch.testing.assert_close(linear(x, torch.eye(8)), x)
    layer = NativeLinear(torch.eye(8), torch.tensor(2.0).expand(8))
    torch.testing.assert_close(layer.narrow(x), x + 2)


@pytest.mark.parametrize(
    ("data", "kind", "shape"),
    [
        (torch.zeros(3, 34, dtype=torch.uint8), "q8_0", (4, 32)),
        (torch.zeros(3, 34, dtype=torch.uint8), "q8_0", (3, 64)),
        (torch.zeros(3, 34, dtype=torch.uint8), "q8_0", (3, 33)),
        (torch.zeros(3, 34, dtype=torch.uint8), "q4_1", (3, 32)),
        (torch.zeros(3, 34, dtype=torch.uint8), "q5_0", (3, 32)),
        (torch.zeros(3, 34, dtype=torch.int8), "q8_0", (3, 32)),
        (torch.zeros(102, dtype=torch.uint8), "q8_0", (3, 32)),
    ],
)
def test_blocks(data: torch.Tensor, kind: str, shape: tuple[int, int]) -> None:
    with pytest.raises((TypeError, ValueError)):
        BlockLinear(data, kind, shape, few=4)


def test_weights_that_no_matrix_can_be_of() -> None:
    for weight in (
        r(4, 8).double(),
        r(4),
        r(0, 8),
        r(2, 3, 4),
        r(4, 8).to("meta"),
        torch.ones(4, 8, dtype=torch.int32),
    ):
        with pytest.raises((TypeError, ValueError)):
            NativeLinear(weight, few=4)
    for bias in (r(3), r(4, 1), r(4).double()):
        with pytest.raises((TypeError, ValueError)):
            Matrix.of(r(4, 8), bias)
    for weight, kind in ((r(4, 33), "q8_0"), (r(4, 32), "q6_k"), (r(4, 32).double(), "q8_0")):
        with pytest.raises((TypeError, ValueError)):
            to_blocks(weight, kind)
    layer = NativeLinear(r(4, 8), few=4)
    for x in (r(3, 7), r(3, 9), r(3, 8).double(), r(8)):
        with pytest.raises((TypeError, ValueError)):
            layer.narrow(x)


HEADS, KV, WIDTH, HIDDEN, INNER, PLACES = 4, 2, 8, 24, 40, 6


def layer_of(**change: Any) -> dict[str, Any]:
    shapes = {"qkv": ((HEADS + 2 * KV) * WIDTH, HIDDEN), "out": (HIDDEN, HEADS * WIDTH)}
    shapes |= {"gate_up": (2 * INNER, HIDDEN), "down": (HIDDEN, INNER)}
    shapes |= {name: change.pop(name) for name in tuple(change) if name in shapes}
    layer = {name: NativeLinear(r(*shape), few=4) for name, shape in shapes.items()}
    return layer | {"norm1": r(HIDDEN), "norm2": r(HIDDEN), "qk_norm": r(HEADS + KV, WIDTH)} | change


def step_of(*layers: dict[str, Any], **change: Any) -> DecodeStep:
    given: dict[str, Any] = {"layers": list(layers or (layer_of(), layer_of())), "norm": r(HIDDEN)}
    given |= {"words": Matrix.of(r(11, HIDDEN)), "heads": HEADS, "kv_heads": KV, "width": WIDTH, "eps": 1e-6}
    return DecodeStep(**given | change)


@pytest.mark.parametrize(
    "change",
    [
        {"norm": r(HIDDEN + 1)},
        {"norm": r(HIDDEN).double()},
        {"heads": 3},
        {"heads": 8},
        {"kv_heads": 3},
        {"width": 16},
        {"width": 7},
        {"width": 1024},
        {"layers": []},
    ],
)
def test_a_step_is_checked_when_it_is_made(change: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        step_of(**change)


@pytest.mark.parametrize(
    "change",
    [
        {"qkv": (64, HIDDEN + 1)},
        {"qkv": (63, HIDDEN)},
        {"qkv": (70, HIDDEN)},
        {"out": (HIDDEN, 31)},
        {"out": (HIDDEN - 1, 32)},
        {"gate_up": (2 * INNER - 2, HIDDEN)},
        {"down": (HIDDEN, INNER + 1)},
        {"down": (HIDDEN + 1, INNER)},
        {"norm1": r(HIDDEN - 1)},
        {"norm2": None},
        {"qk_norm": r(HEADS, WIDTH)},
        {"down": (HIDDEN, INNER * 2), "gate_up": (4 * INNER, HIDDEN)},
    ],
)
def test_layers_are_checked_one_by_one(change: dict[str, Any]) -> None:
    """The last change is right alone, and not beside a first layer that is smaller."""
    with pytest.raises((TypeError, ValueError)):
        step_of(layer_of(), layer_of(**change))


def test_a_step_s_own_inputs() -> None:
    step, cos, sin = step_of(), r(PLACES, WIDTH), r(PLACES, WIDTH)
    right = {"ids": [10, 3], "slots": [1, 0], "past": [5, 2], "cos": cos, "sin": sin}
    with pytest.raises(ValueError, match="cache with 0"):
        step(**right)
    caches = [(torch.zeros(3, KV, PLACES, WIDTH), torch.zeros(3, KV, PLACES, WIDTH)) for _ in range(2)]
    for bad in (
        r(3, KV, PLACES, WIDTH + 1),
        r(3, KV + 1, PLACES, WIDTH),
        r(3, KV, WIDTH, PLACES).mT,
        r(3, KV, 6, 8)[::2],
    ):
        with pytest.raises((TypeError, ValueError)):
            step.cache(0, bad, bad)
    with pytest.raises(TypeError):
        step.cache(0, *(t.double() for t in caches[0]))
    for at, pair in enumerate(caches):
        step.cache(at, *pair)
    assert step(**right).isfinite().all()
    for change in (
        {"ids": [11, 3]},
        {"ids": [-1, 3]},
        {"ids": [1]},
        {"ids": [], "slots": [], "past": []},
        {"slots": [3, 0]},
        {"slots": [-1, 0]},
        {"slots": [1, 1]},
        {"past": [PLACES, 0]},
        {"past": [0, -1]},
        {"cos": cos[:5]},
        {"sin": r(WIDTH, PLACES).t()},
        {"cos": cos.double()},
        {"cos": r(PLACES, WIDTH + 1)},
        {"ids": [1] * 300, "slots": list(range(300)), "past": [0] * 300},
    ):
        with pytest.raises((TypeError, ValueError)):
            step(**right | change)
    # A cache that could not grow with the others bounds the step.
    step.cache(1, torch.zeros(3, KV, 4, WIDTH), torch.zeros(3, KV, 4, WIDTH))
    with pytest.raises(ValueError, match="cache of 4"):
        step(**right)
    for streams, layers in ((2, 1), (2, 3), (0, 2)):
        with pytest.raises(ValueError):
            step.prefixes(*([r(streams, KV, 3, WIDTH)] * layers for _ in range(2)))
    step.prefixes(*([r(2, KV, 3, WIDTH)] * 2 for _ in range(2)))
    with pytest.raises(ValueError, match="slots"):
        step([1], [1], [0], cos, sin)  # rows 2 and 3 of three
    assert step([1], [0], [0], cos, sin).shape == (2, HIDDEN)


def test_any_number_of_threads_and_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither lies on C's stack without a bound."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1 << 30)
    assert border.threads() == border.MOST_THREADS
    monkeypatch.undo()
    many = 1 << 20
    found = rows.join(r(1, 4), r(1, many, 4), r(many, 4), r(many), 0.0)
    assert found.isfinite().all()
    wide = to_blocks(torch.ones(1, 32 << 17), "q8_0")
    assert wide.shape == (1, 34 << 17)


@pytest.mark.parametrize("change", [{"num_key_value_heads": 3}, {"head_dim": 15}, {"num_attention_heads": 0}])
@pytest.mark.parametrize("kernels", ["native", "eager"])
def test_a_checkpoint_with_heads_that_cannot_be(change: dict[str, int], kernels: str, tmp_path: Path) -> None:
    folder = byte_decoder(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(QwenchError, match=r"heads"):
        load_causal(resolve(str(folder)), runtime=Runtime(device="cpu", dtype="float32", kernels=kernels))


def test_an_encoder_and_streams_that_cannot_be(tmp_path: Path) -> None:
    for folder, change, said in (
        (tiny_bert(tmp_path / "bert"), {"num_attention_heads": 3}, "3 attention heads"),
        (streamed(tmp_path, "qwen3"), {"parscale_n_tokens": 0}, "without a prefix"),
    ):
        config = json.loads((folder / "config.json").read_text()) | change
        (folder / "config.json").write_text(json.dumps(config))
        load = load_encoder if folder.name == "bert" else load_causal
        with pytest.raises(QwenchError, match=said):
            load(resolve(str(folder)), Runtime(device="cpu", dtype="float32", kernels="native"))


def test_without_assertions_too() -> None:
    code = (
        "import torch; from qwench.ops.kernels.native import library, rows; library.available()\n"
        "try: rows.rms_norm(torch.ones(3, 8), torch.ones(4), 1e-6)\n"
        "except ValueError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "`weight` must have the shape (8,), and has (4,)\n", done.stderr


def test_no_check_is_an_assertion() -> None:
    """Which `python -O` would leave out."""
    for file in Path(border.__file__).parent.glob("*.py"):
        code = compile(file.read_text("utf-8"), str(file), "exec", ast.PyCF_ONLY_AST)
        assert not [node.lineno for node in ast.walk(code) if isinstance(node, ast.Assert)], file
