"""Decoding of ours beside transformers' generate and llama.cpp's library, in one run.

    python benchmarks/decode.py                  # SmolLM2-135M, prefill 512, decode 256, batch 1 and 8

Each engine runs in a process of its own, in turn; figures are medians of the rounds, loading not counted. Prompts are
random ids, tokens are taken greedily and nothing ends a turn early. `of limit` is the speed as a share of what reading
every weight once for each step allows at the memory bandwidth measured in the same run (keys and values not counted).
llama.cpp runs bare: its own decode and greedy sampler, no text, no stop checks. On CPUs with AMX its AMX kernels
are left out for both, since they end the process. The last line of standard output is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from memory import peak_bytes
from qwench.ops.base.runtime import Runtime

PREFILL, DECODE = 512, 256


def prompts(batch: int) -> list[list[int]]:
    rng = random.Random(0)
    return [[rng.randrange(100, 40_000) for _ in range(PREFILL)] for _ in range(batch)]


def run_ours(
    model: str, batch: int, engine: str, quantize: str, dtype: str, kernels: str = "auto"
) -> tuple[float, float]:
    """(seconds of the prefill, seconds of the decode)."""
    from qwench.ops.models.hub import resolve
    from qwench.ops.writing.generate import Generator, Request, Turn
    from qwench.ops.writing.load import load_causal
    from qwench.ops.writing.sampling import Sampling
    from qwench.ops.writing.thinking import Think

    loaded = load_causal(
        resolve(model),
        slots=batch,
        context=2048,
        runtime=Runtime(
            device="cpu", dtype=dtype, quantize=quantize, engine=engine, threads=threads(), kernels=kernels
        ),
    )
    generator = Generator(loaded.engine, loaded.tokenizer, Think.of(loaded.tokenizer), [])
    requests = [
        Request(i, ids, DECODE, budget=0, sampling=Sampling(temperature=0)) for i, ids in enumerate(prompts(batch))
    ]
    list(generator.run([Request("warm", [5, 6, 7], 4, budget=0)]))
    begun = time.perf_counter()
    turns = [t for t in generator.run(requests) if isinstance(t, Turn)]
    whole = time.perf_counter() - begun
    assert all(len(t.generated) == DECODE for t in turns)
    first = max(t.first_seconds for t in turns)
    return first, whole - first


def run_transformers(model: str, batch: int, dtype: str) -> tuple[float, float]:
    import torch
    from transformers import AutoModelForCausalLM

    peer = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
    ids = torch.tensor(prompts(batch))

    def generate(count: int) -> float:
        begun = time.perf_counter()
        made = peer.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, min_new_tokens=count, do_sample=False
        )
        assert made.shape[1] == PREFILL + count
        return time.perf_counter() - begun

    generate(2)
    first = generate(1)
    return first, generate(DECODE) - first


def run_llama(model: str, batch: int) -> tuple[float, float]:
    from qwench.ops.writing.llama_cpp import LlamaCpp

    engine = LlamaCpp(Path(model), 2048, batch, threads())
    lib, ctx = engine._lib, engine._ctx
    chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
    lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_greedy())
    b = lib.llama_batch_init(PREFILL, 0, 1)
    begun = time.perf_counter()
    last = []
    for row, ids in enumerate(prompts(batch)):
        for i, token in enumerate(ids):
            b.token[i], b.pos[i], b.n_seq_id[i], b.logits[i] = token, i, 1, i == PREFILL - 1
            b.seq_id[i][0] = row
        b.n_tokens = PREFILL
        assert lib.llama_decode(ctx, b) == 0
        last.append(lib.llama_sampler_sample(chain, ctx, PREFILL - 1))
    first = time.perf_counter() - begun
    for step in range(DECODE - 1):
        for row, token in enumerate(last):
            b.token[row], b.pos[row], b.n_seq_id[row], b.logits[row] = token, PREFILL + step, 1, 1
            b.seq_id[row][0] = row
        b.n_tokens = batch
        assert lib.llama_decode(ctx, b) == 0
        last = [lib.llama_sampler_sample(chain, ctx, row) for row in range(batch)]
    return first, time.perf_counter() - begun - first


def bandwidth() -> float:
    """Bytes a second that all threads read, best of five over 1 GiB."""
    import torch

    torch.set_num_threads(threads())
    values = torch.ones(1 << 28)
    best = 0.0
    for _ in range(5):
        begun = time.perf_counter()
        values.sum()
        best = max(best, values.nbytes / (time.perf_counter() - begun))
    return best


def threads() -> int:
    return len(os.sched_getaffinity(0))


def child(spec: dict) -> None:
    import torch

    torch.set_num_threads(threads())
    kind = spec.pop("kind")
    found = {"ours": run_ours, "transformers": run_transformers, "llama.cpp": run_llama}[kind](**spec)
    print(json.dumps({"prefill": found[0], "decode": found[1], "peak": peak_bytes()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--only", help="engines whose name has one of these words, as float32,bfloat16")
    parser.add_argument("--child")
    args = parser.parse_args()
    if args.child:
        child(json.loads(args.child))
        return
    with tempfile.TemporaryDirectory() as folder:
        made = {name: f"{folder}/{name}" for name in ("f32", "bf16", "q8_0.gguf", "q4_1.gguf")}
        for name, extra in (
            ("f32", ["--dtype", "float32"]),
            ("bf16", ["--dtype", "bfloat16"]),
            ("q8_0.gguf", ["--dtype", "q8_0"]),
            ("q4_1.gguf", ["--dtype", "q4_1"]),
        ):
            command = [sys.executable, "-m", "qwench.cli.main", "convert", args.model, made[name], *extra, "--quiet"]
            subprocess.run(command, check=True)
        ours = {"kind": "ours", "engine": "torch", "quantize": "none", "dtype": "float32", "model": made["f32"]}
        llama = ours | {"engine": "llama.cpp", "dtype": "auto"}
        peer = {"kind": "transformers", "model": made["f32"]}
        engines = {
            "ours float32": (ours, 4.0),
            "ours float32, eager": (ours | {"kernels": "eager"}, 4.0),
            "ours int8": (ours | {"quantize": "int8"}, 1.0625),
            "ours int4": (ours | {"quantize": "int4"}, 0.625),
            "transformers float32": (peer | {"dtype": "float32"}, 4.0),
            "transformers bfloat16": (peer | {"dtype": "bfloat16"}, 2.0),
            "ours bfloat16 weights": (ours | {"model": made["bf16"], "dtype": "auto"}, 2.0),
            "ours q8_0 file": (ours | {"model": made["q8_0.gguf"], "dtype": "auto"}, 1.0625),
            "ours q4_1 file": (ours | {"model": made["q4_1.gguf"], "dtype": "auto"}, 0.68),
        }
        from importlib.util import find_spec

        if find_spec("llama_cpp"):
            for name, size in (("q8_0", 1.0625), ("q4_1", 0.625)):
                file = made[f"{name}.gguf"]
                engines[f"ours llama.cpp {name}"] = (llama | {"model": file}, size)
                engines[f"llama.cpp {name}"] = ({"kind": "llama.cpp", "model": file}, size)
        if args.only:
            engines = {n: e for n, e in engines.items() if any(w in n for w in args.only.split(","))}
        found: dict[tuple[str, int], list[dict]] = {}
        for _ in range(args.rounds):
            for batch in (1, 8):
                for name, (spec, _) in engines.items():
                    command = [sys.executable, __file__, "--child", json.dumps(spec | {"batch": batch})]
                    done = subprocess.run(command, check=True, capture_output=True, text=True)
                    found.setdefault((name, batch), []).append(json.loads(done.stdout.splitlines()[-1]))
        report(engines, found, parameters(made["f32"]))


def parameters(folder: str) -> int:
    """Weights that a step reads: all of them, and a tied embedding once."""
    from qwench.ops.checkpoint.reader import Source

    infos = Source(Path(folder)).infos.values()
    return sum(i.nbytes for i in infos) // 4


def report(engines: dict, found: dict, count: int) -> None:
    read = bandwidth()
    rows = []
    print(f"memory read {read / 1e9:.1f} GB/s, {threads()} threads, {count / 1e6:.0f} M weights")
    print(f"{'engine':26s} batch  prefill tok/s  decode tok/s  of limit  peak MB")
    for (name, batch), runs in sorted(found.items(), key=lambda f: (f[0][1], list(engines).index(f[0][0]))):
        prefill = batch * PREFILL / statistics.median(r["prefill"] for r in runs)
        decode = batch * (DECODE - 1) / statistics.median(r["decode"] for r in runs)
        limit = batch * read / (count * engines[name][1])
        peak = max(r["peak"] for r in runs)
        rows.append(
            {"engine": name, "batch": batch, "prefill": prefill, "decode": decode, "limit": limit, "peak": peak}
        )
        print(f"{name:26s} {batch:5d} {prefill:14.1f} {decode:13.1f} {decode / limit:9.1%} {peak / 1e6:8.0f}")
    speed = {(r["engine"], r["batch"]): r["decode"] for r in rows}
    pairs = [("ours float32", "transformers float32"), ("ours bfloat16 weights", "transformers bfloat16")]
    pairs += [("ours float32", "ours float32, eager")]
    pairs += [(f"ours {q} file", f"llama.cpp {q}") for q in ("q8_0", "q4_1")]
    pairs += [(f"ours llama.cpp {q}", f"llama.cpp {q}") for q in ("q8_0", "q4_1")]
    ratios = {
        f"{a} / {b}, batch {n}": speed[a, n] / speed[b, n]
        for a, b in pairs
        for n in (1, 8)
        if {(a, n), (b, n)} <= speed.keys()
    }
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.2f}x")
    print(json.dumps({"bandwidth": read, "rows": rows, "ratios": ratios}))


if __name__ == "__main__":
    main()
