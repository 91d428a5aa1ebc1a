# Everything from a machine that has only Python >= 3.11: `make quickstart`, `make test`. `make help` lists the rest.
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,$(if $(shell $(p) -c \
	'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo yes),$(p))))
VENV ?= .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
ARGS ?=
TEST_WORKERS ?= 2
PYTEST_ARGS ?=

# Bytecode is kept, also where a container's environment says otherwise: a process that imports torch and lightning
# takes 13 s without it, 5 s with it, and tests start many. An empty value is none to Python.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help install quickstart test soak check format links docs clean

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 12

quickstart: install  ## train, evaluate and save the main recipe: ARGS="data.root=/path/LibriSpeech" adds overrides
	$(PY) -m speechkit.train recipe=librispeech_conformer $(ARGS)

test: install  ## all tests, two files at a time (TEST_WORKERS=0: one): PYTEST_ARGS="-k mel -x" adds options
	$(PY) -m pytest -n $(TEST_WORKERS) --dist loadfile $(PYTEST_ARGS)

soak: install  ## tests of the server that take many minutes
	$(PY) -m pytest -m soak tests/server $(PYTEST_ARGS)

check: install links  ## what CI runs: formatting, lint, types, tests
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(PY) -m pytest $(PYTEST_ARGS)

format: install  ## rewrite the files as `make check` wants them
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

docs: install links  ## the documentation as HTML in site/
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

links:  ## speechkit/{codecs,streaming,conf}, which type checkers and editors need in a checkout
	@for name in codecs streaming conf; do ln -sfn ../$$name speechkit/$$name; done

install: $(STAMP)  ## .venv with speechkit (editable) and all that users and developers need

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "speechkit needs Python 3.11 or newer: name it, as in 'make $(MAKECMDGOALS) PYTHON=/path/to/python3.11'"; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "speechkit needs Python 3.11 or newer, but $(PYTHON) is `"$(PYTHON)" -V 2>&1`"; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv $(VENV)
	@echo "installing speechkit and all it needs into $(VENV): some minutes, some gigabytes"
	@$(PY) -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt --editable '.[all,dev,peers]'
	@touch $@

clean:  ## what builds and checks left (environment and runs stay)
	rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache
	rm -f speechkit/codecs speechkit/streaming speechkit/conf
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
