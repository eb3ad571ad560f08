#!/usr/bin/env bash
# The limits of a machine with an NVIDIA GPU: trains a resnet50 with input 224 on painted images, exports it, runs the
# GPU tests, and measures decoding, inference, the loops without a server and the server.
#
#   WHEELS=wheels benchmarks/gpu.sh OUT                # needs the checkout, those wheels and python3.12
#   PYTHON=.venv/bin/python CONFIGS=cpu benchmarks/gpu.sh OUT --rounds 1      # the same path without a GPU
#
# WHEELS is a folder filled where there is a network, see docs/performance.md; without it PYTHON's packages are used.
# OUT is a folder for a JSON file a configuration; options behind it are those of benchmarks.limits. The model it
# makes is kept in runs/gpu. Exit status 1: a configuration could not be measured.
set -euo pipefail
usage="usage: [WHEELS=DIR] [PYTHON=python3.12] [CONFIGS='gpu gpu-trt'] benchmarks/gpu.sh OUT [OPTION ...]"
out=$(realpath -m "${1:?"$usage"}")
wheels=$(realpath -m "${WHEELS:-.}")
shift
cd "$(dirname "$0")/.."
python=${PYTHON:-python3.12}
configs=${CONFIGS:-gpu gpu-trt}
work=runs/gpu
if test -n "${WHEELS:-}"; then
  "$python" -m venv runs/gpu-venv
  python=runs/gpu-venv/bin/python
  "$python" -m pip install --quiet --no-index --find-links "$wheels" --require-hashes -r requirements.gpu.lock
fi
export PYTHONPATH="$PWD:$PWD/client${PYTHONPATH:+:$PYTHONPATH}"

step() {
  echo "+ $*" >&2
  "$python" -m "$@"
}

rm -rf "$work"
mkdir -p "$work" "$out"
step fruitstand data prepare --source generated --images-per-class 60 --out "$work/data"
step fruitstand train --data "$work/data" --out "$work/run" --model resnet50 --epochs 4 \
  --set batch_size=16 --set input_size=224
step fruitstand export --run "$work/run" --repository "$work/repository" --max-slowdown 100
if test "$configs" != cpu; then
  step pytest -q tests/gpu
fi
status=0
for config in $configs; do
  # An accelerator that is not installed must not cost the other one's result.
  step benchmarks.limits --repository "$work/repository" --images "$work/data/images" --model-name resnet50 \
    --config-name "$config" --out "$out/limits_resnet50-224_$config.json" "$@" \
    || { echo "configuration $config could not be measured" >&2; status=1; }
done
exit "$status"
