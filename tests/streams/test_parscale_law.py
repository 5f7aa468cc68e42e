"""The parallel scaling law: counts, fit, predictions, costs, and the command."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from qwench.cli import config as settings
from qwench.ops import parscale_law as op
from qwench.ops.base.errors import QwenchError
from qwench.ops.base.events import Chose, Finished, Warned
from qwench.ops.streams import fit as fitting
from qwench.ops.streams import roofline
from qwench.ops.streams import size as size
from qwench.ops.streams.fit import Fit, fit, leave_one_out, objective
from qwench.ops.streams.law import (
    LOSSES,
    PUBLISHED,
    SIZES,
    Law,
    Point,
    published_points,
    published_shape,
    shape_for,
)
from qwench.ops.streams.points import number, read_points
from qwench.ops.streams.train_cost import training_cost

from tests.conftest import Run

#: N of the authors' `parametric_fit.py`, P = 1, 2, 4, 8
COUNTS = {
    "0.5B": (535_813_376, 538_195_842, 540_577_412, 545_340_552),
    "0.7B": (693_753_856, 696_738_818, 699_722_756, 705_690_632),
    "1.1B": (1_088_376_320, 1_092_762_882, 1_097_148_164, 1_105_918_728),
    "1.6B": (1_571_472_384, 1_577_522_690, 1_583_571_460, 1_595_669_000),
    "2.8B": (2_774_773_760, 2_784_937_986, 2_795_100_164, 2_815_424_520),
    "4.4B": (4_353_203_200, 4_368_529_922, 4_383_854_084, 4_414_502_408),
}
TINY: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 80,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "mlp_only_layers": [1]}


@pytest.fixture(scope="module")
def fits() -> dict[str, Fit]:
    return {corpus: fit(published_points(corpus)) for corpus in LOSSES}


def run(**options: Any) -> tuple[dict[str, Any], list[Any]]:
    """Result and events of the op, fitted from a few of the starts: the grid has tests of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "STARTS", fitting.STARTS[::40])
        return followed(**options)


def followed(**options: Any) -> tuple[dict[str, Any], list[Any]]:
    events = list(op.parscale_law(op.LawOptions(**options)))
    assert isinstance(events[-1], Finished)
    return events[-1].result, events


def test_the_formula_gives_the_published_counts() -> None:
    for name, widths in SIZES.items():
        shape = published_shape(*widths)
        base = size.base_parameters(shape).body
        assert [base + size.added_of(shape, p) for p in (1, 2, 4, 8)] == list(COUNTS[name])
    assert {p.parameters for p in published_points("pile")} == {n for row in COUNTS.values() for n in row}
    # Qwen3-0.6B with 8 streams: 22,020,096 of prefixes and 8,397,832 of the aggregator.
    assert size.added_parameters(28, 8, 128, 1024, 8) == 22_020_096 + 8_397_832


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "qwen2", "tie_word_embeddings": True},
        {"model_type": "qwen3", "head_dim": 24, "tie_word_embeddings": True},
        {"model_type": "qwen3", "attention_bias": True, "num_key_value_heads": 4},
        {"model_type": "qwen3_moe", "head_dim": 16, **EXPERTS},
        {"model_type": "qwen3_moe", "head_dim": 16, **EXPERTS, "mlp_only_layers": [], "decoder_sparse_step": 2},
        {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    ],
    ids=lambda c: c["model_type"],
)
def test_parameters_are_those_of_transformers(config: dict[str, Any]) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**TINY | config))
    counts = size.base_parameters(TINY | config)
    table = model.get_input_embeddings().weight.numel()
    tied = config.get("tie_word_embeddings", False)
    assert counts.total == sum(p.numel() for p in model.parameters())
    assert (counts.embedding, counts.head) == (table, 0 if tied else table)
    sparse = size.shape_of(TINY | config).sparse
    assert counts.body - counts.active == sparse * 2 * 3 * 64 * 24
    assert size.added_of(TINY | config, 1) == 0


def test_unknown_families_and_damaged_configs_are_refused() -> None:
    with pytest.raises(QwenchError, match="`gpt2`"):
        size.shape_of(TINY | {"model_type": "gpt2"})
    with pytest.raises(QwenchError, match="`hidden_size`"):
        size.shape_of(TINY | {"model_type": "qwen3", "hidden_size": None})


