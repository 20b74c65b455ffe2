#!/bin/sh
# Trains on STORMGLASS_TRAIN_CSV (files, one a node, separated by spaces) and publishes to STORMGLASS_MODELS if the new model is better on
# STORMGLASS_HELD_OUT_CSV, samples that came after those. A model that is not better is no failure.
set -eu
: "${STORMGLASS_TRAIN_CSV:?files with the samples to train on}"
: "${STORMGLASS_HELD_OUT_CSV:?a file with later samples of one node}"
: "${STORMGLASS_MODELS:=/var/lib/stormglass/models}"
: "${STORMGLASS_MODEL_NAME:=nodes}"
: "${STORMGLASS_STEP:=15}"
challenger=$(mktemp -d)
trap 'rm -rf "$challenger"' EXIT
# Names of files are separated by spaces on purpose.
# shellcheck disable=SC2086
stormglass-train fit --csv $STORMGLASS_TRAIN_CSV --out "$challenger" --step "$STORMGLASS_STEP" \
  --name "$STORMGLASS_MODEL_NAME" --version "$(date -u +%Y%m%d%H%M%S)"
status=0
stormglass-train publish --model "$challenger" --models "$STORMGLASS_MODELS" --input "$STORMGLASS_HELD_OUT_CSV" || status=$?
# 9: not better, the model in use stays.
[ "$status" -eq 9 ] || exit "$status"
