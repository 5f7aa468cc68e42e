"""slerp, linear and ties beside mergekit-yaml, in one run.

    python benchmarks/merge.py                   # two models of the 0.6B shape in bfloat16 (needs 8 GB)

Both commands are timed whole, start-up counted, in turn, on the same random weights, warm in the page cache; figures
are medians of the rounds. mergekit reads the recipe that ours wrote. `merge` is the merging phase: ours as it tells
itself, mergekit's command less its --help. The limit is reading both inputs and writing one of their size, synced.
`private` is the peak of memory that is not mapped from files. The last line of standard output is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from convert import SHAPE, measure
from embed import make_qwen3


def make_pair(tmp: Path, tokenizer: Path) -> list[Path]:
    """Two bfloat16 checkpoints, the second a small step away from the first."""
    import torch
    from safetensors.torch import load_file, save_file

    make_qwen3(tmp / "wide", tokenizer, reranker=True, **SHAPE)
    weights = load_file(tmp / "wide" / "model.safetensors")
    folders = [tmp / "a", tmp / "b"]
    for i, folder in enumerate(folders):
        shutil.copytree(tmp / "wide", folder, ignore=shutil.ignore_patterns("*.safetensors"))
        torch.manual_seed(i)
        moved = {k: (v + i * 0.01 * torch.randn_like(v)).bfloat16() for k, v in weights.items()}
        save_file(moved, folder / "model.safetensors", {"format": "pt"})
        config = json.loads((folder / "config.json").read_text()) | {"dtype": "bfloat16"}
        (folder / "config.json").write_text(json.dumps(config))
    shutil.rmtree(tmp / "wide")
    return folders


def limit(folders: list[Path], out: Path) -> float:
    """Seconds to read both models and write one, synced."""
    begun = time.perf_counter()
    for folder in folders:
        data = (folder / "model.safetensors").read_bytes()
    with open(out, "wb") as file:
        file.write(data)
        os.fsync(file.fileno())
    spent = time.perf_counter() - begun
    out.unlink()
    return spent


def same(a: Path, b: Path) -> bool:
    """Equal tensors, to the bit."""
    import torch
    from safetensors.torch import load_file

    found = []
    for folder in (a, b):
        found.append({})
        for path in sorted(folder.glob("*.safetensors")):
            found[-1] |= load_file(path)
    return found[0].keys() == found[1].keys() and all(torch.equal(v, found[1][k]) for k, v in found[0].items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="one method")
    parser.add_argument("--tokenizer", type=Path, help="folder with Qwen3's tokenizer.json")
    args = parser.parse_args()
    tokenizer = args.tokenizer or Path(__file__).parents[2] / "shared" / "reference" / "qwen3-tokenizer"
    methods = {"linear": ["--weight", "1,2"], "slerp": ["--t", "0.4"]}
    methods["ties"] = ["--weight", "0.7", "--param", "density=0.5", "--base", "A"]
    with tempfile.TemporaryDirectory() as folder:
        tmp = Path(folder)
        a, b = make_pair(tmp, tokenizer)
        rows = []
        theirs = str(Path(sys.executable).with_name("mergekit-yaml"))
        start = statistics.median(measure([theirs, "--help"])["seconds"] for _ in range(2))
        floor = statistics.median(limit([a, b], tmp / "copy") for _ in range(3))
        print(f"limit (read two, write one) {floor:.2f} s; mergekit-yaml --help {start:.2f} s")
        print(f"{'method':8s} {'engine':9s} {'seconds':>8s} {'merge s':>8s} {'private MB':>10s} {'peak MB':>8s}")
        for method, flags in methods.items():
            if args.only not in ("", method):
                continue
            flags = [str(a) if f == "A" else f for f in flags]
            ours = [sys.executable, "-m", "qwench.cli.main", "merge", str(a), str(b), "--method", method, *flags]
            found: dict[str, list[dict]] = {"qwench": [], "mergekit": []}
            for _ in range(args.rounds):
                for out in (tmp / "ours", tmp / "theirs"):
                    shutil.rmtree(out, ignore_errors=True)
                found["qwench"].append(measure([*ours, "--out", str(tmp / "ours"), "-q"]))
                recipe = tmp / "recipe.yml"
                shutil.copy(tmp / "ours" / "mergekit_config.yml", recipe)
                command = [theirs, str(recipe), str(tmp / "theirs"), "--quiet"]
                found["mergekit"].append(measure(command))
            alike = same(tmp / "ours", tmp / "theirs")
            shutil.rmtree(tmp / "ours")
            done = subprocess.run([*ours, "--out", str(tmp / "ours"), "--json"], check=True, capture_output=True)
            inner = json.loads(done.stdout)["seconds"]
            for engine, runs in found.items():
                row = {key: statistics.median(r[key] for r in runs) for key in runs[0]}
                row |= {"method": method, "engine": engine}
                row["merge"] = inner if engine == "qwench" else row["seconds"] - start
                rows.append(row)
                print(
                    f"{method:8s} {engine:9s} {row['seconds']:8.2f} {row['merge']:8.2f} {row['private_mb']:10.0f}"
                    f" {row['peak_mb']:8.0f}"
                )
            ratio = rows[-1]["seconds"] / rows[-2]["seconds"]
            rows[-2] |= {"ratio": ratio, "bit_identical": alike}
            print(f"{method}: {ratio:.2f}x, {'equal to the bit' if alike else 'not equal to the bit'}")
        print(json.dumps({"limit": floor, "mergekit_start": start, "rows": rows}))


if __name__ == "__main__":
    main()