@pytest.mark.parametrize("corpus", LOSSES)
def test_the_fit_reproduces_the_published_constants(corpus: str, fits: dict[str, Fit]) -> None:
    found, published, points = fits[corpus], PUBLISHED[corpus], published_points(corpus)
    # To the digits that were published, give or take one in the last: E 4, A 4, k 4, alpha 4.
    assert abs(found.law.E - published.E) < 3e-4
    assert abs(found.law.A / published.A - 1) < 1e-3
    assert found.law.k == pytest.approx(published.k, abs=2e-4)
    assert found.law.alpha == pytest.approx(published.alpha, abs=1e-4)
    assert found.objective <= objective(published, points)
    assert found.r2 == pytest.approx({"stack": 0.9978, "pile": 0.9987}[corpus], abs=5e-5)
    for p in points:
        assert found.law.loss(p.parameters, p.streams) == pytest.approx(
            published.loss(p.parameters, p.streams), abs=2e-4
        )
        assert abs(published.loss(p.parameters, p.streams) - p.loss) < 0.012
    assert found.starts_near > 10


def made(law: Law, noise: float = 0.0, seed: int = 0) -> list[Point]:
    """Points of a law, each with an error of its own."""
    rng = random.Random(seed)
    sizes = [2e8 * 1.7**i for i in range(8)]
    return [Point(n, p, law.loss(n, p) * (1 + rng.gauss(0, noise))) for n in sizes for p in (1, 2, 4)]


def test_a_fit_finds_the_law_its_points_come_from() -> None:
    truth = Law(E=1.4, A=3e8, k=0.6, alpha=0.35)
    found = fit(made(truth)).law
    for name in ("E", "A", "k", "alpha"):
        assert getattr(found, name) == pytest.approx(getattr(truth, name), rel=1e-3)
    points = made(truth, 5e-4)
    best = fit(points)
    spread = leave_one_out(points, best.law)
    for name in ("E", "k", "alpha"):
        assert abs(getattr(best.law, name) - getattr(truth, name)) < 4 * spread["constants"][name]["standard_error"]
    assert spread["refits"] == 24 and spread["not_determined"] == 0
    # An outlier moves a Huber fit little.
    points[5] = Point(points[5].parameters, points[5].streams, points[5].loss * 1.2)
    assert fit(points, best.law).law.loss(1e9, 4) == pytest.approx(truth.loss(1e9, 4), abs=0.01)


def test_a_law_inverts_itself() -> None:
    law = PUBLISHED["stack"]
    for p in (1, 2, 8):
        assert law.parameters_for(law.loss(1.6e9, p), p) == pytest.approx(1.6e9)
        assert law.loss(law.equivalent(1.6e9, p), 1) == pytest.approx(law.loss(1.6e9, p), rel=1e-12)
    assert [round(law.multiplier(p), 3) for p in (1, 2, 4, 8)] == [1.0, 1.273, 1.546, 1.818]
    with pytest.raises(QwenchError, match="no size reaches"):
        law.parameters_for(law.E)


def test_points_that_determine_nothing_are_refused() -> None:
    good = made(PUBLISHED["stack"])
    for points, what in (
        (good[:4], "4 points"),
        ([p for p in good if p.streams == 1], "nothing of k"),
        ([Point(1e9 * (1 + i / 100), 1 + i % 2, 2.0 + i / 100) for i in range(8)], "three sizes"),
        ([Point(p.parameters, p.streams, 2.0) for p in good], "same loss"),
        ([*good, Point(-1e9, 1, 1.0)], "point 25"),
        ([*good, Point(1e9, 1, math.nan)], "loss nan"),
        ([*good, Point(1e9, 0, 1.0)], "p 0"),
    ):
        with pytest.raises(QwenchError, match=what):
            fit(points)


