# `make demo` and `make test` need Python 3.11 or later, git and make; they set up everything else in .venv.

PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Compiled modules are kept: importing torch afresh costs every stage some ten seconds otherwise.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test test-slow environment lock clean

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: environment ## run the pipeline on the demo data set and print what came out
	dvc repro
	@echo
	@selfalign metrics

test: environment ## run the tests, but for the slow ones
	python -m pytest -q -m "not slow"

test-slow: environment ## run the slow tests: kill loops, fuzzing, many processes, many runs of DVC
	python -m pytest -q -m slow

environment: .venv/.ready ## install everything into .venv

.venv/.ready: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --requirements requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

lock: ## compile requirements.lock from pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --no-annotate --no-header --no-emit-index-url --extra test \
		pyproject.toml --output-file requirements.lock

clean: ## remove the environment; data and runs stay
	rm -rf .venv
