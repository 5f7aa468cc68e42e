"""Scores against the naive full prompt and vocabulary, and against sentence-transformers."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qwench.ops.base.errors import QwenchError
from qwench.ops.base.runtime import Runtime
from qwench.ops.models.hub import resolve
from qwench.ops.scoring.reranker import Reranker, RerankSettings, selftest
from qwench.ops.text.prompts import RERANK_DEFAULT_INSTRUCTION, RERANK_PREFIX, RERANK_SUFFIX

from tests import tiny

QUERY = "How are errors handled? 错误处理"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.qwen3_reranker(tmp_path_factory.mktemp("lm") / "lm")


def load(folder: Path, **settings: Any) -> Reranker:
    return Reranker(resolve(str(folder)), RerankSettings(**settings, runtime=Runtime(dtype="float32", device="cpu")))


def texts(count: int, tokens: int = 2000) -> list[str]:
    """Documents from one word to about `tokens` tokens, some with awkward first characters."""
    rng = random.Random(count)
    words = " ".join(tiny.real_texts(400)).split(" ")
    made = []
    for i in range(count):
        at = rng.randrange(len(words) // 2)
        size = max(1, int(tokens ** rng.random()))
        made.append(("", "\n", "  ", "é", "!", "中")[i % 6] + " ".join(words[at : at + size])[: tokens * 3])
    return made


def naive(folder: Path, query: str, documents: list[str], max_tokens: int, instruction: str) -> np.ndarray:
    """The model card's procedure, one full prompt at a time, over the whole vocabulary."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    yes, no = tokenizer.convert_tokens_to_ids("yes"), tokenizer.convert_tokens_to_ids("no")
    prefix, suffix = (tokenizer.encode(t, add_special_tokens=False) for t in (RERANK_PREFIX, RERANK_SUFFIX))
    scores = []
    for document in documents:
        body = tokenizer.encode(
            f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}", add_special_tokens=False
        )
        ids = prefix + body[: max_tokens - len(prefix) - len(suffix)] + suffix
        with torch.inference_mode():
            logits = model(torch.tensor([ids])).logits[0, -1].double()
        scores.append(torch.softmax(torch.stack((logits[no], logits[yes])), 0)[1].item())
    return np.array(scores)


def test_prompt_lengths_and_ids(folder: Path) -> None:
    model = load(folder)
    ids = model.scorer.tokenizer.ids([RERANK_PREFIX, RERANK_SUFFIX])
    assert [len(i) for i in ids] == [39, 9]
    assert ids[1][-1] == 271
    assert model.scorer.answers == (9693, 2152)
    question = model.question("word")
    assert question.fixed + len(model.documents(["word"])[0]) == 74


@pytest.mark.parametrize("count", [1, 7, 64])
@pytest.mark.parametrize("max_tokens", [None, 200])
def test_equals_the_naive_computation(folder: Path, count: int, max_tokens: int | None) -> None:
    documents = texts(count)
    model = load(folder, max_tokens=max_tokens)
    got = model.score(model.question(QUERY), documents)
    want = naive(folder, QUERY, documents, max_tokens or 8192, RERANK_DEFAULT_INSTRUCTION)
    np.testing.assert_allclose([s.score for s in got], want, atol=1e-5)
    assert want.std() > 0.01 or count == 1
    assert any(s.truncated for s in got) == (max_tokens == 200 and any(len(d) > 3000 for d in documents))
    assert all(s.tokens <= (max_tokens or 8192) for s in got)


@pytest.mark.parametrize("batch_tokens", [1, 300, 100_000])
def test_scores_do_not_depend_on_the_batch(folder: Path, batch_tokens: int) -> None:
    documents = texts(20, 300)
    one, many = load(folder), load(folder, batch_tokens=batch_tokens)
    single = [one.score(one.question(QUERY), [d])[0].score for d in documents]
    np.testing.assert_allclose([s.score for s in many.score(many.question(QUERY), documents)], single, atol=2e-6)


def test_queries_share_what_comes_before_them(folder: Path) -> None:
    documents = texts(5, 100)
    model = load(folder, instruction="Find code")
    ids = model.documents(documents)
    for query in ("one", "another question", "one", " led by a space", "\nby a newline", "第三"):
        got = model.score(model.question(query), documents, ids)
        want = naive(folder, query, documents, 8192, "Find code")
        np.testing.assert_allclose([s.score for s in got], want, atol=1e-5)


def test_equals_sentence_transformers(folder: Path, tmp_path: Path) -> None:
    import shutil

    from sentence_transformers import CrossEncoder

    shutil.copytree(folder, tmp_path / "m")
    (tmp_path / "m" / "chat_template.jinja").write_text(tiny.RERANK_CHAT_TEMPLATE)
    documents = texts(12, 300)
    ours = load(tmp_path / "m")
    assert ours.choices["prompt"].reason == "the checkpoint's chat template"
    got = [s.margin for s in ours.score(ours.question(QUERY), documents)]
    peer = CrossEncoder(str(tmp_path / "m"), device="cpu", local_files_only=True)
    want = peer.predict([(QUERY, d) for d in documents], activation_fn=__import__("torch").nn.Identity())
    np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.mark.parametrize("labels", [1, 2])
def test_the_classifier_form_gives_the_same_scores(folder: Path, tmp_path: Path, labels: int) -> None:
    documents = texts(12, 200)
    plain, other = load(folder), load(tiny.qwen3_reranker(tmp_path / "c", labels=labels))
    assert (plain.choices["kind"].value, other.choices["kind"].value) == ("lm", "classifier")
    want = [s.score for s in plain.score(plain.question(QUERY), documents)]
    got = [s.score for s in other.score(other.question(QUERY), documents)]
    np.testing.assert_allclose(got, want, atol=1e-6)
    assert list(np.argsort(got)) == list(np.argsort(want))


