# Two commands matter: `make demo` and `make test`. Everything they need is installed into .venv from the lock file.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
LOGS   ?=
SERVER ?= elasticsearch:8
MINUTES ?= 30
PREFIX ?= /opt/vedette
ENGINE ?= podman

BUILD   := packaging/build.py
PLACE   := $(if $(DESTDIR),--root "$(DESTDIR)") --prefix "$(PREFIX)"
COMPILE := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-servers lint agreement evaluate parity bench bench-normalise kill-points exactness saved-objects schema lock observability soak install uninstall \
	deb rpm sbom container clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

$(VENV)/run: packaging/requirements.lock packaging/requirements-build.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Vedette needs Python 3.11 to 3.13; set PYTHON=") if not (3, 11) <= sys.version_info[:2] <= (3, 13) else None'
	@echo "installing what the lock file names into $(VENV); about a minute"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --require-hashes -r packaging/requirements.lock -r packaging/requirements-build.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/dev: $(VENV)/run packaging/requirements-dev.lock
	$(BIN)/pip install --quiet --require-hashes -r packaging/requirements-dev.lock
	@touch $@

schema: $(VENV)/run ## write the JSON Schemas of vedette.yml and of recipes in packaging anew
	$(BIN)/vedette config schema > packaging/vedette.schema.json
	$(BIN)/vedette config schema --recipe > packaging/recipe.schema.json

lock: ## pin every dependency by hash (needs uv)
	$(COMPILE) -o packaging/requirements.lock pyproject.toml
	$(COMPILE) --group build -c packaging/requirements.lock -o packaging/requirements-build.lock
	$(COMPILE) --group build --group dev -o packaging/requirements-dev.lock pyproject.toml

demo: $(VENV)/run ## a day of made-up logs with attacks through the whole pipeline (LOGS=path: your own files)
	@$(BIN)/vedette demo $(if $(LOGS),--logs "$(LOGS)")

test: $(VENV)/dev lint ## everything CI runs: style, types, all tests but the long ones; real servers where mvn and a JDK are
	$(BIN)/pytest -n 2 --dist loadgroup -m "not slow"

test-servers: $(VENV)/dev ## all tests against real servers, the long ones and OpenSearch 3 included
	VEDETTE_TEST_SIEM=elasticsearch8,elasticsearch9,opensearch2,opensearch3 $(BIN)/pytest -n 2 --dist loadgroup -m "servers or slow"

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

agreement: $(VENV)/dev ## our documents beside those of Elastic's integrations, field by field (VEDETTE_TEST_DATA)
	$(BIN)/python -m tests.bench.normalise

evaluate: $(VENV)/dev ## what is caught and what is loud, on real logs (VEDETTE_TEST_DATA)
	$(BIN)/python -m tests.bench.evaluate --json tests/results/evaluate.json --docs docs/evaluation.md

parity: $(VENV)/dev ## every SigmaHQ rule on every real record beside a plain reading and four other tools (VEDETTE_TEST_DATA)
	$(BIN)/python -m tests.bench.parity --json tests/results/parity.json

bench-normalise: $(VENV)/dev ## records a second from native to ECS, product by product (VEDETTE_TEST_DATA)
	$(BIN)/python -m tests.bench.bench_normalise --json tests/results/bench-normalise.json

bench: $(VENV)/dev ## speed and memory, beside rsigma where it is installed; at most 82 minutes
	timeout 1800 $(BIN)/python -m tests.bench.bench_scan --json tests/results/bench-scan.json
	timeout 600 $(BIN)/python -m tests.bench.bench_store --json tests/results/bench-store.json
	timeout 120 $(BIN)/python -m tests.bench.bench_start --json tests/results/bench-start.json
	timeout 600 $(BIN)/python -m tests.bench.bench_correlations --json tests/results/bench-correlations.json
	timeout 1800 $(BIN)/python -m tests.bench.bench_siem --json tests/results/bench-siem.json

kill-points: $(VENV)/dev ## strike every system call of the real process; at most 80 minutes
	timeout 4800 $(BIN)/python -m tests.faults.kill_points --limit 4500 --json tests/results/kill-points.json

exactness: $(VENV)/dev ## 200,000 events, 8 writers, 20 kills: nothing missed, nothing twice (about 10 minutes; SERVER=opensearch:2)
	$(BIN)/python -m tests.faults.exactness --server $(SERVER) --json tests/results/exactness-$(subst :,-,$(SERVER)).json

soak: $(VENV)/dev ## half an hour under load and faults (MINUTES=30)
	$(BIN)/python -m tests.faults.soak --minutes $(MINUTES) --json tests/results/soak.json

saved-objects: $(VENV)/run ## write packaging/elastic and packaging/opensearch anew
	$(BIN)/python packaging/dashboards.py

observability: $(VENV)/run ## write Prometheus rules, the Grafana dashboard and docs/metrics.md anew
	$(BIN)/python packaging/observability.py

install: ## into an environment of its own under /opt/vedette (as root; PYTHON=, PREFIX=, DESTDIR=)
	$(PYTHON) $(BUILD) install $(PLACE)

uninstall: ## take that away; configuration, data and the system user stay
	$(PYTHON) $(BUILD) uninstall $(PLACE)

deb: ## a package in dist that needs no network to install (needs Go and /usr/bin/python3.11)
	/usr/bin/python3.11 $(BUILD) deb

rpm: ## the same for Red Hat's kind
	/usr/bin/python3.11 $(BUILD) rpm

sbom: ## what an installation holds, in dist/sbom.cdx.json
	$(PYTHON) $(BUILD) sbom

container: ## an image vedette:VERSION (ENGINE=docker; BASE=image@sha256:… pins what it is built on)
	$(ENGINE) build $(if $(BASE),--build-arg BASE="$(BASE)") --build-arg SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) \
	  -f packaging/Containerfile -t vedette:$$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml) .

clean: ## remove what make made
	rm -rf $(VENV) .demo .cache build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
