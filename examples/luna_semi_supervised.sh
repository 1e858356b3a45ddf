#!/usr/bin/env bash
# Semi-supervised LUNA16 (the paper's Table 5, one column): pre-train without the labelled tenth, fine-tune on it, compare with
# training from scratch on the same tenth.
#
# Expects LUNA16 in $PCRL_WORKSPACE/data/luna (or ./data/luna). With the paper's settings it needs a GPU; PRETRAIN and
# FINETUNE may hold options to make it smaller, for example
#   PRETRAIN="--width 4 --batch 8 --steps 20" SCRATCH="--width 4" FINETUNE="--epochs 3 --batch 8" examples/luna_semi_supervised.sh
set -euo pipefail

ratio=${RATIO:-0.1}
read -ra pretrain <<<"${PRETRAIN:-}"
read -ra finetune <<<"${FINETUNE:-}"
read -ra scratch <<<"${SCRATCH:-}"

cache=$(pcrl prep luna -q)
run=$(pcrl pretrain "$cache" --dim 3d --crop sub --set-aside "$ratio" -q ${pretrain[@]+"${pretrain[@]}"})
ours=$(pcrl finetune "$cache" --task luna --weights "$run" --ratio "$ratio" -q ${finetune[@]+"${finetune[@]}"})
ts=$(pcrl finetune "$cache" --task luna --ratio "$ratio" -q ${scratch[@]+"${scratch[@]}"} ${finetune[@]+"${finetune[@]}"})

for each in "$ours" "$ts"; do
    pcrl evaluate "$each" --json | python3 -c '
import json, sys
e = json.load(sys.stdin)
a = e["metrics"]["auroc_clustered"]
print("{}: auroc_clustered {} ({} to {}), {} patients".format(e["start"], a["value"], a["low"], a["high"], e["patients"]))'
done
pcrl export "$run" --to encoder.safetensors --overwrite
pcrl report "$run" "$ours" "$ts" --out report.html