def test_an_untied_head_is_read_from_its_own_rows(tmp_path: Path) -> None:
    documents = texts(6, 100)
    model = load(tiny.qwen3_reranker(tmp_path / "u", tied=False))
    got = [s.score for s in model.score(model.question(QUERY), documents)]
    want = naive(tmp_path / "u", QUERY, documents, 8192, RERANK_DEFAULT_INSTRUCTION)
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize(("family", "labels"), [("bert", 1), ("bert", 2), ("electra", 1)])
def test_cross_encoders_equal_transformers(tmp_path: Path, family: str, labels: int) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tiny.cross_encoder(tmp_path / "x", labels=labels, family=family)
    model = load(tmp_path / "x")
    documents = texts(20, 60)
    got = [s.margin for s in model.score(model.question("error handling"), documents)]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "x")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "x").eval()
    want = []
    for document in documents:
        pair = tokenizer("error handling", document, truncation="only_second", max_length=128, return_tensors="pt")
        with torch.inference_mode():
            logits = plain(**pair).logits[0]
        want.append((logits[0] if labels == 1 else logits[1] - logits[0]).item())
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_identity_activation_of_the_config_is_kept(tmp_path: Path) -> None:
    tiny.cross_encoder(tmp_path / "x")
    config = json.loads((tmp_path / "x" / "config.json").read_text())
    config["sentence_transformers"] = {"activation_fn": "torch.nn.modules.linear.Identity"}
    (tmp_path / "x" / "config.json").write_text(json.dumps(config))
    model = load(tmp_path / "x")
    result = model.score(model.question("a"), ["b"])[0]
    assert result.score == result.margin


def test_long_max_keeps_the_best_window(folder: Path) -> None:
    document = " ".join(tiny.real_texts(30))
    whole, best = load(folder, max_tokens=300), load(folder, max_tokens=300, long="max")
    row = best.documents([document])[0]
    question = best.question(QUERY)
    result = best.score(question, [document, "short"])
    room = 300 - question.fixed
    windows = [row[at : at + room] for at in range(0, max(len(row) - room // 8, 1), room - room // 8)]
    margins = [float(best.scorer.margins(question, [w])[0, 0]) for w in windows]
    assert result[0].windows == len(windows) > 3
    assert windows[-1][-1] == row[-1]
    assert math.isclose(result[0].margin, max(margins), abs_tol=1e-4)
    assert not result[0].truncated
    assert whole.score(whole.question(QUERY), [document])[0].truncated
    with pytest.raises(QwenchError, match="document 1 has"):
        strict = load(folder, max_tokens=300, long="error")
        strict.score(strict.question(QUERY), [document])


def test_a_query_longer_than_the_context_is_refused(folder: Path) -> None:
    model = load(folder, max_tokens=100)
    with pytest.raises(QwenchError, match="tokens and the model takes 100"):
        model.question("word " * 200)


def test_what_is_no_reranker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(QwenchError, match="embedding model"):
        load(tiny.qwen3_embedding(tmp_path / "e"))
    with pytest.raises(QwenchError, match="as in an embedding model"):
        load(tiny.qwen3_embedding(tmp_path / "flat", st_files=False))
    with pytest.raises(QwenchError, match="embedding model"):
        load(tiny.minilm())
    with pytest.raises(QwenchError, match=r"score\.weight"):
        load(tiny.qwen3_reranker(tmp_path / "c", labels=1, head=False))
    with pytest.raises(QwenchError, match="lm_head"):
        load(tiny.qwen3_reranker(tmp_path / "u", tied=False, head=False))
    with pytest.raises(QwenchError, match="3 labels"):
        load(tiny.cross_encoder(tmp_path / "x3", labels=3))


def test_a_template_without_its_last_newline_is_refused(folder: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(folder, tmp_path / "m")
    body = "{% for m in messages %}{{ m['role'] == 'query' }}{{ m['role'] == 'document' }}{% endfor %}"
    for tail, said in (("</think>\n\n", "too few newlines"), ("</think>\n\n\n", "once each")):
        text = "<Instruct>: {{ messages[0].content }} {{ messages[1].content }} "
        text += "{{ messages[2].content }}" if "few" in said else body
        (tmp_path / "m" / "chat_template.jinja").write_text(text + "{# 'query' 'document' #}" + tail)
        with pytest.raises(QwenchError, match=said):
            load(tmp_path / "m")


def test_yes_and_no_must_be_single_tokens(folder: Path, tmp_path: Path) -> None:
    tiny.qwen3_reranker(tmp_path / "m")
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocab = {c: i for i, c in enumerate(map(chr, range(32, 127)))}
    plain = Tokenizer(models.BPE(vocab, []))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    plain.save(str(tmp_path / "m" / "tokenizer.json"))
    with pytest.raises(QwenchError, match="no single token for `yes`"):
        load(tmp_path / "m")


def test_selftest_sees_the_order(folder: Path) -> None:
    model = load(folder)
    rows = selftest(model)
    assert len(rows) == 6
    for query in {r["query"] for r in rows}:
        own = [r["own"] for r in rows if r["query"] == query]
        np.testing.assert_allclose(own, own[0], atol=2e-6)
    assert all(r["right"] == (r["own"] > r["other"]) for r in rows)
