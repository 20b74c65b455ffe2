#!/bin/sh
# Makes the default models again: lab runs -> samples -> fit -> calibration on other runs -> models/lab-1s and models/node-15s.
#
#   training/recipe.sh [DIR]      where samples go (default target/recipe); a run whose samples are there is not repeated
#
# MODELS="lab-1s" makes one of them; NOTE='…' adds to the card of lab-1s what was seen of the runs. Takes about an hour for lab-1s, and two
# hours for node-15s. Needs what scripts/setup installs, python3, and a built `stormglass` and `stormglass-train` (release by preference).
# What else the host does is in the samples: a bit of it does no harm, but a lab that shares two processors with a compiler is no healthy one.
set -eu
cd "$(dirname "$0")/.."
place=${1:-target/recipe}
models=${MODELS:-lab-1s node-15s}
# Where something runs out, and what clients feel. What the lab's nodes share (processors, disks, the kernel's memory) tells none of them apart.
# Chosen on the runs below.
columns=${COLUMNS_OF_MODEL:-primary_transaction_seconds wal_waiters write_probe_mean_seconds connect_probe_seconds connections_used_ratio connections_gone_ratio primary_data_gone_ratio memory_gone_ratio slot_retained_bytes}
columns_of_servers="write_probe_seconds connect_probe_seconds connections_used_ratio connections_gone_ratio data_gone_ratio slot_retained_bytes lock_waiters"
# Of a healthy run, the rows in which its lab starts and its volume fills with WAL, until the first segments are recycled.
skipped_rows=90
# Of a run with a fault, the rows in which its lab starts; the next ones are what is usual on the node, and the fault begins after row 150.
started_rows=40 usual_rows=110
# Faults and seeds. Two of those that are the hardest to foresee.
runs="disk-filling-31 connections-leaking-31 wal-piling-up-31 processor-stolen-31 memory-pressure-31 memory-pressure-32 disk-slowing-31 disk-slowing-32"
version=${VERSION:-$(date -u +%Y%m%d)}
seed=20261128
binaries=${BINARIES:-target/release}
[ -x "$binaries/stormglass" ] && [ -x "$binaries/stormglass-train" ] || binaries=target/debug
train=$binaries/stormglass-train
mkdir -p "$place"

wants() {
    case " $models " in *" $1 "*) true ;; *) false ;; esac
}

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

if wants lab-1s; then
    record healthy-11 healthy-load --duration 12m --seed 11
    record healthy-13 healthy-load --duration 12m --seed 13
    for run in $runs; do
        record "fast-$run" degrade-primary --part control --fault "${run%-*}" --duration 150s --seed "${run##*-}"
    done
fi
if wants node-15s; then
    # At 15 s the 75 rows from which is learnt what is usual on a node are nineteen minutes; the rest judges.
    record healthy-30m healthy-load --duration 30m --seed 11
    record slow-disk-filling-21 degrade-primary --part control --fault disk-filling --duration 20m --grows-for 8m --seed 21
    # An hour at a step of 15 s is little, and what the model for it rests on. After about fifty minutes the lab's small volumes are full without
    # any doing: a standby dies of it, and WAL piles up behind its slot until the primary has no room either. What came before is the training.
    record long-51 degrade-primary --part control --fault connections-leaking --duration 55m --grows-for 6m --seed 51
fi

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
    rm -rf "$drafts/models/$name"
    for kind in network twin; do
        # shellcheck disable=SC2046,SC2086
        "$train" fit --csv $training --features training/features.toml --step "$step" --horizon "$horizon" --seed $seed \
            --name "$name" --version "$version" --out "$drafts/models/$name/$kind" $([ $kind = twin ] && echo --linear)
    done
    for kind in twin network; do
        # shellcheck disable=SC2046,SC2086
        "$train" calibrate --model "$drafts/models/$name/$kind" $([ $kind = network ] && echo --twin "$drafts/models/$name/twin") \
            --healthy $healthy --fault $faulty --learn "$learn" --source "$source"
    done
    mkdir -p "models/$name"
    for file in model.json weights.safetensors README.md; do
        cp "$drafts/models/$name/network/$file" "models/$name/"
    done
}

drafts=$place/drafts

# trouble_row NAME: the row in which clients of a run with a fault first felt it. What the standbys did from then on was not everyday either.
trouble_row() {
    python3 - "$place/$1.json" "$place/$1/control/n1.labels.csv" <<'PYTHON'
import json, sys
after = json.load(open(sys.argv[1]))["faults"][0]["prediction"]["trouble_after_seconds"]
labels = open(sys.argv[2]).read().split()[1:]
print("end" if after is None else labels.index("1") + int(after))
PYTHON
}

