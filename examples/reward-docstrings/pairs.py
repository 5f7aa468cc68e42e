"""Pairs of answers from the standard library's docstrings, parted by module: train.jsonl and held-out.jsonl.

Prompt: what does a function do? Chosen: the first paragraph of its docstring. Rejected, a kind each: another function's
of the same module; its own words shuffled; two docstrings of another module, which are longer.
"""

from __future__ import annotations

import ast
import json
import random
import sys
import sysconfig
from pathlib import Path

#: of functions without a docstring worth asking about
LEAST, MOST = 25, 300
HELD_OUT = 4  # one module in this many


def docstrings(path: Path) -> list[tuple[str, str]]:
    """(name, first paragraph) of the documented functions of a module."""
    try:
        tree = ast.parse(path.read_text("utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return []
    found = {}
    for node in tree.body:
        inner = node.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_") else [node]
        for one in inner:
            if isinstance(one, ast.FunctionDef) and not one.name.startswith("_"):
                text = " ".join((ast.get_docstring(one) or "").split("\n\n")[0].split())
                name = f"{node.name}.{one.name}" if inner is not node and inner != [node] else one.name
                if LEAST <= len(text) <= MOST:
                    found.setdefault(text, name)
    return [(name, text) for text, name in found.items()]


def shuffled(text: str, dice: random.Random) -> str:
    """The same words in another order."""
    words = text.split()
    while len(set(words)) > 1 and words == text.split():
        dice.shuffle(words)
    return " ".join(words)


def rows(seed: int = 0) -> list[dict[str, object]]:
    """All pairs, in the order of modules."""
    modules = {p.stem: docstrings(p) for p in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))}
    modules = {name: found for name, found in modules.items() if len(found) > 2}
    dice, names, made = random.Random(seed), list(modules), []
    for number, module in enumerate(names):
        for i, (name, text) in enumerate(modules[module]):
            kind = ("other function", "shuffled", "longer")[i % 3]
            if kind == "other function":
                rejected = dice.choice([t for _, t in modules[module] if t != text])
            elif kind == "shuffled":
                rejected = shuffled(text, dice)
            else:
                other = dice.choice([n for n in names if n != module])
                rejected = " ".join(t for _, t in dice.sample(modules[other], 2))
            prompt = f"What does `{module}.{name}` do?"
            row = {"id": f"{module}.{name}", "prompt": prompt, "chosen": text, "rejected": rejected, "category": kind}
            made.append(row | {"module": module, "held_out": number % HELD_OUT == 0})
    return made


def main() -> None:
    folder, count = Path(sys.argv[1]), int(sys.argv[2])
    every = rows()
    random.Random(1).shuffle(every)
    train = [r for r in every if not r["held_out"]]
    held = [r for r in every if r["held_out"]]
    share = round(count / HELD_OUT)
    for name, part in (("train", train[: count - share]), ("held-out", held[:share])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in part), "utf-8")
        print(f"{name}: {len(part)} pairs of {len({r['module'] for r in part})} modules")


if __name__ == "__main__":
    main()
