#!/bin/sh
# SmolLM2 on generated arithmetic of one step: states of hits, their values, and as many tokens of root samples beside.
# usage: run.sh QWENCH PYTHON [FOLDER]; about five minutes on two cores. The same command goes on after an end.
set -eu
qwench=$1 python=$2 out=${3:-demo/explore-arithmetic}
mkdir -p "$out"
"$python" "$(dirname "$0")/questions.py" "$out/questions.jsonl" "$out/shots.jsonl" "${COUNT:-32}"
# `bare`: the examples show how to answer, and nothing else is asked for.
$qwench explore run "$out/questions.jsonl" --model smollm2 --shots "$out/shots.jsonl" --prompt-style bare \
    --root-n 8 --n 8 --states 5 --max-tokens 48 --batch 16 --baseline root --out "$out/run.jsonl" --quiet
$qwench explore rows "$out/run.jsonl" --form dpo --keep 0,1 --pairs-per-state 2 --out "$out/dpo.jsonl" --force
echo "SmolLM2 on generated arithmetic; no MATH result is claimed"
