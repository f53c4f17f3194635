# Everything that people and CI run. The environment is .venv, made from the lock (constraints.txt).
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help demo test check format

help:  ## this list
	@awk -F ':.*##' '/^[a-z.]+:.*##/ { printf "%-8s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.venv: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[convert,flows,sign,dev]'
	@touch $@

demo: .venv  ## the whole pipeline on real models and a Hub on this machine, into demo/
	@$(BIN)/hft2ane demo

test: .venv  ## all tests, the demo among them
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: .venv  ## format, lint, types, workflows
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict hft2ane flows
	$(BIN)/zizmor --offline --quiet .github/workflows

format: .venv  ## rewrite the files as `check` wants them
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
