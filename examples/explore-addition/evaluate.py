"""pass@1 and pass@8 of models on sums that none was trained on or explored, by the last number of 16 samples of each.

    evaluate.py SEED MODEL...

Writes a line of JSON a model. The sampling is that of `explore run`; the loop is not.
"""

import json
import random
import sys
from math import comb
from pathlib import Path

import torch
from make import CHARS, sums
from transformers import AutoModelForCausalLM

SUMS, SAMPLES, MOST = 100, 16, 48


def pass_at(k: int, right: int) -> float:
    """Chance that one of k of the samples is right."""
    return 1 - comb(SAMPLES - right, k) / comb(SAMPLES, k)


@torch.inference_mode()
def measured(folder: str, questions: list[tuple[int, int]], seed: int) -> dict:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    prompts = torch.tensor([[CHARS.index(c) for c in f"{a}+{b}>"] for a, b in questions])
    torch.manual_seed(seed)
    prompts = prompts.repeat_interleave(SAMPLES, 0)
    ids = model.generate(
        prompts, attention_mask=torch.ones_like(prompts), do_sample=True, temperature=0.8, top_p=0.95, top_k=0,
        max_new_tokens=MOST, pad_token_id=len(CHARS),
    )  # fmt: skip
    texts = ["".join(CHARS[i] for i in row if i < len(CHARS)) for row in ids[:, prompts.shape[1] :].tolist()]
    right = [text.rpartition("=")[2] == str(sum(questions[n // SAMPLES])) for n, text in enumerate(texts)]
    counts = [sum(right[n : n + SAMPLES]) for n in range(0, len(right), SAMPLES)]
    return {f"pass@{k}": sum(pass_at(k, c) for c in counts) / len(counts) for k in (1, 8)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    seed, *models = sys.argv[1:]
    # Drawn beside the questions, which are left out.
    known = {json.loads(line)["id"] for line in (Path(models[0]).parent / "questions.jsonl").read_text().splitlines()}
    questions = sums(random.Random(f"unseen {seed}"), SUMS, known)
    for name in models:
        print(json.dumps({"model": name, "seed": int(seed), **measured(name, questions, int(seed))}), flush=True)
