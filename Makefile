# Everything a person or CI does with this project. `make help` lists it.

PYTHON ?= python3
VENV ?= .venv
# The reference's data, where it lies beside the checkout; the suite has a table of its own besides.
CONFORMANCE := $(wildcard ../shared/conformance)

# What these tests start has orjson all the same.
NOT_IN_PROCESS := --ignore-glob='*/test_cli_*' --ignore=tests/test_runner_command.py

RUN := $(VENV)/bin
PYTEST := RRQ_FASTWIRE_PURE=0 $(RUN)/python -m pytest
READY := $(VENV)/ready

.PHONY: help demo test lint typecheck e2e bench bench-check bench-instructions pictures clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(READY): pyproject.toml setup.py $(wildcard rrq_fastwire/_c/*.p*)
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --upgrade pip
	RRQ_FASTWIRE_PURE=0 $(RUN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: $(READY)  ## run 20,000 jobs in rrq's own runner and in this one, side by side
	$(RUN)/python -m rrq_fastwire demo

test: test-checkout test-json test-wheel  ## run the suite: both twins, with the standard library's json, the built wheel

.PHONY: test-checkout test-json test-wheel
test-checkout: $(READY)
	$(PYTEST) $(if $(CONFORMANCE),--conformance=$(CONFORMANCE))

test-json: $(READY)
	$(PYTEST) tests --no-orjson $(NOT_IN_PROCESS)

test-wheel: $(READY)
	rm -rf build/wheel && mkdir -p build/wheel
	RRQ_FASTWIRE_PURE=0 $(RUN)/python -m pip wheel --quiet --no-deps --wheel-dir build/wheel .
	$(PYTHON) -m venv --clear build/wheel/venv
	build/wheel/venv/bin/python -m pip install --quiet "$$(echo build/wheel/*.whl)[cli,test]"
	cp -r tests pyproject.toml README.md build/wheel
	cd build/wheel && venv/bin/python -m pytest

lint: $(READY)  ## check style and formatting
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .

typecheck: $(READY)  ## mypy and pyright, both strict
	$(RUN)/mypy
	$(RUN)/mypy tests/typing_examples.py
	$(RUN)/pyright

e2e: $(READY)  ## run real jobs: Redis, the published orchestrators, every runner; kill them, lose nothing
	$(PYTEST) tests/e2e

bench: $(READY)  ## time everything in benchmarks/, and write benchmarks/results/
	mkdir -p build
	$(PYTEST) benchmarks --benchmark-only --benchmark-json=build/benchmark.json
	-$(RUN)/python -m benchmarks.check --json build/check.json
	-$(RUN)/python -m benchmarks.runner --json build/runner.json
	$(RUN)/python -m benchmarks.orchestrator --json build/orchestrator.json
	$(RUN)/python -m benchmarks.report build/benchmark.json build/check.json build/runner.json build/orchestrator.json

bench-check: $(READY)  ## compare speed with what it is to be; exits with 1 if a row falls short
	$(RUN)/python -m benchmarks.check; codec=$$?; $(RUN)/python -m benchmarks.runner && exit $$codec

bench-instructions: $(READY)  ## count instructions with valgrind, and compare with those kept
	$(RUN)/python -m benchmarks.instructions

pictures: $(READY)  ## run the commands that the README shows, and draw what they write
	$(RUN)/python -m benchmarks.pictures

clean:  ## remove what the other targets made
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks *.egg-info
	find rrq_fastwire tests benchmarks -name '*.so' -delete -o -name '__pycache__' -prune -exec rm -rf {} +
