# `make` lists the targets. Everything runs in .venv, which `make setup` creates.

PYTHON ?= python3
BIN := .venv/bin
PATHS := platform workloads tests $(wildcard benchmarks)

# For tests: no usage reports, one thread per process, no windows.
TEST_ENV := RAY_USAGE_STATS_ENABLED=0 OMP_NUM_THREADS=1 MPLBACKEND=Agg

.PHONY: help setup format check test demo results clean

help: ## List the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

setup: .venv/.installed ## Create .venv and install everything into it

.venv/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14))' 2>/dev/null || { \
	  echo "farreach needs Python 3.10 to 3.13 as $(PYTHON); name another: make setup PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "$(PYTHON) lacks the venv module; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "Installing farreach and its dependencies into .venv; the first time this takes some minutes."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

format: setup ## Format the code and mend what can be mended
	$(BIN)/ruff format $(PATHS)
	$(BIN)/ruff check --fix $(PATHS)

check: setup ## Check format, style, types and the direction of imports
	$(BIN)/ruff format --check $(PATHS)
	$(BIN)/ruff check $(PATHS)
	$(BIN)/mypy
	$(BIN)/lint-imports

test: check ## Check, then run all tests
	$(TEST_ENV) $(BIN)/pytest -q -n 2 --dist loadfile

demo: setup ## Train goal reaching in a maze from nothing
	$(BIN)/farreach train goals/walk_maze

results: setup ## Train every learning result of docs/results.md: many hours; may be interrupted
	$(BIN)/python benchmarks/long/results.py

clean: ## Remove caches and .venv; runs/ stays
	rm -rf .venv dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find $(PATHS) -name __pycache__ -type d -prune -exec rm -rf {} +
