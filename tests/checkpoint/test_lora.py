"""Merged adapters equal peft's own merge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from qwench.ops.base.errors import QwenchError
from qwench.ops.checkpoint.reader import Source
from qwench.ops.convert import ConvertOptions, convert

from tests import tiny

peft = pytest.importorskip("peft")
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def adapter(base: Path, folder: Path, seed: int = 1, **config: Any) -> Path:
    """A random adapter on the base, saved by peft."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    settings = {"r": 4, "lora_alpha": 16, "target_modules": ALL} | config
    model = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), peft.LoraConfig(task_type="CAUSAL_LM", **settings)
    )
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.05 if "magnitude" not in name else p * torch.rand_like(p))
    model.save_pretrained(folder)
    return folder


def by_peft(base: Path, folders: list[Path]) -> dict[str, torch.Tensor]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    for folder in folders:
        model = peft.PeftModel.from_pretrained(model, folder).merge_and_unload()
    return model.state_dict()


def by_us(base: Path, out: Path, folders: list[Path], **options: Any) -> dict[str, torch.Tensor]:
    list(convert(ConvertOptions(str(base), str(out), lora=tuple(map(str, folders)), verify="bits", **options)))
    source = Source(out)
    return {n: source.reader.load(n).clone() for n in source.infos}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.qwen3_reranker(tmp_path_factory.mktemp("b") / "b")


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"use_rslora": True, "r": 3},
        {"use_dora": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.mlp.up_proj": 5, "q_proj": 3}},
        {"modules_to_save": ["norm"]},
    ],
    ids=["lora", "rslora", "dora", "patterns", "modules_to_save"],
)
def test_equals_peft(base: Path, tmp_path: Path, config: dict[str, Any]) -> None:
    folder = adapter(base, tmp_path / "a", **config)
    want = by_peft(base, [folder])
    got = by_us(base, tmp_path / "out", [folder])
    original = by_us(base, tmp_path / "plain", [])
    assert any(not torch.equal(got[n], original[n]) for n in got)
    for name, tensor in got.items():
        torch.testing.assert_close(tensor, want[name], atol=1e-6, rtol=1e-6)


def test_several_adapters_in_order(base: Path, tmp_path: Path) -> None:
    folders = [
        adapter(base, tmp_path / "a", 1),
        adapter(base, tmp_path / "b", 2, use_dora=True, target_modules=["q_proj", "up_proj"]),
    ]
    for order in (folders, folders[::-1]):
        want = by_peft(base, order)
        got = by_us(base, tmp_path / f"out-{order[0].name}", order)
        for name, tensor in got.items():
            torch.testing.assert_close(tensor, want[name], atol=2e-6, rtol=1e-6)


def test_embeddings_and_head_of_an_untied_model(tmp_path: Path) -> None:
    base = tiny.qwen3_reranker(tmp_path / "u", tied=False)
    folder = adapter(base, tmp_path / "a", target_modules=["embed_tokens", "lm_head", "q_proj"])
    want = by_peft(base, [folder])
    for name, tensor in by_us(base, tmp_path / "out", [folder]).items():
        torch.testing.assert_close(tensor, want[name], atol=1e-6, rtol=1e-6)


def test_tied_weights_are_refused_before_the_first_byte(base: Path, tmp_path: Path) -> None:
    folder = adapter(base, tmp_path / "a", target_modules=["embed_tokens", "q_proj"])
    with pytest.raises(QwenchError, match="share one tensor"):
        by_us(base, tmp_path / "out", [folder])
    assert list(tmp_path.glob("out*")) == []
    got = by_us(base, tmp_path / "untied", [folder], untie=True)
    original = by_us(base, tmp_path / "plain", [])["model.embed_tokens.weight"]
    assert torch.equal(got["lm_head.weight"], original)
    assert not torch.equal(got["model.embed_tokens.weight"], original)


def test_what_cannot_be_merged_is_refused(base: Path, tmp_path: Path) -> None:
    folder = adapter(base, tmp_path / "a")
    config = json.loads((folder / "adapter_config.json").read_text())
    for change, said in (
        ({"peft_type": "IA3"}, "not a LoRA adapter"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"init_lora_weights": "pissa"}, "changes the base weights"),
    ):
        (folder / "adapter_config.json").write_text(json.dumps(config | change))
        with pytest.raises(QwenchError, match=said):
            by_us(base, tmp_path / "out", [folder])
    (folder / "adapter_config.json").write_text(json.dumps(config))
    other = tiny.qwen3_embedding(tmp_path / "other")
    shallow = json.loads((other / "config.json").read_text())
    assert shallow["num_hidden_layers"] == 3
    wrong = tiny.tiny_bert(tmp_path / "bert")
    with pytest.raises(QwenchError, match="which the model does not have"):
        by_us(wrong, tmp_path / "out", [folder])
    # The flat names of an embedding checkpoint are matched.
    assert by_us(other, tmp_path / "flat", [folder]).keys() == Source(other).infos.keys()
