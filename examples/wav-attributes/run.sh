#!/bin/sh
# 120 spoken dialogues of espeak-ng about how something is said, judged by chance and by arithmetic, with controls; then
# the shape of the reward on a toy. No audio language model is run, and nothing is said of any.
# needs: pip install espeakng-loader (its library is GPL) and qwench[plot]; a minute or two on two cores
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-demo/wav-attributes}
qwench=${QWENCH:-qwench}
python=${PYTHON:-python3}
mkdir -p "$out"
$python "$here/make.py" "$out"
for set in train test
do
    $qwench wav build "$out/$set/dialogues.jsonl" --out "$out/$set-waves" --quiet
done
controls=order,silence,text,loudness
printf '\nchance\n'
$qwench wav score "$out/test-waves/manifest.jsonl" --model random --scale 1,3,5 --samples 5 --controls "$controls" \
    --out "$out/random.jsonl" --force
printf '\narithmetic on the sound, fitted on other sentences by another voice\n'
$qwench wav score "$out/test-waves/manifest.jsonl" --model acoustic --fit "$out/train-waves/manifest.jsonl" \
    --controls "$controls" --out "$out/acoustic.jsonl" --force
printf '\n'
$python "$here/shapes.py" "$out/train-waves/manifest.jsonl" "$out/test-waves/manifest.jsonl" "$out/shapes.png"
