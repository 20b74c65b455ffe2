#!/bin/sh
# Makes the default models again: lab runs -> samples -> fit -> calibration on other runs -> models/lab-1s and models/node-15s.
#
#   training/recipe.sh [DIR]      where samples go (default target/recipe); a run whose samples are there is not repeated
#
# NOTE='…' adds to the card of lab-1s what was seen of the runs. Takes about two and a half hours. Needs what scripts/setup installs, python3, and a built `stormglass` and `stormglass-train` (release by
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
# Of this one the model of 1 s has the standbys alone, half an hour in which they are well; that of 15 s has all of it.
record slow-disk-filling-21 degrade-primary --part control --fault disk-filling --duration 20m --grows-for 8m --seed 21
# An hour at a step of 15 s is little, and what the model for it rests on. After about fifty minutes the lab's small volumes are full without
# any doing: a standby dies of it, and WAL piles up behind its slot until the primary has no room either. What came before is the training.
record long-51 degrade-primary --part control --fault connections-leaking --duration 55m --grows-for 6m --seed 51

# choose FROM TO FIRST UNTIL COLUMNS: some columns of a table, from a row (counted from 0) until before another: a number, or "end".
# Labels beside it are cut as it is.
choose() {
    python3 - "$@" <<'PYTHON'
import csv, os, sys
source, target, first, until, columns = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4], sys.argv[5].split()
os.makedirs(os.path.dirname(target), exist_ok=True)
with open(source) as table:
    rows = list(csv.DictReader(table))
first, until = int(first), len(rows) if until == "end" else int(until)
with open(target, "w", newline="") as out:
    writer = csv.writer(out)
    writer.writerow(columns)
    writer.writerows([row[column] for column in columns] for row in rows[first:until])
labels = source.removesuffix(".csv") + ".labels.csv"
if os.path.exists(labels):
    with open(labels) as lines, open(target.removesuffix(".csv") + ".labels.csv", "w") as out:
        lines = lines.read().splitlines()
        out.writelines(line + "\n" for line in lines[:1] + lines[1:][first:until])
PYTHON
}

# make NAME STEP HORIZON LEARN SOURCE: fits and calibrates network and twin on what is in $training, $healthy and $faulty.
make_model() {
    name=$1 step=$2 horizon=$3 learn=$4 source=$5
    for kind in network twin; do
        # shellcheck disable=SC2046,SC2086
        "$train" fit --csv $training --features training/features.toml --step "$step" --horizon "$horizon" --seed $seed \
            --name "$name" --version "$version" --out "$drafts/$name/$kind" $([ $kind = twin ] && echo --linear)
    done
    for kind in twin network; do
        # shellcheck disable=SC2046,SC2086
        "$train" calibrate --model "$drafts/$name/$kind" $([ $kind = network ] && echo --twin "$drafts/$name/twin") \
            --healthy $healthy --fault $faulty --learn "$learn" --source "$source"
    done
    mkdir -p "models/$name"
    for file in model.json weights.safetensors README.md; do
        cp "$drafts/$name/network/$file" "models/$name/"
    done
}

drafts=$place/drafts
rm -rf "$drafts"

long=$place/long-51/control
# piling_up FILE: two rows, when WAL begins to pile up behind a slot for good, and when the server is gone.
piling_up() {
    python3 - "$1" <<'PYTHON'
import csv, sys
with open(sys.argv[1]) as table:
    rows = list(csv.DictReader(table))
gone = next(row for row in range(1, len(rows)) if not rows[row]["connections_used_ratio"])
calm = max(row for row in range(1, gone) if float(rows[row]["slot_retained_bytes"]) < 16384)
print(calm + 1, gone)
PYTHON
}
read -r begins gone <<ROWS
$(piling_up "$long/15s/n1.csv")
ROWS

# The lab's own step.
training="" healthy="" faulty=""
for node in n1 n2 n3; do
    choose "$place/healthy-11/$node.csv" "$drafts/training/$node.csv" $skipped_rows end "$columns"
    training="$training $drafts/training/$node.csv"
done
for node in n2 n3; do
    choose "$place/slow-disk-filling-21/control/$node.csv" "$drafts/slow/$node.csv" 0 end "$columns"
    healthy="$healthy $drafts/slow/$node.csv"
done
for fault in $faults; do
    for run in "fast-$fault-31" "fast-$fault-32"; do
        for node in n1 n2 n3; do
            choose "$place/$run/control/$node.csv" "$drafts/$run/$node.csv" 0 end "$columns"
        done
        faulty="$faulty $fault=$drafts/$run/n1.csv"
        healthy="$healthy $drafts/$run/n2.csv $drafts/$run/n3.csv"
    done
done
for node in n1 n2; do
    choose "$long/$node.csv" "$drafts/long/$node.csv" $skipped_rows $((begins * 15)) "$columns"
    healthy="$healthy $drafts/long/$node.csv"
done
make_model lab-1s 1 60 120 "eight runs of \`lab run degrade-primary --part control\` (four faults, seeds 31 and 32) and a slow one of a disk that fills (seed 21), of which the standbys are the healthy nodes, and the first fifty minutes of a long one (seed 51), without the standby whose volume ran full${NOTE:+; $NOTE}"

# The step of servers. Of each run that judges the model, the rows from which is learnt what is usual on the node stand at the beginning.
training="" healthy="" faulty="" learn=75
for node in n1 n2 n3; do
    choose "$long/15s/$node.csv" "$drafts/training-15s/$node.csv" $((skipped_rows / 15)) "$begins" "$columns"
    training="$training $drafts/training-15s/$node.csv"
    choose "$place/slow-disk-filling-21/control/15s/$node.csv" "$drafts/slow-15s/$node.csv" 0 end "$columns"
    choose "$place/healthy-11/15s/$node.csv" "$drafts/healthy-15s/$node.csv" 0 end "$columns"
    healthy="$healthy $drafts/healthy-15s/$node.csv"
done
choose "$long/15s/n1.csv" "$drafts/long-15s/n1.csv" $((begins - learn)) "$gone" "$columns"
python3 -c 'import sys
learn, rows = map(int, sys.argv[1:])
print("fault", *[0] * learn, *[1] * (rows - learn), sep="\n")' $learn $((gone - begins + learn)) >"$drafts/long-15s/n1.labels.csv"
healthy="$healthy $drafts/slow-15s/n2.csv $drafts/slow-15s/n3.csv"
faulty="disk-filling=$drafts/slow-15s/n1.csv wal-piling-up=$drafts/long-15s/n1.csv"
make_model node-15s 15 900 $learn "a run of \`lab run degrade-primary --part control\` whose disk fills in eight minutes (seed 21), the last minutes of one (seed 51) whose volumes were full after fifty, so that WAL piled up behind the slot of a standby that had died, and, as healthy nodes, the standbys of the first and half an hour of \`lab run healthy-load\` (seed 11). The fifty minutes before are all that the model was trained on. Two faults and minutes of calm are hardly evidence, and the lab's load is not yours: retrain on your nodes (\`stormglass retrain\`) before you let it act"
echo "models/lab-1s and models/node-15s are made; check the first with: stormglass lab run degrade-primary, stormglass lab run healthy-load --seed 12" >&2
