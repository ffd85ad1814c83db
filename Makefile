# Everything starts from a machine with Python 3.11, pip, make and git.
# On Linux the default torch brings CUDA along; where an index of CPU builds is at hand, name it in PIP_EXTRA_INDEX_URL.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
RUN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
OLDEST := .venv-oldest

.PHONY: help demo test test-all test-oldest lint clean
.DEFAULT_GOAL := help

help: ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | expand -t 12

demo: $(INSTALLED) ## a real model, a real pool, a selection: 5 to 10 minutes on two cores after the downloads
	@$(RUN)/python -m demo

test: export OMP_NUM_THREADS := 1
test: export TOKENIZERS_PARALLELISM := false
test: lint ## lint and all tests but the slow ones
	$(RUN)/python -m pytest -n 2 -m "not slow"
	$(RUN)/python -m pytest -n 2 -m "not slow" tests/second_device

test-all: export OMP_NUM_THREADS := 1
test-all: export TOKENIZERS_PARALLELISM := false
test-all: lint ## lint and all tests
	$(RUN)/python -m pytest -n 2 -m ""
	$(RUN)/python -m pytest -n 2 -m "" tests/second_device

# of torch that is the build for CUDA: some 3 GB
test-oldest: export OMP_NUM_THREADS := 1
test-oldest: export TOKENIZERS_PARALLELISM := false
test-oldest: $(OLDEST)/.installed ## all tests but the slow ones, with the oldest versions that pyproject.toml allows
	$(OLDEST)/bin/python -m pytest -n 2 -m "not slow"

lint: $(INSTALLED) ## ruff and mypy
	$(RUN)/ruff check .
	$(RUN)/mypy src demo experiments benchmarks

clean: ## remove the environment, caches and the demo's run (downloads are kept, see demo/README.md)
	rm -rf $(VENV) $(OLDEST) .pytest_cache .mypy_cache .ruff_cache .hypothesis runs/demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch first: what is installed after it then takes this build instead of choosing its own
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet -c constraints.txt torch
	$(RUN)/python -m pip install --quiet -c constraints.txt -e ".[dev,gguf]"
	@touch $@

$(OLDEST)/.installed: pyproject.toml
	$(PYTHON) -m venv $(OLDEST)
	grep -oE '"[A-Za-z-]+>=[0-9.]+"' pyproject.toml | tr -d '"' | sed 's/>=/==/' | grep -v lm-eval > $(OLDEST)/oldest.txt
	$(OLDEST)/bin/python -m pip install --quiet -r $(OLDEST)/oldest.txt
	$(OLDEST)/bin/python -m pip install --quiet --no-deps -e .
	@touch $@
