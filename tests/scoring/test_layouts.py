"""Layouts of sentence-transformers: the vectors of the installed one, or a refusal that names what is odd."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from qwench.ops.base.errors import QwenchError
from qwench.ops.base.runtime import Runtime
from qwench.ops.models.hub import resolve
from qwench.ops.scoring.embedder import Embedder, EmbedSettings
from safetensors.torch import load_file, save_file

from tests import tiny
from tests.conftest import Run

TEXTS = ["a", "Where do the cranes go in the autumn of the year?", "NAÏVE café", "of cranes and of trains " * 4]
ST = "sentence_transformers.models."
ACT = "torch.nn.modules.activation."
BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def change(path: Path, **keys: Any) -> None:
    found = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(found | keys))


def modules(folder: Path, *listed: tuple[str, str]) -> None:
    rows = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(listed)]
    (folder / "modules.json").write_text(json.dumps(rows))


def order(folder: Path, *names: str) -> None:
    """modules.json with a Transformer first and `Kind` or `folder:Kind` after it."""
    pairs = [("", "Transformer"), *((n.split(":") if ":" in n else (f"9_{n}", n)) for n in names)]
    for path, kind in pairs:
        (folder / path).mkdir(exist_ok=True)
        if kind == "Pooling" and not (folder / path / "config.json").exists():
            (folder / path / "config.json").write_text(json.dumps({"embedding_dimension": 16, "pooling_mode": "mean"}))
    modules(folder, *((path, ST + kind) for path, kind in pairs))


def dense(folder: Path, name: str, width: int, out: int, act: str = ACT + "Tanh", **more: Any) -> None:
    (folder / name).mkdir()
    torch.manual_seed(len(name))
    tensors = {"linear.weight": torch.randn(out, width), "linear.bias": torch.randn(out)}
    if more.get("use_residual") and width != out:
        tensors["residual.weight"] = torch.randn(out, width)
    save_file(tensors, folder / name / "model.safetensors")
    said = {"in_features": width, "out_features": out, "bias": True, "activation_function": act}
    (folder / name / "config.json").write_text(json.dumps(said | more))


def tokenizer(folder: Path) -> None:
    """One token a byte, padded with the end token as transformers wants to be told."""
    tiny.byte_tokenizer(folder)
    change(folder / "tokenizer_config.json", pad_token="<|endoftext|>")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT and two decoders over bytes, in the plain layout, random enough for every part to matter."""
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel, Qwen3Config, Qwen3Model

    home = tmp_path_factory.mktemp("layouts")
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 32, "hidden_size": 16}
    decoder = {"vocab_size": 272, "num_hidden_layers": 2, "max_position_embeddings": 256} | heads
    made = {
        "bert": BertModel(BertConfig(vocab_size=272, max_position_embeddings=160, **BERT)),
        "qwen3": Qwen3Model(Qwen3Config(head_dim=8, **decoder)),
        "llama": LlamaModel(LlamaConfig(mlp_bias=True, **decoder)),
    }
    for name, model in made.items():
        torch.manual_seed(3)
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.randn_like(p) * 0.3 if p.dim() > 1 else 1 + 0.1 * torch.randn_like(p))
        model.save_pretrained(home / name)
        tokenizer(home / name)
        tiny.write_st_files(home / name, "mean" if name == "bert" else "lasttoken", 16, {}, 150)
    return home


