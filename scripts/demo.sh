#!/usr/bin/env bash
# Sets up the virtual environment and runs the main job on the data that ships: LeNet on a sample
# of Fashion-MNIST is trained in float, then quantized, exported as int8 and checked.
#
# Run again, it goes on where it was interrupted; a finished run only shows its table.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup_env.sh

config=configs/lenet_fashion_mnist.yaml
folder=output_models/demo

(($# == 0)) || fail "demo.sh takes no arguments, found '$*'; try: python train.py --help"
setup_env requirements.txt

python() { "$VENV_DIR/bin/python" "$@"; }

# A run of another configuration (or of a run that never began) is no part of this one.
if [[ ! -f $folder/demo.yaml || $(<"$folder/demo.yaml") != "$(<"$config")" ]]; then
  rm -rf "$folder"
  mkdir -p "$folder"
  cp "$config" "$folder/demo.yaml"
fi

if [[ ! -f $folder/summary.json ]]; then
  python train.py --config "$config" --model_save_dir "$folder" --resume auto
  exit
fi

echo "finished already; remove $folder to run it again"
python -W ignore - "$folder/summary.json" <<'PYTHON'
import json
import sys

from engine.summary import Summary

with open(sys.argv[1], encoding="utf-8") as file:
    summary = Summary(**json.load(file))
print(summary.table())
sys.exit(0 if summary.verified else 1)
PYTHON