def test_points_of_every_format_are_the_same(tmp_path: Path) -> None:
    rows = [{"n": "0.5B", "p": 1, "loss": 1.5}, {"n": "1_500_000", "p": 2, "loss": "1.25"}]
    (tmp_path / "a.csv").write_text("Parameters,streams,loss,note\n0.5B,1,1.5,x\n1_500_000,2,1.25,\n")
    (tmp_path / "a.json").write_text(json.dumps({"points": rows}))
    (tmp_path / "a.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    expected = [Point(5e8, 1, 1.5), Point(1.5e6, 2, 1.25)]
    assert [read_points(tmp_path / f"a.{kind}") for kind in ("csv", "json", "jsonl")] == [expected] * 3
    for name, text, what in (
        ("b.csv", "n,p\n1,1\n", "`loss`"),
        ("b.jsonl", '{"n": true, "p": 1, "loss": 1}', "no number: `True`"),
        ("b.json", "[1]", "no object"),
        ("b.json", "{", "not JSON"),
        ("b.json", '{"n": 1}', "no list"),
        ("b.csv", "n,p,loss\n1,1.5,1\n", "no whole number"),
        ("b.csv", "n,p,loss\n1,,1\n", "`p` that is no number"),
        ("b.txt", "", "this kind of file"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(QwenchError, match=what):
            read_points(tmp_path / name)
    assert [number(t) for t in ("1.7B", "3e8", "12M", 7)] == [1.7e9, 3e8, 1.2e7, 7.0]


def test_costs_count_what_torch_counts() -> None:
    """Forward, and backward with frozen and trained weights, against torch's own counter."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoConfig, AutoModelForCausalLM

    length = 16
    config = TINY | {"model_type": "qwen3", "head_dim": 16, "hidden_size": 128, "intermediate_size": 384}
    kept = {}
    for trained in ("added", "all"):
        made = AutoConfig.for_model(**config)
        made._attn_implementation = "sdpa"
        model = AutoModelForCausalLM.from_config(made).requires_grad_(trained == "all")
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        saved: dict[int, int] = {}

        def pack(t: Any, own: set[int] = own, saved: dict[int, int] = saved) -> Any:
            if (at := t.untyped_storage().data_ptr()) not in own:
                saved[at] = t.untyped_storage().nbytes()
            return t

        x = torch.randn(2, length, 128, requires_grad=True)
        with FlopCounterMode(display=False) as counted:
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
                logits = model(inputs_embeds=x).logits
            forward = counted.get_total_flops()
            logits.sum().backward()
        cost = training_cost(config, 1, 2 * length, trained, length, 2, dtype_bytes=4)
        assert counted.get_total_flops() == pytest.approx(cost.flops, rel=0.05)
        again = training_cost(config, 1, 2 * length, trained, length, 2, dtype_bytes=4, checkpointing=True)
        kept[trained] = sum(saved.values())
        assert cost.activations == pytest.approx(kept[trained], rel=0.1)
        assert again.activations < cost.activations and again.flops > cost.flops
    prefill = size.prefill_cost(config, 1, 2, length).flops
    head = 2 * 2 * (length - 1) * 80 * 128  # the model gives logits to every token, a prefill to the last
    assert forward == pytest.approx(prefill + head, rel=0.05)


def test_training_costs_follow_from_what_is_trained() -> None:
    config = TINY | {"model_type": "qwen2", "tie_word_embeddings": True}
    added, counts = size.added_of(config, 4), size.base_parameters(config)
    some, everything = (training_cost(config, 4, 1000, kind, 50, 2) for kind in ("added", "all"))
    assert (some.trained, some.frozen) == (added, counts.total)
    assert (everything.trained, everything.frozen) == (added + counts.total, 0)
    assert some.weights == 2 * counts.total + 4 * added and some.optimizer == 8 * added and some.gradients == 4 * added
    assert some.flops < everything.flops < 5 * everything.flops_base and everything.flops > 3.5 * everything.flops_base
    assert some.seconds(None) is None and some.seconds(1e6) == some.flops / 1e6
    assert some.memory == some.weights + some.gradients + some.optimizer + some.activations + some.logits
    with pytest.raises(QwenchError, match="`most`"):
        training_cost(config, 4, 1000, "most", 50, 2)


def test_streams_share_one_read_of_the_weights() -> None:
    shape = published_shape(*SIZES["1.6B"])
    one, eight = (size.decode_cost(shape, p, 1, 256) for p in (1, 8))
    weights = 2 * (size.base_parameters(shape).body + shape.vocab * shape.hidden)
    cache = 2 * 36 * 2 * 96 * 2
    assert one.bytes == pytest.approx(weights + 2 * shape.hidden + 257 * cache)
    aggregator = 2 * size.added_parameters(0, 0, 0, shape.hidden, 8)
    assert eight.bytes - one.bytes == pytest.approx(aggregator + (8 * 305 - 257) * cache)
    assert eight.flops / one.flops == pytest.approx(8, rel=0.2) and eight.bytes / one.bytes < 1.1
    assert one.seconds(1e12, 1e15) == one.bytes / 1e12 and one.seconds(None, 1e15) is None
    # With experts, one token reads the active ones and many tokens read all.
    moe = TINY | {"model_type": "qwen3_moe", **EXPERTS}
    counts = size.base_parameters(moe)
    reads = [size.decode_cost(moe, 1, b, 0, cache_bytes=1e-9).bytes / 2 - b * 64 for b in (1, 1000)]
    assert reads == pytest.approx([counts.active + 80 * 64, counts.body + 80 * 64], rel=1e-6)


def test_memory_is_the_papers() -> None:
    """The headline of the paper's figure 4: 1.6B, 8 streams, batch 1: 22 times less memory is added."""
    shape, law = published_shape(*SIZES["1.6B"]), PUBLISHED["stack"]
    wide = shape_for(law.equivalent(COUNTS["1.6B"][3], 8), shape)

    def memory(s: size.Shape, streams: int, tokens: int, answer: int) -> float:
        return sum(size.inference_memory(s, streams, 1, tokens, tokens + answer, all_logits=True).values())

    ratios = []
    for i in (64, 128, 256, 512):
        for o in (64, 128, 256, 512):
            base = memory(shape, 1, i, o)
            ratios.append((memory(wide, 1, i, o) - base) / (memory(shape, 8, i, o) - base))
    assert sum(ratios) / len(ratios) == pytest.approx(22, abs=0.5)


def test_predictions() -> None:
    result, events = run(predict="1.571472384B", device="a100", prompt=128)
    one, *_, eight = result["predictions"]
    assert one["added"] == 0 and one["memory_ratio"] is None and one["wider"]["memory"] == pytest.approx(one["memory"])
    assert eight["parameters"] == COUNTS["1.6B"][3] and eight["loss"] == pytest.approx(1.0409, abs=3e-4)
    assert eight["equivalent_parameters"] == pytest.approx(1.818 * COUNTS["1.6B"][3], rel=1e-3)
    assert eight["fits"] is True and eight["memory_ratio"] > 10 and eight["seconds_ratio"] > 5
    assert result["device"]["bandwidth"] == pytest.approx(0.9 * 2039e9) and "modelled" in result["note"]
    assert not [e for e in events if isinstance(e, Warned)]
    assert [e.name for e in events if isinstance(e, Chose)] == ["device", "shape"]
    result, events = run(predict="0.1B", streams=(16,))
    row = result["predictions"][0]
    assert result["device"] is None and row["seconds"] is None and row["fits"] is None and row["memory"] > 0
    assert len([e for e in events if isinstance(e, Warned) and e.kind == "extrapolated"]) == 2


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert roofline.known("H100").ridge == pytest.approx(266)
    assert all(roofline.known(name).source for name in roofline.TABLE)
    with pytest.raises(QwenchError, match="`abacus`"):
        run(predict="1B", device="abacus")
    half, _ = run(predict="1B", bandwidth=100.0)
    assert half["device"]["flops"] is None and half["predictions"][0]["seconds"] is None
    both, _ = run(predict="1B", bandwidth=100.0, device="h100")
    assert both["device"]["bandwidth"] == 100e9 and both["device"]["flops"] == 798e12
    roof = roofline.measure("cpu", "float32", repeats=1)
    assert roof.bandwidth > 1e8 and roof.flops > 1e8 and "measured in this run" in roof.source


def test_a_model_is_counted(tmp_path: Path) -> None:
    config = TINY | {"model_type": "qwen3", "head_dim": 16}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for name in (tmp_path, tmp_path / "config.json"):
        result, _ = run(predict=str(name), streams=(2,))
        assert result["model"]["parameters"] == size.base_parameters(config).body
    (tmp_path / "config.json").write_text(json.dumps(TINY | {"model_type": "qwen3_moe", **EXPERTS}))
    with pytest.raises(QwenchError, match="nothing of experts"):
        run(predict=str(tmp_path))
    with pytest.raises(QwenchError, match="neither a number"):
        run(predict="no/such")


def test_few_points_are_not_trusted(tmp_path: Path) -> None:
    law = PUBLISHED["stack"]
    rows = [f"{n:g},{p},{law.loss(n, p) * (1.003 if n == 1e9 else 1)}" for n, p in
            ((3e8, 1), (1e9, 1), (3e9, 1), (3e8, 2), (1e9, 2))]  # fmt: skip
    (tmp_path / "few.csv").write_text("\n".join(["n,p,loss", *rows]))
    result, events = run(points=str(tmp_path / "few.csv"))
    assert result["published"] is None and result["confidence"]["constants"] is None
    assert any(isinstance(e, Warned) and e.kind == "undetermined" for e in events)


def test_variables_of_a_hyphenated_command_can_be_set() -> None:
    assert settings.variables(("parscale-law",), "batch") == ["QWENCH_PARSCALE_LAW_BATCH", "QWENCH_BATCH"]


def test_the_command(qwench: Run, tmp_path: Path) -> None:
    done = qwench("parscale-law", "--predict", "1.7B", "--streams", "1,8", "--device", "h200", "--plot",
                  tmp_path / "law.svg", "--json")  # fmt: skip
    assert done.returncode == 0 and done.stderr == ""
    document = json.loads(done.stdout)
    assert [p["streams"] for p in document["predictions"]] == [1, 8] and len(document["points"]) == 24
    assert "P = 8" in (tmp_path / "law.svg").read_text("utf-8")
    done = qwench("parscale-law", "--corpus", "pile", "--predict", "1B", env={"QWENCH_DEVICE": "cpu"})
    assert done.returncode == 0 and "0.1963" in done.stdout and "modelled" in done.stderr
    assert "measured in this run" in done.stderr
    done = qwench("parscale-law", "--corpus", "books")
    assert done.returncode == 2 and "`books`" in done.stderr and done.stdout == ""
