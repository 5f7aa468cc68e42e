#!/bin/sh
# Own arithmetic in the notes of 18 languages, asked with and without a sentence of control; not PolyMath, and
# SmolLM2 is an English model. LANGS=en,de,zh,sw (the default here) takes some minutes on two cores; LANGS= is all 18.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-demo/polymath-notes}
langs=${LANGS-en,de,zh,sw}
qwench=${QWENCH:-qwench}
mkdir -p "$out"
python3 "$here/make.py" "$out/questions"
for control in none forcing_raw forcing_en
do
    $qwench polymath run "$out/questions" --model smollm2 --langs "$langs" --control "$control" --max-tokens 96 \
        --temperature 0 --out "$out/$control"
    printf '\n%s\n' "$control: own arithmetic in the notes of several languages; not PolyMath; SmolLM2 is an English model"
    $qwench polymath score "$out/$control" --plot "$out/$control.png" --quiet
done
