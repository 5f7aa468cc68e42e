"""ParScale: decode and prefill of P streams beside P passes, a naive wrapper, and what the machine allows; one run.

    python benchmarks/parscale.py                       # SmolLM2-135M and Qwen3-0.6B shapes, P 1 2 4 8, batch 1 and 4
    python benchmarks/parscale.py --shapes 135m --streams 1,4 --batches 1
    python benchmarks/parscale.py --device cuda --shapes 0.6b --batches 1,8

Random weights in bfloat16, a prefix of 48 tokens, prompts of 128 random ids; every case runs in a process of its own.
Ours is the engine behind `qwench chat`. `passes` is P times ours with one stream. `naive` replicates the batch in
transformers: the same model through its own classes, prefixes copied to every row and put before the keys in each step,
a DynamicCache; float32 and bfloat16 are both tried, and the faster one counts. `model` is max(bytes / bandwidth,
FLOPs / peak) of one step, with the read bandwidth and the float32 peak measured after each of the steps that
`ours/model` compares with it: memory here may read half as fast a second later. The last line of standard
output is one JSON document.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

from memory import peak_bytes

PREFILL, STEPS, PREFIX = 128, 24, 48
COMMON = {"max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "eos_token_id": 0}
SHAPES = {
    "135m": COMMON
    | {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
    },
    "0.6b": COMMON
    | {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
}


def threads() -> int:
    return len(os.sched_getaffinity(0))


def make(shape: str, streams: int, folder: Path, device: str) -> None:
    """A checkpoint with random weights; one stream is the plain decoder."""
    import torch
    from qwench.ops.streams.modeling_parscale import FAMILIES
    from safetensors.torch import save_file

    config = SHAPES[shape]
    family = FAMILIES[config["model_type"]]
    made = family.config_class(**{k: v for k, v in config.items() if k != "model_type"})
    made.parscale_n, made.parscale_n_tokens, made.parscale_attn_smooth = streams, PREFIX, 0.1
    torch.manual_seed(0)
    with torch.device(device):
        model = family._from_config(made, dtype=torch.bfloat16)
    tensors = {n: p.detach().cpu().contiguous() for n, p in model.state_dict().items() if n != "lm_head.weight"}
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    said = made.to_dict() | {"architectures": [family.__name__]}
    (folder / "config.json").write_text(json.dumps(said, default=str))


def prompts(batch: int) -> list[list[int]]:
    import random

    rng = random.Random(0)
    return [[rng.randrange(100, 40_000) for _ in range(PREFILL)] for _ in range(batch)]


def clock(device: str) -> float:
    """Now, with all that was begun on the device done."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def load_ours(folder: str, batch: int, dtype: str, device: str, kernels: str) -> Any:
    """The engine behind `qwench chat`, warm."""
    from qwench.ops.checkpoint.reader import Source
    from qwench.ops.kernels.choose import pick_kernels
    from qwench.ops.models.hub import resolve
    from qwench.ops.models.load_decoder import load_decoder
    from qwench.ops.models.nets.parallel import base_config

    checkpoint = resolve(folder)
    config = base_config(Source(Path(folder)).config())
    engine, _ = load_decoder(checkpoint, config, device, dtype, "none", batch, 0, pick_kernels(kernels, device).value)
    # On CUDA kernels are compiled for the lengths they meet first.
    engine.feed(dict(enumerate(prompts(batch))) if device == "cuda" else {slot: [5, 6, 7] for slot in range(batch)})
    engine.feed({slot: [8] for slot in range(batch)})
    return engine


def run_engine(
    engine: Any, batch: int, device: str, between: Callable[[], Any] = lambda: None
) -> tuple[float, list[float]]:
    """(seconds of the prefill, seconds of each step); `between` is called after each step."""
    for slot in range(batch):
        engine.keep(slot, 0)
    begun = clock(device)
    logits = engine.feed(dict(enumerate(prompts(batch))))
    first, steps = clock(device) - begun, []
    for _ in range(STEPS):
        ids = logits.argmax(-1).tolist()
        begun = clock(device)
        logits = engine.feed({slot: [token] for slot, token in enumerate(ids)})
        steps.append(clock(device) - begun)
        between()
    return first, steps


def run_ours(folder: str, batch: int, dtype: str, device: str) -> dict[str, Any]:
    """Time and memory; then once more with the machine measured after every step, since it changes its mind."""
    engine = load_ours(folder, batch, dtype, device, "auto")
    found = timed(*run_engine(engine, batch, device))
    roof: list[tuple[float, float]] = []
    measure = machine(device)
    _, steps = run_engine(engine, batch, device, lambda: roof.append(measure()))
    return found | {"beside": [(step, *at) for step, at in zip(steps, roof, strict=True)]}


def run_eager(folder: str, batch: int, dtype: str, device: str) -> dict[str, Any]:
    return timed(*run_engine(load_ours(folder, batch, dtype, device, "eager"), batch, device))


def timed(first: float, steps: list[float]) -> dict[str, Any]:
    return {"prefill": first, "step": statistics.median(steps), "steps": steps, "peak": peak_bytes()}


def run_naive(folder: str, batch: int, dtype: str, device: str) -> dict[str, Any]:
    import torch
    from qwench.ops.streams.modeling_parscale import FAMILIES

    kind = json.loads((Path(folder) / "config.json").read_text())["model_type"].removesuffix("_parscale")
    model = FAMILIES[kind].from_pretrained(folder, dtype=getattr(torch, dtype)).eval().to(device)
    ids = torch.tensor(prompts(batch), device=device)
    with torch.inference_mode():
        model(ids if device == "cuda" else ids[:, :8], use_cache=True)
        begun = clock(device)
        out = model(ids, use_cache=True, logits_to_keep=1)
        first, steps = clock(device) - begun, []
        for _ in range(STEPS):
            token = out.logits[:, -1:].argmax(-1)
            begun = clock(device)
            out = model(token, past_key_values=out.past_key_values, use_cache=True)
            steps.append(clock(device) - begun)
    return timed(first, steps)


