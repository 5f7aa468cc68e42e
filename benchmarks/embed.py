"""Ours beside sentence-transformers, in one run: tokens/s, peak memory, ratios.

    python benchmarks/embed.py                    # MiniLM, a tiny Qwen3; 2,000 chunks of Python's own library
    python benchmarks/embed.py --big              # adds a random checkpoint of the 0.6B shape (needs 6 GB)
    python benchmarks/embed.py --device cuda --only big --count 5000

Each engine runs in a process of its own, in turn (A B A B ...), on the same texts and model; the figure is
the median of the rounds. A second table compares int8 with float32, and gives the machine's float32 matmul
peak, measured in the same run. Model loading is not counted; tokenising is.
On CUDA everything is in bfloat16, the peak too.
The last line of standard output is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

from memory import peak_bytes
from qwench.ops.base.runtime import Runtime

QUERY = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"


def texts(count: int) -> list[str]:
    """Chunks of mixed length from Python's own standard library."""
    found: list[str] = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("**/*.py")):
        if "site-packages" in path.parts or "test" in path.parts:
            continue
        source, at = path.read_text("utf-8", "replace"), 0
        while at < len(source) and len(found) < count:
            size = 60 + (len(found) * 7919) % 1200
            if piece := source[at : at + size].strip():
                found.append(piece)
            at += size
    return found[:count]


