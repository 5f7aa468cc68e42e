"""Tiny transformers on generated tasks, trained twice: on answers alone, and on written-out steps with the answer.

    train.py FOLDER SEED

Writes FOLDER/SEED/{direct,steps}.jsonl: rows of unseen inputs with 10 samples each at temperature 1, which
`qwench reliability measure` reads. Not the paper's models.
"""

import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHARS = "0123456789abcdef>=.,"
ID = {c: i for i, c in enumerate(CHARS)}
SAMPLES, UNSEEN, BATCH, SPAN = 10, 100, 32, 24


def parity(r: random.Random) -> tuple[str, str, str]:
    bits = [r.randint(0, 1) for _ in range(8)]
    steps = [sum(bits[: n + 1]) % 2 for n in range(8)]
    return "".join(map(str, bits)), "".join(map(str, steps)), str(steps[-1])


def sum_mod_10(r: random.Random) -> tuple[str, str, str]:
    digits = [r.randint(0, 9) for _ in range(4)]
    steps = [sum(digits[: n + 1]) % 10 for n in range(4)]
    return "".join(map(str, digits)), "".join(map(str, steps)), str(steps[-1])


def majority(r: random.Random) -> tuple[str, str, str]:
    bits = [r.randint(0, 1) for _ in range(9)]
    steps = [sum(bits[: n + 1]) for n in range(9)]
    return "".join(map(str, bits)), "".join(CHARS[n] for n in steps), str(int(steps[-1] > 4))


def largest(r: random.Random) -> tuple[str, str, str]:
    digits = [r.randint(0, 9) for _ in range(4)]
    steps = [max(digits[: n + 1]) for n in range(4)]
    return "".join(map(str, digits)), "".join(map(str, steps)), str(steps[-1])


def noisy_first(r: random.Random) -> tuple[str, str, str]:
    """Whether the first digit is above 4, one label in five being the other."""
    digits = [r.randint(0, 9) for _ in range(4)]
    answer = int(digits[0] > 4) ^ (r.random() < 0.2)
    return "".join(map(str, digits)), str(digits[0]), str(answer)


#: name, task, training rows, steps, answers there are
TASKS = (
    ("parity", parity, 2000, 400, 2),
    ("sum mod 10", sum_mod_10, 2000, 400, 10),
    ("majority", majority, 2000, 400, 2),
    ("largest", largest, 2000, 400, 10),
    ("noisy first", noisy_first, 2000, 400, 2),
    ("parity, few", parity, 150, 600, 2),
    ("sum mod 10, few", sum_mod_10, 150, 600, 10),
    ("noisy first, few", noisy_first, 150, 600, 2),
)


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(self.first(x)).chunk(3, -1))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.second(x))))


class Tiny(nn.Module):
    """Two layers of width 64 over characters."""

    def __init__(self, width: int = 64, layers: int = 2) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(len(CHARS), width), nn.Embedding(SPAN, width)
        self.blocks = nn.Sequential(*(Block(width, 4) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, len(CHARS))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.token(ids) + self.place.weight[: ids.shape[1]]
        return self.head(self.norm(self.blocks(x)))


def encoded(texts: list[str]) -> Tensor:
    return torch.tensor([[ID[c] for c in text] for text in texts])


def trained(prompts: Tensor, targets: Tensor, steps: int, seed: int) -> Tiny:
    torch.manual_seed(seed)
    model = Tiny()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps, pct_start=0.1)
    ids, start = torch.cat([prompts, targets], 1), prompts.shape[1]
    for _ in range(steps):
        batch = ids[torch.randint(len(ids), (BATCH,))]
        logits = model(batch[:, :-1])[:, start - 1 :]
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, start:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model


@torch.inference_mode()
def drawn(model: Tiny, prompts: Tensor, length: int, seed: int) -> list[list[str]]:
    """SAMPLES continuations of every prompt at temperature 1."""
    torch.manual_seed(seed)
    ids = prompts.repeat_interleave(SAMPLES, 0)
    for _ in range(length):
        ids = torch.cat([ids, torch.multinomial(model(ids)[:, -1].softmax(-1), 1)], 1)
    texts = ["".join(CHARS[i] for i in row) for row in ids[:, prompts.shape[1] :].tolist()]
    return [texts[n : n + SAMPLES] for n in range(0, len(texts), SAMPLES)]


def split(make: Callable, count: int, source: random.Random) -> tuple[list, list]:
    """UNSEEN items with inputs of their own, and so many training rows with others."""
    unseen: dict[str, tuple[str, str, str]] = {}
    while len(unseen) < UNSEEN:
        item = make(source)
        unseen.setdefault(item[0], item)
    train: list[tuple[str, str, str]] = []
    while len(train) < count:
        if (item := make(source))[0] not in unseen:
            train.append(item)
    return list(unseen.values()), train


def main(folder: Path, seed: int) -> None:
    print(f"{sum(p.numel() for p in Tiny().parameters()):,} parameters", file=sys.stderr)
    out = folder / str(seed)
    out.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict]] = {"direct": [], "steps": []}
    for name, make, count, steps, answers in TASKS:
        begun = time.monotonic()
        source = random.Random(f"{name}/{seed}")
        unseen, train = split(make, count, source)
        for condition in rows:
            prompts = [encoded([f"{question}>" for question, _, _ in some]) for some in (train, unseen)]
            told = [f"{written if condition == 'steps' else ''}={answer}" for _, written, answer in train]
            model = trained(prompts[0], encoded(told), steps, seed)
            samples = drawn(model, prompts[1], len(told[0]), seed)
            options = {str(n): str(n) for n in range(answers)}
            rows[condition] += [
                {"id": f"{name}/{n}", "task": name, "question": q, "label": a, "options": options, "samples": s}
                for n, ((q, _, a), s) in enumerate(zip(unseen, samples, strict=True))
            ]
        print(f"seed {seed}, {name}: {time.monotonic() - begun:.1f} s", file=sys.stderr)
    for condition, some in rows.items():
        (out / f"{condition}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]))
