"""Vectors against independent oracles: sentence-transformers, transformers, and plain re-computation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from qwench.ops.base.errors import QwenchError
from qwench.ops.base.runtime import Runtime
from qwench.ops.models.hub import resolve
from qwench.ops.scoring.embedder import Embedder, EmbedSettings

from tests import tiny

TEXTS = ["", "test", "What is the capital of China?", "naïve café 你好，世界 🎉🇫🇷", "x " * 900, *tiny.real_texts(20)]


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.qwen3_embedding(tmp_path_factory.mktemp("qwen3-embedding"))


def embedder(path: Path | str, runtime: Runtime | None = None, **settings: object) -> Embedder:
    return Embedder(resolve(str(path)), EmbedSettings(**settings, runtime=runtime or Runtime(device="cpu")))


def documents(model: Embedder, texts: list[str]) -> np.ndarray:
    limit = model.content_limit()
    return model.embed([model.tokenizer.wrap(ids[:limit]) for ids in model.tokenizer.ids(texts)])


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def st(path: Path, **options: object):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(path), device="cpu", local_files_only=True, **options)


@pytest.mark.parametrize("count", [100, pytest.param(500, marks=pytest.mark.slow)])
def test_minilm_equals_sentence_transformers_on_real_chunks(count: int) -> None:
    path, texts = tiny.minilm(), tiny.real_texts(count)
    ours, theirs = documents(embedder(path), texts), st(path).encode(texts)
    assert len(set(texts)) > 0.9 * count
    assert cosine(ours, theirs).min() >= 0.99999


def test_qwen3_documents_and_queries_equal_sentence_transformers(qwen: Path) -> None:
    model, theirs = embedder(qwen), st(qwen)
    assert cosine(documents(model, TEXTS), theirs.encode_document(TEXTS)).min() >= 0.99999
    queries = [t for t in TEXTS if len(t) < 900]
    ours = model.embed(model.query_ids(queries, model.layout.prompt("query")))
    assert cosine(ours, theirs.encode_query(queries)).min() >= 0.99999


@pytest.mark.parametrize("dim", [1, 32, 63, 64])
def test_dim_is_sliced_before_normalising(qwen: Path, dim: int) -> None:
    full, cut = documents(embedder(qwen), TEXTS), documents(embedder(qwen, dim=dim), TEXTS)
    again = full[:, :dim] / np.linalg.norm(full[:, :dim], axis=1, keepdims=True)
    assert cut.shape == (len(TEXTS), dim)
    np.testing.assert_allclose(cut, again, atol=1e-6)
    theirs = st(qwen, truncate_dim=dim).encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(cut, theirs, atol=1e-5)


@pytest.mark.parametrize("batch_tokens", [1, 64, 100_000])
def test_batched_equals_single(qwen: Path, batch_tokens: int) -> None:
    model = embedder(qwen, batch_tokens=batch_tokens)
    together = documents(model, TEXTS)
    alone = np.concatenate([documents(model, [text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=2e-6)


def test_ids_of_the_published_query(qwen: Path) -> None:
    model = embedder(qwen)
    (ids,) = model.query_ids(["What is the capital of China?"], model.layout.prompt("query"))
    text = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:What is the"
    assert model.tokenizer.backend.decode(ids, skip_special_tokens=False).startswith(text)
    assert 3838 in ids and 3555 not in ids  # `What`, not ` What`: there is no space after `Query:`
    assert ids[-1] == 151643 and ids.count(151643) == 1
    assert model.query_ids(["test", ""], "") == [[1944, 151643], [151643]]


def test_end_token_is_appended_where_the_tokenizer_does_not(tmp_path: Path, qwen: Path) -> None:
    bare = tiny.qwen3_embedding(tmp_path / "bare", eos=False, st_files=False)
    model = embedder(bare)
    assert model.query_ids(["test", ""], "") == [[1944, 151643], [151643]]
    assert model.layout.pooling == "lasttoken" and model.layout.normalize
    np.testing.assert_allclose(documents(model, TEXTS), documents(embedder(qwen), TEXTS), atol=1e-6)


def test_task_goes_into_the_instruction(qwen: Path) -> None:
    layout = embedder(qwen).layout
    assert layout.prompt("query", "Find code") == "Instruct: Find code\nQuery:"
    assert layout.prompt("document") == ""
    with pytest.raises(QwenchError, match="--task"):
        embedder(tiny.minilm()).layout.prompt("query", "Find code")


@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken", "max"])
def test_poolings_equal_sentence_transformers(tmp_path: Path, pooling: str) -> None:
    path = tiny.tiny_bert(tmp_path, pooling)
    assert cosine(documents(embedder(path), TEXTS), st(path).encode(TEXTS)).min() >= 0.99999


def test_dense_modules_equal_sentence_transformers(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Dense

    base = st(tiny.tiny_bert(tmp_path / "bert"))
    model = SentenceTransformer(modules=[base[0], base[1], Dense(32, 24), base[2]], device="cpu")
    model.save(str(tmp_path / "dense"))
    ours = embedder(tmp_path / "dense")
    assert ours.dim == 24
    assert cosine(documents(ours, TEXTS), model.encode(TEXTS)).min() >= 0.99999


def test_other_architectures_run_on_transformers(tmp_path: Path) -> None:
    import json

    from transformers import DistilBertConfig, DistilBertModel

    path = tiny.tiny_bert(tmp_path)
    config = DistilBertConfig(
        vocab_size=30522, dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=128
    )
    DistilBertModel(config).save_pretrained(path)
    assert json.loads((path / "config.json").read_text())["model_type"] == "distilbert"
    model = embedder(path)
    assert model.choices["engine"].value == "transformers"
    assert cosine(documents(model, TEXTS), st(path).encode(TEXTS)).min() >= 0.99999


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_decoder_families_equal_transformers(tmp_path: Path, kind: str) -> None:
    import torch
    from qwench.ops.models.load import load_encoder
    from transformers import AutoConfig, AutoModel

    sizes = {"vocab_size": 100, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 64}
    config = AutoConfig.for_model(kind, **sizes, **heads)
    theirs = AutoModel.from_config(config).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.normal_(std=0.3)
    theirs.save_pretrained(tmp_path)
    encoder = load_encoder(resolve(str(tmp_path)), Runtime(device="cpu")).encoder
    lengths = [9, 9, 3, 20]
    ids = torch.randint(0, 100, (sum(lengths),))
    with torch.inference_mode():
        want = torch.cat([theirs(part[None]).last_hidden_state[0] for part in ids.split(lengths)])
        torch.testing.assert_close(encoder.hidden(ids, lengths), want, atol=1e-4, rtol=1e-4)
        ends = torch.tensor(lengths).cumsum(0) - 1
        torch.testing.assert_close(encoder.last_hidden(ids, lengths), want[ends], atol=1e-4, rtol=1e-4)


def test_int8_stays_near_float32() -> None:
    texts = tiny.real_texts(6)
    rounded = embedder(tiny.minilm(), Runtime(device="cpu", quantize="int8"))
    near = cosine(documents(rounded, texts), documents(embedder(tiny.minilm()), texts))
    assert 0.99 <= near.min() < 0.9999999


def test_a_missing_weight_is_named(qwen: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(qwen, tmp_path / "m")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    lost = tensors.pop("layers.1.mlp.up_proj.weight")
    save_file(tensors, tmp_path / "m" / "model.safetensors")
    with pytest.raises(QwenchError, match=r"layers\.1\.mlp\.up_proj\.weight"):
        embedder(tmp_path / "m")
    tensors |= {"layers.1.mlp.up_proj.weight": lost, "layers.0.self_attn.gate.weight": lost.clone()}
    save_file(tensors, tmp_path / "m" / "model.safetensors")
    with pytest.raises(QwenchError, match=r"layers\.0\.self_attn\.gate"):
        embedder(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").write_bytes(b"\x80" * 100)
    with pytest.raises(QwenchError, match="damaged"):
        embedder(tmp_path / "m")


def test_prefixed_keys_load_the_same(qwen: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(qwen, tmp_path / "m")
    tensors = load_file(qwen / "model.safetensors")
    save_file({f"model.{k}": v for k, v in tensors.items()}, tmp_path / "m" / "model.safetensors")
    np.testing.assert_array_equal(documents(embedder(tmp_path / "m"), TEXTS), documents(embedder(qwen), TEXTS))


def test_out_of_memory_halves_the_batch(qwen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    model = embedder(qwen, batch_tokens=4096)
    want = documents(model, TEXTS)
    plain = Embedder._vectors

    def short_of_memory(self: Embedder, rows: list[list[int]]) -> np.ndarray:
        if sum(map(len, rows)) > 2000 and len(rows) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, rows)

    monkeypatch.setattr(Embedder, "_vectors", short_of_memory)
    np.testing.assert_allclose(documents(model, TEXTS), want, atol=2e-6)
    assert model.schedule.batch_tokens < 4096


def test_settings_out_of_range_are_refused(qwen: Path) -> None:
    for settings, what in (
        ({"dim": 65}, "--dim"),
        ({"dim": 0}, "--dim"),
        ({"max_tokens": 4096}, "tokens"),
        ({"runtime": Runtime(device="cpu", dtype="int4")}, "int4"),
        ({"runtime": Runtime(device="cpu", quantize="int3")}, "int3"),
    ):
        with pytest.raises(QwenchError, match=what):
            embedder(qwen, **settings)
