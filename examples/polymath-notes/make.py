"""Own arithmetic without words, the same in 18 languages: only note and control sentence carry the language.

Not PolyMath. Two questions a level: one addition; a product of two digits by two; three operations with brackets; two
steps with a division. Writes FOLDER/{lang}/{level}.jsonl.
"""

import json
import random
import sys
from pathlib import Path

LANGUAGES = ("en", "zh", "ar", "bn", "de", "es", "fr", "id", "it", "ja", "ko", "ms", "pt", "ru", "sw", "te", "th", "vi")


def low(r: random.Random) -> tuple[str, int]:
    a, b = r.randint(2, 20), r.randint(2, 9)
    return f"{a} + {b}", a + b


def medium(r: random.Random) -> tuple[str, int]:
    a, b = r.randint(11, 99), r.randint(11, 99)
    return rf"{a} \times {b}", a * b


def high(r: random.Random) -> tuple[str, int]:
    a, b, c, d = (r.randint(11, 99) for _ in range(4))
    return rf"({a} + {b}) \times ({c} - {d})", (a + b) * (c - d)


def top(r: random.Random) -> tuple[str, int]:
    a, b, c = r.randint(111, 999), r.randint(3, 9), r.randint(11, 99)
    return rf"\frac{{{a * b}}}{{{b}}} - {c} \times {b}", a - c * b


folder = Path(sys.argv[1] if len(sys.argv) > 1 else "questions")
for level in (low, medium, high, top):
    source = random.Random(f"polymath-notes/{level.__name__}")
    rows = [level(source) for _ in range(2)]
    for language in LANGUAGES:
        path = folder / language / f"{level.__name__}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [
            {"id": f"{level.__name__}-{language}-{n}", "question": f"${text} = ?$", "answer": str(value)}
            for n, (text, value) in enumerate(rows, 1)
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
