"""How many root samples a question have as many generated tokens as a run with states: samples.py RUN.jsonl"""

import json
import sys
from pathlib import Path

rows = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]
roots = [row for row in rows if row["state"] == 0]
of_root = sum(row["generated_tokens"] for row in roots) / sum(len(row["samples"]) for row in roots)
print(round(sum(row["generated_tokens"] for row in rows) / of_root / len(roots)))
