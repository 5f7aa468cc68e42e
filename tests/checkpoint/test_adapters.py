"""What adapters hold beside plain LoRA: biases, token rows, resized embeddings, Conv1D layers, names on the hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from qwench.ops.base.errors import QwenchError
from safetensors.torch import save_file

from tests.checkpoint.small import adapter, decoder, held, tokenizer
from tests.checkpoint.test_checkpoint import run
from tests.checkpoint.test_lora import by_peft, by_us

peft = pytest.importorskip("peft")
BASE = "base_model.model."


def trained(base: Path, folder: Path, grow: int = 0, **config: Any) -> Path:
    """An adapter that peft made and saved, every trainable number moved."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if grow:
        model.resize_token_embeddings(272 + grow)
    settings = {"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"]} | config
    model = peft.get_peft_model(model, peft.LoraConfig(**settings))
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.1)
    model.save_pretrained(folder, save_embedding_layers=bool(grow))
    return folder


def same(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> None:
    for name, tensor in got.items():
        torch.testing.assert_close(tensor, want[name], atol=1e-5, rtol=1e-5)


def test_biases_of_lora(tmp_path: Path) -> None:
    made = decoder(tmp_path / "m", "qwen2", dtype=torch.float32)
    folder = trained(tmp_path / "m", tmp_path / "a", lora_bias=True)
    got = by_us(tmp_path / "m", tmp_path / "o", [folder])
    same(got, by_peft(tmp_path / "m", [folder]))
    name = "model.layers.0.self_attn.q_proj.bias"
    assert not torch.equal(got[name], made[name])
    decoder(tmp_path / "q")
    part = f"{BASE}model.layers.0.self_attn.q_proj.lora_"
    parts = {"A.weight": (4, 32), "B.weight": (64, 4), "B.bias": (64,)}
    bare = adapter(tmp_path / "b", {part + n: torch.ones(s) for n, s in parts.items()}, lora_bias=True)
    with pytest.raises(QwenchError, match=r"q_proj\.bias`, which the model does not have"):
        by_us(tmp_path / "q", tmp_path / "p", [bare])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("indices", [[3, 270, 5], {"embed_tokens": [1, 7]}])
def test_rows_of_trained_tokens(tied: bool, indices: Any, tmp_path: Path) -> None:
    made = decoder(tmp_path / "m", tied=tied, dtype=torch.float32)
    folder = trained(tmp_path / "m", tmp_path / "a", trainable_token_indices=indices)
    got = by_us(tmp_path / "m", tmp_path / "o", [folder])
    same(got, by_peft(tmp_path / "m", [folder]))
    name = "model.embed_tokens.weight"
    rows = (got[name] != made[name]).any(1).nonzero().flatten().tolist()
    assert rows == sorted(indices if isinstance(indices, list) else indices["embed_tokens"])
    if tied:
        both = by_us(tmp_path / "m", tmp_path / "u", [folder], untie=True)
        assert torch.equal(both["lm_head.weight"], both[name])


@pytest.mark.parametrize("tied", [True, False])
def test_resized_embeddings_bring_their_tokenizer(tied: bool, tmp_path: Path) -> None:
    decoder(tmp_path / "m", tied=tied, dtype=torch.float32)
    folder = trained(tmp_path / "m", tmp_path / "a", grow=2)
    tokenizer(folder, ("<|endoftext|>", *(f"<{n}>" for n in range(17))))
    notes = run(tmp_path / "m", tmp_path / "o", lora=(str(folder),))["notes"]
    got = held(tmp_path / "o")
    assert len(got["model.embed_tokens.weight"]) == 274
    assert tied or len(got["lm_head.weight"]) == 274
    assert json.loads((tmp_path / "o" / "config.json").read_text())["vocab_size"] == 274
    assert (tmp_path / "o" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert any("tokenizer is that of `a`" in n for n in notes)
    from transformers import AutoModelForCausalLM

    ids = torch.tensor([[1, 273, 5]])
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32)
    base.resize_token_embeddings(274)
    with torch.no_grad():
        want = peft.PeftModel.from_pretrained(base, folder)(ids).logits
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "o", dtype=torch.float32)(ids).logits
    torch.testing.assert_close(found, want, atol=1e-4, rtol=1e-4)


def test_the_kind_of_layer_says_how_it_is_stored(tmp_path: Path) -> None:
    """`fan_in_fan_out` is only what somebody wrote: peft itself goes by the layer."""
    made = decoder(tmp_path / "m", dtype=torch.float32)
    a, b = torch.randn(4, 32), torch.randn(64, 4)
    part = f"{BASE}model.layers.0.mlp.up_proj.lora_"
    folder = adapter(tmp_path / "a", {f"{part}A.weight": a, f"{part}B.weight": b}, fan_in_fan_out=True)
    name = "model.layers.0.mlp.up_proj.weight"
    run(tmp_path / "m", tmp_path / "o", lora=(str(folder),))
    torch.testing.assert_close(held(tmp_path / "o")[name], made[name] + 2 * b @ a)
    # Square ones of GPT-2 are stored the other way round, whatever the flag says.
    square = torch.randn(32, 32)
    gpt2 = tmp_path / "g"
    gpt2.mkdir()
    (gpt2 / "config.json").write_text('{"model_type": "gpt2"}')
    save_file({"h.0.attn.c_proj.weight": square}, gpt2 / "model.safetensors")
    b = torch.randn(32, 4)
    part = f"{BASE}h.0.attn.c_proj.lora_"
    folder = adapter(tmp_path / "b", {f"{part}A.weight": a, f"{part}B.weight": b}, fan_in_fan_out=False)
    run(gpt2, tmp_path / "p", lora=(str(folder),))
    torch.testing.assert_close(held(tmp_path / "p")["h.0.attn.c_proj.weight"], square + 2 * (b @ a).T)


def test_adapters_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    made = decoder(tmp_path / "m", dtype=torch.float32)
    part = f"{BASE}model.layers.0.mlp.up_proj.lora_"
    a, b = torch.randn(4, 32), torch.randn(64, 4)
    folder = adapter(tmp_path / "snapshot", {f"{part}A.weight": a, f"{part}B.weight": b})
    asked = []

    def download(name: str, revision: str | None = None, **more: Any) -> str:
        asked.append((name, revision))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    run(tmp_path / "m", tmp_path / "o", lora=("me/adapter@v2",))
    name = "model.layers.0.mlp.up_proj.weight"
    torch.testing.assert_close(held(tmp_path / "o")[name], made[name] + 2 * b @ a)
    assert set(asked) == {("me/adapter", "v2")}


@pytest.mark.parametrize("key", ["target_parameters", "layer_replication"])
def test_what_only_peft_can_merge_is_refused_by_name(key: str, tmp_path: Path) -> None:
    decoder(tmp_path / "m")
    folder = adapter(tmp_path / "a", {f"{BASE}x.lora_A.weight": torch.ones(4, 2)}, **{key: ["x"]})
    with pytest.raises(QwenchError, match=key) as caught:
        run(tmp_path / "m", tmp_path / "o", lora=(str(folder),))
    assert "merge with peft" in (caught.value.hint or "")
    shutil.rmtree(folder)
    with pytest.raises(QwenchError, match="no such model"):
        run(tmp_path / "m", tmp_path / "o", lora=(str(folder),))