def child(spec: dict) -> None:
    import torch

    torch.set_num_threads(threads())
    kind = spec.pop("kind")
    print(json.dumps({"ours": run_ours, "eager": run_eager, "naive": run_naive}[kind](**spec)))


def machine(device: str) -> Callable[[], tuple[float, float]]:
    """Measures (bytes a second that are read, FLOP a second of a product in the dtype of the activations)."""
    import torch

    cuda = device == "cuda"
    values = torch.ones(1 << 28 if cuda else 1 << 27, device=device)
    side, kind = (8192, torch.bfloat16) if cuda else (1024, torch.float32)
    square = torch.randn(side, side, device=device, dtype=kind)

    def measure() -> tuple[float, float]:
        begun = clock(device)
        values.sum()
        read = values.nbytes / (clock(device) - begun)
        begun = clock(device)
        square @ square
        return read, 2 * side**3 / (clock(device) - begun)

    measure()
    return measure


def measured(spec: dict) -> dict:
    command = [sys.executable, __file__, "--child", json.dumps(spec)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default="135m,0.6b")
    parser.add_argument("--streams", default="1,2,4,8")
    parser.add_argument("--batches", default="1,4")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--child")
    args = parser.parse_args()
    if args.child:
        child(json.loads(args.child))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for shape in args.shapes.split(","):
            streams = [int(p) for p in args.streams.split(",")]
            for p in streams:
                make(shape, p, Path(folder) / f"{shape}-{p}", args.device)
            for batch in (int(b) for b in args.batches.split(",")):
                rows += compared(shape, batch, streams, Path(folder), args.rounds, args.device)
    print(json.dumps({"threads": threads(), "rows": rows}))


def compared(shape: str, batch: int, streams: list[int], folder: Path, rounds: int, device: str) -> list[dict]:
    from qwench.ops.streams.size import decode_cost, prefill_cost

    cuda = device == "cuda"
    # On CUDA float32 is never the faster one, and ours without Triton and graphs takes its place.
    kinds = (("ours", "auto"), ("eager", "auto") if cuda else ("naive", "float32"), ("naive", "bfloat16"))
    wide = 2 if cuda else 4
    found: dict[tuple[int, str, str], list[dict]] = {}
    for _ in range(rounds):
        # The cases in turn, so that a slow minute of the machine meets all of them.
        for p in streams:
            for kind, dtype in kinds:
                spec = {"kind": kind, "folder": str(folder / f"{shape}-{p}"), "batch": batch, "dtype": dtype}
                spec["device"] = device
                found.setdefault((p, kind, dtype), []).append(measured(spec))
    print(f"\n{shape}, batch {batch}")
    print(
        "  P  step ms  of P=1  model ms  ours/model  read GB/s  GFLOP/s  passes/ours  naive/ours  prefill s  naive s"
        "  peak MB  naive MB" + ("  eager/ours" if cuda else "")
    )
    rows, one = [], None
    for p in streams:
        mid = {k: statistics.median(r["step"] for r in found[p, *k]) for k in kinds}
        first = {k: statistics.median(r["prefill"] for r in found[p, *k]) for k in kinds}
        memory = {k: max(r["peak"] for r in found[p, *k]) for k in kinds}
        naive = kinds[2] if cuda else min(kinds[1:], key=mid.__getitem__)
        ours, one = mid[kinds[0]], mid[kinds[0]] if one is None else one
        step = decode_cost(SHAPES[shape], p, batch, PREFILL + STEPS / 2, 2, wide)
        whole = prefill_cost(SHAPES[shape], p, batch, PREFILL, 2, wide)
        beside = [at for r in found[p, *kinds[0]] for at in r["beside"]]
        read, flops = (statistics.median(at[i] for at in beside) for i in (1, 2))
        row = {
            "shape": shape,
            "batch": batch,
            "streams": p,
            "step": ours,
            "of_one": ours / one,
            "model": step.seconds(read, flops),
            "over_model": statistics.median(seconds / step.seconds(*at) for seconds, *at in beside),
            "read": read,
            "flops": flops,
            "passes": p * one / ours,
            "naive": mid[naive] / ours,
            "naive_dtype": naive[1],
            "eager": mid[kinds[1]] / ours if cuda else None,
            "prefill": first[kinds[0]],
            "prefill_model": whole.seconds(read, flops),
            "naive_prefill": first[naive] if cuda else min(first[k] for k in kinds[1:]),
            "peak": memory[kinds[0]],
            "naive_peak": memory[naive],
        }
        rows.append(row)
        print(
            f"{p:3} {ours * 1e3:8.2f} {row['of_one']:7.2f} {row['model'] * 1e3:9.2f} {row['over_model']:11.2f}"
            f" {row['read'] / 1e9:10.1f} {row['flops'] / 1e9:8.0f} {row['passes']:12.2f} {row['naive']:11.2f}"
            f" {row['prefill']:10.3f} {row['naive_prefill']:8.3f}"
            f" {row['peak'] / 1e6:8.0f} {row['naive_peak'] / 1e6:9.0f}" + (f" {row['eager']:11.2f}" if cuda else ""),
            flush=True,
        )
    return rows


if __name__ == "__main__":
    main()
