#!/usr/bin/env bash
# Runs the published rows on ImageNet, from the float weights to the filled table in the READMEs.
#
#   bash scripts/reproduce.sh [OPTIONS] [ROW...] [-- FLAGS OF train.py]
#
#   ROW                 mobilenet_v1, mobilenet_v3_large_ssld_pact        (default: both)
#   --data_dir DIR      ImageNet: train/, val/, train_list.txt, val_list.txt
#                                                                   (default: data/ILSVRC2012)
#   --output_dir DIR    one folder a row              (default: output_models/reproduce)
#   --results FILE      where the figures go          (default: docs/results/imagenet.json)
#   --readme FILE       whose table is filled, once or more  (default: README.md, README.zh-CN.md)
#   --dry_run           prints the commands and what is missing, runs and downloads nothing
#   PYTHON              the interpreter that has Paddle            (default: python3)
#
# All GPUs that CUDA_VISIBLE_DEVICES shows are used; more than one by paddle.distributed.launch. Run
# again after an interruption, it goes on where it was; what is finished is not run again. Flags after
# -- that change a recipe need --results and --readme, since their figures are no published rows.
#
# A row whose int8 file is not the network counts as failed: the others go on, and only theirs are
# written. Any other failure ends the script.
#
# Exit codes: 0; 1 if a row failed; 2 with a line for each thing that is missing (GPU, ImageNet,
# weights, Paddle, the marks in a README) or wrong on the command line.
set -euo pipefail
start=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
  echo "error: $1" >&2
  exit "${2:-2}"
}

# Paths are relative to where the script was called.
absolute() {
  case $1 in
    /*) echo "$1" ;;
    *) echo "$start/$1" ;;
  esac
}

data_dir='' dry_run=0
output_dir=output_models/reproduce
results=docs/results/imagenet.json
readmes=() rows=() flags=()

while (($# > 0)); do
  case $1 in
    --data_dir | --output_dir | --results | --readme)
      (($# > 1)) || fail "$1 needs a value"
      set -- "$1=$2" "${@:3}"
      continue
      ;;
    --data_dir=*) data_dir=$(absolute "${1#*=}") ;;
    --output_dir=*) output_dir=$(absolute "${1#*=}") ;;
    --results=*) results=$(absolute "${1#*=}") ;;
    --readme=*) readmes+=("$(absolute "${1#*=}")") ;;
    --dry_run) dry_run=1 ;;
    -h | --help)
      sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' scripts/reproduce.sh
      exit
      ;;
    --)
      shift
      flags=("$@")
      break
      ;;
    -*) fail "unknown option '$1'; flags of train.py come after --, and --help lists the options" ;;
    *) rows+=("$1") ;;
  esac
  shift
done
((${#rows[@]} > 0)) || rows=(mobilenet_v1 mobilenet_v3_large_ssld_pact)
((${#readmes[@]} > 0)) || readmes=(README.md README.zh-CN.md)
[[ -z $data_dir ]] || flags+=("--data_dir=$data_dir")

python=${PYTHON:-python3}
command -v "$python" >/dev/null ||
  fail "there is no '$python'; name the interpreter that has Paddle: PYTHON=..."

# --- what is missing ---------------------------------------------------------------------------

gpus=0
ssld=MobileNetV3_large_x1_0_ssld_pretrained
if ! "$python" -W ignore -c 'import cv2, numpy, paddle, safetensors, yaml' 2>/dev/null; then
  echo "missing: '$python' has no Paddle, or not all that goes with it: pip install -r" \
    "requirements-gpu.txt, or name another interpreter: PYTHON=..." >&2
  # Without Paddle only what lies in plain sight can be looked at.
  command -v nvidia-smi >/dev/null || echo "missing: GPU: there is no nvidia-smi" >&2
  folder=${data_dir:-data/ILSVRC2012}
  [[ -f $folder/train_list.txt ]] ||
    echo "missing: ImageNet: $folder/train_list.txt; --data_dir names another folder" >&2
  compgen -G "$ssld*" >/dev/null || echo "missing: weights: $ssld.tar, in $PWD" >&2
  code=1
else
  code=0
  look=()
  ((dry_run == 0)) || look=(--dry_run)
  found=$("$python" -W ignore -m scripts.reproduce_check --output_dir "$output_dir" \
    --results "$results" --readme "${readmes[@]}" ${look[@]+"${look[@]}"} --rows "${rows[@]}" --flags ${flags[@]+"${flags[@]}"}) || code=$?
  gpus=${found##*$'\n'}
fi
((code <= 1)) || exit 2
((code == 0 || dry_run)) || fail "nothing was run, since something is missing (see above)"

# --- the runs ----------------------------------------------------------------------------------

launcher=()
if ((${gpus:-0} > 1)); then
  devices=${CUDA_VISIBLE_DEVICES:-$(seq -s, 0 $((gpus - 1)))}
  launcher=(-m paddle.distributed.launch "--gpus=$devices")
fi
# One process on the CPU or on one GPU.
processes=$((${gpus:-0} > 1 ? gpus : 1))

for row in "${rows[@]}"; do
  folder=$output_dir/$row
  recipe=(train.py --config "configs/$row.yaml" ${flags[@]+"${flags[@]}"})
  places=("--model_save_dir=$folder" --resume=auto)
  logs=()
  ((${#launcher[@]} == 0)) || logs=("--log_dir=$folder/log")
  command=("$python" ${launcher[@]+"${launcher[@]}"} ${logs[@]+"${logs[@]}"} "${recipe[@]}"
    "${places[@]}")
  if [[ -f $folder/summary.json ]]; then
    echo "$row: finished already, in $folder"
    continue
  fi
  printf '%s: ' "$row"
  printf '%q ' "${command[@]}"
  echo
  ((dry_run == 0)) || continue
  mkdir -p "$folder"
  echo "$processes" >"$folder/launch.txt"
  ended=0
  "${command[@]}" || ended=$?
  # With a summary it was the check of the int8 file that failed; the table says so below.
  ((ended == 0)) || [[ $ended == 1 && -f $folder/summary.json ]] ||
    fail "$row ended with code $ended; run this script again to go on where it stopped" 1
done
((dry_run == 0)) || exit 0

# --- the table ---------------------------------------------------------------------------------

ended=0
"$python" -W ignore -m scripts.imagenet_table --collect "$output_dir" --results "$results" \
  --readme "${readmes[@]}" --rows "${rows[@]}" || ended=$?
((ended <= 1)) || exit "$ended"
echo "figures: $results; tables: ${readmes[*]}"
exit "$ended"
