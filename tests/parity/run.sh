#!/usr/bin/env bash
# Makes all cases with the reference's own package and compares our Flamingo with them; see README.md.
# usage: OLD_PYTHON_428=... OLD_PYTHON_433=... [PYTHON=...] [SEED=...] tests/parity/run.sh [FOLDER]
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$(mktemp -d)}
seed=${SEED:-3}
: "${OLD_PYTHON_428:?the Python of the environment with transformers 4.28.1}"
: "${OLD_PYTHON_433:?the Python of the environment with transformers 4.33.3}"

cases=()
for host in gpt_neox opt llama mpt; do
  old=$OLD_PYTHON_428
  [[ $host == mpt ]] && old=$OLD_PYTHON_433
  for every in 1 2 4; do
    folder=$out/$host-$every
    cases+=("$folder")
    [[ -e $folder/outputs.pt ]] && continue # made by an earlier run
    rm -rf "$folder"
    "$old" -W ignore "$here/reference.py" --out "$folder" --host "$host" --every "$every" --seed "$seed"
  done
done
cd "$here/../.."
exec "${PYTHON:-.venv/bin/python}" "$here/compare.py" "${cases[@]}"
