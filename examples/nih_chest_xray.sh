#!/usr/bin/env bash
# Chest radiographs (the paper's Table 4): pre-train on NIH ChestX-ray14 without the labelled tenth, fine-tune on it, compare with
# training from scratch on the same tenth.
#
# Expects NIH ChestX-ray14 in $PCRL_WORKSPACE/data/nih (or ./data/nih). With the paper's settings it needs a GPU; PREP, PRETRAIN and
# FINETUNE may hold options to make it smaller, for example
#   PREP="--size 80" PRETRAIN="--width 8 --batch 16 --steps 20 --set learner.images.global_side=64 --set learner.images.local_side=64" \
#   SCRATCH="--width 8" FINETUNE="--epochs 3 --batch 16 --set learner.side=64 --set learner.resize=80" examples/nih_chest_xray.sh
set -euo pipefail

ratio=${RATIO:-0.1}
read -ra prep <<<"${PREP:-}"
read -ra pretrain <<<"${PRETRAIN:-}"
read -ra finetune <<<"${FINETUNE:-}"
read -ra scratch <<<"${SCRATCH:-}"

cache=$(pcrl prep nih -q ${prep[@]+"${prep[@]}"})
run=$(pcrl pretrain "$cache" --dim 2d --crop multi --set-aside "$ratio" -q ${pretrain[@]+"${pretrain[@]}"})
ours=$(pcrl finetune "$cache" --task chest --weights "$run" --ratio "$ratio" -q ${finetune[@]+"${finetune[@]}"})
ts=$(pcrl finetune "$cache" --task chest --ratio "$ratio" -q ${scratch[@]+"${scratch[@]}"} ${finetune[@]+"${finetune[@]}"})

for each in "$ours" "$ts"; do
    pcrl evaluate "$each" --json | python3 -c '
import json, sys
e = json.load(sys.stdin)
value = e["metrics"][e["headline"]]
print("{}: {} {} ({} to {}), {} patients".format(e["start"], e["headline"], value["value"], value["low"], value["high"], e["patients"]))'
done
pcrl export "$run" --to encoder.safetensors --overwrite
pcrl report "$run" "$ours" "$ts" --out report.html --overwrite
