"""How fast answers are graded: 10,000 different ones, of the kinds that models write.

    python benchmarks/grading.py                 # compat; --grader both, --count N

Three in four are numbers, which the cheap rules decide; the others are fractions, roots, tuples, polynomials, equations
and intervals, each compared by algebra in a worker. Starting the workers counts. The last line of standard output
is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import time

from qwench.ops.grading.polymath.grade import GradeOptions, graded
from qwench.ops.grading.polymath.tree import Answer


def pair(r: random.Random) -> tuple[str, str]:
    """(box, right answer)"""
    a, b, c = r.randint(2, 999), r.randint(2, 99), r.randint(2, 9)
    wrong = r.randint(0, 1)
    kinds = [
        (rf"\frac{{{a}}}{{{b}}}", rf"\frac{{{a * c + wrong}}}{{{b * c}}}"),
        (rf"{c}\sqrt{{{b}}}", rf"\sqrt{{{c * c * b + wrong}}}"),
        (f"({a},{b})", f"({a},{b + wrong})"),
        (f"(x+{b})(x-{c})", f"x^2+{b - c + wrong}x-{b * c}"),
        (f"y={a}x+{b}", f"{a}x-y+{b + wrong}=0"),
        (f"[{c},{a})", f"[{c},{a + wrong})"),
        (rf"\{{{a},{b}\}}", rf"\{{{b},{a + wrong}\}}"),
        (rf"{c}^{{{c}}}+{a}", str(c**c + a + wrong)),
    ]
    if r.random() < 0.75:
        return f"{a}.{b}", f"${a}.{b}$" if r.random() < 0.05 else f"{a + wrong}.{b}"
    return r.choice(kinds)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--grader", default="compat")
    args = parser.parse_args()
    source, answers, seen = random.Random(0), [], set()
    while len(answers) < args.count:
        box, gold = pair(source)
        if (box, gold) not in seen:
            seen.add((box, gold))
            answers.append(Answer("en", "low", len(answers), 0, gold, "", rf"So it is \boxed{{{box}}}."))
    begun, events = time.monotonic(), graded(answers, GradeOptions(args.grader, "none"))
    while True:
        try:
            next(events)
        except StopIteration as ended:
            grades, tally = ended.value
            break
    seconds = time.monotonic() - begun
    used = resource.getrusage(resource.RUSAGE_CHILDREN), resource.getrusage(resource.RUSAGE_SELF)
    verdicts = [v for g in grades for v in g.verdicts.values()]
    told = {
        "answers": len(answers),
        "grader": args.grader,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(sum(u.ru_utime + u.ru_stime for u in used), 1),
        "right": verdicts.count("right"),
        "wrong": verdicts.count("wrong"),
        **tally.counts,
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
