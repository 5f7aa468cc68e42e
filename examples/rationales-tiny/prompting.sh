#!/bin/sh
# Prompting, not fine-tuning: a packaged model answers 24 one-step sums and products after three worked examples, directly
# and step by step, 8 samples each. Some minutes on one thread.
set -eu
out=${1:-demo/rationales-prompting}
qwench=${QWENCH:-qwench}
python=${PYTHON:-python3}
mkdir -p "$out"
$python - "$out" <<'PYTHON'
import json, random, sys
from pathlib import Path

out, r = Path(sys.argv[1]), random.Random(0)
items = [(f"{a} {sign} {b}", a + b if sign == "+" else a * b)
         for sign in "+*" for a, b in [(r.randint(11, 49), r.randint(2, 9)) for _ in range(12)]]
shots = [("12 + 7", 19, "Ten and seven is 17, and 2 more is 19."), ("21 * 3", 63, "20 * 3 is 60, and 1 * 3 is 3, so 63."),
         ("35 + 8", 43, "35 and 5 is 40, and 3 more is 43.")]


def write(name, rows):
    (out / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


write("questions.jsonl", [{"id": n, "question": f"What is {q}?", "label": a} for n, (q, a) in enumerate(items)])
for name in ("direct", "steps"):
    write(f"{name}-shots.jsonl", [
        {"question": f"What is {q}?", "answer": f"{why + ' ' if name == 'steps' else ''}The answer is {a}."}
        for q, a, why in shots])
PYTHON
for name in direct steps
do
    $qwench sample "$out/questions.jsonl" --model smollm2 --n 8 --shots "$out/$name-shots.jsonl" --temperature 1 --top-k 0 \
        --top-p 1 --max-tokens 40 --out "$out/$name.jsonl"
done
echo "prompting, not fine-tuning; SmolLM2-135M"
$qwench reliability measure "direct=$out/direct.jsonl" "steps=$out/steps.jsonl" --plot "$out/diagram.png"
