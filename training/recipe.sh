#!/bin/sh
# Makes the default models again: lab runs with and without faults → samples → fit → a check → models/.
#
#   training/recipe.sh [MINUTES [DIR]]      minutes of healthy load for each step (default 10), and where samples go (default target/recipe)
#
# Needs what `scripts/setup` installs, a built `stormglass` and `stormglass-train` (release by preference), and an otherwise idle machine:
# what the host does besides is in the samples.
set -eu
cd "$(dirname "$0")/.."
minutes=${1:-10}
place=${2:-target/recipe}
binaries=target/release
[ -x $binaries/stormglass ] && [ -x $binaries/stormglass-train ] || binaries=target/debug
mkdir -p "$place"
place=$(realpath "$place")
# Started as root, the lab runs as another user and must be able to write there.
chmod 1777 "$place"
seed=20261128
version=${VERSION:-$(date -u +%Y%m%d)}

say() { printf '%s\n' "$*" >&2; }

for step in 1; do
    say "healthy load, $minutes minutes"
    "$binaries/stormglass" lab run healthy-load --duration "${minutes}m" --seed $seed --samples "$place/healthy" \
        --report "$place/healthy.json" >/dev/null
    say "fit for a step of $step s"
    rm -rf "$place/lab-${step}s"
    "$binaries/stormglass-train" fit --csv "$place/healthy/n1.csv" "$place/healthy/n2.csv" "$place/healthy/n3.csv" \
        --features training/features.toml --step $step --horizon 60 --seed $seed --name "lab-${step}s" --version "$version" \
        --out "$place/lab-${step}s"
    mkdir -p "models/lab-${step}s"
    cp "$place/lab-${step}s/model.json" "$place/lab-${step}s/weights.safetensors" "$place/lab-${step}s/README.md" \
        "models/lab-${step}s/"
done
say "check: stormglass lab run degrade-primary, and lab run healthy-load with another seed"
