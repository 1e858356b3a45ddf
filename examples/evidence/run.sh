#!/usr/bin/env bash
# Do the methods help on small data? Raw files -> caches -> `pcrl table` of every data set that is named; docs/evidence.md.
#
#   NODULES=lidc_solid_nodules.npz ADRENAL=adrenalmnist3d_64.npz NIH=ChestXray14 examples/evidence/run.sh
#
# Any of the three may be left out. All of it takes some hours on two cores; run again, it goes on where it stopped.
# OPTIONS is handed on to every `pcrl table`: OPTIONS=--dry-run says what there is to do.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
workspace=${PCRL_WORKSPACE:-.}

three_d() { # name, file, pairs a scan
    if [ ! -e "$workspace/data/$1/labels.csv" ]; then
        python "$here/convert.py" "$1" "$2" "$workspace/data/$1"
    fi
    pcrl prep folder --data "$workspace/data/$1" --labels "$workspace/data/$1/labels.csv" --out "$workspace/cache/$1" \
        --config "$here/prep.yaml" --pairs "$3" -q
    pcrl table "$here/$1.yaml" ${OPTIONS:-}
}

if [ -n "${NODULES:-}" ]; then three_d nodules "$NODULES" 4; fi
if [ -n "${ADRENAL:-}" ]; then three_d adrenal "$ADRENAL" 2; fi
if [ -n "${NIH:-}" ]; then
    pcrl prep nih --data "$NIH" --out "$workspace/cache/nih" --size 128 -q
    pcrl table "$here/nih.yaml" ${OPTIONS:-}
fi
