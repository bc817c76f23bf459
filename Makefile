# make quickstart: train, evaluate, predict and report on procedural scenes
# make tour:       draws the figures of docs/tour.md into runs/tour
# make results:    writes docs/results.md and its plots from the files in results/
# make test:       lint, check types and test
# make test-all:   test, with the slow tests and those that compare with PyTorch and the
#                  TPU compiler, which it installs into an environment of its own
# make docs:       writes docs/config.md from the table of fields, and docs/reference.md
# PYTHON=... picks the interpreter (3.11 or newer), WORKERS=... the number of test
# processes, RESOLUTION=lowest-direct the oldest versions that setup.py allows.

PYTHON ?= python3
WORKDIR ?= runs/quickstart
WORKERS ?= 2
RESOLUTION ?= highest
BIN := .venv/bin

.PHONY: quickstart tour results test test-all format docs clean

quickstart: .venv/installed
	$(BIN)/python -m experiments.quickstart --workdir $(WORKDIR)

tour: .venv/installed
	$(BIN)/python -m experiments.tour --output runs/tour

results: .venv/installed
	$(BIN)/python -m experiments.results

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy segjax
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-all: .venv-all/installed
	.venv-all/bin/python -m pytest -n $(WORKERS) --dist worksteal -m ""

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/installed
	$(BIN)/python -c 'from segjax import config_fields; print(config_fields.table(), end="")' > docs/config.md
	$(BIN)/python docs/reference.py > docs/reference.md

.venv/installed: EXTRAS := test
.venv-all/installed: EXTRAS := test,oracles
.venv/installed .venv-all/installed: setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "segjax needs Python 3.11 or newer; found: $$($(PYTHON) --version). Try: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(@D)
ifeq ($(RESOLUTION),highest)
	$(@D)/bin/pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'
else
	$(@D)/bin/pip install --quiet --disable-pip-version-check uv
	$(@D)/bin/uv pip install --quiet --python $(@D)/bin/python --resolution $(RESOLUTION) --editable '.[$(EXTRAS)]'
endif
	@touch $@

clean:
	rm -rf .venv .venv-all runs *.egg-info
