# `make help` lists what there is. Everything runs in .venv, which is set up when it is first needed.
.DEFAULT_GOAL := help
PYTHON ?= python3
SEED ?= 1
JOBS ?= 2
REGISTRY ?= sqlite:///mlruns/mlflow.db
BIN := .venv/bin
READY := .venv/.ready
CLIENTS := $(patsubst tests/clients/%.txt,.venv-clients/%/.ready,$(wildcard tests/clients/*.txt))
BENCHMARKS := $(basename $(notdir $(wildcard benchmarks/[a-z]*.py)))

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(READY)

.PHONY: setup
setup: $(READY) ## set up .venv

.PHONY: demo
demo: $(READY) ## data, training, sweep, registry, server and clicks, in some minutes
	$(BIN)/python examples/demo.py

.PHONY: test
test: $(READY) ## run the tests, JOBS=2 files at a time
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile \
		|| $(BIN)/python -m tests.again --numprocesses $(JOBS) --dist loadfile

.PHONY: test-page
test-page: $(READY) ## click on the page in a real browser (needs Chromium: apt-get install chromium)
	$(BIN)/python -m pytest -m browser

.venv-clients/%/.ready: tests/clients/%.txt
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --requirement $<
	touch $@

.PHONY: test-clients
test-clients: $(READY) $(CLIENTS) ## let CVAT, Label Studio, X-AnyLabeling and Triton click: some minutes, 3 GB
	$(BIN)/python -m pytest -m clients

.PHONY: test-cluster
test-cluster: $(READY) ## submit a job to a real Ray cluster on this machine
	$(BIN)/python -m pytest -m cluster

.PHONY: test-chaos
test-chaos: $(READY) ## kill workers, lose a node, take the store away: some twenty minutes
	$(BIN)/python -m pytest -m chaos

.PHONY: test-services
test-services: $(READY) ## MLflow on PostgreSQL and S3, and a clean install (needs apt-get install postgresql)
	$(BIN)/python -m pytest -m services

.PHONY: test-order
test-order: $(READY) ## the tests in random order (SEED=1), with one thread
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --order $(SEED) --numprocesses $(JOBS) --dist loadfile

.PHONY: test-all
test-all: $(READY) ## all suites one after the other, and a table of how each went: two hours, 3 GB
	$(BIN)/python -m tests.all_suites

.PHONY: test-lowest
test-lowest: .venv-lowest/.ready ## the library's tests with the lowest versions that pyproject.toml allows
	.venv-lowest/bin/python -m pytest tests/mst

.venv-lowest/.ready: pyproject.toml
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --constraint constraints.txt uv
	$(@D)/bin/uv pip install --quiet --python $(@D)/bin/python --resolution lowest-direct --editable ".[dev]"
	touch $@

.PHONY: mutants
mutants: $(READY) ## change the library in 200 small ways and count what tests notice: hours
	$(BIN)/pip install --quiet --constraint constraints.txt cosmic-ray
	$(BIN)/python -m tests.mutants

.PHONY: lint
lint: $(READY) ## style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict mst
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: serve
serve: $(READY) ## serve the champion, or the model that ships, at http://127.0.0.1:8000
	$(BIN)/python -m serve

.PHONY: ui
ui: $(READY) ## show runs and models at http://127.0.0.1:5000
	mkdir -p mlruns
	$(BIN)/mlflow ui --host 127.0.0.1 --port 5000 --backend-store-uri $(REGISTRY)

.PHONY: bench
bench: $(addprefix bench-,$(BENCHMARKS)) ## run all benchmarks

.PHONY: bench-%
bench-%: $(READY) ## run one benchmark; its results are in out/bench/
	$(BIN)/python -m benchmarks.$*

.PHONY: clean
clean: ## remove .venv, .venv-clients, out/ and caches; keeps data/, runs/ and mlruns/
	rm -rf .venv .venv-clients .venv-lowest out .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

.PHONY: help
help: ## list the targets
	@grep -E '^[a-z%-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "%-14s %s\n", $$1, $$2 }'
	@echo "benchmarks: $(addprefix bench-,$(BENCHMARKS))"