def make_qwen3(folder: Path, tokenizer: Path, *, reranker: bool = False, **shape: int) -> None:
    """A random checkpoint of the given shape, in the layout of Qwen3-Embedding or of Qwen3-Reranker."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    os.environ["QWENCH_REFERENCE"] = str(tokenizer.parent)
    import torch
    from safetensors.torch import save_file
    from transformers import Qwen3Config, Qwen3Model

    from tests import tiny

    config = Qwen3Config(vocab_size=151669, max_position_embeddings=32768, tie_word_embeddings=True, **shape)
    torch.manual_seed(0)
    model = Qwen3Model(config)
    folder.mkdir(parents=True)
    prefix = "model." if reranker else ""
    tensors = {prefix + k: v for k, v in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config.architectures = ["Qwen3ForCausalLM"]
    config.save_pretrained(folder)
    tiny.qwen3_tokenizer(folder, eos=not reranker)
    if reranker:
        (folder / "chat_template.jinja").write_text(tiny.RERANK_CHAT_TEMPLATE)
        return
    tiny.write_st_files(folder, "lasttoken", config.hidden_size, {"query": QUERY, "document": ""}, 512)


def dtype_on(device: str) -> str:
    return "bfloat16" if device == "cuda" else "float32"


def run_ours(model: str, chunks: list[str], batch: int, device: str, **options: str) -> tuple[object, float]:
    from qwench.ops.models.hub import resolve
    from qwench.ops.scoring.embedder import Embedder, EmbedSettings

    settings = EmbedSettings(batch_tokens=batch, **options, runtime=Runtime(device=device, dtype=dtype_on(device)))
    embedder = Embedder(resolve(model), settings)
    limit = embedder.content_limit()

    def encode(part: list[str]) -> object:
        return embedder.embed([embedder.tokenizer.wrap(ids[:limit]) for ids in embedder.tokenizer.ids(part)])

    encode(chunks[: 512 if device == "cuda" else 8])
    start = time.perf_counter()
    vectors = encode(chunks)
    return vectors, time.perf_counter() - start


def run_st(model: str, chunks: list[str], batch: int, device: str, dtype: str) -> tuple[object, float]:
    import torch
    from sentence_transformers import SentenceTransformer

    st = SentenceTransformer(model, device=device, local_files_only=True, model_kwargs={"dtype": dtype})
    options = {"batch_size": batch} if batch else {}
    st.encode(chunks[: 512 if device == "cuda" else 8], **options)
    start = time.perf_counter()
    vectors = st.encode(chunks, show_progress_bar=False, **options)
    spent = time.perf_counter() - start
    return (vectors.float().numpy() if isinstance(vectors, torch.Tensor) else vectors), spent


def peak_gflops(device: str) -> float:
    """Matmul peak of this machine, all threads: best of several products of 2048-cubed, 8192-cubed on CUDA."""
    import torch

    side = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device, dtype=getattr(torch, dtype_on(device))) for _ in range(2))
    times = []
    for _ in range(12):
        start = time.perf_counter()
        (a @ b)[0, 0].item()
        times.append(time.perf_counter() - start)
    return 2 * side**3 / min(times) / 1e9


def child(job: dict) -> None:
    import numpy as np

    chunks = texts(job["count"])
    if job["engine"] == "peak":
        print(json.dumps({"gflops": peak_gflops(job["device"])}))
        return
    if job["engine"] == "ours":
        vectors, spent = run_ours(job["model"], chunks, job["batch"], job["device"], **job["options"])
    else:
        vectors, spent = run_st(job["model"], chunks, job["batch"], job["device"], job["dtype"])
    np.save(job["out"], vectors)
    print(json.dumps({"seconds": spent, "peak_mb": peak_bytes() / 2**20}))


def spawn(**job: object) -> dict:
    env = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps(job)], env=env, stdout=subprocess.PIPE, check=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def count_tokens(model: Path, chunks: list[str]) -> tuple[int, int]:
    """(true tokens after truncation, matmul parameters of the model)."""
    from qwench.ops.models.hub import resolve
    from qwench.ops.scoring.embedder import Embedder, EmbedSettings

    embedder = Embedder(resolve(str(model)), EmbedSettings(runtime=Runtime(device="cpu")))
    limit = embedder.content_limit()
    tokens = sum(min(len(ids), limit) + embedder.tokenizer.specials for ids in embedder.tokenizer.ids(chunks))
    return tokens, embedder.encoder.matmul_parameters


def compare(
    name: str,
    model: Path,
    count: int,
    rounds: int,
    batches: list[int],
    tmp: Path,
    peak: float,
    engines: str,
    device: str,
) -> dict:
    import numpy as np

    tokens, parameters = count_tokens(model, texts(count))
    usual = "bfloat16" if device == "cuda" else "auto"
    jobs = {
        "qwench": {"engine": "ours", "batch": 0, "options": {}},
        "qwench --kernels eager": {"engine": "ours", "batch": 0, "options": {"kernels": "eager"}},
        "sentence-transformers default": {"engine": "st", "batch": 0, "dtype": usual},
        **{f"sentence-transformers {b}": {"engine": "st", "batch": b, "dtype": dtype_on(device)} for b in batches},
        "qwench --quantize int8": {"engine": "ours", "batch": 0, "options": {"quantize": "int8"}},
    }
    if device == "cuda":
        del jobs["qwench --quantize int8"]
    jobs = {label: job for label, job in jobs.items() if label.startswith(engines)}
    seconds: dict[str, list[float]] = {j: [] for j in jobs}
    memory: dict[str, float] = {}
    for _ in range(rounds):
        for label, job in jobs.items():
            done = spawn(model=str(model), count=count, device=device, out=str(tmp / f"{label}.npy"), **job)
            seconds[label].append(done["seconds"])
            memory[label] = max(memory.get(label, 0), done["peak_mb"])
    ours = np.load(tmp / "qwench.npy")
    rows, base = [], statistics.median(seconds["qwench"])
    for label in jobs:
        vectors, spent = np.load(tmp / f"{label}.npy"), statistics.median(seconds[label])
        cosine = (ours * vectors).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(vectors, axis=1)
        rows.append(
            {
                "engine": label,
                "tokens_per_second": tokens / spent,
                "ratio": spent / base,
                "peak_mb": memory[label],
                "gflops": 2 * parameters * tokens / spent / 1e9,
                "min_cosine": float(cosine.min()),
            }
        )
    print(
        f"\n{name}: {count} chunks, {tokens} tokens, {dtype_on(device)} peak {peak:.0f} GFLOP/s, {rounds} rounds",
        file=sys.stderr,
    )
    print(
        f"{'engine':32} {'tok/s':>8} {'x slower':>8} {'peak MB':>8} {'GFLOP/s':>8} {'of peak':>8} {'cosine':>9}",
        file=sys.stderr,
    )
    for r in rows:
        line = f"{r['engine']:32} {r['tokens_per_second']:8.0f} {r['ratio']:8.2f} {r['peak_mb']:8.0f}"
        print(f"{line} {r['gflops']:8.0f} {r['gflops'] / peak:8.0%} {r['min_cosine']:9.6f}", file=sys.stderr)
    return {"model": name, "chunks": count, "tokens": tokens, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--big", action="store_true", help="add the 0.6B shape, with fewer chunks")
    parser.add_argument("--only", default="", help="one of minilm, tiny, big")
    parser.add_argument("--engines", default="", help="those whose names begin so, `qwench` among them")
    parser.add_argument("--tokenizer", type=Path, help="folder with Qwen3's tokenizer.json")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(json.loads(args.child))
        return
    tokenizer = args.tokenizer or Path(__file__).parents[2] / "shared" / "reference" / "qwen3-tokenizer"
    from qwench.ops.models.hub import resolve

    results = []
    with tempfile.TemporaryDirectory() as folder:
        tmp = Path(folder)
        peak = spawn(engine="peak", count=1, device=args.device)["gflops"]
        common = {"tmp": tmp, "peak": peak, "engines": args.engines, "device": args.device}
        sizes = [128] if args.device == "cuda" else [4, 8, 16]
        if args.only in ("", "minilm"):
            results.append(compare("minilm", resolve("minilm").path, args.count, args.rounds, sizes, **common))
        small = {"hidden_size": 384, "intermediate_size": 1152, "num_hidden_layers": 8, "num_attention_heads": 6}
        if args.only in ("", "tiny"):
            make_qwen3(tmp / "tiny", tokenizer, **small, num_key_value_heads=3, head_dim=64)
            results.append(compare("tiny qwen3", tmp / "tiny", args.count, args.rounds, sizes, **common))
        if args.big or args.only == "big":
            big = {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16}
            make_qwen3(tmp / "big", tokenizer, **big, num_key_value_heads=8, head_dim=128)
            count, sizes = (args.count, sizes) if args.device == "cuda" else (64, [1, 4])
            results.append(compare("qwen3 0.6B shape", tmp / "big", count, min(args.rounds, 2), sizes, **common))
    print(json.dumps({"schema": 1, "peak_gflops": peak, "results": results}))


if __name__ == "__main__":
    main()
