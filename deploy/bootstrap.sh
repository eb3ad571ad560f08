#!/bin/sh
# bootstrap.sh GRPC_PORT:METRICS_PORT ...   of the servers that docker-compose.yml starts
#
# Makes the key for changing models, then, in a fresh clone, trains a small model on painted images and publishes it, so
# that something answers. Runs as the owner of model_repository.
set -eu
say() { echo "bootstrap: $*"; }

# A new key at the first start only: servers that run keep theirs.
if [ ! -s /control/key ]; then
  head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n' > /control/.key
  mv /control/.key /control/key
fi
servers= metrics=
for pair in "$@"; do
  servers="$servers${servers:+, }\"127.0.0.1:${pair%:*}\""
  metrics="$metrics${metrics:+, }\"http://127.0.0.1:${pair#*:}/metrics\""
done
cat > /control/.control.json <<END
{"servers": [$servers], "metrics": [$metrics],
 "headers": {"triton-grpc-protocol-fruitstand-control": "$(cat /control/key)"}}
END
mv /control/.control.json /control/control.json

if ls /models/fruit_resnet/[1-9]*/manifest.json >/dev/null 2>&1; then
  say "model_repository holds a published version"
  exit 0
fi
rm -rf /bootstrap/data /bootstrap/run # left by a bootstrap that was interrupted
started=$(date +%s)
say "model_repository is empty: a small model is trained on PAINTED fruit first, 1 to 4 minutes"
say "1 of 3: painting 360 images"
fruitstand data prepare --source generated --out /bootstrap/data --num-classes 6 --images-per-class 60
say "2 of 3: training resnet10t for 3 epochs"
fruitstand train --data /bootstrap/data --out /bootstrap/run --model resnet10t --epochs 3 --set batch_size=8 --set lr=0.02
say "3 of 3: exporting to ONNX, checking and publishing"
fruitstand export --run /bootstrap/run --repository /models
rm -rf /bootstrap/data /bootstrap/run
say "done after $(($(date +%s) - started)) s; the server starts. Your own model: see README, 'With Docker'"
