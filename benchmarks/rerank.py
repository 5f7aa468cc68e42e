"""Ours beside sentence-transformers' CrossEncoder and the model card's procedure, in one run.

    python benchmarks/rerank.py                  # a small Qwen3, and the 0.6B shape (needs 8 GB and ten minutes)
    python benchmarks/rerank.py --only small

Random weights of Qwen3-Reranker's layout with the real tokenizer; documents of about 128 tokens from Python's own
library; 1 query x 64 documents and 8 x 32. Each engine runs in a process of its own, in turn, in float32; the
figure is the median of the rounds, loading not counted, tokenising counted. `useful` is the part of an engine's
tokens that the answer needs: the prompt once per query, and every document with its suffix.
The last line of standard output is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from embed import make_qwen3, peak_gflops, texts
from memory import peak_bytes
from qwench.ops.base.runtime import Runtime

QUERIES = [
    "How are errors handled?",
    "open a file and read its lines",
    "parse command line arguments",
    "a lock shared by threads",
    "compress data with a dictionary",
    "Where is the time zone read?",
    "decode an HTTP response",
    "random numbers from the system",
]
SHAPES = {
    "small": {"hidden_size": 384, "intermediate_size": 1152, "num_hidden_layers": 8, "num_attention_heads": 6}
    | {"num_key_value_heads": 3, "head_dim": 64},
    "0.6B": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16}
    | {"num_key_value_heads": 8, "head_dim": 128},
}
#: pairs per forward pass of the model card's procedure: all of them at once would be gigabytes of logits
CARD_BATCH = 8


def documents(model: str, count: int) -> list[str]:
    """Passages of 90 to 166 tokens, 128 on average."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(f"{model}/tokenizer.json")
    made: list[str] = []
    for text in texts(20 * count):
        encoding = tokenizer.encode(text, add_special_tokens=False)
        want = 90 + (len(made) * 7919) % 77
        if len(encoding.ids) >= want:
            made.append(text[: encoding.offsets[want - 1][1]])
        if len(made) == count:
            break
    return made


def run_ours(model: str, queries: list[str], docs: list[str], **options: str) -> tuple[list[list[float]], float]:
    from qwench.ops.models.hub import resolve
    from qwench.ops.scoring.reranker import Reranker, RerankSettings

    reranker = Reranker(resolve(model), RerankSettings(**options, runtime=Runtime(device="cpu", dtype="float32")))
    reranker.score(reranker.question("warm up"), docs[:4])
    start = time.perf_counter()
    ids = reranker.documents(docs)
    scores = [[s.margin for s in reranker.score(reranker.question(q), docs, ids)] for q in queries]
    return scores, time.perf_counter() - start


def run_st(model: str, queries: list[str], docs: list[str], batch: int) -> tuple[list[list[float]], float]:
    import torch
    from sentence_transformers import CrossEncoder

    peer = CrossEncoder(model, device="cpu", local_files_only=True, model_kwargs={"dtype": "float32"})
    options = {"batch_size": batch} if batch else {}
    peer.predict([("warm up", d) for d in docs[:4]])
    start = time.perf_counter()
    pairs = [(q, d) for q in queries for d in docs]
    flat = peer.predict(pairs, activation_fn=torch.nn.Identity(), **options).tolist()
    spent = time.perf_counter() - start
    return [flat[i : i + len(docs)] for i in range(0, len(flat), len(docs))], spent


def run_card(model: str, queries: list[str], docs: list[str]) -> tuple[list[list[float]], float]:
    """transformers as the model card shows it: full prompts, left padding, all logits, log-softmax of yes and no."""
    import torch
    from qwench.ops.text.prompts import RERANK_DEFAULT_INSTRUCTION, RERANK_PREFIX, RERANK_SUFFIX
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    lm = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    prefix, suffix = (tokenizer.encode(t, add_special_tokens=False) for t in (RERANK_PREFIX, RERANK_SUFFIX))
    yes, no = tokenizer.convert_tokens_to_ids("yes"), tokenizer.convert_tokens_to_ids("no")

    def score(pairs: list[tuple[str, str]]) -> list[float]:
        bodies = [f"<Instruct>: {RERANK_DEFAULT_INSTRUCTION}\n<Query>: {q}\n<Document>: {d}" for q, d in pairs]
        rows = tokenizer(bodies, add_special_tokens=False)["input_ids"]
        batch = tokenizer.pad({"input_ids": [prefix + r + suffix for r in rows]}, padding=True, return_tensors="pt")
        with torch.no_grad():
            logits = lm(**batch).logits[:, -1, :]
        return (logits[:, yes] - logits[:, no]).tolist()

    score([("warm up", d) for d in docs[:4]])
    start = time.perf_counter()
    pairs = [(q, d) for q in queries for d in docs]
    flat = [s for i in range(0, len(pairs), CARD_BATCH) for s in score(pairs[i : i + CARD_BATCH])]
    return [flat[i : i + len(docs)] for i in range(0, len(flat), len(docs))], time.perf_counter() - start


