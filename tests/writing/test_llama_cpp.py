"""llama.cpp itself reads our GGUF files: same tokens, same greedy answers, same vectors and scores.

Skipped where llama-cpp-python is not installed; QWENCH_LLAMA_PYTHON names another interpreter that has it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import tiny
from tests.checkpoint.test_checkpoint import run
from tests.checkpoint.test_gguf import TEXTS, made, smollm2  # noqa: F401
from tests.scoring.test_embedder import documents, embedder

PYTHON = os.environ.get("QWENCH_LLAMA_PYTHON") or (sys.executable if importlib.util.find_spec("llama_cpp") else None)
pytestmark = pytest.mark.skipif(PYTHON is None, reason="llama-cpp-python is not installed")

LLAMA = """
import json, sys
import llama_cpp
from llama_cpp import Llama
job = json.load(sys.stdin)
more = {"embedding": True, "pooling_type": job["pooling"]} if "pooling" in job else {}
model = Llama(job["path"], n_ctx=256, n_batch=256, n_ubatch=256, verbose=False, logits_all=False, n_threads=2, **more)
out = {"tokens": [model.tokenize(t.encode(), add_bos=True, special=True) for t in job.get("texts", [])]}
if "ids" in job:
    model.eval(job["ids"])
    out["greedy"] = []
    for _ in range(job["count"]):
        token = model.sample(temp=0.0, repeat_penalty=1.0)
        out["greedy"].append(token)
        model.eval([token])
if "embed" in job:
    # Its own embed() would read <|im_start|> as text.
    plain = model.tokenize
    model.tokenize = lambda text, add_bos=True, special=False: plain(text, add_bos, True)
    out["vectors"] = [model.embed(t, normalize=job["pooling"] != 4) for t in job["embed"]]
print(json.dumps(out))
"""


def llama(path: Path, **job: Any) -> dict[str, Any]:
    done = subprocess.run(
        [str(PYTHON), "-c", LLAMA],
        input=json.dumps({"path": str(path), **job}),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def greedy(folder: Path, ids: list[int], count: int) -> list[int]:
    """transformers' own greedy tokens in float32, without stopping at end tokens."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = list(ids)
    with torch.no_grad():
        for _ in range(count):
            found.append(int(model(torch.tensor([found])).logits[0, -1].argmax()))
    return found[len(ids) :]


def test_smollm2_there_and_back(smollm2: Path, tmp_path: Path) -> None:  # noqa: F811
    from tokenizers import Tokenizer

    run(smollm2, tmp_path / "folder")
    run(tmp_path / "folder", tmp_path / "x.gguf", verify="bits")
    tokenizer = Tokenizer.from_file(str(tmp_path / "folder" / "tokenizer.json"))
    prompt = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer.encode(prompt).ids
    found = llama(tmp_path / "x.gguf", texts=[*TEXTS, prompt], ids=ids, count=16)
    assert found["tokens"] == [tokenizer.encode(t).ids for t in (*TEXTS, prompt)]
    assert found["tokens"] == llama(smollm2, texts=[*TEXTS, prompt])["tokens"]
    assert found["greedy"] == greedy(tmp_path / "folder", ids, 16)
    assert "Paris" in tokenizer.decode(found["greedy"])


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3", "Qwen3Moe"])
def test_tiny_models_answer_alike(family: str, tmp_path: Path) -> None:
    source = made(tmp_path / "in", family, vocab_size=151_669, max_position_embeddings=512)
    tiny.qwen3_tokenizer(source, eos=False)
    run(source, tmp_path / "x.gguf", verify="bits")
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    ids = tokenizer.encode(TEXTS[0]).ids
    found = llama(tmp_path / "x.gguf", texts=TEXTS, ids=ids, count=12)
    assert found["tokens"] == [tokenizer.encode(t).ids for t in TEXTS]
    assert found["greedy"] == greedy(source, ids, 12)


def test_embedding_mode_gives_our_vectors(tmp_path: Path) -> None:
    source = tiny.qwen3_embedding(tmp_path / "in")
    run(source, tmp_path / "x.gguf")
    texts = [t for t in TEXTS if "<|" not in t]
    found = torch.tensor(llama(tmp_path / "x.gguf", embed=texts, pooling=3)["vectors"])
    ours = torch.from_numpy(documents(embedder(source), texts))
    assert (torch.nn.functional.cosine_similarity(found, ours) > 0.9999).all()


@pytest.mark.parametrize("labels", [1, 2])
def test_rank_mode_gives_our_scores(labels: int, tmp_path: Path) -> None:
    from qwench.ops.models.hub import resolve
    from qwench.ops.models.rerank_template import RerankTemplate
    from qwench.ops.scoring.reranker import Reranker, RerankSettings

    source = tiny.qwen3_reranker(tmp_path / "in")
    run(source, tmp_path / "x.gguf", head="reranker", labels=labels)
    query, documents = "what is a checkpoint", ["a folder of tensors", "a road block", "soup"]
    prompts = [RerankTemplate().filled(query, d) for d in documents]
    found = [v[0] for v in llama(tmp_path / "x.gguf", embed=prompts, pooling=4)["vectors"]]
    model = Reranker(resolve(str(source)), RerankSettings())
    ours = [s.score for s in model.score(model.question(query), documents)]
    assert found == pytest.approx(ours, abs=1e-4)
