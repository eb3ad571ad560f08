#!/bin/sh
# Triton runs this in the place of its program for Python models, which lies beside it. While the server answers,
# a version of the classifier that starts is one that is loaded beside another: it gives way, and
# fruitstand/machine/background.py goes on with that. Niceness, because what computes in idle time only may never begin.
case "$*" in
*/onnxruntime/model.py*)
  if [ -e "${0%/*}/answering" ]; then
    FRUITSTAND_NICENESS="$(nice)"
    export FRUITSTAND_NICENESS
    exec nice -n 10 "$0.program" "$@"
  fi
  ;;
esac
exec "$0.program" "$@"
