# Two commands do everything on a fresh machine: `make train` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# As many workers as cores and memory allow; each keeps to a stretch of the tests, whose
# neighbours share compiled programs.
PYTEST := $(BIN)/python -m pytest -n auto --dist worksteal

.PHONY: train test test-slow mutants check lint types changed docs

train: $(VENV)/.train
	$(BIN)/python scripts/train.py ppo --env CartPole-v1 --seeds 4

test: $(VENV)/.test
	$(PYTEST)

test-slow: $(VENV)/.test
	$(PYTEST) -m slow

mutants: $(VENV)/.test
	$(BIN)/python tests/mutants/run.py

check: $(VENV)/.test
	$(MAKE) --no-print-directory -j 2 lint types changed

types: $(VENV)/.test
	mkdir -p build/typing/rljax
	ln -sfn ../../../agents ../../../rljax/__init__.py build/typing/rljax
	$(BIN)/pyright --pythonpath $(BIN)/python

# The site, in build/site.
docs: $(VENV)/.docs
	$(BIN)/python docs/site/pages.py build/site-source
	$(BIN)/python -m sphinx -q -W --keep-going -c docs/site build/site-source build/site

changed: $(VENV)/.test
	$(BIN)/python tests/changed.py

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.train: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -e .
	touch $@

$(VENV)/.docs: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -e '.[docs]'
	touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -e '.[test,tensorboard]'
	touch $@ $(VENV)/.train
