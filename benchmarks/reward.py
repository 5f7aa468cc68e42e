"""Rewards of answers that share prompts: ours beside sentence-transformers' CrossEncoder and transformers itself.

    python benchmarks/reward.py                       # a small Qwen3, and the 0.6B shape (needs 8 GB and some minutes)
    python benchmarks/reward.py --only small --rounds 1
    python benchmarks/reward.py --device cuda --dtype bfloat16

A one-label classifier with random weights and the real tokenizer; 256 answers of mixed length (16 to 200 tokens) to 32
prompts of about 120 tokens, from Python's own library. The peers run at the best of several batch sizes, texts sorted
by length. Each engine runs in a process of its own, in turn; the figure is the median of the rounds, loading not
counted, tokenising counted. The last line of standard output is one JSON document.
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

from embed import make_qwen3, texts
from memory import peak_bytes
from qwench.ops.base.runtime import Runtime
from rerank import SHAPES

PROMPTS, ANSWERS = 32, 8
BATCHES = (4, 8, 16, 32)


def rows(model: str, prompts: int) -> list[tuple[str, list[str]]]:
    """(prompt, answers), each cut at a token's end."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(f"{model}/tokenizer.json")
    stock = iter(texts(4000))

    def piece(want: int) -> str:
        for text in stock:
            found = tokenizer.encode(text, add_special_tokens=False)
            if len(found.ids) >= want:
                return text[: found.offsets[want - 1][1]]
        raise SystemExit("too few texts")

    return [
        (piece(100 + (i * 13) % 41), [piece(16 + ((i * ANSWERS + j) * 7919) % 185) for j in range(ANSWERS)])
        for i in range(prompts)
    ]


def rendered(prompt: str, answer: str) -> tuple[str, str]:
    """What the model reads, in two parts that meet at a token's end."""
    head = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    return head, f"{answer}<|im_end|>\n"


def make(folder: Path, tokenizer: Path, shape: str, dtype: str) -> None:
    """A classifier of the shape, with a template that `rendered` follows."""
    import torch
    from safetensors.torch import load_file, save_file

    make_qwen3(folder, tokenizer, reranker=True, **SHAPES[shape])
    file = folder / "model.safetensors"
    kind = getattr(torch, dtype)
    tensors = {k if k.startswith("model.") else f"model.{k}": t.to(kind) for k, t in load_file(file).items()}
    tensors.pop("lm_head.weight", None)
    torch.manual_seed(0)
    hidden = tensors["model.norm.weight"].shape[0]
    save_file(tensors | {"score.weight": torch.randn(1, hidden).to(kind)}, file, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["Qwen3ForSequenceClassification"], "num_labels": 1, "pad_token_id": 151643}
    config |= {"id2label": {"0": "reward"}, "label2id": {"reward": 0}, "dtype": dtype}
    (folder / "config.json").write_text(json.dumps(config))
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)


def now(job: dict) -> float:
    """Seconds on the wall, or of this process's cores on a machine that others use, too."""
    return time.process_time() if job["clock"] == "cpu" else time.perf_counter()


def run_ours(job: dict, data: list[tuple[str, list[str]]]) -> tuple[list[float], float]:
    from qwench.ops.scoring.reward import RewardModel, opened_texts
    from qwench.ops.scoring.reward_rows import answers_of
    from qwench.ops.scoring.reward_texts import TextSettings

    runtime = Runtime(device=job["device"], dtype=job["dtype"])
    opened, kind, reader = opened_texts(job["model"], runtime, "auto", TextSettings())
    model = RewardModel(opened, kind, runtime)

    def once(some: list[tuple[str, list[str]]]) -> list[float]:
        found = [answers_of({"prompt": p, "responses": a}) for p, a in some]
        return model.score([reader.ready(c) for row in found for c in row.conversations])

    once(data[:1])
    start = now(job)
    scores = once(data)
    return scores, now(job) - start


def run_st(job: dict, data: list[tuple[str, list[str]]]) -> tuple[list[float], float]:
    import torch
    from sentence_transformers import CrossEncoder

    # With a chat template it would wrap both texts of a pair once more.
    bare = Path(f"{job['model']}-bare")
    if not bare.exists():
        bare.mkdir()
        for file in Path(job["model"]).iterdir():
            if file.name != "chat_template.jinja":
                (bare / file.name).hardlink_to(file)
    peer = CrossEncoder(str(bare), device=job["device"], local_files_only=True, model_kwargs={"dtype": job["dtype"]})
    pairs = [rendered(p, a) for p, answers in data for a in answers]
    options = {"activation_fn": torch.nn.Identity(), "batch_size": job["batch"]}
    peer.predict(pairs[:4], **options)
    start = now(job)
    return peer.predict(pairs, **options).tolist(), now(job) - start


