#!/bin/sh
# Makes the lab's default model again: lab runs -> samples -> fit -> calibration on other runs -> models/lab-1s.
#
#   training/recipe.sh [DIR]      where samples go (default target/recipe); a run whose samples are there is not repeated
#
# NOTE='…' adds to the card what was seen of the runs. Takes about an hour and a half. Needs what scripts/setup installs, python3, and a built `stormglass` and `stormglass-train` (release by
# preference). What the host does besides is in the samples, and a bit of it does no harm.
set -eu
cd "$(dirname "$0")/.."
place=${1:-target/recipe}
# Where something runs out, and what clients feel; chosen on the two runs of a disk that fills, and the standbys of the slow one. What the lab's nodes share (processors, memory, disks) tells none of them apart.
columns=${COLUMNS_OF_MODEL:-write_probe_seconds connect_probe_seconds connections_used_ratio connections_gone_ratio data_gone_ratio slot_retained_bytes lock_waiters}
# The volumes fill with WAL until the first segments are recycled: of the training these rows are no everyday.
skipped_rows=200
faults="disk-filling connections-leaking wal-piling-up processor-stolen"
version=${VERSION:-$(date -u +%Y%m%d)}
seed=20261128
binaries=${BINARIES:-target/release}
[ -x "$binaries/stormglass" ] && [ -x "$binaries/stormglass-train" ] || binaries=target/debug
train=$binaries/stormglass-train
mkdir -p "$place"

# record NAME ARGUMENTS…: a lab run, unless its samples are there.
record() {
    name=$1
    shift
    if [ -f "$place/$name/n1.csv" ] || [ -f "$place/$name/control/n1.csv" ]; then return; fi
    echo "recording $name" >&2
    mkdir -p "$place/$name"
    # Started as root, the lab runs as another user and must be able to write there.
    chmod 1777 "$place/$name"
    "$binaries/stormglass" lab run "$@" --samples "$(realpath "$place/$name")" --report "$(realpath "$place")/$name.json" --output json >/dev/null
}

# What the model is trained on, and what it is not.
record healthy-11 healthy-load --duration 30m --seed 11
for fault in $faults; do
    for run in 31 32; do
        record "fast-$fault-$run" degrade-primary --part control --fault "$fault" --duration 150s --seed "$run"
    done
done
# Of this one the standbys alone are used: half an hour in which they are well.
record slow-disk-filling-21 degrade-primary --part control --fault disk-filling --duration 20m --grows-for 8m --seed 21

# choose FROM TO SKIPPED COLUMNS: some columns of a table, without its first rows; labels beside it stay beside it.
choose() {
    python3 - "$1" "$2" "$3" $4 <<'PYTHON'
import csv, os, sys
source, target, skipped, columns = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:]
os.makedirs(os.path.dirname(target), exist_ok=True)
with open(source) as table, open(target, "w", newline="") as out:
    writer = csv.writer(out)
    writer.writerow(columns)
    for number, row in enumerate(csv.DictReader(table)):
        if number >= skipped:
            writer.writerow([row[column] for column in columns])
PYTHON
}

drafts=$place/drafts
rm -rf "$drafts"
training="" healthy="" faulty=""
for node in n1 n2 n3; do
    choose "$place/healthy-11/$node.csv" "$drafts/training/$node.csv" $skipped_rows "$columns"
    training="$training $drafts/training/$node.csv"
done
for node in n2 n3; do
    choose "$place/slow-disk-filling-21/control/$node.csv" "$drafts/slow/$node.csv" 0 "$columns"
    healthy="$healthy $drafts/slow/$node.csv"
done
for fault in $faults; do
    for run in "fast-$fault-31" "fast-$fault-32"; do
        for node in n1 n2 n3; do
            choose "$place/$run/control/$node.csv" "$drafts/$run/$node.csv" 0 "$columns"
        done
        cp "$place/$run/control/n1.labels.csv" "$drafts/$run/"
        faulty="$faulty $fault=$drafts/$run/n1.csv"
        healthy="$healthy $drafts/$run/n2.csv $drafts/$run/n3.csv"
    done
done
for kind in network twin; do
    # shellcheck disable=SC2046,SC2086
    "$train" fit --csv $training --features training/features.toml --step 1 --horizon 60 --seed $seed \
        --name lab-1s --version "$version" --out "$drafts/$kind" $([ $kind = twin ] && echo --linear)
done
for kind in twin network; do
    # shellcheck disable=SC2046,SC2086
    "$train" calibrate --model "$drafts/$kind" $([ $kind = network ] && echo --twin "$drafts/twin") \
        --healthy $healthy --fault $faulty --learn 120 \
        --source "eight runs of \`lab run degrade-primary --part control\` (four faults, seeds 31 and 32) and a slow one of a disk that fills (seed 21), of which the standbys are the healthy nodes${NOTE:+; $NOTE}"
done
mkdir -p models/lab-1s
for file in model.json weights.safetensors README.md; do
    cp "$drafts/network/$file" models/lab-1s/
done
echo "models/lab-1s is made; check it with: stormglass lab run degrade-primary, stormglass lab run healthy-load --seed 12" >&2