def child(job: dict) -> None:
    if job["engine"] == "peak":
        print(json.dumps({"gflops": peak_gflops("cpu")}))
        return
    queries, docs = QUERIES[: job["queries"]], documents(job["model"], job["documents"])
    if job["engine"] == "ours":
        scores, spent = run_ours(job["model"], queries, docs, **job["options"])
    elif job["engine"] == "st":
        scores, spent = run_st(job["model"], queries, docs, job["batch"])
    else:
        scores, spent = run_card(job["model"], queries, docs)
    print(json.dumps({"seconds": spent, "peak_mb": peak_bytes() / 2**20, "scores": scores}))


def spawn(**job: object) -> dict:
    env = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps(job)], env=env, stdout=subprocess.PIPE, check=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def token_counts(model: str, queries: int, count: int) -> dict[str, int]:
    """Tokens that must be read (prompt once per query), and those of full prompts; matmul parameters."""
    from qwench.ops.models.hub import resolve
    from qwench.ops.scoring.reranker import Reranker, RerankSettings

    reranker = Reranker(resolve(model), RerankSettings(runtime=Runtime(device="cpu", dtype="float32")))
    docs = documents(model, count)
    asked = [reranker.question(q) for q in QUERIES[:queries]]
    own = sum(len(r) + 9 for r in reranker.documents(docs))
    static = len(reranker.scorer._static_ids)
    return {
        "useful": queries * own + static + sum(len(q.ids) - static for q in asked),
        "full": sum(own + q.fixed * count - 9 * count for q in asked),
        "parameters": reranker.scorer.parameters,
    }


def compare(name: str, model: str, queries: int, count: int, rounds: int, peak: float, engines: str) -> dict:
    import numpy as np

    jobs: dict[str, dict] = {
        "qwench": {"engine": "ours", "options": {}},
        "qwench --kernels eager": {"engine": "ours", "options": {"kernels": "eager"}},
        "sentence-transformers default": {"engine": "st", "batch": 0},
        "sentence-transformers 4": {"engine": "st", "batch": 4},
        "model card": {"engine": "card"},
        "qwench --quantize int8": {"engine": "ours", "options": {"quantize": "int8"}},
    }
    jobs = {label: job for label, job in jobs.items() if label.startswith(engines)}
    seconds: dict[str, list[float]] = {j: [] for j in jobs}
    last: dict[str, dict] = {}
    for _ in range(rounds):
        for label, job in jobs.items():
            last[label] = spawn(model=model, queries=queries, documents=count, **job)
            seconds[label].append(last[label]["seconds"])
    tokens = token_counts(model, queries, count)
    base, ours = statistics.median(seconds["qwench"]), np.array(last["qwench"]["scores"])
    rows = []
    for label in jobs:
        spent, scores = statistics.median(seconds[label]), np.array(last[label]["scores"])
        rows.append(
            {
                "engine": label,
                "documents_per_second": queries * count / spent,
                "ratio": spent / base,
                "peak_mb": last[label]["peak_mb"],
                "useful_gflops": 2 * tokens["parameters"] * tokens["useful"] / spent / 1e9,
                "max_margin_difference": float(np.abs(scores - ours).max()),
            }
        )
    share = tokens["useful"] / tokens["full"]
    title = f"{name}: {queries} x {count} documents, float32 peak {peak:.0f} GFLOP/s, {rounds} rounds"
    print(f"\n{title}; useful tokens {share:.0%} of full prompts", file=sys.stderr)
    print(
        f"{'engine':32} {'docs/s':>8} {'x slower':>8} {'peak MB':>8} {'of peak':>8} {'difference':>10}", file=sys.stderr
    )
    for r in rows:
        line = f"{r['engine']:32} {r['documents_per_second']:8.2f} {r['ratio']:8.2f} {r['peak_mb']:8.0f}"
        print(f"{line} {r['useful_gflops'] / peak:8.0%} {r['max_margin_difference']:10.1e}", file=sys.stderr)
    return {"model": name, "queries": queries, "documents": count, **tokens, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the small shape; the 0.6B shape gets one")
    parser.add_argument("--only", default="", help="small or 0.6B")
    parser.add_argument("--sizes", default="1x64,8x32", help="queries x documents")
    parser.add_argument("--engines", default="", help="those whose names begin so, `qwench` among them")
    parser.add_argument("--tokenizer", type=Path, help="folder with Qwen3's tokenizer.json")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(json.loads(args.child))
        return
    tokenizer = args.tokenizer or Path(__file__).parents[2] / "shared" / "reference" / "qwen3-tokenizer"
    results = []
    with tempfile.TemporaryDirectory() as folder:
        peak = spawn(engine="peak")["gflops"]
        for name, shape in SHAPES.items():
            if args.only in ("", name):
                model = Path(folder) / name
                make_qwen3(model, tokenizer, reranker=True, **shape)
                rounds = args.rounds if name == "small" else 1
                for queries, count in (map(int, size.split("x")) for size in args.sizes.split(",")):
                    results.append(compare(name, str(model), queries, count, rounds, peak, args.engines))
    print(json.dumps({"schema": 1, "float32_peak_gflops": peak, "results": results}))


if __name__ == "__main__":
    main()