def run_transformers(job: dict, data: list[tuple[str, list[str]]]) -> tuple[list[float], float]:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job["model"], padding_side="right")
    model = AutoModelForSequenceClassification.from_pretrained(job["model"], dtype=getattr(torch, job["dtype"]))
    model.to(job["device"]).eval()
    whole = ["".join(rendered(p, a)) for p, answers in data for a in answers]

    def once(some: list[str]) -> list[float]:
        ids = tokenizer(some, add_special_tokens=False)["input_ids"]
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        found = [0.0] * len(ids)
        for at in range(0, len(order), job["batch"]):
            part = order[at : at + job["batch"]]
            batch = tokenizer.pad({"input_ids": [ids[i] for i in part]}, return_tensors="pt").to(job["device"])
            with torch.inference_mode():
                logits = model(**batch).logits[:, 0].float().tolist()
            for i, value in zip(part, logits, strict=True):
                found[i] = value
        return found

    once(whole[:4])
    start = now(job)
    scores = once(whole)
    return scores, now(job) - start


ENGINES = {"qwench": run_ours, "sentence-transformers": run_st, "transformers": run_transformers}


def child(job: dict) -> None:
    scores, spent = ENGINES[job["engine"]](job, rows(job["model"], job["prompts"]))
    print(json.dumps({"seconds": spent, "peak_mb": peak_bytes() / 2**20, "scores": scores}))


def spawn(**job: object) -> dict:
    env = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps(job)], env=env, stdout=subprocess.PIPE, check=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def measure(shape: str, args: argparse.Namespace) -> dict:
    """Every engine in turn, the peers at their best batch; how far their scores are apart."""
    with tempfile.TemporaryDirectory() as above:
        folder = f"{above}/model"
        make(Path(folder), args.tokenizer, shape, args.dtype)
        same = {
            "model": folder,
            "device": args.device,
            "dtype": args.dtype,
            "prompts": args.prompts,
            "clock": args.clock,
        }
        best = {}
        for name in ENGINES:
            sizes = (0,) if name == "qwench" else tuple(args.batches)
            tried = {b: spawn(engine=name, batch=b, **same) for b in sizes}
            batch = min(tried, key=lambda b: tried[b]["seconds"])
            best[name] = {"batch": batch, "runs": [tried[batch]]}
        for _ in range(args.rounds - 1):
            for name, one in best.items():
                one["runs"].append(spawn(engine=name, batch=one["batch"], **same))
    ours, found = best["qwench"]["runs"][0]["scores"], {}
    for name, one in best.items():
        seconds = statistics.median(r["seconds"] for r in one["runs"])
        apart = max(abs(a - b) for a, b in zip(ours, one["runs"][0]["scores"], strict=True))
        found[name] = {
            "batch": one["batch"],
            "answers_per_second": round(args.prompts * ANSWERS / seconds, 2),
            "peak_mb": round(max(r["peak_mb"] for r in one["runs"])),
            "largest_difference": apart,
        }
        print(f"{shape:6} {name:22} {found[name]['answers_per_second']:8.1f} answers/s, batch {one['batch'] or 'auto'}")
    peer = max(found[n]["answers_per_second"] for n in found if n != "qwench")
    found["times_the_better_peer"] = round(found["qwench"]["answers_per_second"] / peer, 2)
    print(f"{shape:6} {found['times_the_better_peer']} times the better peer")
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=tuple(SHAPES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: of all cores; one thread")
    parser.add_argument("--prompts", type=int, default=PROMPTS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batches", type=lambda t: [int(x) for x in t.split(",")], default=list(BATCHES))
    there = Path(__file__).parents[2] / "shared" / "reference" / "qwen3-tokenizer"
    parser.add_argument("--tokenizer", type=Path, default=there, help="folder with Qwen3's tokenizer.json")
    parser.add_argument("--child")
    args = parser.parse_args()
    if args.child:
        child(json.loads(args.child))
        return
    shapes = [args.only] if args.only else list(SHAPES)
    print(json.dumps({shape: measure(shape, args) for shape in shapes}))


if __name__ == "__main__":
    main()
