# Two commands matter: `make demo` and `make test`. Everything they need is installed into .venv from the lock file.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
LOGS   ?=

.DEFAULT_GOAL := help
.PHONY: help demo test lint evaluate bench kill-points lock clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

$(VENV)/run: packaging/requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Vedette needs Python 3.11 to 3.13; set PYTHON=") if not (3, 11) <= sys.version_info[:2] <= (3, 13) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --require-hashes -r packaging/requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/dev: $(VENV)/run packaging/requirements-dev.lock
	$(BIN)/pip install --quiet --require-hashes -r packaging/requirements-dev.lock
	@touch $@

lock: ## pin every dependency by hash (needs uv)
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --group build -o packaging/requirements.lock pyproject.toml
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --group build --group dev -o packaging/requirements-dev.lock pyproject.toml
