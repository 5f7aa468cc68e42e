#!/bin/sh
# Three episodes of explore run -> rows -> train on a tiny transformer that adds, by both losses, from states and from
# root samples of as many generated tokens, over several seeds. What is there already is not made again.
#
#     run.sh [FOLDER]        SEEDS="0 1 2" EPISODES="1 2 3" LR=2e-5
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-demo/explore-addition}
qwench=${QWENCH:-qwench}
python=${PYTHON:-python3}
lr=${LR:-2e-5}
how="--prompt-style bare --max-tokens 48 --batch 64 --quiet"
for seed in ${SEEDS:-0 1 2}
do
    dir=$out/$seed
    mkdir -p "$dir"
    [ -d "$dir/base" ] || $python "$here/make.py" "$dir" "$seed"
    models=$dir/base
    for loss in dpo pairs
    do
        # The model of each arm, and the run before of the one that has states.
        states=$dir/base
        root=$dir/base
        previous=
        for episode in ${EPISODES:-1 2 3}
        do
            at=$dir/$loss-$episode
            # The first episode's runs are of one model, whatever the loss.
            if [ "$episode" = 1 ] && [ $loss = pairs ] && [ ! -f "$at-root.jsonl" ]
            then
                cp "$dir/dpo-1-states.jsonl" "$at-states.jsonl"
                cp "$dir/dpo-1-root.jsonl" "$at-root.jsonl"
            fi
            [ -f "$at-states.jsonl" ] || $qwench explore run "$dir/questions.jsonl" --model "$states" $how --seed "$seed" \
                --root-n 6 --n 4 --states 4 $previous --out "$at-states.jsonl" > "$at-states.txt"
            samples=$($python "$here/samples.py" "$at-states.jsonl")
            # Nothing but root samples: no row brings a hit, and exit 3 says that there was none.
            [ -f "$at-root.jsonl" ] || $qwench explore run "$dir/questions.jsonl" --model "$root" $how --seed "$episode$seed" \
                --hit given --root-n "$samples" --out "$at-root.jsonl" > "$at-root.txt" || [ $? -eq 3 ]
            for arm in states root
            do
                pairs=
                [ $loss = pairs ] || pairs="--pairs-per-state $([ $arm = states ] && echo 4 || echo $((samples / 2)))"
                [ -f "$at-$arm-rows.jsonl" ] || $qwench explore rows "$at-$arm.jsonl" --form $loss --keep 0,1 $pairs \
                    --out "$at-$arm-rows.jsonl" --quiet
                model=$([ $arm = states ] && echo "$states" || echo "$root")
                [ -d "$at-$arm-model" ] || $qwench explore train "$at-$arm-rows.jsonl" --loss $loss --method full \
                    --lr "$lr" --batch 32 --seed "$seed" --model "$model" --out "$at-$arm-model" --quiet > "$at-$arm-train.txt"
            done
            states=$at-states-model
            root=$at-root-model
            previous="--previous $at-states.jsonl"
            models="$models $states $root"
        done
    done
    [ -f "$dir/measured.jsonl" ] || $python "$here/evaluate.py" "$seed" $models > "$dir/measured.part"
    [ -f "$dir/measured.jsonl" ] || mv "$dir/measured.part" "$dir/measured.jsonl"
done
$python "$here/curve.py" "$out"
