"""Many samples of many prompts: ours beside llama-cpp-python's server and transformers' generate, in one run.

    python benchmarks/sample.py --server-python /path/to/python     # one that has llama-cpp-python[server]

64 prompts of about 200 tokens, 8 samples of 32 tokens each, at temperature 1. Ours computes a prompt once and forks it
for its samples; the server is fed by our own client, eight requests at a time; transformers is given one prompt a call
with `num_return_sequences=8`, and eight prompts a call. Each engine runs in a process of its own, in turn; figures are
medians of the rounds, loading not counted. A sample that ends early counts with the tokens that it has. The last line
of standard output is one JSON document.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from qwench.ops.base.runtime import Runtime

SAMPLES, TOKENS, LENGTH = 8, 32, 200
SAMPLING = (("temperature", 1.0), ("top_k", 0), ("top_p", 1.0))


def prompts(model: str, count: int) -> list[list[int]]:
    """Windows of the project's own pages, whose lengths differ by a third."""
    from qwench.ops.models.texts import texts_at

    pages = sorted((Path(__file__).parents[1] / "docs").glob("*.md"))
    ids = texts_at(model).tokenizer.ids(["\n".join(p.read_text("utf-8") for p in pages)])[0]
    lengths = [LENGTH + (37 * i) % 67 - 33 for i in range(count)]
    return [ids[i * LENGTH : i * LENGTH + n] for i, n in enumerate(lengths)]


def run_writer(writer, model: str, count: int) -> dict:
    from qwench.ops.models.texts import texts_at
    from qwench.ops.writing.writer import Ask, Turn

    list(writer.load())
    decode = texts_at(model).tokenizer.backend.decode  # not every server takes ids
    asks = [
        Ask(i, text=decode(ids), samples=SAMPLES, sampling=SAMPLING, seed=i, max_tokens=TOKENS, budget=0)
        for i, ids in enumerate(prompts(model, count))
    ]
    list(writer.run([Ask("warm", text="Something else.", sampling=SAMPLING, max_tokens=4, budget=0)]))
    begun = time.perf_counter()
    turns = [t for t in writer.run(asks) if isinstance(t, Turn)]
    seconds = time.perf_counter() - begun
    assert len(turns) == count * SAMPLES and not any(t.error for t in turns)
    prefilled = sum(t.prompt_tokens - t.cached_tokens for t in turns)
    return {"seconds": seconds, "tokens": sum(t.answer_tokens for t in turns), "prefilled": prefilled}


def run_ours(model: str, count: int, slots: int) -> dict:
    from qwench.ops.writing.local import LocalWriter

    runtime = Runtime(device="cpu", engine="torch", threads=threads())
    return run_writer(LocalWriter(model, runtime, context=512, slots=slots), model, count)


def run_server(model: str, count: int, python: str) -> dict:
    from qwench.ops.writing.remote import RemoteWriter

    with serving(python, model) as address:
        return run_writer(RemoteWriter("", Runtime(engine=address, tokenizer=model), live=False), model, count)


def run_transformers(model: str, count: int, together: int) -> dict:
    import torch
    from transformers import AutoModelForCausalLM

    peer = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    asked = prompts(model, count)

    def generate(rows: list[list[int]]) -> int:
        longest = max(map(len, rows))
        ids = torch.tensor([[0] * (longest - len(r)) + r for r in rows])
        mask = torch.tensor([[0] * (longest - len(r)) + [1] * len(r) for r in rows])
        made = peer.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=TOKENS,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            num_return_sequences=SAMPLES,
            pad_token_id=0,
            eos_token_id=-1,
        )
        return made.shape[0] * (made.shape[1] - longest)

    generate([asked[0][::-1]])
    begun = time.perf_counter()
    tokens = sum(generate(asked[i : i + together]) for i in range(0, count, together))
    return {
        "seconds": time.perf_counter() - begun,
        "tokens": tokens,
        "prefilled": SAMPLES * sum(map(len, asked)),
    }


@contextlib.contextmanager
def serving(python: str, model: str) -> Iterator[str]:
    """Address of llama-cpp-python's server, for as long as it is wanted."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [python, "-m", "llama_cpp.server", "--model", model, "--n_ctx", "512", "--port", str(port)]
    command += ["--interrupt_requests", "false"]
    command += ["--n_threads", str(threads()), "--n_threads_batch", str(threads())]
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "OMP_NUM_THREADS")}
    server = subprocess.Popen(command, env=clean, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}/v1"
        for _ in range(240):
            if server.poll() is not None:
                raise SystemExit(f"`{' '.join(command)}` has ended")
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/models", timeout=5):
                break
            time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait(30)


def threads() -> int:
    return len(os.sched_getaffinity(0))


def child(spec: dict) -> None:
    import torch

    torch.set_num_threads(threads())
    run = {"ours": run_ours, "server": run_server, "transformers": run_transformers}[spec.pop("kind")]
    print(json.dumps(run(**spec)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--server-python", help="an interpreter that has llama-cpp-python[server]")
    parser.add_argument("--only", help="engines whose name has one of these words")
    parser.add_argument("--child")
    args = parser.parse_args()
    if args.child:
        child(json.loads(args.child))
        return
    with tempfile.TemporaryDirectory() as folder:
        q8, f32 = f"{folder}/q8_0.gguf", f"{folder}/f32"
        for made, dtype in ((q8, "q8_0"), (f32, "float32")):
            command = [
                sys.executable,
                "-m",
                "qwench.cli.main",
                "convert",
                args.model,
                made,
                "--dtype",
                dtype,
                "--quiet",
            ]
            subprocess.run(command, check=True)
        engines = {
            "ours q8_0, 32 slots": {"kind": "ours", "model": q8, "slots": 32},
            "ours q8_0, 8 slots": {"kind": "ours", "model": q8, "slots": 8},
            "transformers float32, 1 prompt a call": {"kind": "transformers", "model": f32, "together": 1},
            "transformers float32, 8 prompts a call": {"kind": "transformers", "model": f32, "together": 8},
        }
        if args.server_python:
            engines["llama-cpp-python server q8_0"] = {"kind": "server", "model": q8, "python": args.server_python}
        if args.only:
            engines = {n: e for n, e in engines.items() if any(w in n for w in args.only.split(","))}
        found: dict[str, list[dict]] = {}
        for _ in range(args.rounds):
            for name, spec in engines.items():
                command = [sys.executable, __file__, "--child", json.dumps(spec | {"count": args.prompts})]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                found.setdefault(name, []).append(json.loads(done.stdout.splitlines()[-1]))
                print(name, found[name][-1], file=sys.stderr, flush=True)
    report(found)


def report(found: dict[str, list[dict]]) -> None:
    rows = {}
    print(f"{'engine':40s} {'seconds':>8s} {'tokens/s':>9s} {'prefilled':>10s}")
    for name, runs in found.items():
        seconds = statistics.median(r["seconds"] for r in runs)
        speed = statistics.median(r["tokens"] / r["seconds"] for r in runs)
        rows[name] = {"seconds": seconds, "tokens_per_second": speed, "prefilled": runs[0]["prefilled"]}
        print(f"{name:40s} {seconds:8.1f} {speed:9.1f} {runs[0]['prefilled']:10d}")
    ours = max((r["tokens_per_second"] for n, r in rows.items() if n.startswith("ours")), default=0)
    ratios = {f"ours / {n}": ours / r["tokens_per_second"] for n, r in rows.items() if not n.startswith("ours")}
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.2f}x")
    print(json.dumps({"rows": rows, "ratios": ratios}))


if __name__ == "__main__":
    main()
