# make run         the service on 127.0.0.1:8080, with its own Valkey     (needs python3)
# make test        the tests                                         (installs what they need on Debian and Ubuntu)
# make test-slow   those that take long
# make clients     what other people have written, in several languages, behind cuts
# make check       lint, types, architecture
# make walk        the way of one token and of one Last-Event-ID through the package, told from a run
# make bench       what it costs and how fast it is, beside others; bench-quick takes three minutes instead of twenty
# make lock        pin the newest versions that pyproject.toml allows

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV_LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-header --no-annotate --extra server pyproject.toml

.DEFAULT_GOAL := help
.PHONY: help run install dev check walk programs test test-slow clients bench bench-quick bench-gateway lock clean

help:
	@sed -n '/^# /!q;s/^# //p' Makefile

run: install
	exec $(BIN)/replay serve $(ARGS)

install: $(VENV)/.installed
dev: $(VENV)/.dev

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml deploy/requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r deploy/requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.installed deploy/requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r deploy/requirements-dev.lock
	@touch $@

check: dev programs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	tests/acceptance/node_modules/.bin/tsc -p tests/acceptance
	$(BIN)/pytest tests/test_architecture.py

walk: dev
	$(BIN)/python -m tests.walk

# The real browser, proxies and JavaScript clients that the acceptance tests run against.
programs:
	sh tests/install-programs.sh

test: dev programs
	$(BIN)/pytest -n 2 --dist loadfile -m "not slow and not clients"

# Storms, long silences, restarts behind every proxy, the dashboard, other people's clients: what takes long; and the
# contract once more, on a service of several workers.
test-slow: dev programs
	$(BIN)/pytest -m slow
	$(BIN)/pytest -m "not slow" --workers 3 tests/acceptance/test_contract_generations*.py \
		tests/acceptance/test_contract_events.py tests/acceptance/test_contract_resuming.py \
		tests/acceptance/test_contract_idempotency.py tests/acceptance/test_v1_completions*.py

# Libraries for server-sent events of Python and npm, of Go, Rust and Java where their tools are, and the Codex CLI.
clients: dev programs
	$(PYTHON) -m venv tests/clients/python/.python
	tests/clients/python/.python/bin/python -m pip install --quiet --disable-pip-version-check \
		-r tests/clients/python/requirements.txt
	npm ci --prefix tests/clients/npm --no-audit --no-fund --loglevel=error
	$(BIN)/pytest -n 2 --dist loadgroup -m clients

bench: dev programs
	$(BIN)/python -m tests.benchmarks

bench-quick: dev programs
	$(BIN)/python -m tests.benchmarks --quick

bench-gateway: dev
	$(BIN)/python -m tests.benchmarks.gateway

lock: dev
	$(UV_LOCK) --upgrade --output-file deploy/requirements.lock
	$(UV_LOCK) --upgrade --extra dev --output-file deploy/requirements-dev.lock

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis tests/acceptance/node_modules \
		tests/acceptance/.litellm tests/acceptance/.proxies tests/benchmarks/peers/.python tests/benchmarks/peers/node_modules \
		tests/clients/python/.python tests/clients/npm/node_modules tests/clients/go/clients tests/clients/rust/target \
		tests/clients/java/target tests/clients/java/*/target
