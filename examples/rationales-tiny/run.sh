#!/bin/sh
# Tiny transformers on generated tasks; not the paper's models; the paper's tables are not public.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-demo/rationales-tiny}
seeds=${SEEDS:-3}
qwench=${QWENCH:-qwench}
python=${PYTHON:-python3}
mkdir -p "$out"
set --
seed=0
while [ "$seed" -lt "$seeds" ]
do
    $python "$here/train.py" "$out" "$seed"
    $qwench reliability measure "direct=$out/$seed/direct.jsonl" "steps=$out/$seed/steps.jsonl" --extract 'regex:=(\d)' \
        --plot "$out/$seed/diagram.png" --json > "$out/$seed/measured.json"
    set -- "$@" "$out/$seed/measured.json"
    seed=$((seed + 1))
done
echo "tiny transformers on generated tasks; not the paper's models; the paper's tables are not public"
echo "95 % intervals over $seeds seeds"
$python "$here/table.py" "$out/points.jsonl" "$@"
$qwench reliability fit "$out/points.jsonl" --plot "$out/line.png"