# The lab's own step.
make_lab_model() {
    rm -rf "$drafts/1s"
    training="" healthy="" faulty=""
    for node in n1 n2 n3; do
        choose "$place/healthy-11/$node.csv" "$drafts/1s/training/$node.csv" $skipped_rows end "$columns"
        choose "$place/healthy-13/$node.csv" "$drafts/1s/healthy/$node.csv" $skipped_rows end "$columns"
        training="$training $drafts/1s/training/$node.csv"
        healthy="$healthy $drafts/1s/healthy/$node.csv"
    done
    # In a container there is less memory to come and go: what is usual there is learnt from the rows before this run's fault, and the run judges nothing.
    choose "$place/fast-memory-pressure-31/control/n1.csv" "$drafts/1s/training/confined.csv" $started_rows $((started_rows + usual_rows)) "$columns"
    training="$training $drafts/1s/training/confined.csv"
    for run in $runs; do
        from=$place/fast-$run/control to=$drafts/1s/$run
        choose "$from/n1.csv" "$to/n1.csv" $started_rows end "$columns"
        for node in n2 n3; do choose "$from/$node.csv" "$to/$node.csv" $started_rows "$(trouble_row "fast-$run")" "$columns"; done
        if [ "$run" != memory-pressure-31 ]; then faulty="$faulty ${run%-*}=$to/n1.csv"; fi
        healthy="$healthy $to/n2.csv $to/n3.csv"
    done
    make_model lab-1s 1 60 $usual_rows "eight runs of \`lab run degrade-primary --part control\` (six faults, seed 31, two of them also with seed 32), of which the standbys are healthy nodes until clients feel the fault of the primary, and all three nodes of \`lab run healthy-load\` (seed 13). The features were chosen on the same runs${NOTE:+; $NOTE}"
}

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

# The step of servers. Of each run that judges the model, the rows from which is learnt what is usual on the node stand at the beginning.
make_server_model() {
    rm -rf "$drafts/15s"
    long=$place/long-51/control
    read -r begins gone <<ROWS
$(piling_up "$long/15s/n1.csv")
ROWS
    # The volumes fill with WAL for the first two hundred seconds.
    training="" healthy="" faulty="" learn=75 filled=$((200 / 15))
    for node in n1 n2 n3; do
        choose "$long/15s/$node.csv" "$drafts/15s/training/$node.csv" "$filled" "$begins" "$columns_of_servers"
        training="$training $drafts/15s/training/$node.csv"
        choose "$place/slow-disk-filling-21/control/15s/$node.csv" "$drafts/15s/slow/$node.csv" 0 end "$columns_of_servers"
        choose "$place/healthy-30m/15s/$node.csv" "$drafts/15s/healthy/$node.csv" 0 end "$columns_of_servers"
        healthy="$healthy $drafts/15s/healthy/$node.csv"
    done
    choose "$long/15s/n1.csv" "$drafts/15s/long/n1.csv" $((begins - learn)) "$gone" "$columns_of_servers"
    python3 -c 'import sys
learn, rows = map(int, sys.argv[1:])
print("fault", *[0] * learn, *[1] * (rows - learn), sep="\n")' $learn $((gone - begins + learn)) >"$drafts/15s/long/n1.labels.csv"
    healthy="$healthy $drafts/15s/slow/n2.csv $drafts/15s/slow/n3.csv"
    faulty="disk-filling=$drafts/15s/slow/n1.csv wal-piling-up=$drafts/15s/long/n1.csv"
    make_model node-15s 15 900 $learn "a run of \`lab run degrade-primary --part control\` whose disk fills in eight minutes (seed 21), the last minutes of one (seed 51) whose volumes were full after fifty, so that WAL piled up behind the slot of a standby that had died, and, as healthy nodes, the standbys of the first and half an hour of \`lab run healthy-load\` (seed 11). The fifty minutes before are all that the model was trained on. Two faults and minutes of calm are hardly evidence, and the lab's load is not yours: retrain on your nodes (\`stormglass retrain\`) before you let it act"
}

if wants lab-1s; then make_lab_model; fi
if wants node-15s; then make_server_model; fi
echo "made: $models; check the first with: stormglass lab run degrade-primary, stormglass lab run healthy-load --seed 12" >&2
