#!/bin/sh
# A fresh clone has no model: train a small one on painted images and publish it, so that something answers.
set -eu
if ls /models/fruit_resnet/[1-9]*/manifest.json >/dev/null 2>&1; then
  echo "bootstrap: /models holds a published version already"
  exit 0
fi
rm -rf /work/data /work/run # of a bootstrap that was interrupted
fruitstand data prepare --source generated --out /work/data --num-classes 6 --images-per-class 60
fruitstand train --data /work/data --out /work/run --model resnet10t --epochs 3 --set batch_size=8 --set lr=0.02
fruitstand export --run /work/run --repository /models
echo "bootstrap: a model of PAINTED fruit is served. Your own: fruitstand data prepare, train, then"
echo "bootstrap: fruitstand export --run RUN --repository model_repository, and docker compose restart"
