"""Arithmetic of one step: questions with their answers, and three worked examples that are none of them.

questions.py QUESTIONS.jsonl SHOTS.jsonl [COUNT] [SEED]
"""

import json
import random
import sys
from pathlib import Path

SHOTS = (
    ("What is 21 + 34?", "21 + 34 = 55. The answer is 55."),
    ("What is 6 * 8?", "6 * 8 = 48. The answer is 48."),
    ("What is 70 - 26?", "70 - 26 = 44. The answer is 44."),
)


def question(source: random.Random) -> tuple[str, int]:
    """A sum, a product or a difference, and what it is."""
    kind = source.choice("+*-")
    if kind == "*":
        a, b = source.randint(3, 12), source.randint(3, 9)
        return f"What is {a} * {b}?", a * b
    a, b = source.randint(12, 99), source.randint(11, 88)
    a, b = (max(a, b), min(a, b)) if kind == "-" else (a, b)
    return f"What is {a} {kind} {b}?", a + b if kind == "+" else a - b


def main(questions: str, shots: str, count: int = 32, seed: int = 0) -> None:
    source, found = random.Random(seed), dict[str, int]()
    taken = {text for text, _ in SHOTS}
    while len(found) < count:
        text, answer = question(source)
        if text not in taken and answer > 0:
            found[text] = answer
    rows = [{"id": f"q{n}", "question": text, "answer": str(answer)} for n, (text, answer) in enumerate(found.items())]
    Path(questions).write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path(shots).write_text("".join(json.dumps({"prompt": q, "answer": a}) + "\n" for q, a in SHOTS))


main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
