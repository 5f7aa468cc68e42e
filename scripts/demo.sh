#!/bin/sh
# Embeds this repository's README and docs with a packaged model, and asks three questions.
set -eu
qwench=$1
index=demo/qwench.lance
mkdir -p demo
$qwench embed README.md docs CONTRIBUTING.md --exclude cli.md --exclude '*.svg' --out "$index" --model minilm
for question in \
    "What happens when an embedding run is killed in the middle?" \
    "How do I install tab completion?" \
    "How do I add a new subcommand?"
do
    printf '\n\033[1m%s\033[0m\n' "$question"
    $qwench search "$index" "$question" -k 1
done
echo "ask your own: $qwench search $index \"...\""
