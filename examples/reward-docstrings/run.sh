#!/bin/sh
# A reward model over SmolLM2 from the standard library's docstrings: trained, measured, and its loss against N.
# usage: run.sh QWENCH PYTHON [FOLDER]; a few minutes on two cores, and again in seconds: hidden states are kept.
set -eu
qwench=$1 python=$2 out=${3:-demo/reward}
mkdir -p "$out"
"$python" "$(dirname "$0")/pairs.py" "$out" 600
train() { $qwench reward train "$out/train.jsonl" --validation "$out/held-out.jsonl" --model smollm2 --width 64 \
    --keep last --force --quiet "$@"; }

printf '\na head on all pairs\n'
train --out "$out/all"
$qwench reward score "$out/held-out.jsonl" --model "$out/all" --limit 1 --quiet | grep -o '"pooled_token": [^]]*]'
$qwench reward eval "$out/all/validation.jsonl" --logprob-model smollm2 --plot "$out/accuracy.png" --quiet

printf '\na head that has seen nothing\n'
rm -rf "$out/none.run" && cp -r "$out/all.run" "$out/none.run"
train --out "$out/none" --epochs 0

printf '\nloss against the number of pairs, three seeds each\n'
: > "$out/scaling.jsonl"
for n in 32 64 128 256 450; do
    for seed in 0 1 2; do
        name="$out/n$n-$seed"
        rm -rf "$name.run" && cp -r "$out/all.run" "$name.run"
        train --out "$name" --limit "$n" --seed "$seed" > /dev/null
        cat "$name/validation.jsonl" >> "$out/scaling.jsonl"
        rm -rf "$name.run" "$name"
    done
done
$qwench reward eval "$out/scaling.jsonl" --scaling train_pairs --bootstrap 300 --plot "$out/loss.png" --quiet \
    | sed -n '/^loss against/,$p'
printf '\na head trained here on docstrings, not WorldPM; no WorldPM number is reproduced\n'