def both(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Document vectors here and in sentence-transformers, whose default prompt counts (`encode`)."""
    from sentence_transformers import SentenceTransformer

    model = Embedder(resolve(str(folder)), EmbedSettings(runtime=Runtime(device="cpu")))
    prompt = model.layout.prompt("document")
    limit = model.max_tokens - model.tokenizer.specials
    rows = [model.tokenizer.wrap(ids[:limit]) for ids in model.tokenizer.ids([prompt + t for t in TEXTS])]
    return model.embed(rows), SentenceTransformer(str(folder), device="cpu", local_files_only=True).encode(TEXTS)


def same(folder: Path) -> None:
    ours, theirs = both(folder)
    assert ours.shape == theirs.shape
    cosines = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    assert cosines.min() >= 0.99999
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), np.linalg.norm(theirs, axis=1), rtol=1e-4)


def residual(p: Path) -> None:
    dense(p, "2_Dense", 16, 16, use_residual=True)
    dense(p, "3_Dense", 16, 12, ACT + "SiLU", use_residual=True)
    order(p, "1_Pooling:Pooling", "2_Dense:Dense", "3_Dense:Dense", "Normalize")


def token_level(p: Path) -> None:
    dense(p, "2_Dense", 16, 24, module_input_name="token_embeddings")
    order(p, "2_Dense:Dense", "1_Pooling:Pooling", "Normalize")


def normalize_first(p: Path) -> None:
    dense(p, "2_Dense", 16, 12, ACT + "GELU")
    order(p, "1_Pooling:Pooling", "Normalize", "2_Dense:Dense")


def normalize_tokens(p: Path) -> None:
    order(p, "8_Normalize:Normalize", "1_Pooling:Pooling")
    (p / "8_Normalize" / "config.json").write_text(json.dumps({"module_input_name": "token_embeddings"}))


def layer_norm(p: Path) -> None:
    order(p, "1_Pooling:Pooling", "LayerNorm", "Dropout")
    (p / "9_Dropout" / "config.json").write_text(json.dumps({"dropout": 0.5}))
    (p / "9_LayerNorm" / "config.json").write_text(json.dumps({"dimension": 16}))
    save_file({"norm.weight": torch.randn(16), "norm.bias": torch.randn(16)}, p / "9_LayerNorm" / "model.safetensors")


def old_name(p: Path) -> None:
    (p / "sentence_bert_config.json").unlink()
    change(p / "sentence_roberta_config.json", max_seq_length=20, do_lower_case=True)


def subfolder(p: Path) -> None:
    order(p, "1_Pooling:Pooling", "Normalize")
    (p / "0_T").mkdir()
    names = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "sentence_bert_config.json")
    for name in names:
        (p / name).rename(p / "0_T" / name)
    modules(p, ("0_T", ST + "Transformer"), ("1_Pooling", ST + "Pooling"), ("9_Normalize", ST + "Normalize"))


def as_bin(p: Path) -> None:
    torch.save(load_file(p / "model.safetensors"), p / "pytorch_model.bin")
    (p / "model.safetensors").unlink()


EQUAL: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "bidirectional, last token": ("qwen3", lambda p: change(p / "config.json", is_causal=False)),
    "end token": ("qwen3", lambda p: None),
    "bidirectional, mean": (
        "qwen3",
        lambda p: (
            change(p / "config.json", is_causal=False),
            change(p / "1_Pooling/config.json", pooling_mode="mean"),
        ),
    ),
    "biases in the MLP": ("llama", lambda p: None),
    "residual": ("bert", residual),
    "dense on tokens": ("bert", token_level),
    "normalize, dense": ("bert", normalize_first),
    "normalize on tokens": ("bert", normalize_tokens),
    "layer norm and dropout": ("bert", layer_norm),
    "no normalize": ("bert", lambda p: order(p, "1_Pooling:Pooling")),
    "two poolings": (
        "bert",
        lambda p: change(p / "1_Pooling/config.json", pooling_mode_max_tokens=True, pooling_mode_cls_token=True),
    ),
    "length by an old file name": ("bert", old_name),
    "length by the tokenizer": (
        "bert",
        lambda p: (
            (p / "sentence_bert_config.json").unlink(),
            change(p / "tokenizer_config.json", model_max_length=20),
        ),
    ),
    "default prompt": (
        "bert",
        lambda p: change(p / "config_sentence_transformers.json", prompts={"doc": "d: "}, default_prompt_name="doc"),
    ),
    "weights in a .bin": ("bert", lambda p: (order(p, "1_Pooling:Pooling"), as_bin(p))),
    "sub-folder": ("bert", subfolder),
}


@pytest.mark.parametrize("name", EQUAL)
def test_vectors_equal_sentence_transformers(name: str, bases: Path, tmp_path: Path) -> None:
    base, edit = EQUAL[name]
    shutil.copytree(bases / base, tmp_path / "m")
    edit(tmp_path / "m")
    same(tmp_path / "m")


def dense_with(**more: Any) -> Callable[[Path], None]:
    def edit(p: Path) -> None:
        dense(p, "2_Dense", 16, 16, **more)
        order(p, "1_Pooling:Pooling", "2_Dense:Dense")

    return edit


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "own class": (
        lambda p: modules(p, ("", "custom_st.Transformer"), ("1_Pooling", ST + "Pooling")),
        r"custom_st\.Transformer",
    ),
    "module": (lambda p: order(p, "1_Pooling:Pooling", "CNN"), r"models\.CNN"),
    "module arguments": (
        lambda p: (p / "modules.json").write_text(
            (p / "modules.json").read_text().replace('"idx": 0', '"idx": 0, "kwargs": ["task"]')
        ),
        "kwargs",
    ),
    "key of Dense": (dense_with(scale=2), "`scale`"),
    "activation": (dense_with(act="os.system"), r"`os\.system`"),
    "activation with weights": (dense_with(act=ACT + "PReLU"), "PReLU"),
    "feature": (dense_with(module_input_name="cls_embedding"), "`cls_embedding`"),
    "key of Pooling": (lambda p: change(p / "1_Pooling/config.json", pooling_mode_first=True), "`pooling_mode_first`"),
    "pooling": (lambda p: change(p / "1_Pooling/config.json", pooling_mode="attention"), "attention"),
    "key of Transformer": (lambda p: change(p / "sentence_bert_config.json", prefix="x"), "`prefix`"),
    "task of Transformer": (
        lambda p: change(p / "sentence_bert_config.json", transformer_task="fill-mask"),
        "fill-mask",
    ),
    "dense before pooling": (
        lambda p: (dense(p, "2_Dense", 16, 16), order(p, "2_Dense:Dense", "1_Pooling:Pooling")),
        "no module before it",
    ),
    "adapter beside": (lambda p: change(p / "adapter_config.json", base_model_name_or_path="org/base"), "org/base"),
    "pointer": (
        lambda p: (p / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n"),
        "Git LFS pointer",
    ),
    "web page": (lambda p: (p / "tokenizer.json").write_text("<!DOCTYPE html><html></html>"), "web page"),
    "other kind": (
        lambda p: change(p / "config_sentence_transformers.json", model_type="SparseEncoder"),
        "SparseEncoder",
    ),
    "encoder-decoder": (lambda p: change(p / "config.json", model_type="bart", is_encoder_decoder=True), "bart"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_refused_by_name(name: str, bases: Path, tmp_path: Path) -> None:
    edit, words = REFUSED[name]
    shutil.copytree(bases / "bert", tmp_path / "m")
    edit(tmp_path / "m")
    with pytest.raises(QwenchError, match=words) as caught:
        both(tmp_path / "m")
    assert caught.value.hint


@pytest.mark.parametrize("family", ["xlm-roberta", "mpnet", "t5"])
def test_bin_weights_of_other_architectures(family: str, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(1)
    shape = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2} if family == "t5" else BERT
    config = AutoConfig.for_model(family, vocab_size=272, max_position_embeddings=160, initializer_range=0.3, **shape)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    tokenizer(tmp_path)
    tiny.write_st_files(tmp_path, "mean", 16, {}, 150)
    as_bin(tmp_path)
    same(tmp_path)


def test_a_sentencepiece_tokenizer_is_converted(bases: Path, tmp_path: Path) -> None:
    import sentencepiece
    from transformers import AutoTokenizer, XLMRobertaConfig, XLMRobertaModel

    (tmp_path / "c.txt").write_text("\n".join(tiny.real_texts(60)))
    torch.manual_seed(1)
    XLMRobertaModel(XLMRobertaConfig(vocab_size=420, max_position_embeddings=160, **BERT)).save_pretrained(tmp_path)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "c.txt"), model_prefix=str(tmp_path / "sentencepiece.bpe"), vocab_size=400, minloglevel=2
    )
    change(tmp_path / "tokenizer_config.json", tokenizer_class="XLMRobertaTokenizer")
    tiny.write_st_files(tmp_path, "cls", 16, {}, 150)
    same(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)("of cranes")["input_ids"]
    model = Embedder(resolve(str(tmp_path)), EmbedSettings(runtime=Runtime(device="cpu")))
    assert model.tokenizer.wrap(model.tokenizer.ids(["of cranes"])[0]) == theirs
    (tmp_path / "sentencepiece.bpe.model").write_bytes(b"\x0a\x0b")
    with pytest.raises(QwenchError, match=r"sentencepiece\.bpe\.model"):
        Embedder(resolve(str(tmp_path)), EmbedSettings(runtime=Runtime(device="cpu")))


def static(folder: Path, *, cut: int = 0) -> Path:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, StaticEmbedding
    from tokenizers import Tokenizer

    tiny.byte_tokenizer(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    if cut:
        tokenizer.enable_truncation(cut)
    torch.manual_seed(2)
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=12), Normalize()]).save(str(folder))
    return folder


def test_static_embeddings_equal_sentence_transformers(tmp_path: Path) -> None:
    same(static(tmp_path, cut=20))
    tensors = load_file(tmp_path / "model.safetensors")
    table = tensors["embedding.weight"]
    # model2vec's names: shared rows, and a weight a token
    mapping, weights = torch.arange(len(table)) % 50, torch.rand(len(table))
    save_file(
        {"embeddings": table[:50].clone(), "mapping": mapping, "weights": weights}, tmp_path / "model.safetensors"
    )
    same(tmp_path)
    model = Embedder(resolve(str(tmp_path)), EmbedSettings(runtime=Runtime(device="cpu")))
    np.testing.assert_array_equal(model.embed([[], model.tokenizer.ids(["a"])[0]])[0], np.zeros(12, np.float32))
    with pytest.raises(QwenchError, match="--quantize"):
        Embedder(resolve(str(tmp_path)), EmbedSettings(runtime=Runtime(device="cpu", quantize="int8")))


def test_model2vec_without_modules_counts_known_tokens_alone(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "cranes": 1, "fly": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    table = torch.randn(3, 8)
    save_file({"embeddings": table}, tmp_path / "model.safetensors")
    change(tmp_path / "config.json", model_type="model2vec", normalize=True)
    model = Embedder(resolve(str(tmp_path)), EmbedSettings(runtime=Runtime(device="cpu")))
    (ours,) = model.embed(model.query_ids(["cranes rarely fly"], ""))
    mean = (table[1] + table[2]) / 2
    np.testing.assert_allclose(ours, (mean / mean.norm()).numpy(), atol=1e-6)


def test_tasks_keep_the_form_of_the_prompt(bases: Path, tmp_path: Path) -> None:
    from qwench.ops.models.layouts import read_layout

    shutil.copytree(bases / "bert", tmp_path / "m")
    forms = {
        "Instruct: Old task.\nQuery: ": "Instruct: Find code\nQuery: ",
        "Instruct: Old: task\nQuery:": "Instruct: Find code\nQuery:",
        "<instruct>Old task\n<query>": "<instruct>Find code\n<query>",
        "Instruct: Old task Query: ": "Instruct: Find code Query: ",
    }
    for old, new in forms.items():
        change(tmp_path / "m" / "config_sentence_transformers.json", prompts={"query": old})
        assert read_layout(tmp_path / "m").prompt("query", "Find code") == new
    for other in ("query: ", ""):
        change(tmp_path / "m" / "config_sentence_transformers.json", prompts={"query": other})
        with pytest.raises(QwenchError, match="--task"):
            read_layout(tmp_path / "m").prompt("query", "Find code")


def test_an_embedding_decoder_neither_writes_nor_ranks(bases: Path, tmp_path: Path) -> None:
    from qwench.ops.models.load_decoder import unknown
    from qwench.ops.scoring.reranker import Reranker, RerankSettings

    assert "is_causal" in (unknown({"model_type": "qwen3", "is_causal": False}) or "")
    folder = tiny.qwen3_reranker(tmp_path / "m")
    change(folder / "config.json", is_causal=False)
    with pytest.raises(QwenchError, match="is_causal"):
        Reranker(resolve(str(folder)), RerankSettings(runtime=Runtime(device="cpu")))
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(QwenchError, match="GGUF files"):
        Reranker(resolve(str(tmp_path / "x.gguf")), RerankSettings(runtime=Runtime(device="cpu")))


def test_scores_are_cosines_whatever_the_length_of_the_vectors(
    qwench: Run, lines: Callable[[str], list[dict]], bases: Path, tmp_path: Path
) -> None:
    shutil.copytree(bases / "bert", tmp_path / "m")
    order(tmp_path / "m", "1_Pooling:Pooling")
    (tmp_path / "d").mkdir()
    for i, text in enumerate(TEXTS):
        (tmp_path / "d" / f"{i}.md").write_text(text)
    at = {"cwd": tmp_path}
    assert qwench("embed", "d", "--model", "./m", "--out", "i.lance", "-q", **at).returncode == 0
    found = lines(qwench("search", "i.lance", "cranes", "--json", **at).stdout)
    direct = lines(qwench("embed", "d", "--model", "./m", "--query", "cranes", "--json", **at).stdout)
    model = Embedder(resolve(str(tmp_path / "m")), EmbedSettings(runtime=Runtime(device="cpu")))
    query, *texts = model.embed(model.query_ids(["cranes", *TEXTS], ""))
    want = sorted((float(v @ query / np.linalg.norm(v) / np.linalg.norm(query)) for v in texts), reverse=True)
    assert np.linalg.norm(query) > 1.5
    for hits in (found, direct):
        np.testing.assert_allclose([h["score"] for h in hits if "score" in h], want, atol=1e-5)
    cut = Embedder(resolve(str(tmp_path / "m")), EmbedSettings(dim=8, runtime=Runtime(device="cpu")))
    np.testing.assert_allclose(np.linalg.norm(cut.embed(cut.query_ids(TEXTS, "")), axis=1), 1, rtol=1e-5)


def test_vectors_of_a_reading_that_was_wrong_are_not_mixed_in(
    qwench: Run, bases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index of an earlier version, which read a decoder with is_causal: false as any other."""
    shutil.copytree(bases / "qwen3", tmp_path / "m")
    change(tmp_path / "m" / "config.json", is_causal=False)
    (tmp_path / "a.md").write_text("cranes")
    monkeypatch.chdir(tmp_path)
    from qwench.ops.embed import EmbedOptions, embed
    from qwench.ops.search import SearchOptions, search

    with monkeypatch.context() as earlier:
        earlier.setattr(Embedder, "_how", lambda self: self.layout.pooling)
        list(embed(EmbedOptions(["a.md"], "i.lance", "./m")))
    with pytest.raises(QwenchError, match="both sides"):
        list(search(SearchOptions("i.lance", "cranes")))
    with pytest.raises(QwenchError, match="both sides"):
        list(embed(EmbedOptions(["a.md"], "i.lance", "./m")))


def test_adapters_and_sub_folders_are_named_to_inspect(bases: Path, tmp_path: Path) -> None:
    from qwench.ops.checkpoint.reader import Source
    from qwench.ops.inspect import inspect

    shutil.copytree(bases / "bert", tmp_path / "m")
    subfolder(tmp_path / "m")
    with pytest.raises(QwenchError, match="sub-folder") as caught:
        list(inspect(str(tmp_path / "m")))
    assert caught.value.hint.endswith("0_T")
    (tmp_path / "a").mkdir()
    change(tmp_path / "a" / "adapter_config.json", base_model_name_or_path="org/base")
    save_file({"x": torch.zeros(1)}, tmp_path / "a" / "adapter_model.safetensors")
    with pytest.raises(QwenchError, match=r"adapter.*org/base") as caught:
        Source(tmp_path / "a")
    assert "--lora" in caught.value.hint
    # What is no model can still be looked at.
    assert list(inspect(str(tmp_path / "a")))[-1].result["adapter"]["base"] == "org/base"
