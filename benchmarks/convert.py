"""Casting, resharding and GGUF beside transformers, gguf-py and a plain copy, in one run.

    python benchmarks/convert.py                 # the 0.6B shape in bfloat16 (needs 8 GB of disk and of memory)

Every engine runs in a process of its own, in turn, on the same checkpoint of random weights, warm in the page cache;
the figure is the median of the rounds, start-up counted. `private` is the peak of memory that is not mapped from files
(RssAnon, sampled), `peak` all of it. The last line of standard output is one JSON document.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from embed import make_qwen3
from qwench.ops.base.errors import QwenchError
from qwench.ops.models.hub import resolve

SHAPE = {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16}
SHAPE |= {"num_key_value_heads": 8, "head_dim": 128}
TRANSFORMERS = """
import sys, torch
from transformers import AutoModelForCausalLM
src, out, dtype, size = sys.argv[1:]
AutoModelForCausalLM.from_pretrained(src, dtype=getattr(torch, dtype)).save_pretrained(out, max_shard_size=size)
"""
#: gguf-py's own way: its quantiser and its writer, tensor by tensor
GGUF_PY = """
import sys, gguf, torch
from safetensors import safe_open
src, out, kind = sys.argv[1:]
kind = gguf.GGMLQuantizationType[kind]
writer = gguf.GGUFWriter(out, "qwen3")
with safe_open(src + "/model.safetensors", "pt") as file:
    for name in file.keys():
        data = file.get_tensor(name).float().numpy()
        if data.ndim > 1:
            data = gguf.quants.quantize(data, kind)
        writer.add_tensor(name, data, raw_dtype=kind if data.dtype == "uint8" else None)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
"""
LOAD = """
import sys
from pathlib import Path
from qwench.ops.checkpoint.reader import Source
source = Source(Path(sys.argv[1]))
tensors = {name: source.reader.load(name) for name in source.infos}
source.config(), source.reader.sides()
"""
TRANSFORMERS_LOAD = """
import sys, torch
from pathlib import Path
from transformers import AutoModelForCausalLM
path = Path(sys.argv[1])
AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
"""
COPY = """
import os, shutil, sys
shutil.copyfile(sys.argv[1] + "/model.safetensors", sys.argv[2])
handle = os.open(sys.argv[2], os.O_RDONLY)
os.fsync(handle)
"""


def measure(command: list[str]) -> dict[str, float]:
    """Wall seconds and peaks in MB of a command."""
    env = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    start = time.perf_counter()
    child = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    peaks = {"RssAnon": 0, "VmRSS": 0}

    def watch() -> None:
        while child.returncode is None:
            try:
                lines = Path(f"/proc/{child.pid}/status").read_text().splitlines()
            except OSError:
                return
            for line in lines:
                name, _, value = line.partition(":")
                if name in peaks:
                    peaks[name] = max(peaks[name], int(value.split()[0]))
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    error = child.communicate()[1]
    watcher.join()
    spent = time.perf_counter() - start
    if child.returncode:
        raise SystemExit(f"{command[:4]} failed: {error.decode()[-500:]}")
    return {"seconds": spent, "private_mb": peaks["RssAnon"] / 1024, "peak_mb": peaks["VmRSS"] / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="part of a task's name")
    parser.add_argument("--tokenizer", type=Path, help="folder with Qwen3's tokenizer.json")
    args = parser.parse_args()
    tokenizer = args.tokenizer or Path(__file__).parents[2] / "shared" / "reference" / "qwen3-tokenizer"
    with tempfile.TemporaryDirectory() as folder:
        tmp = Path(folder)
        make_qwen3(tmp / "wide", tokenizer, reranker=True, **SHAPE)
        ours = [sys.executable, "-m", "qwench.cli.main", "convert", "-q"]
        src, out = tmp / "src", tmp / "out"
        subprocess.run([*ours, str(tmp / "wide"), str(src), "--dtype", "bfloat16"], check=True)
        shutil.rmtree(tmp / "wide")
        theirs = [sys.executable, "-c", TRANSFORMERS, str(src), str(out)]
        jobs = {
            "cast to float16": {
                "qwench": [*ours, str(src), str(out), "--dtype", "float16"],
                "qwench, verified": [*ours, str(src), str(out), "--dtype", "float16", "--verify", "bits"],
                "transformers": [*theirs, "float16", "5GB"],
            },
            "reshard to 200 MB": {
                "qwench": [*ours, str(src), str(out), "--max-shard-size", "200MB"],
                "transformers": [*theirs, "bfloat16", "200MB"],
            },
            "GGUF Q8_0": {
                "qwench": [*ours, str(src), f"{out}.gguf", "--dtype", "q8_0"],
                "gguf-py": [sys.executable, "-c", GGUF_PY, str(src), f"{out}.gguf", "Q8_0"],
            },
            "GGUF Q4_0": {
                "qwench": [*ours, str(src), f"{out}.gguf", "--dtype", "q4_0"],
                "gguf-py": [sys.executable, "-c", GGUF_PY, str(src), f"{out}.gguf", "Q4_0"],
            },
            "GGUF bfloat16": {"qwench": [*ours, str(src), f"{out}.gguf"]},
        }
        with contextlib.suppress(QwenchError):
            smollm2 = str(resolve("smollm2").path)
            jobs["load SmolLM2 GGUF"] = {
                "qwench": [sys.executable, "-c", LOAD, smollm2],
                "transformers": [sys.executable, "-c", TRANSFORMERS_LOAD, smollm2],
            }
        if args.only:
            jobs = {k: v for k, v in jobs.items() if args.only in k}
        results = []
        for task, engines in jobs.items():
            if not task.startswith("load"):
                engines["plain copy"] = [sys.executable, "-c", COPY, str(src), str(out)]
            runs: dict[str, list[dict[str, float]]] = {e: [] for e in engines}
            for _ in range(args.rounds):
                for engine, command in engines.items():
                    runs[engine].append(measure(command))
                    for made in (out, out.with_suffix(".gguf")):
                        shutil.rmtree(made) if made.is_dir() else made.unlink(missing_ok=True)
            base = statistics.median(r["seconds"] for r in runs["qwench"])
            print(f"\n{task}, {args.rounds} rounds", file=sys.stderr)
            print(f"{'engine':20} {'seconds':>8} {'x slower':>8} {'private MB':>10} {'peak MB':>8}", file=sys.stderr)
            for engine, found in runs.items():
                row = {k: statistics.median(r[k] for r in found) for k in found[0]}
                row |= {"task": task, "engine": engine, "ratio": row["seconds"] / base}
                results.append(row)
                figures = f"{row['private_mb']:10.0f} {row['peak_mb']:8.0f}"
                print(f"{engine:20} {row['seconds']:8.2f} {row['ratio']:8.2f} {figures}", file=sys.stderr)
    print(json.dumps({"schema": 1, "results": results}))


if __name__ == "__main__":
    main()
