"""A tiny transformer that adds with written-out steps, trained until it is right about half of the time.

    make.py FOLDER SEED

Writes FOLDER/base, a Llama of 100,000 parameters over characters that loads like any model, and FOLDER/questions.jsonl.
"""

import json
import random
import sys
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

CHARS, END = "0123456789+=> ", "<e>"
DIGITS, QUESTIONS, BATCH, STEPS = 3, 96, 32, 2000
#: share of sums that the base writes out and gets right at temperature 1, when its training ends
ENOUGH = 0.3
TEMPLATE = "{% for m in messages %}{{ m.content }}{{ '>' if m.role == 'user' else '<e>' }}{% endfor %}"


def written(a: int, b: int) -> str:
    """Steps from the last digit on, each with what is carried, then the sum: 47+85 is `7+5=12 4+8+1=13 =132`."""
    steps, carry = [], 0
    for x, y in zip(f"{a:0{DIGITS}d}"[::-1], f"{b:0{DIGITS}d}"[::-1], strict=True):
        total = int(x) + int(y) + carry
        steps.append(f"{x}+{y}{'+1' if carry else ''}={total}")
        carry = total // 10
    return " ".join([*steps, f"={a + b}"])


def sums(source: random.Random, count: int, known: set[str]) -> list[tuple[int, int]]:
    """Sums of two numbers of DIGITS digits that are not known yet, and are then."""
    found = []
    while len(found) < count:
        a, b = (source.randrange(10 ** (DIGITS - 1), 10**DIGITS) for _ in "ab")
        if f"{a}+{b}" not in known:
            known.add(f"{a}+{b}")
            found.append((a, b))
    return found


def save_tokenizer(folder: Path) -> None:
    """One token a character, and one for the end."""
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(CHARS)}, []))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([END])
    tokenizer.save(str(folder / "tokenizer.json"))
    said = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))


def main(folder: Path, seed: int) -> None:
    begun, source, known = time.monotonic(), random.Random(seed), set[str]()
    torch.manual_seed(seed)
    end = len(CHARS)
    config = LlamaConfig(
        vocab_size=end + 1, hidden_size=64, intermediate_size=176, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=64, eos_token_id=end, bos_token_id=None, pad_token_id=None,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    unseen = sums(source, QUESTIONS, known)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / 100, 1))
    right, steps = 0.0, 0
    while right < ENOUGH and steps < STEPS:
        steps += 1
        texts = [(f"{a}+{b}>", written(a, b)) for a, b in sums(source, BATCH, known)]
        rows = [[CHARS.index(c) for c in prompt + answer] + [end] for prompt, answer in texts]
        length = max(map(len, rows))
        ids = torch.tensor([row + [end] * (length - len(row)) for row in rows])
        labels = ids.clone()
        for n, (row, (prompt, _)) in enumerate(zip(rows, texts, strict=True)):
            labels[n, : len(prompt)] = labels[n, len(row) :] = -100
        logits = model(input_ids=ids).logits[:, :-1]
        losses = F.cross_entropy(logits.transpose(1, 2), labels[:, 1:], reduction="none")
        right = 0.9 * right + 0.1 * float(losses.detach().sum(1).neg().exp().mean())
        loss = losses.sum() / (labels != -100).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    base = folder / "base"
    model.save_pretrained(base)
    save_tokenizer(base)
    rows = [{"id": f"{a}+{b}", "question": f"{a}+{b}", "answer": str(a + b)} for a, b in unseen]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    size = sum(p.numel() for p in model.parameters())
    print(
        f"seed {seed}: {size:,} parameters, {steps} steps, {right:.2f} right, {time.monotonic() - begun:.0f} s",
        file=sys.stderr,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]))
