#!/usr/bin/env bash
# Transfer from chest CT to brain MR (the paper's Table 6, BraTS): pre-train on LUNA16, fine-tune on some of BraTS' labels, compare
# with training from scratch on the same labels.
#
# Expects LUNA16 in $PCRL_WORKSPACE/data/luna and BraTS in data/brats. With the paper's settings it needs a GPU; PRETRAIN, FINETUNE
# and SCRATCH may hold options to make it smaller, for example
#   PRETRAIN="--width 4 --batch 8 --steps 20" SCRATCH="--width 4" RATIOS="0.5" \
#   FINETUNE="--epochs 2 --batch 2 --set learner.crop=[48,48,48]" examples/luna_to_brats.sh
set -euo pipefail

read -ra ratios <<<"${RATIOS:-0.1 0.2 0.3 0.4 1.0}"
read -ra pretrain <<<"${PRETRAIN:-}"
read -ra finetune <<<"${FINETUNE:-}"
read -ra scratch <<<"${SCRATCH:-}"

chest=$(pcrl prep luna -q)
run=$(pcrl pretrain "$chest" --dim 3d --crop sub -q ${pretrain[@]+"${pretrain[@]}"})
brain=$(pcrl prep brats -q)

runs=()
for ratio in "${ratios[@]}"; do
    runs+=("$(pcrl finetune "$brain" --task brats --weights "$run" --ratio "$ratio" -q ${finetune[@]+"${finetune[@]}"})")
    runs+=("$(pcrl finetune "$brain" --task brats --ratio "$ratio" -q ${scratch[@]+"${scratch[@]}"} ${finetune[@]+"${finetune[@]}"})")
done
for each in "${runs[@]}"; do
    pcrl evaluate "$each" --json | python3 -c '
import json, sys
e = json.load(sys.stdin)
value = e["metrics"][e["headline"]]
print("{}: {} {} ({} to {})".format(e["start"], e["headline"], value["value"], value["low"], value["high"]))'
done
pcrl report "$run" "${runs[@]}" --out report.html --overwrite
