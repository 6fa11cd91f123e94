# `make help` lists the targets.
VENV ?= .venv
PYTHON ?= $(VENV)/bin/python
DEMO ?= demo
# One thread per process: two busy two-thread processes on two cores are several times slower than one thread each.
TEST_ENV = HF_HUB_OFFLINE=1 NO_ALBUMENTATIONS_UPDATE=1 WANDB_MODE=offline OMP_NUM_THREADS=1 MPLBACKEND=Agg
# One single-threaded process per core; a file stays in one process, so that its fixtures are made once.
PARALLEL ?= -n auto --maxprocesses 4 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all lint types format benchmark mutants clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# torch and torchvision are installed together and first, so that their builds match.
$(VENV)/.installed: pyproject.toml
	test -x $(VENV)/bin/python || python3 -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q torch torchvision
	$(VENV)/bin/python -m pip install -q -e '.[dev]'
	touch $@

ifeq ($(PYTHON),$(VENV)/bin/python)
INSTALLED = $(VENV)/.installed
endif

install: $(INSTALLED) ## Create the environment and install everything

demo: $(INSTALLED) ## Generate a small smear data set, train malaria_mttl on it, evaluate, predict, say where the report is
	PYTHON="$(PYTHON)" DEMO="$(DEMO)" bash scripts/demo.sh

test: $(INSTALLED) ## Run the tests (under 10 minutes on 2 cores)
	$(TEST_ENV) $(PYTHON) -m pytest $(PARALLEL)

test-all: $(INSTALLED) ## Run the tests including the slow ones
	$(TEST_ENV) $(PYTHON) -m pytest -m "slow or not slow" --timeout=3000 $(PARALLEL)

lint: $(INSTALLED) ## Check style
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

types: $(INSTALLED) ## Check types
	$(PYTHON) -m mypy

format: $(INSTALLED) ## Format and fix what can be fixed
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

benchmark: $(INSTALLED) ## Measure training step, data loading, memory and start-up
	$(PYTHON) scripts/benchmark.py

mutants: $(INSTALLED) ## Change single operators and constants of what decides numbers: do the tests notice? (about 10 minutes)
	$(TEST_ENV) $(PYTHON) scripts/mutants.py

clean: ## Remove what the tools leave behind (not runs, not the environment)
	rm -rf .pytest_cache .mypy_cache .ruff_cache build dist
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
